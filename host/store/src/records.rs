//! What goes into and comes out of a store: revisions, entries, pages, transactions, events.
//!
//! Plain data; no implementation, no I/O.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A moment in a store's life: grows with every transaction that changes something. [`Revision::ZERO`] comes before
/// all of them and stands for "never" in comparisons.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Before every change; the revision that an absent key compares as.
    pub const ZERO: Self = Self(0);

    /// The revision after this one: where to watch from after a listing at this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One live key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// When the key last came into being.
    pub create_revision: Revision,
    /// When the value was last written; the optimistic lock.
    pub mod_revision: Revision,
    /// How often the value was written since the key came into being; 1 for a new key.
    pub version: u64,
}

/// Part of a listing, all of it from one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The moment the page shows: what to pass as `at` for the next page, and whose [`Revision::next`] to watch from.
    pub revision: Revision,
    /// Whether there is a next page, after the last key of this one.
    pub more: bool,
}

impl Page {
    /// Where the next page starts, if there is one.
    pub fn next_after(&self) -> Option<&str> {
        self.entries
            .last()
            .filter(|_| self.more)
            .map(|entry| entry.key.as_str())
    }
}

/// What a comparison demands of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// The key is live.
    Exists,
    /// The key is not live.
    Absent,
    /// The key was last written at this revision ([`Revision::ZERO`]: it is absent).
    ModRevision(Revision),
    /// The key came into being at this revision ([`Revision::ZERO`]: it is absent).
    CreateRevision(Revision),
    /// The key is live with exactly this value.
    Value(Bytes),
}

impl Test {
    /// Whether `entry` is as demanded.
    pub fn holds(&self, entry: Option<&Entry>) -> bool {
        match self {
            Self::Exists => entry.is_some(),
            Self::Absent => entry.is_none(),
            Self::ModRevision(revision) => {
                entry.map_or(Revision::ZERO, |e| e.mod_revision) == *revision
            }
            Self::CreateRevision(revision) => {
                entry.map_or(Revision::ZERO, |e| e.create_revision) == *revision
            }
            Self::Value(value) => entry.is_some_and(|e| e.value == *value),
        }
    }

    pub(crate) fn value_bytes(&self) -> usize {
        match self {
            Self::Value(value) => value.len(),
            _ => 0,
        }
    }
}

/// One condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key looked at.
    pub key: String,
    /// What it must be like.
    pub test: Test,
}

impl Compare {
    /// Demands `test` of `key`.
    pub fn new(key: impl Into<String>, test: Test) -> Self {
        Self {
            key: key.into(),
            test,
        }
    }

    /// The key must be live.
    pub fn exists(key: impl Into<String>) -> Self {
        Self::new(key, Test::Exists)
    }

    /// The key must not be live.
    pub fn absent(key: impl Into<String>) -> Self {
        Self::new(key, Test::Absent)
    }

    /// The key must have been written last at `revision`.
    pub fn unchanged(key: impl Into<String>, revision: Revision) -> Self {
        Self::new(key, Test::ModRevision(revision))
    }
}

/// One operation of a transaction. Operations of one list are carried out in order, each seeing those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a value.
    Put {
        /// Where.
        key: String,
        /// What.
        value: Bytes,
    },
    /// Removes a key; nothing happens when it is absent.
    Delete {
        /// Which.
        key: String,
    },
    /// Reads a key.
    Get {
        /// Which.
        key: String,
    },
}

impl Op {
    /// Writes `value` at `key`.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
        }
    }

    /// Removes `key`.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Reads `key`.
    pub fn get(key: impl Into<String>) -> Self {
        Self::Get { key: key.into() }
    }

    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Get { key } => key,
        }
    }
}

/// "If all comparisons hold, do this, otherwise that", in one step. Limits: [`crate::limits`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold for `then`.
    pub compares: Vec<Compare>,
    /// Done when all comparisons hold (also when there is none).
    pub then: Vec<Op>,
    /// Done when one does not.
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// No comparison, no operation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a comparison.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds an operation for the case that all comparisons hold.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// Adds an operation for the case that one does not.
    #[must_use]
    pub fn otherwise(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }
}

/// What an operation found or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// The value was written.
    Put,
    /// The key is absent now.
    Delete {
        /// Whether it was live before.
        existed: bool,
    },
    /// What was at the key.
    Get(Option<Entry>),
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Whether all comparisons held, so that `then` was done.
    pub succeeded: bool,
    /// The revision of its changes; when it changed nothing, the store's latest.
    pub revision: Revision,
    /// One for each operation of the list that was done, in order.
    pub results: Vec<OpResult>,
}

/// One change, as a watch shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key has this value now.
    Put(Entry),
    /// The key is gone.
    Delete {
        /// Which.
        key: String,
        /// When it went.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }
}

/// All changes of one revision that a watch is about, in the order of the transaction's operations.
///
/// One without events is a sign of progress: there was nothing up to `revision`, so a watch may be resumed after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision of the changes; strictly greater than that of the batch before.
    pub revision: Revision,
    /// The changes; never the same key twice.
    pub events: Vec<Event>,
}
