//! What the configured marketplace offers.

use axum::extract::State;
use dwcp_control::Name;
use dwcp_control::records::MarketplaceItem;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Reply;
use crate::extract::{Path, Query};
use crate::paging::{PageParams, Paging};
use crate::problem::Problem;
use crate::service::Page;
use crate::state::Api;

/// Longest version, bytes.
const VERSION_BYTES_MAX: usize = 64;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_marketplace))
        .routes(routes!(get_marketplace_item))
}

/// Which version.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct VersionParams {
    /// The version; the newest if absent.
    version: Option<String>,
}

/// List what the marketplace offers.
#[utoipa::path(get, path = "/v1/marketplace", operation_id = "listMarketplace", tag = "marketplace",
    params(PageParams),
    responses((status = 200, description = "A part of the list", body = Page<MarketplaceItem>)))]
async fn list_marketplace(
    State(api): State<Api>,
    paging: Paging,
) -> Reply<axum::Json<Page<MarketplaceItem>>> {
    let page = api.service.marketplace_list(paging.request.clone()).await?;
    Ok(axum::Json(paging.seal(page)))
}

/// Show an artifact as it would be installed: its signature, digest and capabilities.
#[utoipa::path(get, path = "/v1/marketplace/{publisher}/{name}", operation_id = "getMarketplaceItem", tag = "marketplace",
    params(("publisher" = Name, Path, description = "Who published it"), ("name" = Name, Path, description = "What it is called"), VersionParams),
    responses((status = 200, description = "The artifact", body = MarketplaceItem)))]
async fn get_marketplace_item(
    State(api): State<Api>,
    Path((publisher, name)): Path<(Name, Name)>,
    Query(VersionParams { version }): Query<VersionParams>,
) -> Reply<axum::Json<MarketplaceItem>> {
    let reference = match version {
        None => format!("{publisher}/{name}"),
        Some(version) if good_version(&version) => format!("{publisher}/{name}@{version}"),
        Some(_) => return Err(Problem::invalid("A version is written like 1.2.3")),
    };
    Ok(axum::Json(api.service.marketplace_get(&reference).await?))
}

fn good_version(text: &str) -> bool {
    (1..=VERSION_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-+".contains(&b))
}
