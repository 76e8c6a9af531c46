//! Policies and where they act.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use dwcp_control::Name;
use dwcp_control::records::{Binding, Policy};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Reply;
use crate::etag;
use crate::extract::{Caller, Json, Path, Text};
use crate::paging::{PageParams, Paging};
use crate::problem::Problem;
use crate::service::Page;
use crate::state::Api;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_policies))
        .routes(routes!(get_policy, apply_policy, remove_policy))
        .routes(routes!(list_policy_bindings, bind_policy))
        .routes(routes!(unbind_policy))
}

/// List policies.
#[utoipa::path(get, path = "/v1/policies", operation_id = "listPolicies", tag = "policies",
    params(PageParams),
    responses((status = 200, description = "A part of the list", body = Page<Policy>)))]
async fn list_policies(State(api): State<Api>, paging: Paging) -> Reply<axum::Json<Page<Policy>>> {
    let page = api.service.policy_list(paging.request.clone()).await?;
    Ok(axum::Json(paging.seal(page)))
}

/// Show a policy.
#[utoipa::path(get, path = "/v1/policies/{name}", operation_id = "getPolicy", tag = "policies",
    params(("name" = Name, Path, description = "The policy")),
    responses((status = 200, description = "The policy", body = Policy, headers(("ETag" = String, description = "Its revision")))))]
async fn get_policy(State(api): State<Api>, Path(name): Path<Name>, headers: HeaderMap) -> Reply {
    Ok(etag::read(&headers, api.service.policy_get(&name).await?))
}

/// Store a policy, or a new version of it.
///
/// The body is Rego source. A broken one is refused, and the one before stays in force.
#[utoipa::path(put, path = "/v1/policies/{name}", operation_id = "applyPolicy", tag = "policies",
    params(("name" = Name, Path, description = "The policy")),
    request_body(content = String, content_type = "text/plain", description = "Rego source"),
    responses((status = 200, description = "It is stored", body = Policy, headers(("ETag" = String, description = "Its revision")))))]
async fn apply_policy(
    State(api): State<Api>,
    Caller(who): Caller,
    Path(name): Path<Name>,
    Text(source): Text,
) -> Reply {
    let policy = api.service.policy_apply(&who, &name, source).await?;
    Ok(etag::tagged(StatusCode::OK, policy))
}

/// Remove a policy.
///
/// Refused while it is bound.
#[utoipa::path(delete, path = "/v1/policies/{name}", operation_id = "removePolicy", tag = "policies",
    params(("name" = Name, Path, description = "The policy")),
    responses((status = 204, description = "It is gone")))]
async fn remove_policy(
    State(api): State<Api>,
    Caller(who): Caller,
    Path(name): Path<Name>,
) -> Reply<StatusCode> {
    api.service.policy_remove(&who, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List where policies act.
#[utoipa::path(get, path = "/v1/policy-bindings", operation_id = "listPolicyBindings", tag = "policies",
    responses((status = 200, description = "All of them", body = Page<Binding>)))]
async fn list_policy_bindings(State(api): State<Api>) -> Reply<axum::Json<Page<Binding>>> {
    Ok(axum::Json(Page {
        items: api.service.binding_list().await?,
        next_cursor: None,
    }))
}

/// Bind a policy to an action.
///
/// From the next request on it is asked.
#[utoipa::path(post, path = "/v1/policy-bindings", operation_id = "bindPolicy", tag = "policies",
    request_body = Binding,
    responses((status = 201, description = "It is bound", body = Binding)))]
async fn bind_policy(
    State(api): State<Api>,
    Caller(who): Caller,
    Json(binding): Json<Binding>,
) -> Reply {
    action(&binding.action)?;
    let binding = api.service.policy_bind(&who, binding).await?;
    Ok((StatusCode::CREATED, axum::Json(binding)).into_response())
}

/// Unbind a policy from an action.
#[utoipa::path(delete, path = "/v1/policy-bindings/{policy}/{action}", operation_id = "unbindPolicy", tag = "policies",
    params(("policy" = Name, Path, description = "The policy"), ("action" = String, Path, description = "The action, such as `vm.create`")),
    responses((status = 204, description = "It is unbound")))]
async fn unbind_policy(
    State(api): State<Api>,
    Caller(who): Caller,
    Path((policy, from)): Path<(Name, String)>,
) -> Reply<StatusCode> {
    api.service
        .policy_unbind(&who, &policy, action(&from)?)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn action(text: &str) -> Reply<&str> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-*".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(good) {
        Ok(text)
    } else {
        Err(Problem::invalid("An action is written like vm.create"))
    }
}
