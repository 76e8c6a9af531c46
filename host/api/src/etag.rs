//! Revisions as entity tags (RFC 9110, 8.8.3): what is read says which one it is, what is changed may insist on it.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::problem::Problem;
use crate::service::Versioned;

fn tag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// An answer with an object and its tag.
pub(crate) fn tagged<T: Serialize>(status: StatusCode, object: Versioned<T>) -> Response {
    let mut response = (status, axum::Json(object.value)).into_response();
    if let Ok(value) = HeaderValue::from_str(&tag(object.revision)) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// The answer to a read: the object, or 304 if the client has this revision.
pub(crate) fn read<T: Serialize>(headers: &HeaderMap, object: Versioned<T>) -> Response {
    let has = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(|one| one.trim().trim_start_matches("W/"))
        .any(|one| one == "*" || one == tag(object.revision));
    if !has {
        return tagged(StatusCode::OK, object);
    }
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    if let Ok(value) = HeaderValue::from_str(&tag(object.revision)) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// The revision that the caller insists on, if it does.
pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    text.strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or_else(|| Problem::invalid("If-Match takes the ETag of one earlier answer, or *"))
}

/// Where a new object is.
pub(crate) fn located(mut response: Response, at: &str) -> Response {
    const LOCATION: HeaderName = header::LOCATION;
    if let Ok(value) = HeaderValue::from_str(at) {
        response.headers_mut().insert(LOCATION, value);
    }
    response
}
