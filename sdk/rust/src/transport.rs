//! Requests and answers: the key, the retries, the problems.
//!
//! A request that may be repeated is repeated when the connection fails: reads, replacements and deletions as they are,
//! POSTs under an idempotency key made once. Everything else is answered once.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::profile::Profile;
use crate::tls;
use crate::types::Problem;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for an answer that is not a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest silence of a stream; the host gives a sign of life more often.
const STREAM_SILENCE: Duration = Duration::from_secs(60);
/// Times that a request is sent at most.
const ATTEMPTS: u32 = 5;
/// How long a request is repeated at most; a host that is slow to refuse is not asked again.
const REPEAT_MAX: Duration = Duration::from_secs(15);
/// Wait before the second attempt; it doubles each time.
const BACK_OFF: Duration = Duration::from_millis(200);
/// Longest answer that is read into memory, bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A client of one host's API. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) profile: Profile,
    pub(crate) base: Url,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    http: reqwest::Client,
    /// For answers that come piece by piece, with signs of life.
    streams: reqwest::Client,
    /// For answers that may be silent for as long as they like.
    quiet: reqwest::Client,
}

/// A request, complete enough to be sent again.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// A client for the host of a profile. Nothing is sent yet.
    pub fn new(profile: Profile) -> Result<Self> {
        let base = Url::parse(&profile.address).map_err(|error| {
            Error::Profile(format!("{:?} is not an address ({error})", profile.address))
        })?;
        if base.scheme() != "https" || base.host_str().is_none() {
            return Err(Error::Profile(format!(
                "{:?} should be written like https://192.0.2.7:4610",
                profile.address
            )));
        }
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", profile.api_key))
            .map_err(|_| Error::Profile("its key holds a character that no key has".into()))?;
        bearer.set_sensitive(true);
        let tls = tls::config(&profile.ca_pem)?;
        let headers = HeaderMap::from_iter([(reqwest::header::AUTHORIZATION, bearer)]);
        let builder = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .default_headers(headers.clone())
                .user_agent(concat!("dwcp-sdk-rust/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
        };
        let made = |built: reqwest::Result<reqwest::Client>| {
            built.map_err(|error| Error::Profile(error.to_string()))
        };
        let inner = Inner {
            http: made(builder().timeout(ANSWER_TIMEOUT).build())?,
            streams: made(builder().read_timeout(STREAM_SILENCE).build())?,
            quiet: made(builder().build())?,
            base,
            tls: Arc::new(tls),
            profile,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The address that this client talks to.
    pub fn address(&self) -> &str {
        &self.inner.profile.address
    }

    /// A request for a path made of segments (each escaped) and a query.
    pub(crate) fn call(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> Call {
        let mut url = self.inner.base.clone();
        url.set_path(&escaped(path));
        url.set_query(None);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut headers = HeaderMap::new();
        if method == Method::POST {
            let key = uuid::Uuid::new_v4().to_string();
            if let Ok(key) = HeaderValue::from_str(&key) {
                headers.insert(IDEMPOTENCY_KEY, key);
            }
        }
        Call {
            method,
            url,
            headers,
            body: Bytes::new(),
        }
    }

    /// GET of an object.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T> {
        self.object(self.call(Method::GET, path, query)).await
    }

    /// POST of an object for another one.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        body: &impl Serialize,
    ) -> Result<T> {
        let call = self.call(Method::POST, path, query).json(body)?;
        self.object(call).await
    }

    /// PUT of JSON.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T> {
        let call = self.call(Method::PUT, path, &[]).json(body)?;
        self.object(call).await
    }

    /// DELETE of an object.
    pub(crate) async fn delete(&self, path: &[&str], query: &[(&str, &str)]) -> Result<()> {
        let call = self.call(Method::DELETE, path, query);
        self.send(call).await.map(drop)
    }

    /// Sends a request and reads the object in its answer.
    pub(crate) async fn object<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let body = self.send(call).await?;
        serde_json::from_slice(&body).map_err(|error| Error::Answer(error.to_string()))
    }

    /// Sends a request, again if need be, and reads its whole answer.
    pub(crate) async fn send(&self, call: Call) -> Result<Bytes> {
        let began = tokio::time::Instant::now();
        let mut attempt = 1;
        loop {
            let error = match self.send_once(&call).await {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            // What was deleted by an attempt whose answer was lost is gone as was wished.
            if attempt > 1 && call.method == Method::DELETE && error.is_not_found() {
                return Ok(Bytes::new());
            }
            let enough = attempt >= ATTEMPTS || began.elapsed() > REPEAT_MAX;
            if enough || !may_pass(&error) {
                return Err(error);
            }
            tokio::time::sleep(back_off(attempt)).await;
            attempt += 1;
        }
    }

    async fn send_once(&self, call: &Call) -> Result<Bytes> {
        let sent = self
            .inner
            .http
            .request(call.method.clone(), call.url.clone())
            .headers(call.headers.clone())
            .body(call.body.clone())
            .send()
            .await;
        let response = self.checked(sent).await?;
        self.whole(response).await
    }

    /// Sends a request once and leaves its answer to be read piece by piece.
    pub(crate) async fn open(
        &self,
        call: &Call,
        body: Option<reqwest::Body>,
    ) -> Result<reqwest::Response> {
        let mut request = self
            .inner
            .streams
            .request(call.method.clone(), call.url.clone())
            .headers(call.headers.clone());
        if let Some(body) = body {
            request = request.body(body);
        }
        self.checked(request.send().await).await
    }

    /// The same, for an answer that may be silent for long.
    pub(crate) async fn open_quiet(&self, call: &Call) -> Result<reqwest::Response> {
        let request = self
            .inner
            .quiet
            .request(call.method.clone(), call.url.clone());
        self.checked(request.headers(call.headers.clone()).send().await)
            .await
    }

    pub(crate) fn unreachable(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Unreachable {
            address: self.inner.profile.address.clone(),
            source: source.into(),
        }
    }

    async fn checked(&self, sent: reqwest::Result<reqwest::Response>) -> Result<reqwest::Response> {
        let response = sent.map_err(|error| self.unreachable(error.without_url()))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = self.whole(response).await.unwrap_or_default();
        Err(problem(status.as_u16(), &body))
    }

    async fn whole(&self, mut response: reqwest::Response) -> Result<Bytes> {
        let mut whole = Vec::new();
        loop {
            let piece = response.chunk().await;
            let piece = piece.map_err(|error| self.unreachable(error.without_url()))?;
            let Some(piece) = piece else {
                return Ok(whole.into());
            };
            if whole.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(Error::Answer(format!(
                    "it is longer than {ANSWER_BYTES_MAX} bytes"
                )));
            }
            whole.extend_from_slice(&piece);
        }
    }
}

