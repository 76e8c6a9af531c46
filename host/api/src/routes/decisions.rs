//! Recorded decisions of plugins and policies.

use axum::extract::State;
use dwcp_control::records::Decision;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Reply, identity};
use crate::extract::{Path, Query};
use crate::paging::{PageParams, Paging};
use crate::problem::Problem;
use crate::service::Page;
use crate::state::Api;

/// Longest subject, bytes.
const SUBJECT_BYTES_MAX: usize = 256;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_decisions))
        .routes(routes!(get_decision))
}

/// Which decisions.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct SubjectParams {
    /// Only those about this object, such as `projects/default/vms/web`.
    subject: Option<String>,
}

/// List decisions, newest first.
#[utoipa::path(get, path = "/v1/decisions", operation_id = "listDecisions", tag = "decisions",
    params(SubjectParams, PageParams),
    responses((status = 200, description = "A part of the list", body = Page<Decision>)))]
async fn list_decisions(
    State(api): State<Api>,
    Query(SubjectParams { subject }): Query<SubjectParams>,
    paging: Paging,
) -> Reply<axum::Json<Page<Decision>>> {
    if subject
        .as_ref()
        .is_some_and(|s| s.len() > SUBJECT_BYTES_MAX)
    {
        return Err(Problem::invalid(format!(
            "A subject has at most {SUBJECT_BYTES_MAX} bytes"
        )));
    }
    let page = api
        .service
        .decision_list(subject.as_deref(), paging.request.clone())
        .await?;
    Ok(axum::Json(paging.seal(page)))
}

/// Show a decision: what was asked, who answered, what, and how long it took.
#[utoipa::path(get, path = "/v1/decisions/{id}", operation_id = "getDecision", tag = "decisions",
    params(("id" = String, Path, description = "The decision")),
    responses((status = 200, description = "The decision", body = Decision)))]
async fn get_decision(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Reply<axum::Json<Decision>> {
    Ok(axum::Json(api.service.decision_get(identity(&id)?).await?))
}
