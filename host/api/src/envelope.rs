//! What surrounds every request: its id, who asks, the log line, the headers that every answer has.
//!
//! Nobody unknown gets past [`authenticate`], whatever path they name; so an answer never tells a stranger what exists.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::limits::KEY_BYTES_MAX;
use crate::problem::Problem;
use crate::service::FaultKind;
use crate::state::Api;

/// Names a request in the answer, the host's log and the client's.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken from a client, bytes.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// Gives the request an id (the client's, if it sent a good one), logs it, and completes the answer.
pub(crate) async fn envelope(request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let began = std::time::Instant::now();
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    let duration_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(%method, path, status, duration_us, request_id = id, "answered");
    if let Some(mut problem) = response.extensions_mut().remove::<Problem>() {
        problem.request_id.clone_from(&id);
        *response.body_mut() = Body::from(serde_json::to_vec(&problem).unwrap_or_default());
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

fn request_id(headers: &HeaderMap) -> String {
    let good = |text: &&str| {
        (1..=REQUEST_ID_BYTES_MAX).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(good)
        .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned)
}

/// Lets a request through under its [`Principal`](crate::Principal), or answers 401.
pub(crate) async fn authenticate(
    State(api): State<Api>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(key) = bearer(request.headers()) else {
        api.service.denied("no API key").await;
        let detail = "Send an API key as `Authorization: Bearer KEY`";
        return Problem::new(FaultKind::Unauthenticated, detail).into_response();
    };
    let Some(principal) = api.service.authenticate(key).await else {
        api.service.denied("an API key of nobody").await;
        let detail = "The API key belongs to nobody; check the profile in use";
        return Problem::new(FaultKind::Unauthenticated, detail).into_response();
    };
    request.extensions_mut().insert(principal);
    next.run(request).await
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = text.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && (1..=KEY_BYTES_MAX).contains(&key.len()))
        .then_some(key)
}
