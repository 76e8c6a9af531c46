//! The routes, one file per concern. Each takes a request apart, asks the service, and puts the answer together.

pub(crate) mod audit;
pub(crate) mod console;
pub(crate) mod decisions;
pub(crate) mod events;
pub(crate) mod forks;
pub(crate) mod hosts;
pub(crate) mod images;
pub(crate) mod marketplace;
pub(crate) mod migrations;
pub(crate) mod operations;
pub(crate) mod plugins;
pub(crate) mod policies;
pub(crate) mod running;
pub(crate) mod snapshots;
pub(crate) mod system;
pub(crate) mod templates;
pub(crate) mod vms;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dwcp_control::records::Operation;
use utoipa_axum::router::OpenApiRouter;

use crate::problem::Problem;
use crate::state::Api;

/// What a handler answers.
pub(crate) type Reply<T = Response> = Result<T, Problem>;

/// The routes that need no key.
pub(crate) fn open() -> OpenApiRouter<Api> {
    system::routes()
}

/// The routes behind the key.
pub(crate) fn keyed() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .merge(hosts::routes())
        .merge(images::routes())
        .merge(vms::routes())
        .merge(running::routes())
        .merge(forks::routes())
        .merge(snapshots::routes())
        .merge(console::routes())
        .merge(migrations::routes())
        .merge(operations::routes())
        .merge(marketplace::routes())
        .merge(plugins::routes())
        .merge(templates::routes())
        .merge(policies::routes())
        .merge(decisions::routes())
        .merge(events::routes())
        .merge(audit::routes())
}

/// 202 with an operation and where to ask for it.
fn accepted(operation: Operation) -> Response {
    let at = format!("/v1/operations/{}", operation.id);
    let response = (StatusCode::ACCEPTED, axum::Json(operation)).into_response();
    crate::etag::located(response, &at)
}

/// A digest in a path or query: 64 lower-case hexadecimal digits.
fn digest(text: &str) -> Reply<&str> {
    let good = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() == 64 && text.bytes().all(good) {
        Ok(text)
    } else {
        Err(Problem::invalid(
            "A digest is 64 lower-case hexadecimal digits",
        ))
    }
}

/// An identity in a path: 1 to 64 letters, digits and hyphens.
fn identity(text: &str) -> Reply<&str> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if (1..=64).contains(&text.len()) && text.bytes().all(good) {
        Ok(text)
    } else {
        Err(Problem::invalid(
            "An identity is 1 to 64 letters, digits and hyphens",
        ))
    }
}
