//! Errors as problem details (RFC 9457).
//!
//! Every answer that is not a success has this body, whatever part of the server made it. The `type` of each kind
//! never changes; the words may. Nothing of the host's inside is told beyond what the service put into its fault.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::service::{Fault, FaultKind};

/// Media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// What every problem's `type` begins with.
const TYPE_PREFIX: &str = "urn:dwcp:problem:";

/// Why a request was not carried out (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Kind of problem, a stable URI.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "urn:dwcp:problem:denied")]
    pub kind: Box<str>,
    /// The kind in words.
    #[schema(value_type = String)]
    pub title: Box<str>,
    /// HTTP status.
    #[schema(example = 403)]
    pub status: u16,
    /// What happened and what to do about it.
    pub detail: String,
    /// Single reasons, where there are several (a policy's denials, a template's problems).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// The request that it answers, as in the host's log (`X-Request-Id`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

/// What there is to know of a kind of problem: status, last part of its type, title.
type Kind = (StatusCode, &'static str, &'static str);

const METHOD: Kind = (
    StatusCode::METHOD_NOT_ALLOWED,
    "method-not-allowed",
    "The method is not allowed here",
);
const MEDIA: Kind = (
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    "unsupported-media-type",
    "The media type is not supported",
);
const TIMEOUT: Kind = (
    StatusCode::REQUEST_TIMEOUT,
    "timeout",
    "The request came too slowly",
);
const UNDER_WAY: Kind = (
    StatusCode::CONFLICT,
    "under-way",
    "The same request is being carried out",
);
const UPGRADE: Kind = (
    StatusCode::UPGRADE_REQUIRED,
    "upgrade-required",
    "A WebSocket is required",
);

fn of(kind: FaultKind) -> Kind {
    use FaultKind as K;
    use StatusCode as S;
    match kind {
        K::Invalid => (S::BAD_REQUEST, "invalid", "The request makes no sense"),
        K::Unauthenticated => (
            S::UNAUTHORIZED,
            "unauthenticated",
            "Nobody who is known asks",
        ),
        K::Denied => (S::FORBIDDEN, "denied", "A policy denied it"),
        K::NotFound => (S::NOT_FOUND, "not-found", "There is no such object"),
        K::Conflict => (S::CONFLICT, "conflict", "Its state does not allow this now"),
        K::Changed => (
            S::PRECONDITION_FAILED,
            "changed",
            "It changed since it was read",
        ),
        K::TooLarge => (S::PAYLOAD_TOO_LARGE, "too-large", "It is too long"),
        K::Impossible => (
            S::UNPROCESSABLE_ENTITY,
            "impossible",
            "It was understood and cannot be done",
        ),
        K::Unavailable => (
            S::SERVICE_UNAVAILABLE,
            "unavailable",
            "A part that is needed does not answer now",
        ),
        K::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "The host failed"),
    }
}

impl Problem {
    fn make((status, name, title): Kind, detail: String, reasons: Vec<String>) -> Self {
        Self {
            kind: format!("{TYPE_PREFIX}{name}").into(),
            title: title.into(),
            status: status.as_u16(),
            detail,
            reasons,
            request_id: String::new(),
        }
    }

    /// A problem of one of the service's kinds.
    pub fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self::make(of(kind), detail.into(), Vec::new())
    }

    /// 400.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(FaultKind::Invalid, detail)
    }

    /// 405.
    pub(crate) fn method(method: &axum::http::Method) -> Self {
        let detail = format!("{method} is not possible on this path; see /openapi.json");
        Self::make(METHOD, detail, Vec::new())
    }

    /// 408.
    pub(crate) fn timeout(detail: impl Into<String>) -> Self {
        Self::make(TIMEOUT, detail.into(), Vec::new())
    }

    /// 409, for a request that came before its first answer was there.
    pub(crate) fn under_way() -> Self {
        let detail = "A request with this Idempotency-Key is under way; repeat it in a moment";
        Self::make(UNDER_WAY, detail.into(), Vec::new())
    }

    /// 413.
    pub(crate) fn too_large(what: &str, most: u64) -> Self {
        Self::new(
            FaultKind::TooLarge,
            format!("{what} is longer than {most} bytes, the most that is taken"),
        )
    }

    /// 415.
    pub(crate) fn media(wanted: &str) -> Self {
        Self::make(
            MEDIA,
            format!("Send the body with Content-Type: {wanted}"),
            Vec::new(),
        )
    }

    /// 426.
    pub(crate) fn upgrade(detail: impl Into<String>) -> Self {
        Self::make(UPGRADE, detail.into(), Vec::new())
    }

    /// The kinds a client may meet, as (status, type, title), for the document.
    pub(crate) fn kinds() -> Vec<(u16, String, &'static str)> {
        use FaultKind as K;
        let service = [
            K::Invalid,
            K::Unauthenticated,
            K::Denied,
            K::NotFound,
            K::Conflict,
            K::Changed,
            K::TooLarge,
            K::Impossible,
            K::Unavailable,
            K::Internal,
        ];
        let own = [METHOD, TIMEOUT, MEDIA, UNDER_WAY, UPGRADE];
        let mut all: Vec<_> = service
            .into_iter()
            .map(of)
            .chain(own)
            .map(|(status, name, title)| (status.as_u16(), format!("{TYPE_PREFIX}{name}"), title))
            .collect();
        all.sort();
        all
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        if fault.kind == FaultKind::Internal {
            tracing::error!(message = %fault.message, "a request failed inside the host");
        }
        Self::make(of(fault.kind), fault.message, fault.reasons)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"dwcp\""),
            );
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(self);
        response
    }
}
