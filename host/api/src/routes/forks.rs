//! Forks of a template.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use dwcp_control::Name;
use dwcp_control::records::{ForkRequest, Operation, Vm};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Reply;
use crate::etag;
use crate::extract::{Caller, Json, Path};
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(fork_vm))
}

/// Forks that were made, and the operation that starts them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmForked {
    /// The forks.
    pub vms: Vec<Vm>,
    /// What goes on: their start.
    pub operation: Operation,
}

/// Make forks of a template: machines that go on from where it stands still.
///
/// Each has memory and disks of its own, which share with the template what it has not written, and an address of its
/// own. With `seal` a machine that runs or is paused becomes a template by this: it never runs again. All forks exist
/// when this is answered, or none; their start goes on as an operation.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{name}/fork", operation_id = "forkVm", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The template")),
    request_body = ForkRequest,
    responses((status = 202, description = "They exist, and start", body = VmForked,
        headers(("Location" = String, description = "The operation's path")))))]
async fn fork_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
    Json(request): Json<ForkRequest>,
) -> Reply {
    let (vms, operation) = api.service.vm_fork(&who, &project, &name, request).await?;
    let at = format!("/v1/operations/{}", operation.id);
    let forked = axum::Json(VmForked { vms, operation });
    let response = (StatusCode::ACCEPTED, forked).into_response();
    Ok(etag::located(response, &at))
}
