//! Events, as a list and as a stream that goes on where it broke.

use reqwest::Method;
use reqwest::header::HeaderName;
use tokio::time::Instant;

use super::operations::WAIT_UNREACHABLE_MAX;
use crate::error::Result;
use crate::sse::Records;
use crate::transport::{Client, back_off, may_pass};
use crate::types::{Event, Page};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

impl Client {
    /// Up to `limit` (1 to 1,000) events after a sequence number, oldest first.
    pub async fn event_list(&self, after: u64, limit: usize) -> Result<Vec<Event>> {
        let (after, limit) = (after.to_string(), limit.to_string());
        let query = [("after", after.as_str()), ("limit", limit.as_str())];
        let page: Page<Event> = self.get(&["v1", "events"], &query).await?;
        Ok(page.items)
    }

    /// Events after a sequence number as they happen.
    pub fn event_follow(&self, after: u64) -> EventFollow {
        EventFollow {
            client: self.clone(),
            after,
            open: None,
        }
    }
}

/// Events as they happen; a broken connection is taken up again, without loss or repetition.
#[derive(Debug)]
pub struct EventFollow {
    client: Client,
    after: u64,
    open: Option<Records>,
}

impl EventFollow {
    /// The next event. Fails when the host is out of reach for longer than [`WAIT_UNREACHABLE_MAX`].
    pub async fn next(&mut self) -> Result<Event> {
        let began = Instant::now();
        let mut failures = 0;
        loop {
            let error = match self.step().await {
                Ok(Some(event)) => {
                    self.after = event.sequence;
                    return Ok(event);
                }
                Ok(None) => None,
                Err(error) => Some(error),
            };
            self.open = None;
            if let Some(error) = error {
                failures += 1;
                if !may_pass(&error) || (failures > 1 && began.elapsed() > WAIT_UNREACHABLE_MAX) {
                    return Err(error);
                }
            }
            tokio::time::sleep(back_off(failures)).await;
        }
    }

    async fn step(&mut self) -> Result<Option<Event>> {
        let records = match &mut self.open {
            Some(records) => records,
            None => {
                let after = self.after.to_string();
                let query = [("follow", "true"), ("after", after.as_str())];
                let call = self.client.call(Method::GET, &["v1", "events"], &query);
                let call = call.header(LAST_EVENT_ID, &after);
                let response = self.client.open(&call, None).await?;
                self.open
                    .insert(Records::new(self.client.clone(), response))
            }
        };
        records.next().await
    }
}
