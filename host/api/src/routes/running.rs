//! Machines while they run: paused, reset, looked at, given more or less.

use axum::extract::State;
use dwcp_control::Name;
use dwcp_control::records::{DiskResize, MemoryTarget, Operation, Vm, VmStats};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Reply, accepted};
use crate::etag;
use crate::extract::{Caller, Json, Path};
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(pause_vm))
        .routes(routes!(resume_vm))
        .routes(routes!(reset_vm))
        .routes(routes!(get_vm_stats))
        .routes(routes!(set_vm_memory))
        .routes(routes!(resize_vm_disk))
}

/// Pause a machine: it stands still, and keeps its memory, until it is resumed.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{name}/pause", operation_id = "pauseVm", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine")),
    responses((status = 202, description = "It is being paused", body = Operation,
        headers(("Location" = String, description = "The operation's path")))))]
async fn pause_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
) -> Reply {
    Ok(accepted(api.service.vm_pause(&who, &project, &name).await?))
}

/// Let a paused machine go on.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{name}/resume", operation_id = "resumeVm", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine")),
    responses((status = 202, description = "It goes on", body = Operation,
        headers(("Location" = String, description = "The operation's path")))))]
async fn resume_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
) -> Reply {
    Ok(accepted(
        api.service.vm_resume(&who, &project, &name).await?,
    ))
}

/// Reset a machine, as a reset button does: what it has not written to its disks is lost, and it boots.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{name}/reset", operation_id = "resetVm", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine")),
    responses((status = 202, description = "It starts anew", body = Operation,
        headers(("Location" = String, description = "The operation's path")))))]
async fn reset_vm(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
) -> Reply {
    Ok(accepted(api.service.vm_reset(&who, &project, &name).await?))
}

/// Show what a running machine has done since its process was started.
#[utoipa::path(get, path = "/v1/projects/{project}/vms/{name}/stats", operation_id = "getVmStats", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine")),
    responses((status = 200, description = "Counters", body = VmStats)))]
async fn get_vm_stats(
    State(api): State<Api>,
    Path((project, name)): Path<(Name, Name)>,
) -> Reply<axum::Json<VmStats>> {
    Ok(axum::Json(api.service.vm_stats(&project, &name).await?))
}

/// Ask a machine's guest to make do with less memory, or give it back.
///
/// By the balloon: a guest without its driver gives up nothing, and one that cannot gives up less. The statistics say
/// how far it is. It is asked again whenever it starts.
#[utoipa::path(put, path = "/v1/projects/{project}/vms/{name}/memory", operation_id = "setVmMemory", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine")),
    request_body = MemoryTarget,
    responses((status = 200, description = "It is asked", body = Vm, headers(("ETag" = String, description = "Its revision")))))]
async fn set_vm_memory(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name)): Path<(Name, Name)>,
    Json(target): Json<MemoryTarget>,
) -> Reply {
    let vm = api.service.vm_memory(&who, &project, &name, target).await?;
    Ok(etag::tagged(axum::http::StatusCode::OK, vm))
}

/// Make a machine's disk longer, whether it runs or not.
///
/// The guest is told. Its partitions and file systems are its own business.
#[utoipa::path(put, path = "/v1/projects/{project}/vms/{name}/disks/{disk}", operation_id = "resizeVmDisk", tag = "vms",
    params(("project" = Name, Path, description = "The project"), ("name" = Name, Path, description = "The machine"),
        ("disk" = String, Path, description = "The disk")),
    request_body = DiskResize,
    responses((status = 200, description = "It is longer", body = Vm, headers(("ETag" = String, description = "Its revision")))))]
async fn resize_vm_disk(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, name, disk)): Path<(Name, Name, String)>,
    Json(resize): Json<DiskResize>,
) -> Reply {
    let vm = api
        .service
        .vm_disk_resize(&who, &project, &name, &disk, resize)
        .await?;
    Ok(etag::tagged(axum::http::StatusCode::OK, vm))
}
