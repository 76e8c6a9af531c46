//! This host and the ones it was introduced to.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use dwcp_control::Name;
use dwcp_control::records::{Host, HostAdd};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Reply;
use crate::etag;
use crate::extract::{Caller, Json, Path};
use crate::paging::{PageParams, Paging};
use crate::service::Page;
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(get_this_host))
        .routes(routes!(list_hosts, add_host))
        .routes(routes!(get_host, remove_host))
}

/// Show this host.
#[utoipa::path(get, path = "/v1/host", operation_id = "getThisHost", tag = "hosts",
    responses((status = 200, description = "This host", body = Host)))]
async fn get_this_host(State(api): State<Api>) -> Reply<axum::Json<Host>> {
    Ok(axum::Json(api.service.host_this().await?))
}

/// List this host and those it was introduced to.
#[utoipa::path(get, path = "/v1/hosts", operation_id = "listHosts", tag = "hosts",
    params(PageParams),
    responses((status = 200, description = "A part of the list", body = Page<Host>)))]
async fn list_hosts(State(api): State<Api>, paging: Paging) -> Reply<axum::Json<Page<Host>>> {
    let page = api.service.host_list(paging.request.clone()).await?;
    Ok(axum::Json(paging.seal(page)))
}

/// Introduce another host.
///
/// It need not be there yet: it is asked once, and the answer says whether it was reached and showed the certificate of
/// this fingerprint (`reachable`), and if not, why (`problem`). A host answers only those that it was introduced to.
#[utoipa::path(post, path = "/v1/hosts", operation_id = "addHost", tag = "hosts",
    request_body = HostAdd,
    responses((status = 201, description = "It is known", body = Host,
        headers(("ETag" = String, description = "Its revision"), ("Location" = String, description = "Its path")))))]
async fn add_host(State(api): State<Api>, Caller(who): Caller, Json(host): Json<HostAdd>) -> Reply {
    let host = api.service.host_add(&who, host).await?;
    let at = format!("/v1/hosts/{}", host.value.name);
    Ok(etag::located(etag::tagged(StatusCode::CREATED, host), &at))
}

/// Show a host.
#[utoipa::path(get, path = "/v1/hosts/{name}", operation_id = "getHost", tag = "hosts",
    params(("name" = Name, Path, description = "Its name here")),
    responses((status = 200, description = "The host", body = Host, headers(("ETag" = String, description = "Its revision")))))]
async fn get_host(
    State(api): State<Api>,
    Path(name): Path<Name>,
    headers: HeaderMap,
) -> Reply<Response> {
    Ok(etag::read(&headers, api.service.host_get(&name).await?))
}

/// Forget a host.
#[utoipa::path(delete, path = "/v1/hosts/{name}", operation_id = "removeHost", tag = "hosts",
    params(("name" = Name, Path, description = "Its name here")),
    responses((status = 204, description = "It is forgotten")))]
async fn remove_host(
    State(api): State<Api>,
    Caller(who): Caller,
    Path(name): Path<Name>,
) -> Reply<StatusCode> {
    api.service.host_remove(&who, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
