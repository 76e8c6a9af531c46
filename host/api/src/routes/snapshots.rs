//! Snapshots: what is kept of a machine at one moment, to go back to.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use dwcp_control::Name;
use dwcp_control::records::{Operation, RestoreRequest, Snapshot, SnapshotCreate};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Reply, accepted};
use crate::etag;
use crate::extract::{Caller, Json, Path};
use crate::paging::{PageParams, Paging};
use crate::service::Page;
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_snapshots, create_snapshot))
        .routes(routes!(get_snapshot, delete_snapshot))
        .routes(routes!(restore_vm))
}

/// List the snapshots of a project.
#[utoipa::path(get, path = "/v1/projects/{project}/snapshots", operation_id = "listSnapshots", tag = "snapshots",
    params(("project" = Name, Path, description = "The project"), PageParams),
    responses((status = 200, description = "A part of the list", body = Page<Snapshot>)))]
async fn list_snapshots(
    State(api): State<Api>,
    Path(project): Path<Name>,
    paging: Paging,
) -> Reply<axum::Json<Page<Snapshot>>> {
    let page = api
        .service
        .snapshot_list(&project, paging.request.clone())
        .await?;
    Ok(axum::Json(paging.seal(page)))
}

/// Take a snapshot of a running machine.
///
/// The machine stands still while its memory and its disks are written, and goes on afterwards. The snapshot exists
/// when the operation is done.
#[utoipa::path(post, path = "/v1/projects/{project}/snapshots", operation_id = "createSnapshot", tag = "snapshots",
    params(("project" = Name, Path, description = "The project")),
    request_body = SnapshotCreate,
    responses((status = 202, description = "It is being taken", body = Operation,
        headers(("Location" = String, description = "The operation's path")))))]
async fn create_snapshot(
    State(api): State<Api>,
    Caller(who): Caller,
    Path(project): Path<Name>,
    Json(request): Json<SnapshotCreate>,
) -> Reply {
    let operation = api.service.snapshot_create(&who, &project, request).await?;
    Ok(accepted(operation))
}

/// Show a snapshot.
#[utoipa::path(get, path = "/v1/projects/{project}/snapshots/{name}", operation_id = "getSnapshot", tag = "snapshots",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The snapshot")),
    responses((status = 200, description = "The snapshot", body = Snapshot, headers(("ETag" = String, description = "Its revision")))))]
async fn get_snapshot(
    State(api): State<Api>,
    Path((project, name)): Path<(Name, Name)>,
    headers: HeaderMap,
) -> Reply {
    let snapshot = api.service.snapshot_get(&project, &name).await?;
    Ok(etag::read(&headers, snapshot))
}

/// Delete a snapshot.
///
/// It must not be what a machine's disks, or another snapshot's, stand on.
#[utoipa::path(delete, path = "/v1/projects/{project}/snapshots/{name}", operation_id = "deleteSnapshot", tag = "snapshots",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The snapshot")),
    responses((status = 204, description = "It is gone")))]
async fn delete_snapshot(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
) -> Reply<StatusCode> {
    api.service.snapshot_delete(&who, &project, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Let a machine go on from a snapshot of it.
///
/// It must not run. Its memory and its disks are as they were when the snapshot was taken: what its disks held until
/// now is gone. If it cannot go on from there, it stays as it is.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{name}/restore", operation_id = "restoreVm", tag = "snapshots",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine")),
    request_body = RestoreRequest,
    responses((status = 202, description = "It is being restored", body = Operation,
        headers(("Location" = String, description = "The operation's path")))))]
async fn restore_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
    Json(request): Json<RestoreRequest>,
) -> Reply {
    let operation = api
        .service
        .vm_restore(&who, &project, &name, request)
        .await?;
    Ok(accepted(operation))
}
