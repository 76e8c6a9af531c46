//! [`RedbStore`]: the whole state in one file, for a region of one host.
//!
//! Reads look at a snapshot and wait for nobody; changes go to one thread ([`writer`]) that groups them. A watch reads
//! the latest changes from memory and older ones from the file, so it needs no queue.
//!
//! Must never know what the values mean.

mod apply;
mod open;
mod read;
mod recent;
mod tables;
mod watch;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ::redb::Database;
use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use self::recent::Recent;
use self::writer::Request;
use crate::error::StoreError;
use crate::records::{Batch, Entry, Page, Revision, Txn, TxnOutcome};
use crate::watch::Watch;
use crate::{Store, limits};

pub use self::open::OpenError;

/// How much history is kept for watches and reads of the past before it is compacted by itself. Whichever limit is
/// reached first holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Most revisions.
    pub revisions: usize,
    /// Most bytes of superseded values and keys.
    pub bytes: u64,
}

impl Default for Retention {
    /// 10,000 revisions, 64 MiB.
    fn default() -> Self {
        Self {
            revisions: 10_000,
            bytes: 64 << 20,
        }
    }
}

/// What readers, watches and the writer share.
#[derive(Debug)]
struct Shared {
    db: Database,
    recent: Mutex<Recent>,
    latest: tokio::sync::watch::Sender<Revision>,
}

impl Shared {
    /// Shows what has become durable.
    fn publish(&self, batches: Vec<Arc<Batch>>, latest: Revision) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for batch in batches {
            recent.push(batch);
        }
        drop(recent);
        self.latest.send_replace(latest);
    }
}

/// A store in one file. Only one process at a time has it open. Dropping it waits for the change under way and ends
/// its watches.
#[derive(Debug)]
pub struct RedbStore {
    /// `None` only while being dropped.
    requests: Option<mpsc::Sender<Request>>,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl RedbStore {
    /// Opens the store at `path`, making it when there is none, and checks every page of it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path, Retention::default())
    }

    /// The same with another [`Retention`].
    pub fn open_with(path: impl AsRef<Path>, retention: Retention) -> Result<Self, OpenError> {
        let (db, position) = open::open(path.as_ref())?;
        let shared = Arc::new(Shared {
            db,
            recent: Mutex::new(Recent::new(position.latest)),
            latest: tokio::sync::watch::Sender::new(position.latest),
        });
        let (requests, queue) = mpsc::channel(writer::QUEUE);
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn({
                let shared = shared.clone();
                move || writer::run(&shared, retention, position, queue)
            })
            .map_err(|source| OpenError::Io {
                path: path.as_ref().to_owned(),
                source,
            })?;
        Ok(Self {
            requests: Some(requests),
            shared,
            writer: Some(writer),
        })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let stopped = || {
            StoreError::Unavailable("the thread that writes the store has stopped; restart".into())
        };
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(stopped)?;
        requests.send(request(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(*self.shared.latest.borrow())
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        limits::check_key(key)?;
        read::get(&self.shared.db, key)
    }

    async fn range(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, StoreError> {
        limits::check_range(prefix, start_after, limit)?;
        let shared = self.shared.clone();
        let (prefix, start_after) = (prefix.to_owned(), start_after.map(str::to_owned));
        blocking(move || read::range(&shared.db, &prefix, start_after.as_deref(), limit, at)).await
    }

    async fn transact(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        limits::check_txn(&txn)?;
        self.ask(|reply| Request::Transact(txn, reply)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        limits::check_range(prefix, None, 1)?;
        watch::start(&self.shared, prefix, from)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask(|reply| Request::Compact(revision, reply)).await
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has already said so on stderr; its callers were told.
            let _ = writer.join();
        }
    }
}

/// Runs `read`, which may wait for the disk, away from the executor's threads.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Unavailable("reading was interrupted".into())),
    }
}

/// An error of the file, as a store's error.
fn fault(error: impl Into<::redb::Error>) -> StoreError {
    match error.into() {
        ::redb::Error::Corrupted(what) => StoreError::Damaged(what),
        error => StoreError::Unavailable(Box::new(error)),
    }
}
