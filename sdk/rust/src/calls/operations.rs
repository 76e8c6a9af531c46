//! Operations, and waiting for them.

use std::time::Duration;

use reqwest::Method;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::sse::Records;
use crate::transport::{Client, back_off, may_pass};
use crate::types::{Operation, OperationState};

/// How long a host may be out of reach before waiting for its operation is given up.
pub const WAIT_UNREACHABLE_MAX: Duration = Duration::from_secs(60);
/// Time between two looks where no stream is to be had.
const POLL: Duration = Duration::from_millis(500);

impl Client {
    /// One operation.
    pub async fn operation_get(&self, id: &str) -> Result<Operation> {
        self.get(&["v1", "operations", id], &[]).await
    }

    /// Waits for an operation to end; a failed one is an error.
    pub async fn operation_wait(&self, id: &str) -> Result<Operation> {
        self.operation_watch(id, |_| {}).await
    }

    /// The same; `seen` is called with each state as it comes.
    ///
    /// The host's stream is followed, and taken up again if it breaks; where there is none the operation is looked at
    /// every half second. A host that is out of reach for longer than [`WAIT_UNREACHABLE_MAX`] ends the wait.
    pub async fn operation_watch(
        &self,
        id: &str,
        mut seen: impl FnMut(&Operation) + Send,
    ) -> Result<Operation> {
        let mut heard = Instant::now();
        let mut failures = 0;
        loop {
            let mut last = None;
            let outcome = self
                .follow(id, &mut |operation| {
                    seen(operation);
                    last = Some(Instant::now());
                })
                .await;
            if let Some(last) = last {
                (heard, failures) = (last, 0);
            }
            match outcome {
                Ok(Some(operation)) => return ended(operation),
                // The stream ended before the operation: the host goes down, or limits streams.
                Ok(None) => {}
                Err(error) if !may_pass(&error) => return Err(error),
                Err(_) => {}
            }
            match self.operation_get(id).await {
                Ok(operation) => {
                    (heard, failures) = (Instant::now(), 0);
                    seen(&operation);
                    if operation.state != OperationState::Running {
                        return ended(operation);
                    }
                    tokio::time::sleep(POLL).await;
                }
                Err(error) if !may_pass(&error) => return Err(error),
                Err(error) if heard.elapsed() > WAIT_UNREACHABLE_MAX => return Err(error),
                Err(_) => {
                    failures += 1;
                    tokio::time::sleep(back_off(failures)).await;
                }
            }
        }
    }

    /// Follows the stream once: the operation if it ended, `None` if the stream did first.
    async fn follow(
        &self,
        id: &str,
        seen: &mut (dyn FnMut(&Operation) + Send),
    ) -> Result<Option<Operation>> {
        let call = self.call(Method::GET, &["v1", "operations", id, "events"], &[]);
        let response = self.open(&call, None).await?;
        let mut records = Records::new(self.clone(), response);
        while let Some(operation) = records.next::<Operation>().await? {
            seen(&operation);
            if operation.state != OperationState::Running {
                return Ok(Some(operation));
            }
        }
        Ok(None)
    }
}

fn ended(operation: Operation) -> Result<Operation> {
    if operation.state == OperationState::Failed {
        Err(Error::OperationFailed(Box::new(operation)))
    } else {
        Ok(operation)
    }
}
