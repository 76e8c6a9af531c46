//! What the routes share: the service, and counters that keep long-lived work bounded.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::limits::{CHANGES_MAX, STREAMS_MAX};
use crate::problem::Problem;
use crate::service::{FaultKind, Service};

/// Shared by all requests.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) service: Arc<dyn Service>,
    /// Becomes true when the server is asked to end; streams end with it.
    pub(crate) stopping: watch::Receiver<bool>,
    /// Idempotency keys whose first request is under way.
    pub(crate) in_flight: InFlight,
    streams: Arc<Semaphore>,
    changes: Arc<Semaphore>,
}

impl Api {
    pub(crate) fn new(service: Arc<dyn Service>, stopping: watch::Receiver<bool>) -> Self {
        Self {
            service,
            stopping,
            in_flight: InFlight::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            changes: Arc::new(Semaphore::new(CHANGES_MAX)),
        }
    }

    /// A place for a stream or console.
    pub(crate) fn stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        place(&self.streams, "streams and consoles")
    }

    /// A place for a change.
    pub(crate) fn change(&self) -> Result<OwnedSemaphorePermit, Problem> {
        place(&self.changes, "changes")
    }

    /// Completes once the server is asked to end.
    pub(crate) async fn stopped(&self) {
        let mut stopping = self.stopping.clone();
        if stopping.wait_for(|stopping| *stopping).await.is_err() {
            // Nobody can ask any more: a router without a server runs until it is dropped.
            std::future::pending::<()>().await;
        }
    }
}

fn place(places: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        let detail = format!("Too many {what} are open; close one or try again");
        Problem::new(FaultKind::Unavailable, detail)
    })
}

/// Keys under which a request is being carried out now. Bounded by the number of connections.
#[derive(Clone, Default)]
pub(crate) struct InFlight(Arc<Mutex<HashSet<String>>>);

/// Takes its key out again when dropped.
pub(crate) struct InFlightGuard(InFlight, String);

impl InFlight {
    /// `None` if the key is there already.
    pub(crate) fn enter(&self, key: String) -> Option<InFlightGuard> {
        let new = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.clone());
        new.then(|| InFlightGuard(self.clone(), key))
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let mut keys = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.remove(&self.1);
    }
}
