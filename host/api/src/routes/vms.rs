//! Virtual machines: their life from create to delete.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dwcp_control::Name;
use dwcp_control::records::{MigrateRequest, Operation, Vm, VmCreate};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Reply, accepted};
use crate::etag;
use crate::extract::{Caller, Json, Path, Query};
use crate::paging::{PageParams, Paging};
use crate::service::{Page, Versioned};
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_vms, create_vm))
        .routes(routes!(get_vm, delete_vm))
        .routes(routes!(start_vm))
        .routes(routes!(stop_vm))
        .routes(routes!(migrate_vm))
        .routes(routes!(get_vm_log))
}

/// A machine that was created, and the operation that starts it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmCreated {
    /// The machine.
    pub vm: Vm,
    /// What goes on: its start, if it was wanted.
    pub operation: Operation,
}

/// Whether to insist.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Force {
    /// At once, without asking the guest.
    #[serde(default)]
    force: bool,
}

/// How a log is read.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct LogParams {
    /// Go on as more is printed, until the machine stops or the client leaves.
    #[serde(default)]
    follow: bool,
}

/// List the machines of a project.
#[utoipa::path(get, path = "/v1/projects/{project}/vms", operation_id = "listVms", tag = "vms",
    params(("project" = Name, Path, description = "The project"), PageParams),
    responses((status = 200, description = "A part of the list", body = Page<Vm>)))]
async fn list_vms(
    State(api): State<Api>,
    Path(project): Path<Name>,
    paging: Paging,
) -> Reply<axum::Json<Page<Vm>>> {
    let page = api
        .service
        .vm_list(&project, paging.request.clone())
        .await?;
    Ok(axum::Json(paging.seal(page)))
}

/// Create a machine, from a template or from a kernel.
///
/// The template is expanded, policies are asked, a host is chosen and capacity reserved before this is answered; the
/// start goes on as an operation.
#[utoipa::path(post, path = "/v1/projects/{project}/vms", operation_id = "createVm", tag = "vms",
    params(("project" = Name, Path, description = "The project")),
    request_body = VmCreate,
    responses((status = 201, description = "It exists", body = VmCreated,
        headers(("ETag" = String, description = "Its revision"), ("Location" = String, description = "Its path")))))]
async fn create_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path(project): Path<Name>,
    Json(request): Json<VmCreate>,
) -> Reply {
    let (vm, operation) = api.service.vm_create(&who, &project, request).await?;
    let at = format!("/v1/projects/{project}/vms/{}", vm.value.name);
    let created = Versioned {
        revision: vm.revision,
        value: VmCreated {
            vm: vm.value,
            operation,
        },
    };
    Ok(etag::located(
        etag::tagged(StatusCode::CREATED, created),
        &at,
    ))
}

/// Show a machine.
#[utoipa::path(get, path = "/v1/projects/{project}/vms/{name}", operation_id = "getVm", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine")),
    responses((status = 200, description = "The machine", body = Vm, headers(("ETag" = String, description = "Its revision")))))]
async fn get_vm(
    State(api): State<Api>,
    Path((project, name)): Path<(Name, Name)>,
    headers: HeaderMap,
) -> Reply {
    let vm = api.service.vm_get(&project, &name).await?;
    Ok(etag::read(&headers, vm))
}

/// Delete a machine.
///
/// It must not run, unless `force`. `If-Match` refuses if it changed since it was read.
#[utoipa::path(delete, path = "/v1/projects/{project}/vms/{name}", operation_id = "deleteVm", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine"), Force,
        ("If-Match" = Option<String>, Header, description = "The ETag under which it was read")),
    responses((status = 204, description = "It is gone")))]
async fn delete_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
    Query(Force { force }): Query<Force>,
    headers: HeaderMap,
) -> Reply<StatusCode> {
    let revision = etag::if_match(&headers)?;
    api.service
        .vm_delete(&who, &project, &name, force, revision)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Start a machine.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{name}/start", operation_id = "startVm", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine")),
    responses((status = 202, description = "It starts", body = Operation,
        headers(("Location" = String, description = "The operation's path")))))]
async fn start_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
) -> Reply {
    Ok(accepted(api.service.vm_start(&who, &project, &name).await?))
}

/// Stop a machine: by its power button, or at once if `force`.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{name}/stop", operation_id = "stopVm", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine"), Force),
    responses((status = 202, description = "It stops", body = Operation,
        headers(("Location" = String, description = "The operation's path")))))]
async fn stop_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
    Query(Force { force }): Query<Force>,
) -> Reply {
    let operation = api.service.vm_stop(&who, &project, &name, force).await?;
    Ok(accepted(operation))
}

/// Move a machine to another host while it runs.
///
/// The operation carries the migration: rounds, bytes, dirty rate, the forecast of its end, and the pause.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{name}/migrate", operation_id = "migrateVm", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine")),
    request_body = MigrateRequest,
    responses((status = 202, description = "It is on its way", body = Operation,
        headers(("Location" = String, description = "The operation's path")))))]
async fn migrate_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
    Json(request): Json<MigrateRequest>,
) -> Reply {
    let operation = api
        .service
        .vm_migrate(&who, &project, &name, request)
        .await?;
    Ok(accepted(operation))
}

/// Read what a machine printed on its serial line.
///
/// The last part is kept. With `follow` the answer goes on as the machine prints.
#[utoipa::path(get, path = "/v1/projects/{project}/vms/{name}/log", operation_id = "getVmLog", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine"), LogParams),
    responses((status = 200, description = "The bytes as they came", body = Vec<u8>, content_type = "application/octet-stream")))]
async fn get_vm_log(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
    Query(LogParams { follow }): Query<LogParams>,
) -> Reply {
    if !follow {
        let log = api.service.vm_log(&who, &project, &name).await?;
        return Ok(bytes(Body::from_stream(log)));
    }
    let place = api.stream()?;
    let console = api.service.vm_console(&who, &project, &name).await?;
    // The sender is kept so that the console stays attached; nothing is ever sent.
    let kept = (place, console.input);
    let output = console.output.map(move |piece| {
        let _kept = &kept;
        piece
    });
    let output = output.take_until(async move { api.stopped().await });
    Ok(bytes(Body::from_stream(output)))
}

fn bytes(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}
