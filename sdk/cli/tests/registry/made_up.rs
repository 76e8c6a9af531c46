//! A registry that holds one image of one layer, and does as it is told.
//!
//! What always holds: it writes down who asked for what.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use futures::StreamExt;
use sha2::{Digest, Sha256};

/// `ada:secret`.
pub const LOGIN: &str = "YWRhOnNlY3JldA==";
pub const TOKEN: &str = "a-token";

/// How it behaves.
#[derive(Clone, Default)]
pub struct MadeUp {
    /// Where it is, once it is served.
    pub address: String,
    manifest: String,
    digest: String,
    sent: Vec<u8>,
    cut: Option<usize>,
    token_at: Option<String>,
    redirect: Option<String>,
    seen: Arc<Mutex<Vec<String>>>,
}

pub fn hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl MadeUp {
    pub fn new(layer: &[u8]) -> Self {
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "size": 2,
                "digest": format!("sha256:{}", hex(b"{}")) },
            "layers": [{ "mediaType": "application/x-qemu-disk", "size": layer.len(),
                "digest": format!("sha256:{}", hex(layer)),
                "annotations": { "org.opencontainers.image.title": "disk.img" } }],
        });
        let manifest = manifest.to_string();
        Self {
            digest: hex(manifest.as_bytes()),
            manifest,
            sent: layer.to_vec(),
            ..Self::default()
        }
    }
    /// The blob's place sends so much the first time, and breaks off.
    pub fn cuts_at(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
    pub fn asks_for_token(self) -> Self {
        self.asks_for_token_at("")
    }
    pub fn asks_for_token_at(mut self, realm: &str) -> Self {
        self.token_at = Some(realm.to_owned());
        self
    }
    pub fn sends(mut self, layer: &[u8]) -> Self {
        self.sent = layer.to_vec();
        self
    }
    pub fn tells_digest(mut self, hex: &str) -> Self {
        self.digest = hex.to_owned();
        self
    }
    pub fn redirects_to(mut self, address: &str) -> Self {
        self.redirect = Some(address.to_owned());
        self
    }
    pub fn pads_manifest(mut self, bytes: usize) -> Self {
        self.manifest += &" ".repeat(bytes);
        self.digest = hex(self.manifest.as_bytes());
        self
    }

    pub async fn serve(mut self) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        self.address = format!("127.0.0.1:{port}");
        if self.token_at.as_deref() == Some("") {
            self.token_at = Some(format!("http://{}/token", self.address));
        }
        // Another name of the same machine: to clients, another host.
        let elsewhere = format!("http://localhost:{port}/elsewhere");
        self.redirect.get_or_insert(elsewhere);
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        self
    }

    /// Each request: its path, who asked, and from where on.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn answer(State(registry): State<MadeUp>, request: Request) -> Response {
    let header = |name: &str| Some(request.headers().get(name)?.to_str().unwrap().to_owned());
    let (who, range) = (header("authorization"), header("range"));
    let path = request.uri().path();
    let from = range
        .as_ref()
        .map_or_else(String::new, |range| format!(" from {range}"));
    let line = format!("{path} {}{from}", who.as_deref().unwrap_or("nobody"));
    registry.seen.lock().unwrap().push(line);
    match path {
        "/token" if who == Some(format!("Basic {LOGIN}")) => {
            axum::Json(serde_json::json!({ "token": TOKEN })).into_response()
        }
        "/token" => StatusCode::UNAUTHORIZED.into_response(),
        "/elsewhere" => blob(&registry, range),
        _ if registry.token_at.is_some() && who != Some(format!("Bearer {TOKEN}")) => {
            let realm = registry.token_at.unwrap();
            let challenge = format!("Bearer realm=\"{realm}\",service=\"made-up\"");
            (StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)]).into_response()
        }
        "/v2/team/disk/manifests/1" => {
            let digest = format!("sha256:{}", registry.digest);
            ([("docker-content-digest", digest)], registry.manifest).into_response()
        }
        path if path.starts_with("/v2/team/disk/blobs/") => {
            Redirect::temporary(&registry.redirect.unwrap()).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn blob(registry: &MadeUp, range: Option<String>) -> Response {
    let from = range.map_or(0, |range| {
        let from = range.trim_start_matches("bytes=").trim_end_matches('-');
        from.parse().unwrap()
    });
    let rest = registry.sent[from..].to_vec();
    match registry.cut {
        Some(cut) if from == 0 => {
            let whole = rest.len();
            let sent = Bytes::from(rest[..cut].to_vec());
            let cut = async {
                // What was sent before goes out while this is waited for.
                tokio::task::yield_now().await;
                Err(std::io::Error::other("cut"))
            };
            let pieces = futures::stream::iter([Ok(sent)]).chain(futures::stream::once(cut));
            let body = Body::from_stream(pieces);
            ([("content-length", whole.to_string())], body).into_response()
        }
        _ if from > 0 => (StatusCode::PARTIAL_CONTENT, rest).into_response(),
        _ => rest.into_response(),
    }
}
