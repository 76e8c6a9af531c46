//! What a client of the API can rely on, asked of the router itself: keys, problems, revisions, lists, repetition.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use common::{Fake, OTHER_KEY, TEST_KEY, digest_of};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
    /// The problem, checked for what every problem has.
    fn problem(&self, status: u16, kind: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["type"], format!("urn:dwcp:problem:{kind}"));
        assert_eq!(problem["status"], status);
        assert_eq!(problem["request_id"], self.header("x-request-id"));
        assert!(!problem["detail"].as_str().unwrap().is_empty());
        problem
    }
}

struct Host {
    fake: Arc<Fake>,
    router: Router,
}

fn host() -> Host {
    let fake = Arc::new(Fake::new());
    let service: Arc<dyn dwcp_api::Service> = fake.clone();
    Host {
        fake,
        router: dwcp_api::router(service),
    }
}

impl Host {
    async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }
    async fn get(&self, path: &str) -> Reply {
        self.send(request("GET", path, &[], Body::empty())).await
    }
    async fn post(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Reply {
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers);
        let body = Body::from(body.to_string());
        self.send(request("POST", path, &all, body)).await
    }
    async fn put_image(&self, headers: &[(&str, &str)], content: &'static str) -> Reply {
        let mut all = vec![("content-type", "application/octet-stream")];
        all.extend(headers);
        let request = request("POST", "/v1/images?label=k", &all, Body::from(content));
        self.send(request).await
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Request<Body> {
    let key = format!("Bearer {TEST_KEY}");
    let keyed = headers.iter().any(|(name, _)| *name == "authorization");
    let mut request = Request::builder().method(method).uri(path);
    if !keyed {
        request = request.header("authorization", key);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

fn machine(name: &str) -> Value {
    json!({"name": name, "template": "dwcp/worker"})
}

const VMS: &str = "/v1/projects/default/vms";

#[tokio::test]
async fn nobody_unknown_is_told_anything() {
    let host = host();
    for path in ["/v1/host", VMS, "/v1/nothing", "/elsewhere", "/v1/docs"] {
        for header in ["", "Bearer wrong", "Basic abc", "Bearer", "Bearer  "] {
            let request = request("GET", path, &[("authorization", header)], Body::empty());
            let reply = host.send(request).await;
            reply.problem(401, "unauthenticated");
            assert!(reply.header("www-authenticate").starts_with("Bearer"));
        }
    }
    let long = format!("Bearer {}", "k".repeat(4_000));
    let request = request(
        "GET",
        "/v1/host",
        &[("authorization", &long)],
        Body::empty(),
    );
    host.send(request).await.problem(401, "unauthenticated");
    let denied = host.fake.denied();
    assert_eq!(denied.len(), 26);
    assert_eq!(denied[0], "no API key");
    assert_eq!(denied[1], "an API key of nobody");
}

#[tokio::test]
async fn some_paths_need_no_key() {
    let host = host();
    for path in ["/healthz", "/metrics", "/openapi.json", "/docs/"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let reply = host.send(request).await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
    }
    assert_eq!(host.get("/docs").await.header("location"), "/docs/");
    host.get("/docs/nothing.js").await.problem(404, "not-found");
}

#[tokio::test]
async fn the_pages_fetch_nothing_from_outside() {
    let host = host();
    let index = host.get("/docs/").await;
    assert!(
        index
            .header("content-security-policy")
            .contains("default-src 'none'")
    );
    assert!(!index.text.contains("http://") && !index.text.contains("https://"));
    let start = host.get("/docs/swagger-initializer.js").await;
    assert!(start.text.contains("/openapi.json"), "{}", start.text);
    for file in ["swagger-ui-bundle.js", "swagger-ui.css"] {
        assert_eq!(host.get(&format!("/docs/{file}")).await.status, 200);
    }
}

#[tokio::test]
async fn every_refusal_is_a_problem() {
    let host = host();
    host.get("/v1/nothing").await.problem(404, "not-found");
    let delete = request("DELETE", "/v1/host", &[], Body::empty());
    host.send(delete).await.problem(405, "method-not-allowed");
    let post = request("POST", "/healthz", &[], Body::empty());
    host.send(post).await.problem(405, "method-not-allowed");
    host.get(&format!("{VMS}/Not%20a%20name"))
        .await
        .problem(400, "invalid");
    host.get(&format!("{VMS}/none"))
        .await
        .problem(404, "not-found");
    host.get("/v1/images/xyz").await.problem(400, "invalid");
    host.get("/v1/events?after=-1")
        .await
        .problem(400, "invalid");
    host.get("/v1/audit/consistency?old=3&new=2")
        .await
        .problem(400, "invalid");
    let untyped = request("POST", VMS, &[], Body::from("{}"));
    host.send(untyped)
        .await
        .problem(415, "unsupported-media-type");
    host.get(&format!("{VMS}/x/console"))
        .await
        .problem(426, "upgrade-required");
}

#[tokio::test]
async fn a_bad_body_is_told_where() {
    let host = host();
    let headers = [("content-type", "application/json; charset=utf-8")];
    let broken = Body::from("{\n  \"name\": \"web\",\n  \"memory\": 1\n}");
    let reply = host.send(request("POST", VMS, &headers, broken)).await;
    let detail = reply.problem(400, "invalid")["detail"].to_string();
    assert!(
        detail.contains("memory") && detail.contains("line 3"),
        "{detail}"
    );
    let reply = host.post(VMS, &[], machine("Not a name")).await;
    let detail = reply.problem(400, "invalid")["detail"].to_string();
    assert!(detail.contains("is not a name"), "{detail}");
    let large = Body::from("x".repeat((1 << 20) + 1));
    let reply = host.send(request("POST", VMS, &headers, large)).await;
    reply.problem(413, "too-large");
}

#[tokio::test]
async fn a_denial_carries_its_reasons() {
    let host = host();
    let text = [("content-type", "text/plain")];
    let source = Body::from("package dwcp\n");
    let reply = host
        .send(request("PUT", "/v1/policies/tags", &text, source))
        .await;
    assert_eq!(reply.status, 200);
    let binding = json!({"policy": "tags", "action": "vm.create"});
    assert_eq!(
        host.post("/v1/policy-bindings", &[], binding).await.status,
        201
    );
    let problem = host
        .post(VMS, &[], machine("web"))
        .await
        .problem(403, "denied");
    assert_eq!(problem["reasons"].as_array().unwrap().len(), 4);
    let broken = Body::from("nonsense");
    let reply = host
        .send(request("PUT", "/v1/policies/tags", &text, broken))
        .await;
    assert!(reply.problem(422, "impossible")["reasons"][0].is_string());
}

#[tokio::test]
async fn request_ids_are_taken_or_made() {
    let host = host();
    let mine = request(
        "GET",
        "/v1/host",
        &[("x-request-id", "mine-1.2_3")],
        Body::empty(),
    );
    assert_eq!(host.send(mine).await.header("x-request-id"), "mine-1.2_3");
    for bad in ["a b", "ü", &"x".repeat(65)] {
        let request = request("GET", "/v1/host", &[("x-request-id", bad)], Body::empty());
        let reply = host.send(request).await;
        assert_eq!(reply.header("x-request-id").len(), 36, "{bad}");
    }
}

#[tokio::test]
async fn revisions_guard_reads_and_changes() {
    let host = host();
    let created = host.post(VMS, &[], machine("web")).await;
    assert_eq!(created.status, 201);
    assert_eq!(created.header("location"), format!("{VMS}/web"));
    let at = format!("{VMS}/web");
    let read = host.get(&at).await;
    let etag = read.header("etag").to_owned();
    assert_eq!(etag, created.header("etag"));
    let same = request("GET", &at, &[("if-none-match", &etag)], Body::empty());
    let same = host.send(same).await;
    assert_eq!((same.status.as_u16(), same.text.as_str()), (304, ""));

    let stop = host
        .post(&format!("{at}/stop?force=true"), &[], Value::Null)
        .await;
    assert_eq!(stop.status, 202);
    let operation = stop.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(
        stop.header("location"),
        format!("/v1/operations/{operation}")
    );
    let late = request("DELETE", &at, &[("if-match", &etag)], Body::empty());
    host.send(late).await.problem(412, "changed");
    let wrong = request("DELETE", &at, &[("if-match", "W/\"1\"")], Body::empty());
    host.send(wrong).await.problem(400, "invalid");
    let now = host.get(&at).await.header("etag").to_owned();
    let good = request("DELETE", &at, &[("if-match", &now)], Body::empty());
    assert_eq!(host.send(good).await.status, 204);
    host.get(&at).await.problem(404, "not-found");
}

#[tokio::test]
async fn lists_come_in_parts_under_opaque_cursors() {
    let host = host();
    for n in 0..25 {
        assert_eq!(
            host.post(VMS, &[], machine(&format!("vm-{n:02}")))
                .await
                .status,
            201
        );
    }
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = host.get(&format!("{VMS}?limit=10{cursor}")).await.json();
        let items = page["items"].as_array().unwrap();
        names.extend(
            items
                .iter()
                .map(|vm| vm["name"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["next_cursor"].as_str() else {
            break;
        };
        assert!(!next.contains("vm-"), "the cursor shows what it means");
        cursor = format!("&cursor={next}");
    }
    let wanted: Vec<_> = (0..25).map(|n| format!("vm-{n:02}")).collect();
    assert_eq!(names, wanted);
    let other = format!("/v1/projects/other/vms?limit=10{cursor}");
    host.get(&other).await.problem(400, "invalid");
    for bad in ["limit=0", "limit=1001", "limit=x", "cursor=%00"] {
        host.get(&format!("{VMS}?{bad}"))
            .await
            .problem(400, "invalid");
    }
}

#[tokio::test]
async fn a_repeated_post_is_answered_and_not_repeated() {
    let host = host();
    let key = [("idempotency-key", "k-1")];
    let first = host.post(VMS, &key, machine("web")).await;
    let again = host.post(VMS, &key, machine("web")).await;
    assert_eq!((again.status, again.json()), (first.status, first.json()));
    assert_eq!(again.header("idempotency-replayed"), "true");
    for kept in ["etag", "location"] {
        assert_eq!(again.header(kept), first.header(kept));
    }
    assert_eq!(host.fake.created(), 1);
    host.post(VMS, &key, machine("other"))
        .await
        .problem(422, "impossible");
    host.post(VMS, &[], machine("web"))
        .await
        .problem(409, "conflict");
    // Another principal's key of the same name is another key.
    let theirs = [
        ("idempotency-key", "k-1"),
        ("authorization", &format!("Bearer {OTHER_KEY}")),
    ];
    assert_eq!(host.post(VMS, &theirs, machine("theirs")).await.status, 201);
    for bad in ["", "a b", &"k".repeat(129)] {
        let reply = host
            .post(VMS, &[("idempotency-key", bad)], machine("x"))
            .await;
        reply.problem(400, "invalid");
    }
}

#[tokio::test]
async fn a_refused_post_may_be_tried_again_under_its_key() {
    let host = host();
    let key = [("idempotency-key", "k-1")];
    let incomplete = json!({"name": "web"});
    host.post(VMS, &key, incomplete)
        .await
        .problem(400, "invalid");
    assert_eq!(host.post(VMS, &key, machine("web")).await.status, 201);
}

#[tokio::test]
async fn the_same_post_at_the_same_time_is_told_to_wait() {
    let host = host();
    let key = [("idempotency-key", "k-1")];
    let first = host.post(VMS, &key, machine("slow"));
    let second = async {
        // The first waits for the gate; the second comes meanwhile.
        host.post(VMS, &key, machine("slow"))
            .await
            .problem(409, "under-way");
        host.fake.gate.add_permits(1);
    };
    let (first, ()) = tokio::join!(first, second);
    assert_eq!(first.status, 201);
    assert_eq!(host.fake.created(), 1);
}

#[tokio::test]
async fn a_change_goes_on_when_its_client_leaves() {
    let host = host();
    let key = [("idempotency-key", "k-1")];
    let mut at_gate = host.fake.at_gate.subscribe();
    // The client leaves as soon as its request waits for the gate.
    tokio::select! {
        _ = host.post(VMS, &key, machine("slow")) => panic!("it should have waited"),
        _ = at_gate.wait_for(|came| *came == 1) => {}
    }
    host.fake.gate.add_permits(1);
    loop {
        let reply = host.post(VMS, &key, machine("slow")).await;
        if reply.status == 201 {
            assert_eq!(reply.header("idempotency-replayed"), "true");
            break;
        }
        reply.problem(409, "under-way");
        tokio::task::yield_now().await;
    }
    assert_eq!(host.fake.created(), 1);
}

#[tokio::test]
async fn images_are_streamed_and_checked() {
    use base64::Engine as _;
    let host = host();
    let digest = digest_of(b"kernel");
    let encode = |bytes: Vec<u8>| base64::engine::general_purpose::STANDARD.encode(bytes);
    let good = encode(hex::decode(&digest).unwrap());
    for header in [
        ("content-digest", format!("sha-256=:{good}:")),
        ("digest", format!("SHA-256={good}")),
        (
            "content-digest",
            format!("sha-512=:AAAA:, sha-256=:{good}:"),
        ),
    ] {
        let reply = host.put_image(&[(header.0, &header.1)], "kernel").await;
        assert_eq!(reply.status, 201, "{header:?} {}", reply.text);
        assert_eq!(reply.json()["digest"], digest);
        assert_eq!(reply.header("location"), format!("/v1/images/{digest}"));
    }
    let other = format!("sha-256=:{}:", encode(vec![0; 32]));
    let reply = host
        .put_image(&[("content-digest", &other)], "kernel")
        .await;
    reply.problem(422, "impossible");
    let reply = host
        .put_image(&[("content-digest", "md5=:AAAA:")], "kernel")
        .await;
    reply.problem(400, "invalid");
    let announced = [("content-length", "68719476737")];
    host.put_image(&announced, "kernel")
        .await
        .problem(413, "too-large");
    let untyped = request("POST", "/v1/images", &[], Body::from("x"));
    host.send(untyped)
        .await
        .problem(415, "unsupported-media-type");
    let long = format!("/v1/images?label={}", "x".repeat(256));
    let typed = [("content-type", "application/octet-stream")];
    host.send(request("POST", &long, &typed, Body::from("x")))
        .await
        .problem(400, "invalid");
}

#[tokio::test]
async fn an_image_without_end_is_cut_off() {
    let host = host();
    // 64 MiB at a time without a length; the service hashes none of it because one piece is shared.
    let piece = bytes::Bytes::from(vec![0; 64 << 20]);
    let endless = futures::stream::repeat(piece).map(Ok::<_, std::io::Error>);
    use futures::StreamExt;
    let typed = [("content-type", "application/octet-stream")];
    host.fake.skip_hashing();
    let request = request("POST", "/v1/images", &typed, Body::from_stream(endless));
    host.send(request).await.problem(413, "too-large");
    assert!(
        host.get("/v1/images").await.json()["items"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}
