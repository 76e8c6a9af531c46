//! [`AuditLog`]: the log on disk. Opening proves it, appending makes entries durable in groups, reading and proofs
//! see exactly what is durable.
//!
//! One thread ([`writer`]) writes; any number append and read. Every call blocks; call from threads that may.

mod hashes;
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

use self::hashes::HashFile;
use self::segment::{Fault, Reader, Record};
use self::writer::{Prepared, Request};
use crate::checkpoint::Checkpoint;
use crate::entry::{Entry, EntryError, StoredEntry};
use crate::note::{NoteError, Signer, VerifierKey};
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
    /// The old tree is larger than the new one, or a page limit is outside 1..=[`PAGE_ENTRIES_MAX`].
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

/// Where entries lie in one segment.
#[derive(Debug, Clone)]
struct SegmentIndex {
    first: u64,
    /// The offset of every [`SegmentIndex::STRIDE`]th entry, in bytes.
    offsets: Vec<u64>,
}

impl SegmentIndex {
    const STRIDE: u64 = 64;

    fn new(first: u64) -> Self {
        Self {
            first,
            offsets: Vec::new(),
        }
    }

    fn is_marked(place: u64) -> bool {
        place.is_multiple_of(Self::STRIDE)
    }
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

    /// The entries from index `from` on, at most `limit` (1..=[`PAGE_ENTRIES_MAX`]); fewer when they are long.
    pub fn entries(&self, from: u64, limit: usize) -> Result<EntriesPage, ReadError> {
        if !(1..=PAGE_ENTRIES_MAX).contains(&limit) {
            return Err(ReadError::Invalid("a page has 1 to 1000 entries"));
        }
        let (size, mut place) = {
            let durable = self.durable.read().unwrap_or_else(PoisonError::into_inner);
            if from > durable.size {
                return Err(ReadError::BeyondEnd {
                    asked: from,
                    size: durable.size,
                });
            }
            (durable.size, Place::find(&durable.segments, from))
        };
        let mut entries = Vec::new();
        let mut bytes = 0;
        while from + (entries.len() as u64) < size
            && entries.len() < limit
            && bytes < PAGE_BYTES_MAX
        {
            let next = from + entries.len() as u64;
            if place.next_segment == Some(next) {
                let durable = self.durable.read().unwrap_or_else(PoisonError::into_inner);
                place = Place::find(&durable.segments, next);
            }
            let until = place.next_segment.unwrap_or(size).min(size);
            self.read_segment(&place, next, until, limit, &mut entries, &mut bytes)?;
        }
        Ok(EntriesPage { entries, size })
    }

    fn read_segment(
        &self,
        place: &Place,
        from: u64,
        until: u64,
        limit: usize,
        entries: &mut Vec<StoredEntry>,
        bytes: &mut usize,
    ) -> Result<(), ReadError> {
        let path = segment::path(&self.directory, place.first);
        let damaged = |offset, fault| match fault {
            Fault::Io(error) => ReadError::Io(error),
            Fault::Bad(_) => ReadError::Damaged {
                path: path.clone(),
                offset,
            },
        };
        let mut reader = Reader::open(&path, place.first).map_err(|fault| damaged(0, fault))?;
        reader
            .seek(place.offset)
            .map_err(|fault| damaged(place.offset, fault))?;
        let mut index = place.index;
        while index < until && entries.len() < limit && *bytes < PAGE_BYTES_MAX {
            let offset = reader.offset();
            match reader.next().map_err(|fault| damaged(offset, fault))? {
                Some(Record::Entry { text, .. }) => {
                    if index >= from {
                        *bytes += text.len();
                        entries.push(StoredEntry { index, text });
                    }
                    index += 1;
                }
                Some(Record::Commit { .. }) => {}
                None => return Err(ReadError::Damaged { path, offset }),
            }
        }
        Ok(())
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

/// Where to begin reading for an entry.
struct Place {
    /// The segment.
    first: u64,
    /// The first entry of the segment after it.
    next_segment: Option<u64>,
    /// The entry that lies at `offset`, at or before the one wanted.
    index: u64,
    offset: u64,
}

impl Place {
    fn find(segments: &[SegmentIndex], index: u64) -> Self {
        let after = segments.partition_point(|segment| segment.first <= index);
        let next_segment = segments.get(after).map(|segment| segment.first);
        let Some(segment) = after.checked_sub(1).and_then(|at| segments.get(at)) else {
            return Self {
                first: 0,
                next_segment,
                index: 0,
                offset: segment::HEADER_BYTES as u64,
            };
        };
        let mark =
            usize::try_from((index - segment.first) / SegmentIndex::STRIDE).unwrap_or(usize::MAX);
        let start = (segment.first, segment::HEADER_BYTES as u64);
        let (index, offset) = segment.offsets.get(mark).map_or(start, |offset| {
            (segment.first + mark as u64 * SegmentIndex::STRIDE, *offset)
        });
        Self {
            first: segment.first,
            next_segment,
            index,
            offset,
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
