//! The one thread that writes: gathers what many callers append into one write and one sync, then acknowledges.
//!
//! What always holds: the order is entries and signed commit on disk, sync, hashes, acknowledgement. When something
//! fails before the sync, the write is taken back; when the sync itself fails, nobody knows what the disk holds, and
//! the writer stops for good.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::hashes::HashFile;
use super::read::SegmentIndex;
use super::recover::Recovered;
use super::segment::{self, HEADER_BYTES, RECORD_HEADER_BYTES};
use super::{AppendError, Durable, Options, checkpoint_of};
use crate::entry::{Entry, EntryError};
use crate::note::Signer;
use crate::tree::{Frontier, Hash};

/// Most requests that wait for the writer; more wait in their callers.
pub(super) const QUEUE: usize = 4096;
/// A group that has reached this many entries or bytes is written.
const GROUP_ENTRIES_MAX: usize = 4096;
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Longest wait for those who were in the last group to come back, and its part of a sync's duration.
const GATHER_MAX: Duration = Duration::from_millis(1);
const GATHER_PART: u32 = 8;
/// The hash file is synced after this many entries, so that little is made again after a power cut.
const HASHES_SYNC_ENTRIES: u64 = 1 << 16;

/// An entry in its canonical form.
#[derive(Debug)]
pub(super) struct Prepared {
    text: String,
    pub(super) leaf: Hash,
}

impl Prepared {
    pub(super) fn new(entry: &Entry) -> Result<Self, EntryError> {
        let text = entry.canonical()?;
        let leaf = Hash::of_leaf(text.as_bytes());
        Ok(Self { text, leaf })
    }
}

/// Entries that belong together. The answer is the index of the first and the size of the tree they are in.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) entries: Vec<Prepared>,
    pub(super) reply: SyncSender<Result<(u64, u64), AppendError>>,
}

#[derive(Debug)]
pub(super) struct Writer {
    directory: PathBuf,
    signer: Signer,
    options: Options,
    durable: Arc<RwLock<Durable>>,
    hashes: Arc<HashFile>,
    tree: Frontier,
    segment: File,
    segment_first: u64,
    /// Where the next record goes in the segment.
    end: u64,
    hashes_synced: u64,
    stopped: Option<Arc<io::Error>>,
    sync_duration: Duration,
}

/// What went wrong with a group.
enum Failure {
    /// Nothing of it is on disk.
    TakenBack(io::Error),
    /// Nobody knows.
    Unknown(io::Error),
}

impl Writer {
    /// Takes over a log as it was found; a new log gets the commit of the empty tree.
    pub(super) fn new(
        directory: &Path,
        signer: Signer,
        options: Options,
        found: Recovered,
        durable: Arc<RwLock<Durable>>,
        hashes: Arc<HashFile>,
    ) -> io::Result<Self> {
        let segment_first = found.segments.last().map_or(0, |segment| segment.first);
        let mut writer = Self {
            directory: directory.to_owned(),
            signer,
            options,
            durable,
            hashes,
            segment: super::create(&segment::path(directory, segment_first))?,
            segment_first,
            end: found.end,
            hashes_synced: found.tree.size(),
            tree: found.tree,
            stopped: None,
            sync_duration: Duration::ZERO,
        };
        if found.note.is_none() {
            writer.write(&[]).map_err(|failure| match failure {
                Failure::TakenBack(error) | Failure::Unknown(error) => error,
            })?;
        }
        Ok(writer)
    }

