//! [`AuditLog`]: the log on disk. Opening proves it, appending makes entries durable in groups, reading and proofs
//! see exactly what is durable.
//!
//! One thread ([`writer`]) writes; any number append and read. Every call blocks; call from threads that may.

mod error;
mod hashes;
mod read;
mod recover;
mod segment;
mod writer;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

pub use self::error::{AppendError, OpenError, ReadError};
use self::hashes::HashFile;
use self::read::SegmentIndex;
use self::writer::{Prepared, Request};
use crate::checkpoint::Checkpoint;
use crate::entry::{Entry, StoredEntry};
use crate::note::{Signer, VerifierKey};
use crate::tree::{self, Hash};

/// Most entries of one page.
pub const PAGE_ENTRIES_MAX: usize = 1000;
/// A page that has reached this many bytes ends early.
pub const PAGE_BYTES_MAX: usize = 4 << 20;
/// Most entries of one [`AuditLog::append_batch`].
pub const BATCH_ENTRIES_MAX: usize = 4096;

/// What can be chosen about a log's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// A segment that has reached this many bytes is followed by a new one.
    pub segment_bytes: u64,
}

impl Default for Options {
    /// 64 MiB.
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
        }
    }
}

/// What opening found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenReport {
    /// Entries in the log, all of them proven.
    pub entries: u64,
    /// Bytes after the last commit that a crash left behind; they were never acknowledged and are gone.
    pub dropped_bytes: u64,
    /// Hashes that were missing (after a crash) or wrong, and were made again from the entries.
    pub hashes_mended: u64,
}

/// What an append got. From here on the entry survives any crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The entry's place in the log, from 0.
    pub index: u64,
    /// The hash of the entry as a leaf.
    pub leaf: Hash,
    /// The size of a tree with the entry, under a signed checkpoint that is as durable as the entry.
    pub size: u64,
}

/// Part of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntriesPage {
    /// In order, without gaps.
    pub entries: Vec<StoredEntry>,
    /// Entries in the log when the page was read; there is more while the next index is below it.
    pub size: u64,
}

/// What is durable, as readers see it.
#[derive(Debug)]
struct Durable {
    size: u64,
    note: String,
    segments: Vec<SegmentIndex>,
}

/// An append-only log in a directory. Safe to share between threads; dropping it waits for the group under way.
#[derive(Debug)]
pub struct AuditLog {
    directory: PathBuf,
    verifier: VerifierKey,
    report: OpenReport,
    durable: Arc<RwLock<Durable>>,
    hashes: Arc<HashFile>,
    /// `None` only while being dropped.
    requests: Option<SyncSender<Request>>,
    writer: Option<JoinHandle<()>>,
    /// Held so that no other process opens the log.
    _lock: File,
}

impl AuditLog {
    /// Opens the log in `directory`, making it when there is none, and proves every byte of it.
    pub fn open(directory: impl AsRef<Path>, signer: Signer) -> Result<Self, OpenError> {
        Self::open_with(directory, signer, Options::default())
    }

