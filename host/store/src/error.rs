//! Why a store does not do what it was asked; the same for every implementation.

use crate::limits;

/// Why a store did not answer a request as wished.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The revision asked for is no longer kept.
    #[error(
        "The history asked for is no longer kept: list again and watch from the revision of that answer"
    )]
    Compacted,
    /// The revision asked for is ahead of the store.
    #[error(
        "The revision asked for is ahead of the store's latest: ask for one that the store has answered"
    )]
    FutureRevision,
    /// The request is over a limit or contradicts itself; it would be refused every time.
    #[error("The store refuses this request")]
    Invalid(#[from] InvalidRequest),
    /// The storage failed or its owner has closed it. Whether a change under way was made is not known.
    #[error(
        "The store cannot be reached now: look at its file or its servers, then ask what became of the change"
    )]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What is stored is not what this program writes.
    #[error(
        "The store holds something that this version cannot read ({0}): restore it from a backup"
    )]
    Damaged(String),
}

/// What is wrong with a request that no store accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// A key is empty.
    #[error("A key cannot be empty")]
    EmptyKey,
    /// A key is longer than [`limits::KEY_BYTES_MAX`].
    #[error("A key of {0} bytes is over the limit of {max}", max = limits::KEY_BYTES_MAX)]
    KeyTooLong(usize),
    /// A value is longer than [`limits::VALUE_BYTES_MAX`].
    #[error("A value of {0} bytes is over the limit of {max}", max = limits::VALUE_BYTES_MAX)]
    ValueTooLong(usize),
    /// All keys and values of one transaction together exceed [`limits::REQUEST_BYTES_MAX`].
    #[error("A transaction of {0} bytes is over the limit of {max}: split it", max = limits::REQUEST_BYTES_MAX)]
    RequestTooLong(usize),
    /// A list of one transaction is longer than [`limits::OPERATIONS_MAX`].
    #[error("A transaction with {0} operations is over the limit of {max}: split it", max = limits::OPERATIONS_MAX)]
    TooManyOperations(usize),
    /// One list of operations changes the same key twice.
    #[error("A transaction may change a key only once, but it changes {0:?} twice")]
    ChangedTwice(String),
    /// A page limit outside 1..=[`limits::PAGE_ENTRIES_MAX`].
    #[error("A page of {0} entries cannot be asked for: the limit is from 1 to {max}", max = limits::PAGE_ENTRIES_MAX)]
    Limit(usize),
}
