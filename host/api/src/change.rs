//! How changes are carried out: to their end even if the client leaves, and once per `Idempotency-Key`.
//!
//! A change that was accepted (2xx) is kept under its key, with the hash of the request; a refused one changed nothing
//! and may be tried again under the same key. The same key with another request is refused.

use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::extract::read_body;
use crate::limits::{BODY_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX, REMEMBERED_BYTES_MAX};
use crate::problem::Problem;
use crate::service::{FaultKind, Principal, Remembered};
use crate::state::Api;

/// Makes a POST safe to repeat.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that the answer is a kept one.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Headers that are kept with an answer.
const KEPT_HEADERS: [HeaderName; 2] = [header::ETAG, header::LOCATION];

/// Runs reads and uploads as they are, changes as described above.
pub(crate) async fn change(State(api): State<Api>, request: Request, next: Next) -> Response {
    let method = request.method();
    let reads = *method == Method::GET || *method == Method::HEAD;
    // An upload is named by its content, so repeating it is harmless, and it cannot go on without its client.
    let upload = *method == Method::POST && request.uri().path() == "/v1/images";
    if reads || upload {
        return next.run(request).await;
    }
    let place = match api.change() {
        Ok(place) => place,
        Err(problem) => return problem.into_response(),
    };
    let work = tokio::spawn(async move {
        let _place = place;
        let keyed = request.method() == Method::POST
            && request.headers().contains_key(IDEMPOTENCY_KEY)
            && request.extensions().get::<Principal>().is_some();
        if keyed {
            once(api, request, next)
                .await
                .unwrap_or_else(IntoResponse::into_response)
        } else {
            next.run(request).await
        }
    });
    work.await.unwrap_or_else(|_| {
        let detail = "The request ended by a fault of the host; its log has more";
        Problem::new(FaultKind::Internal, detail).into_response()
    })
}

async fn once(api: Api, request: Request, next: Next) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let key = idempotency_key(&parts.headers)?;
    let Some(who) = parts.extensions.get::<Principal>().cloned() else {
        return Err(Problem::new(
            FaultKind::Unauthenticated,
            "Nobody known asks",
        ));
    };
    let body = read_body(body, BODY_BYTES_MAX).await?;
    let target = parts
        .uri
        .path_and_query()
        .map_or_else(String::new, ToString::to_string);
    let fingerprint = fingerprint(&parts.method, &target, &body);
    let _entered = api
        .in_flight
        .enter(format!("{} {key}", who.name))
        .ok_or_else(Problem::under_way)?;
    if let Some(kept) = api.service.recall(&who, &key).await? {
        return replay(kept, &fingerprint);
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    if !response.status().is_success() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, REMEMBERED_BYTES_MAX)
        .await
        .map_err(|_| Problem::new(FaultKind::Internal, "The answer was too long to be kept"))?;
    let kept = Remembered {
        request: fingerprint,
        status: parts.status.as_u16(),
        body: serde_json::from_slice(&body).unwrap_or(serde_json::Value::Null),
        headers: kept_headers(&parts.headers),
    };
    api.service.remember(&who, &key, kept).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn idempotency_key(headers: &HeaderMap) -> Result<String, Problem> {
    let good = |text: &&str| {
        (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic())
    };
    headers
        .get(IDEMPOTENCY_KEY)
        .and_then(|value| value.to_str().ok())
        .filter(good)
        .map(str::to_owned)
        .ok_or_else(|| {
            Problem::invalid(format!(
                "An Idempotency-Key is 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters"
            ))
        })
}

/// Names a request by all that decides its effect; parts are told apart by their lengths.
fn fingerprint(method: &Method, target: &str, body: &Bytes) -> String {
    let mut hash = Sha256::new();
    for part in [method.as_str().as_bytes(), target.as_bytes(), body] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

fn kept_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let text = |name: &HeaderName| {
        Some((
            name.to_string(),
            headers.get(name)?.to_str().ok()?.to_owned(),
        ))
    };
    KEPT_HEADERS.iter().filter_map(text).collect()
}

fn replay(kept: Remembered, fingerprint: &str) -> Result<Response, Problem> {
    if kept.request != fingerprint {
        return Err(Problem::new(
            FaultKind::Impossible,
            "This Idempotency-Key was used for another request; use a new one",
        ));
    }
    let status = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
    let mut response = if kept.body.is_null() {
        status.into_response()
    } else {
        (status, axum::Json(kept.body)).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    for name in KEPT_HEADERS {
        let value = kept.headers.get(name.as_str());
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}
