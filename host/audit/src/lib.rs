//! Who did what, in a log that proves itself: append-only, durable before it is answered, and a Merkle tree (RFC 9162)
//! over it from the first entry, whose signed checkpoints clients keep.
//!
//! What always holds:
//! - an entry that [`AuditLog::append`] has answered survives any crash, and is found in every later checkpoint;
//! - what is on disk either proves itself at opening or is refused with the place that does not; only bytes that were
//!   never acknowledged are dropped;
//! - whoever keeps a checkpoint finds a changed byte, a removed entry and a cut tail with [`Verifier`] and [`Replay`],
//!   trusting nothing but the log's public key.
//!
//! Two halves: [`tree`], [`note`], [`checkpoint`], [`entry`] and [`verify`] are pure (no file, no clock, no thread) and
//! are all that a client needs; [`AuditLog`] keeps the files.
//!
//! This crate must never know what the entries mean, nor who may read them.

pub mod checkpoint;
pub mod entry;
mod log;
pub mod note;
pub mod tree;
pub mod verify;

pub use checkpoint::Checkpoint;
pub use entry::{Entry, Outcome, StoredEntry};
pub use log::{
    AppendError, AuditLog, BATCH_ENTRIES_MAX, EntriesPage, OpenError, OpenReport, Options,
    PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, ReadError, Receipt,
};
pub use note::{Signer, VerifierKey};
pub use tree::Hash;
pub use verify::{Kept, Replay, Verifier, VerifyError};