    /// Runs until every sender is gone.
    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        let mut expected = 1;
        while let Ok(first) = requests.recv() {
            let group = self.gather(first, requests, expected);
            expected = group.len();
            let result = match &self.stopped {
                Some(error) => Err(AppendError::Stopped(error.clone())),
                None => self.write(&group).map_err(|failure| match failure {
                    Failure::TakenBack(error) => AppendError::NotWritten(Arc::new(error)),
                    Failure::Unknown(error) => {
                        let error = Arc::new(error);
                        self.stopped = Some(error.clone());
                        AppendError::Stopped(error)
                    }
                }),
            };
            answer(group, result.as_ref());
        }
        // Whoever opens the log next makes again what this fails to keep.
        let _ = self.hashes.sync();
    }

    /// Takes what is waiting. When the last group was larger, its callers are probably about to come back: waits for
    /// them a small part of the time that a sync takes.
    fn gather(
        &self,
        first: Request,
        requests: &Receiver<Request>,
        expected: usize,
    ) -> Vec<Request> {
        let deadline = Instant::now() + (self.sync_duration / GATHER_PART).min(GATHER_MAX);
        let (mut entries, mut bytes) = (0, 0);
        let mut group = Vec::with_capacity(expected);
        let mut next = Some(first);
        while let Some(request) = next {
            entries += request.entries.len();
            bytes += request
                .entries
                .iter()
                .map(|entry| entry.text.len())
                .sum::<usize>();
            group.push(request);
            if entries >= GROUP_ENTRIES_MAX || bytes >= GROUP_BYTES_MAX {
                break;
            }
            next = requests.try_recv().ok();
            if next.is_none() && group.len() < expected {
                let left = deadline.saturating_duration_since(Instant::now());
                next = requests.recv_timeout(left).ok();
            }
        }
        group
    }

    /// Makes a group durable; answers the size of the tree before and after it.
    fn write(&mut self, group: &[Request]) -> Result<(u64, u64), Failure> {
        if self.end >= self.options.segment_bytes && self.tree.size() > self.segment_first {
            self.roll().map_err(Failure::TakenBack)?;
        }
        let first = self.tree.size();
        let mut tree = self.tree.clone();
        let (mut records, mut hashes, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        for entry in group.iter().flat_map(|request| &request.entries) {
            if SegmentIndex::is_marked(tree.size() - self.segment_first) {
                offsets.push(self.end + records.len() as u64);
            }
            records.reserve(RECORD_HEADER_BYTES + entry.text.len());
            segment::put_entry(&mut records, &entry.text, &entry.leaf);
            tree.push(entry.leaf, |_, _, hash| hashes.push(hash));
        }
        let note = checkpoint_of(&tree, &self.signer);
        segment::put_commit(&mut records, &note);

        if let Err(error) = self.segment.write_all_at(&records, self.end) {
            return Err(match self.segment.set_len(self.end) {
                Ok(()) => Failure::TakenBack(error),
                Err(_) => Failure::Unknown(error),
            });
        }
        let started = Instant::now();
        self.segment.sync_data().map_err(Failure::Unknown)?;
        self.sync_duration = started.elapsed();
        self.hashes
            .append(first, &hashes)
            .map_err(Failure::Unknown)?;

        self.end += records.len() as u64;
        self.tree = tree;
        let size = self.tree.size();
        if size - self.hashes_synced >= HASHES_SYNC_ENTRIES {
            self.hashes.sync().map_err(Failure::Unknown)?;
            self.hashes_synced = size;
        }
        let mut durable = self.durable.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(segment) = durable.segments.last_mut() {
            segment.offsets.append(&mut offsets);
        }
        durable.note = note;
        durable.size = size;
        Ok((first, size))
    }

    /// Begins a new segment, durable before anything is written to it.
    fn roll(&mut self) -> io::Result<()> {
        let first = self.tree.size();
        let file = super::create(&segment::path(&self.directory, first))?;
        file.write_all_at(&segment::header(first), 0)?;
        file.sync_all()?;
        File::open(&self.directory)?.sync_all()?;
        self.segment = file;
        self.segment_first = first;
        self.end = HEADER_BYTES as u64;
        let mut durable = self.durable.write().unwrap_or_else(PoisonError::into_inner);
        durable.segments.push(SegmentIndex::new(first));
        Ok(())
    }
}

fn answer(group: Vec<Request>, result: Result<&(u64, u64), &AppendError>) {
    let mut index = result.map_or(0, |(first, _)| *first);
    for request in group {
        let answer = match result {
            Ok((_, size)) => Ok((index, *size)),
            Err(AppendError::NotWritten(error)) => Err(AppendError::NotWritten(error.clone())),
            Err(AppendError::Stopped(error)) => Err(AppendError::Stopped(error.clone())),
            Err(_) => continue,
        };
        index += request.entries.len() as u64;
        // Whoever asked may be gone.
        let _ = request.reply.send(answer);
    }
}
