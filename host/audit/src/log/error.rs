//! Why the log does not open, take an entry or answer; what each says is what a person does next.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::BATCH_ENTRIES_MAX;
use crate::entry::EntryError;
use crate::note::NoteError;

/// Why a log could not be opened. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The files cannot be reached.
    #[error("The audit log {} cannot be opened: look at its owner, permissions and disk", path.display())]
    Io {
        /// The log.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process has it.
    #[error("The audit log {} is in use: stop the other dwcpd that has it open", path.display())]
    InUse {
        /// The log.
        path: PathBuf,
    },
    /// Something that was acknowledged is not as it was written.
    #[error(
        "The audit log was damaged or altered: {} at byte {offset}, entry {entry}: {what}. Keep the files as evidence, \
         and start with a copy from a backup or an empty directory",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The record that does not hold begins here, in bytes; when only a group as a whole does not hold, the group.
        offset: u64,
        /// The first entry that may be touched.
        entry: u64,
        /// What does not hold.
        what: &'static str,
    },
    /// Acknowledged entries are gone.
    #[error(
        "The audit log {} was cut: it holds {entries} entries, but at least {acknowledged} were acknowledged. Keep the \
         files as evidence, and start with a copy from a backup or an empty directory",
        directory.display()
    )]
    Cut {
        /// The log.
        directory: PathBuf,
        /// Entries that are there.
        entries: u64,
        /// Entries that must be there.
        acknowledged: u64,
    },
    /// The log's last commit is by another key, or was forged.
    #[error(
        "The audit log is not signed by this host's audit key from entry {entry} on ({} at byte {offset}): give it the \
         key it was written with, or keep the files as evidence of a forgery",
        path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// Where the first such group begins, in bytes.
        offset: u64,
        /// Its first entry.
        entry: u64,
        /// What is wrong with the signature.
        source: NoteError,
    },
}

/// Why an entry is not in the log.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// It has no canonical form within the limits.
    #[error("The entry cannot be logged")]
    Entry(#[from] EntryError),
    /// More than [`BATCH_ENTRIES_MAX`] entries at once.
    #[error("{0} entries are over the limit of {BATCH_ENTRIES_MAX} at once: split them")]
    TooMany(usize),
    /// The disk did not take it; it is not in the log, and later appends may succeed.
    #[error("The audit log could not be written: make room on its disk")]
    NotWritten(#[source] Arc<io::Error>),
    /// Whether it is in the log is not known, and nothing more is written until the log is opened again.
    #[error(
        "The audit log stopped writing after a failure of its disk: look at the disk, then restart"
    )]
    Stopped(#[source] Arc<io::Error>),
}

/// Why something cannot be read or proven.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log is not that long.
    #[error("The audit log has {size} entries, and {asked} was asked for")]
    BeyondEnd {
        /// What was asked for.
        asked: u64,
        /// Entries in the log.
        size: u64,
    },
    /// The old tree is larger than the new one, or a page limit is outside 1..=[`PAGE_ENTRIES_MAX`](super::PAGE_ENTRIES_MAX).
    #[error("This cannot be asked of an audit log: {0}")]
    Invalid(&'static str),
    /// What lies on disk is no longer what was proven when the log was opened.
    #[error("The audit log was damaged or altered since it was opened: {} at byte {offset}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, in bytes.
        offset: u64,
    },
    /// The disk failed.
    #[error("The audit log cannot be read: look at its disk")]
    Io(#[from] io::Error),
}
