//! Installed plugins.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use dwcp_control::Name;
use dwcp_control::records::{MarketplaceItem, Plugin, PluginInstall};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Reply;
use crate::etag;
use crate::extract::{Caller, Json, Path};
use crate::paging::{PageParams, Paging};
use crate::service::Page;
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_plugins, install_plugin))
        .routes(routes!(get_plugin, remove_plugin))
}

/// List installed plugins.
#[utoipa::path(get, path = "/v1/plugins", operation_id = "listPlugins", tag = "plugins",
    params(PageParams),
    responses((status = 200, description = "A part of the list", body = Page<Plugin>)))]
async fn list_plugins(State(api): State<Api>, paging: Paging) -> Reply<axum::Json<Page<Plugin>>> {
    let page = api.service.plugin_list(paging.request.clone()).await?;
    Ok(axum::Json(paging.seal(page)))
}

/// Install a plugin or a template from the marketplace.
///
/// Its signature is checked against the trusted keys, its digest against the one that was shown (if given), and every
/// capability that it asks for must be granted.
#[utoipa::path(post, path = "/v1/plugins", operation_id = "installPlugin", tag = "plugins",
    request_body = PluginInstall,
    responses((status = 201, description = "It is installed", body = MarketplaceItem)))]
async fn install_plugin(
    State(api): State<Api>,
    Caller(who): Caller,
    Json(request): Json<PluginInstall>,
) -> Reply {
    let item = api.service.plugin_install(&who, request).await?;
    Ok((StatusCode::CREATED, axum::Json(item)).into_response())
}

/// Show an installed plugin.
#[utoipa::path(get, path = "/v1/plugins/{publisher}/{name}", operation_id = "getPlugin", tag = "plugins",
    params(("publisher" = Name, Path, description = "Who published it"), ("name" = Name, Path, description = "What it is called")),
    responses((status = 200, description = "The plugin", body = Plugin, headers(("ETag" = String, description = "Its revision")))))]
async fn get_plugin(
    State(api): State<Api>,
    Path((publisher, name)): Path<(Name, Name)>,
    headers: HeaderMap,
) -> Reply {
    let name = format!("{publisher}/{name}");
    Ok(etag::read(&headers, api.service.plugin_get(&name).await?))
}

/// Remove a plugin or a template.
#[utoipa::path(delete, path = "/v1/plugins/{publisher}/{name}", operation_id = "removePlugin", tag = "plugins",
    params(("publisher" = Name, Path, description = "Who published it"), ("name" = Name, Path, description = "What it is called")),
    responses((status = 204, description = "It is gone")))]
async fn remove_plugin(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((publisher, name)): Path<(Name, Name)>,
) -> Reply<StatusCode> {
    let name = format!("{publisher}/{name}");
    api.service.plugin_remove(&who, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
