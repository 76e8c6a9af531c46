//! Migrations: how they go, how they went, and how a doubt is ended by hand.

use axum::extract::State;
use axum::http::HeaderMap;
use dwcp_control::Name;
use dwcp_control::records::Migration;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Reply, identity};
use crate::etag;
use crate::extract::{Caller, Json, Path};
use crate::paging::{PageParams, Paging};
use crate::service::Page;
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_migrations))
        .routes(routes!(get_migration))
        .routes(routes!(resolve_migration))
}

/// Ends a doubt by hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// The host that will never run the machine under this epoch, because somebody made sure of it.
    pub fenced: Name,
}

/// List the migrations of a project, newest first.
#[utoipa::path(get, path = "/v1/projects/{project}/migrations", operation_id = "listMigrations", tag = "migrations",
    params(("project" = Name, Path, description = "The project"), PageParams),
    responses((status = 200, description = "A part of the list", body = Page<Migration>)))]
async fn list_migrations(
    State(api): State<Api>,
    Path(project): Path<Name>,
    paging: Paging,
) -> Reply<axum::Json<Page<Migration>>> {
    let page = api
        .service
        .migration_list(&project, paging.request.clone())
        .await?;
    Ok(axum::Json(paging.seal(page)))
}

/// Show a migration.
#[utoipa::path(get, path = "/v1/projects/{project}/migrations/{id}", operation_id = "getMigration", tag = "migrations",
    params(("project" = Name, Path, description = "The project"), ("id" = String, Path, description = "The migration")),
    responses((status = 200, description = "The migration", body = Migration, headers(("ETag" = String, description = "Its revision")))))]
async fn get_migration(
    State(api): State<Api>,
    Path((project, id)): Path<(Name, String)>,
    headers: HeaderMap,
) -> Reply {
    let migration = api.service.migration_get(&project, identity(&id)?).await?;
    Ok(etag::read(&headers, migration))
}

/// End a doubt by hand.
///
/// Names the host that is fenced: it was made sure that it will never run the machine under this epoch. If that is
/// not true, the machine runs twice.
#[utoipa::path(post, path = "/v1/projects/{project}/migrations/{id}/resolve", operation_id = "resolveMigration", tag = "migrations",
    params(("project" = Name, Path, description = "The project"), ("id" = String, Path, description = "The migration")),
    request_body = Resolve,
    responses((status = 200, description = "How it ended", body = Migration)))]
async fn resolve_migration(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((project, id)): Path<(Name, String)>,
    Json(Resolve { fenced }): Json<Resolve>,
) -> Reply<axum::Json<Migration>> {
    let migration = api
        .service
        .migration_resolve(&who, &project, identity(&id)?, &fenced)
        .await?;
    Ok(axum::Json(migration))
}