impl Call {
    /// With a JSON body.
    pub(crate) fn json(mut self, body: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Answer(error.to_string()))?;
        self.body = body.into();
        Ok(self.header(CONTENT_TYPE, "application/json"))
    }

    /// With a body of text.
    pub(crate) fn text(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header(CONTENT_TYPE, "text/plain; charset=utf-8")
    }

    /// With a header; one that cannot be written is left out.
    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

/// Whether repeating a request may help.
pub(crate) fn may_pass(error: &Error) -> bool {
    match error {
        Error::Unreachable { source, .. } => !is_refused_certificate(source.as_ref()),
        Error::Problem(problem) => problem.is("unavailable") || problem.is("under-way"),
        _ => false,
    }
}

/// How long to wait after an attempt, counted from 1.
pub(crate) fn back_off(attempt: u32) -> Duration {
    BACK_OFF * 2_u32.saturating_pow(attempt.saturating_sub(1).min(4))
}

/// A host that cannot prove itself will not be able to in a moment.
fn is_refused_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if matches!(
            error.downcast_ref::<rustls::Error>(),
            Some(rustls::Error::InvalidCertificate(_))
        ) {
            return true;
        }
        // What an I/O error was made of is not its source but the error itself.
        let io = error.downcast_ref::<std::io::Error>();
        next = match io.and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    false
}

/// The error in an answer that is not a success.
pub(crate) fn problem(status: u16, body: &[u8]) -> Error {
    let problem = serde_json::from_slice(body).unwrap_or_else(|_| Problem {
        kind: "about:blank".into(),
        title: format!("HTTP status {status}"),
        status,
        detail: String::from_utf8_lossy(body).chars().take(400).collect(),
        reasons: Vec::new(),
        request_id: String::new(),
    });
    Error::Problem(Box::new(problem))
}

/// A path of segments, each with everything escaped that is not plain.
pub(crate) fn escaped(segments: &[&str]) -> String {
    let mut path = String::new();
    for segment in segments {
        path.push('/');
        for byte in segment.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~@:".contains(&byte) {
                path.push(char::from(byte));
            } else {
                // Writing to a string does not fail.
                let _ = write!(path, "%{byte:02X}");
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cannot_leave_their_place() {
        assert_eq!(
            escaped(&["v1", "a/../b", "ä?#"]),
            "/v1/a%2F..%2Fb/%C3%A4%3F%23"
        );
    }
}
