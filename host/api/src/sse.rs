//! Records as server-sent events (HTML standard, 9.2): JSON data, a comment as a sign of life when nothing happens.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Serialize;

use crate::limits::KEEP_ALIVE;
use crate::problem::Problem;
use crate::service::RecordStream;
use crate::state::Api;

/// Streams records until they or the server end; `id` numbers them where they can be resumed from.
pub(crate) fn stream<T: Serialize + Send + 'static>(
    api: &Api,
    records: RecordStream<T>,
    id: fn(&T) -> Option<u64>,
) -> Result<Response, Problem> {
    let place = api.stream()?;
    let events = records.map(move |record| {
        let _place = &place;
        let data = serde_json::to_string(&record).unwrap_or_default();
        let event = Event::default().data(data);
        Ok::<_, Infallible>(match id(&record) {
            Some(id) => event.id(id.to_string()),
            None => event,
        })
    });
    let api = api.clone();
    let events = events.take_until(async move { api.stopped().await });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}