    /// The same with other [`Options`].
    pub fn open_with(
        directory: impl AsRef<Path>,
        signer: Signer,
        options: Options,
    ) -> Result<Self, OpenError> {
        let directory = directory.as_ref().to_owned();
        let io = |source| OpenError::Io {
            path: directory.clone(),
            source,
        };
        create_directory(&directory).map_err(io)?;
        let lock = create(&directory.join("lock")).map_err(io)?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => OpenError::InUse {
                path: directory.clone(),
            },
            std::fs::TryLockError::Error(source) => io(source),
        })?;
        let hashes = Arc::new(HashFile::open(&directory).map_err(io)?);
        let verifier = signer.verifier().clone();
        let recovered = recover::recover(&directory, &verifier, &hashes)?;
        let report = recovered.report;
        let durable = Arc::new(RwLock::new(Durable {
            size: recovered.tree.size(),
            note: recovered.note.clone().unwrap_or_default(),
            segments: recovered.segments.clone(),
        }));
        let writer = writer::Writer::new(
            &directory,
            signer,
            options,
            recovered,
            durable.clone(),
            hashes.clone(),
        );
        let writer = writer.map_err(io)?;
        let (requests, queue) = sync_channel(writer::QUEUE);
        let thread = std::thread::Builder::new()
            .name("audit-writer".into())
            .spawn(move || writer.run(&queue));
        let writer = Some(thread.map_err(io)?);
        Ok(Self {
            directory,
            verifier,
            report,
            durable,
            hashes,
            requests: Some(requests),
            writer,
            _lock: lock,
        })
    }

    /// What opening found.
    pub fn report(&self) -> OpenReport {
        self.report
    }

    /// The public key, to be given to clients.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Number of durable entries.
    pub fn size(&self) -> u64 {
        self.durable
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .size
    }

    /// Appends one entry and waits until it is durable.
    pub fn append(&self, entry: &Entry) -> Result<Receipt, AppendError> {
        let prepared = Prepared::new(entry)?;
        let leaf = prepared.leaf;
        let (first, size) = self.commit(vec![prepared])?;
        Ok(Receipt {
            index: first,
            leaf,
            size,
        })
    }

    /// Appends entries next to each other, all or none of them, and waits until they are durable.
    pub fn append_batch(&self, entries: &[Entry]) -> Result<Vec<Receipt>, AppendError> {
        if entries.len() > BATCH_ENTRIES_MAX {
            return Err(AppendError::TooMany(entries.len()));
        }
        let prepared = entries
            .iter()
            .map(Prepared::new)
            .collect::<Result<Vec<_>, _>>()?;
        if prepared.is_empty() {
            return Ok(Vec::new());
        }
        let leaves: Vec<Hash> = prepared.iter().map(|p| p.leaf).collect();
        let (first, size) = self.commit(prepared)?;
        Ok(leaves
            .into_iter()
            .zip(first..)
            .map(|(leaf, index)| Receipt { index, leaf, size })
            .collect())
    }

    fn commit(&self, entries: Vec<Prepared>) -> Result<(u64, u64), AppendError> {
        let stopped =
            || AppendError::Stopped(Arc::new(io::Error::other("the writing thread has ended")));
        let (reply, answer) = sync_channel(1);
        let requests = self.requests.as_ref().ok_or_else(stopped)?;
        requests
            .send(Request { entries, reply })
            .map_err(|_| stopped())?;
        answer.recv().map_err(|_| stopped())?
    }

    /// The signed checkpoint of everything durable, as a note.
    pub fn checkpoint(&self) -> String {
        self.durable
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .note
            .clone()
    }

    /// The proof that entry `index` is in the tree of the first `size` entries.
    pub fn inclusion_proof(&self, index: u64, size: u64) -> Result<Vec<Hash>, ReadError> {
        self.check_size(size)?;
        if index >= size {
            return Err(ReadError::BeyondEnd { asked: index, size });
        }
        Ok(tree::inclusion_proof(&*self.hashes, index, size)?)
    }

    /// The proof that the tree of the first `new` entries begins with that of the first `old`.
    pub fn consistency_proof(&self, old: u64, new: u64) -> Result<Vec<Hash>, ReadError> {
        self.check_size(new)?;
        if old > new {
            return Err(ReadError::Invalid(
                "the old size of a consistency proof is at most the new one",
            ));
        }
        Ok(tree::consistency_proof(&*self.hashes, old, new)?)
    }

    fn check_size(&self, asked: u64) -> Result<(), ReadError> {
        let size = self.size();
        if asked > size {
            Err(ReadError::BeyondEnd { asked, size })
        } else {
            Ok(())
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has already said so on stderr; its callers were told.
            let _ = writer.join();
        }
    }
}

/// Makes a directory that only its owner may enter, with what is missing above it; their names survive a crash.
fn create_directory(path: &Path) -> io::Result<()> {
    let is_new = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let made: Vec<&Path> = path.ancestors().take_while(is_new).collect();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    for path in made {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Opens a file for reading and writing that only its owner may read.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// The checkpoint of a tree in this log.
fn checkpoint_of(tree: &tree::Frontier, signer: &Signer) -> String {
    Checkpoint {
        origin: signer.verifier().name().to_owned(),
        size: tree.size(),
        root: tree.root(),
    }
    .sign(signer)
}
