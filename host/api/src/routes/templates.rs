//! Installed templates. They are installed and removed as plugins are.

use axum::extract::State;
use axum::http::HeaderMap;
use dwcp_control::Name;
use dwcp_control::records::Template;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Reply;
use crate::etag;
use crate::extract::Path;
use crate::paging::{PageParams, Paging};
use crate::service::Page;
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_templates))
        .routes(routes!(get_template))
}

/// List installed templates.
#[utoipa::path(get, path = "/v1/templates", operation_id = "listTemplates", tag = "templates",
    params(PageParams),
    responses((status = 200, description = "A part of the list", body = Page<Template>)))]
async fn list_templates(
    State(api): State<Api>,
    paging: Paging,
) -> Reply<axum::Json<Page<Template>>> {
    let page = api.service.template_list(paging.request.clone()).await?;
    Ok(axum::Json(paging.seal(page)))
}

/// Show an installed template.
#[utoipa::path(get, path = "/v1/templates/{publisher}/{name}", operation_id = "getTemplate", tag = "templates",
    params(("publisher" = Name, Path, description = "Who published it"), ("name" = Name, Path, description = "What it is called")),
    responses((status = 200, description = "The template", body = Template, headers(("ETag" = String, description = "Its revision")))))]
async fn get_template(
    State(api): State<Api>,
    Path((publisher, name)): Path<(Name, Name)>,
    headers: HeaderMap,
) -> Reply {
    let name = format!("{publisher}/{name}");
    Ok(etag::read(&headers, api.service.template_get(&name).await?))
}
