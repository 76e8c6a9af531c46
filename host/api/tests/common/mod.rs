//! A host in memory behind the real API, for tests of the API, the SDK and the CLI.
//!
//! It keeps the promises of `dwcp_api::Service` that a client can see, and decides nothing cleverly.
#![allow(dead_code, unused_imports, clippy::unwrap_used)]

mod audit;
mod fake;
mod guests;
mod sample;
mod service;
mod tls;

pub use fake::{Fake, OTHER_KEY, TEST_KEY};
pub use sample::digest_of;
pub use tls::{Authority, authority};

use std::net::SocketAddr;
use std::sync::Arc;

use dwcp_api::limits::ServeLimits;

/// A served fake; it ends when dropped.
pub struct Served {
    /// The host.
    pub fake: Arc<Fake>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its authority, PEM.
    pub ca_pem: String,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    /// `https://IP:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Asks the server to end and waits until it has.
    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap();
    }
}

/// Serves a fake over TLS on a loopback port.
pub async fn served() -> Served {
    served_with(ServeLimits::default()).await
}

/// The same under other limits.
pub async fn served_with(limits: ServeLimits) -> Served {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let authority = authority();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let fake = Arc::new(Fake::new());
    let service: Arc<dyn dwcp_api::Service> = fake.clone();
    let task = tokio::spawn(dwcp_api::serve_with(
        listener,
        authority.server,
        service,
        limits,
        async {
            let _ = stopped.await;
        },
    ));
    Served {
        fake,
        address,
        ca_pem: authority.ca_pem,
        stop: Some(stop),
        task,
    }
}
