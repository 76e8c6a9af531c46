//! Events: what happened, as a list or as a stream that resumes where it broke.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use dwcp_control::records::Event;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Reply;
use crate::extract::Query;
use crate::paging;
use crate::problem::Problem;
use crate::service::Page;
use crate::sse;
use crate::state::Api;

/// The list, for its cursors.
const LIST: &str = "/v1/events";

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list_events))
}

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct EventParams {
    /// Only those after this sequence number.
    #[serde(default)]
    after: u64,
    /// The `next_cursor` of the part before, instead of `after`.
    #[param(max_length = 1024)]
    cursor: Option<String>,
    /// Stream them as they happen, as server-sent events.
    #[serde(default)]
    follow: bool,
    /// Most events in a list.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// List events, oldest first, or follow them.
///
/// With `follow` the answer is `text/event-stream`: each event's `id` is its sequence number and its data the event.
/// A client that comes back with `Last-Event-ID` goes on after it.
#[utoipa::path(get, path = "/v1/events", operation_id = "listEvents", tag = "events",
    params(EventParams, ("Last-Event-ID" = Option<u64>, Header, description = "The last event that was seen, when following")),
    responses((status = 200, description = "Events",
        content((Page<Event> = "application/json"), (Event = "text/event-stream")))))]
async fn list_events(
    State(api): State<Api>,
    Query(params): Query<EventParams>,
    headers: HeaderMap,
) -> Reply {
    let limit = paging::limit(params.limit)?;
    let after = match &params.cursor {
        Some(cursor) => sequence(cursor)?,
        None => params.after,
    };
    if !params.follow {
        let mut page = api.service.event_list(after, limit).await?;
        page.next_cursor = page.next_cursor.map(|cursor| paging::seal(LIST, &cursor));
        return Ok(axum::Json(page).into_response());
    }
    let after = last_event(&headers)?.unwrap_or(after);
    let events = api.service.event_watch(after).await?;
    sse::stream(&api, events, |event| Some(event.sequence))
}

/// The sequence number that a cursor stands for.
fn sequence(cursor: &str) -> Reply<u64> {
    let number = paging::open(LIST, cursor)?;
    number
        .parse()
        .map_err(|_| Problem::invalid("The cursor is not one of this list; begin without one"))
}

fn last_event(headers: &HeaderMap) -> Reply<Option<u64>> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number
        .map(Some)
        .ok_or_else(|| Problem::invalid("Last-Event-ID is an event's sequence number"))
}
