//! The HTTP API: routes, the OpenAPI document, authentication, and errors as problem details (RFC 9457).
//!
//! What the API can do is the trait [`Service`]; how it is done is somebody else's. Every request is authenticated
//! before anything else is looked at, every body and list is bounded, and no decision is made here.
//!
//! [`serve`] answers on a listening socket until it is asked to end; [`router`] is the same without sockets.
//!
//! This crate must never know the store, the launcher, a virtual machine monitor or a plugin.

mod change;
mod envelope;
mod etag;
mod extract;
pub mod limits;
mod openapi;
mod paging;
pub mod problem;
mod routes;
mod serve;
pub mod service;
mod sse;
mod state;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::sync::watch;

pub use change::{IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED};
pub use envelope::REQUEST_ID;
pub use openapi::{document, document_json};
pub use routes::audit::Proof;
pub use routes::forks::VmForked;
pub use routes::migrations::Resolve;
pub use routes::vms::VmCreated;
pub use serve::{serve, serve_with};
pub use service::{Fault, FaultKind, Principal, Service};

use problem::Problem;
use state::Api;

/// The API as a router, for a server of one's own or for tests; its streams run until it is dropped.
pub fn router(service: Arc<dyn Service>) -> Router {
    let (_, never) = watch::channel(false);
    router_until(service, never)
}

/// The same; streams and consoles end when `stopping` becomes true.
fn router_until(service: Arc<dyn Service>, stopping: watch::Receiver<bool>) -> Router {
    let api = Api::new(service, stopping);
    let (open, _) = routes::open().split_for_parts();
    let (keyed, _) = routes::keyed().split_for_parts();
    // The outermost layer comes last: who asks is settled first, then how a change is carried out.
    let keyed = keyed
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(api.clone(), change::change))
        .layer(from_fn_with_state(api.clone(), envelope::authenticate));
    open.method_not_allowed_fallback(no_method)
        .merge(keyed)
        .layer(from_fn(envelope::envelope))
        .with_state(api)
}

async fn no_route(uri: Uri) -> Problem {
    let detail = format!(
        "There is nothing at {}; see /openapi.json",
        uri.path().chars().take(200).collect::<String>()
    );
    Problem::new(FaultKind::NotFound, detail)
}

async fn no_method(method: Method) -> Problem {
    Problem::method(&method)
}
