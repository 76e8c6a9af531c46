//! Desired state, kept where a crash cannot lose it: one trait, [`Store`], shaped by what etcd can do, and
//! [`RedbStore`], which keeps it in one file on one machine.
//!
//! What always holds:
//! - a change is durable before it is answered, and every later read sees it (linearizable);
//! - revisions are global and only grow; all changes of one transaction share one revision;
//! - a watch delivers every change after its starting revision, once and in order, or ends with
//!   [`StoreError::Compacted`], after which its owner lists again;
//! - everything has a limit ([`limits`]), the same for every implementation.
//!
//! The limits and meanings are etcd's, so that a region can grow from the file into etcd without its users noticing;
//! `conformance::run` (feature `conformance`) is the judge of that.
//!
//! This crate must never know what the values mean: it stores bytes, and JSON through [`Typed`].

mod error;
pub mod limits;
mod records;
mod redb;
mod typed;
mod watch;

#[cfg(feature = "conformance")]
pub mod conformance;

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

pub use crate::error::{InvalidRequest, StoreError};
pub use crate::records::{
    Batch, Compare, Entry, Event, Op, OpResult, Page, Revision, Test, Txn, TxnOutcome,
};
pub use crate::redb::{OpenError, RedbStore, Retention};
pub use crate::typed::{Typed, TypedError, TypedPage, Versioned};
pub use crate::watch::Watch;

/// A linearizable, versioned map from keys to values, with transactions and watches.
///
/// Keys are UTF-8 text, ordered by their bytes; a family of records shares a prefix that ends in `/`.
///
/// Dropping a future of [`transact`](Store::transact) does not undo the transaction: it may or may not be applied. The
/// same holds after [`StoreError::Unavailable`].
#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    /// The revision of the latest change.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// The live entry at `key`, if there is one.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// The entries whose keys begin with `prefix` (empty: all) and lie after `start_after`, in key order.
    ///
    /// At most `limit` entries (1..=[`limits::PAGE_ENTRIES_MAX`]); a page may be shorter when its entries are large, and
    /// [`Page::more`] alone says whether it was the last. `at` reads the past: pass the first page's
    /// [`Page::revision`] to get the pages after it from the same moment.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when `at` is no longer kept, [`StoreError::FutureRevision`] when it is not there yet.
    async fn range(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, StoreError>;

    /// Checks every comparison and carries out one of the two lists of operations, all at once or not at all.
    async fn transact(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// Follows every change, from revision `from` (itself included) on, of keys that begin with `prefix` (empty: all).
    ///
    /// To follow a listing, watch from [`Revision::next`] of its page's revision. A watch keeps no queue of its own:
    /// one that is slow reads from the store's history.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], here or as the watch's last item, when what it has to deliver is no longer kept:
    /// list again and watch from there.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// Gives up the history before `revision`: reads of the past before it, and watches from it or before it, are
    /// refused. Live entries stay. Compacting what is compacted already is [`StoreError::Compacted`].
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// Writes one entry whatever was there; answers the revision of the change.
    async fn put(&self, key: &str, value: Bytes) -> Result<Revision, StoreError> {
        Ok(self
            .transact(Txn::new().then(Op::put(key, value)))
            .await?
            .revision)
    }

    /// Removes one entry; answers whether there was one.
    async fn delete(&self, key: &str) -> Result<bool, StoreError> {
        let outcome = self.transact(Txn::new().then(Op::delete(key))).await?;
        Ok(matches!(
            outcome.results.first(),
            Some(OpResult::Delete { existed: true })
        ))
    }
}
