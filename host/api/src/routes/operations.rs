//! Operations: work that goes on after its request was answered.

use axum::extract::State;
use dwcp_control::records::Operation;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Reply, identity};
use crate::extract::Path;
use crate::sse;
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(get_operation))
        .routes(routes!(watch_operation))
}

/// Show an operation.
#[utoipa::path(get, path = "/v1/operations/{id}", operation_id = "getOperation", tag = "operations",
    params(("id" = String, Path, description = "The operation")),
    responses((status = 200, description = "The operation", body = Operation)))]
async fn get_operation(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Reply<axum::Json<Operation>> {
    Ok(axum::Json(api.service.operation_get(identity(&id)?).await?))
}

/// Watch an operation until it ends.
///
/// Server-sent events; each one's data is the operation as it then is, the present state first.
#[utoipa::path(get, path = "/v1/operations/{id}/events", operation_id = "watchOperation", tag = "operations",
    params(("id" = String, Path, description = "The operation")),
    responses((status = 200, description = "Its states as they change", body = Operation, content_type = "text/event-stream")))]
async fn watch_operation(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let states = api.service.operation_watch(identity(&id)?).await?;
    sse::stream(&api, states, |_| None)
}
