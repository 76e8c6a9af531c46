//! What routes take out of a request: bounded bodies, paths and queries, each failing with a problem that says where.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use futures::StreamExt;
use serde::de::DeserializeOwned;

use crate::limits::{BODY_BYTES_MAX, BODY_STALL};
use crate::problem::Problem;
use crate::service::{FaultKind, Principal};

/// Who asks; there for every route behind the key.
pub(crate) struct Caller(pub(crate) Principal);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let who = parts.extensions.get::<Principal>().cloned();
        who.map(Caller)
            .ok_or_else(|| Problem::new(FaultKind::Unauthenticated, "Nobody known asks"))
    }
}

/// Parts of the path.
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(path) => Ok(Self(path.0)),
            Err(refused) => Err(Problem::invalid(format!(
                "The path is not good: {}",
                refused.body_text()
            ))),
        }
    }
}

/// Parameters of the query.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(query) => Ok(Self(query.0)),
            Err(refused) => Err(Problem::invalid(format!(
                "The query is not good: {}",
                refused.body_text()
            ))),
        }
    }
}

/// A body of JSON.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        expect_media(request.headers(), "application/json")?;
        let body = read_body(request.into_body(), BODY_BYTES_MAX).await?;
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            Problem::invalid(format!("The body is not what is taken here: {error}"))
        })
    }
}

/// A body of text.
pub(crate) struct Text(pub(crate) String);

impl<S: Sync> FromRequest<S> for Text {
    type Rejection = Problem;
    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        expect_media(request.headers(), "text/plain")?;
        let body = read_body(request.into_body(), BODY_BYTES_MAX).await?;
        String::from_utf8(body.into()).map(Self).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Problem::invalid(format!("The body is not UTF-8 at byte {at}"))
        })
    }
}

/// 415 unless the media type (parameters aside) is the wanted one.
pub(crate) fn expect_media(headers: &HeaderMap, wanted: &str) -> Result<(), Problem> {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split(';').next())
        .map(str::trim)
        .unwrap_or_default();
    if essence.eq_ignore_ascii_case(wanted) {
        Ok(())
    } else {
        Err(Problem::media(wanted))
    }
}

/// A whole body of at most `most` bytes, whose parts do not keep us waiting.
pub(crate) async fn read_body(body: Body, most: usize) -> Result<Bytes, Problem> {
    let mut stream = body.into_data_stream();
    let mut whole = Vec::new();
    loop {
        let part = tokio::time::timeout(BODY_STALL, stream.next())
            .await
            .map_err(|_| Problem::timeout("The body came too slowly"))?;
        let Some(part) = part else {
            return Ok(whole.into());
        };
        let part =
            part.map_err(|error| Problem::invalid(format!("The body did not arrive: {error}")))?;
        if whole.len() + part.len() > most {
            return Err(Problem::too_large("The body", most as u64));
        }
        whole.extend_from_slice(&part);
    }
}
