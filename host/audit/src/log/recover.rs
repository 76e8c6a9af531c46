//! Opening a log: reads every record, rebuilds the tree, and either proves the log to itself or says what does not hold
//! and where. Changes nothing on disk before it has decided.
//!
//! What is dropped: what follows the last commit, if nothing says that it was ever acknowledged. Two things say so: the
//! hash file, written between making a group durable and acknowledging it, and a later commit, written after that.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::hashes::{HashFile, Mender};
use super::read::SegmentIndex;
use super::segment::{self, Fault, HEADER_BYTES, Reader, Record};
use super::{OpenError, OpenReport};
use crate::checkpoint::Checkpoint;
use crate::note::VerifierKey;
use crate::tree::{Frontier, Hash};

/// A log as it was found.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) tree: Frontier,
    /// The last commit's checkpoint; `None` in a log that was just made.
    pub(super) note: Option<String>,
    pub(super) segments: Vec<SegmentIndex>,
    /// Where the next record goes in the last segment.
    pub(super) end: u64,
    pub(super) report: OpenReport,
}

/// What is wrong, and where.
struct Trouble {
    path: PathBuf,
    offset: u64,
    entry: u64,
    what: &'static str,
    /// Whether a torn write explains it: it lies behind the last commit of the last segment.
    may_be_torn: bool,
}

impl Trouble {
    fn into_error(self) -> OpenError {
        let Self {
            path,
            offset,
            entry,
            what,
            ..
        } = self;
        OpenError::Damaged {
            path,
            offset,
            entry,
            what,
        }
    }
}

struct Scan {
    /// Up to the last commit that was read and found true.
    committed: Frontier,
    note: Option<String>,
    /// The place just after that commit: index into `segments`, offset.
    end: (usize, u64),
    segments: Vec<SegmentIndex>,
    mender: Mender,
}

pub(super) fn recover(
    directory: &Path,
    key: &VerifierKey,
    hashes: &HashFile,
) -> Result<Recovered, OpenError> {
    let io = |source| OpenError::Io {
        path: directory.to_owned(),
        source,
    };
    let acknowledged = hashes.leaves().map_err(io)?;
    let mut scan = Scan {
        committed: Frontier::new(),
        note: None,
        end: (0, 0),
        segments: Vec::new(),
        mender: Mender::new(directory).map_err(io)?,
    };
    let mut firsts = list(directory).map_err(io)?;
    firsts.sort_unstable();
    let mut trouble = None;
    for (n, first) in firsts.iter().enumerate() {
        let is_last = n + 1 == firsts.len();
        trouble = scan.segment(directory, *first, is_last).map_err(io)?;
        if trouble.as_ref().is_some_and(|t| !t.may_be_torn) || trouble.is_some() && !is_last {
            break;
        }
    }
    if let Some(trouble) = trouble
        && (!trouble.may_be_torn
            || acknowledged > scan.committed.size()
            || scan.was_acknowledged(&trouble, key).map_err(io)?)
    {
        return Err(trouble.into_error());
    }
    if acknowledged > scan.committed.size() {
        return Err(OpenError::Cut {
            entries: scan.committed.size(),
            acknowledged,
            directory: directory.to_owned(),
        });
    }
    scan.check_signature(directory, key)?;
    scan.accept(directory, hashes).map_err(io)
}

/// The first entries of all segments.
fn list(directory: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for file in std::fs::read_dir(directory)? {
        firsts.extend(file?.file_name().to_str().and_then(segment::first_of_name));
    }
    Ok(firsts)
}

impl Scan {
    /// Reads one segment up to its end or to the first trouble.
    fn segment(
        &mut self,
        directory: &Path,
        first: u64,
        is_last: bool,
    ) -> io::Result<Option<Trouble>> {
        let path = segment::path(directory, first);
        let mut tree = self.committed.clone();
        let trouble = |offset, entry, what, may_be_torn| {
            Ok(Some(Trouble {
                path: path.clone(),
                offset,
                entry,
                what,
                may_be_torn: may_be_torn && is_last,
            }))
        };
        if first != tree.size() {
            return trouble(
                0,
                tree.size(),
                "an earlier segment is missing or cut, so this one begins too late",
                false,
            );
        }
        let mut reader = match Reader::open(&path, first) {
            Ok(reader) => reader,
            Err(Fault::Io(error)) => return Err(error),
            Err(Fault::Bad(what)) => return trouble(0, first, what, true),
        };
        self.segments.push(SegmentIndex::new(first));
        let here = self.segments.len() - 1;
        self.end = (here, HEADER_BYTES as u64);
        let mut group: Vec<Hash> = Vec::new();
        let mut offsets = Vec::new();
        loop {
            let offset = reader.offset();
            match reader.next() {
                Ok(Some(Record::Entry { leaf, .. })) => {
                    if SegmentIndex::is_marked(tree.size() - first) {
                        offsets.push(offset);
                    }
                    tree.push(leaf, |_, _, hash| group.push(hash));
                }
                Ok(Some(Record::Commit { note })) => {
                    let told = note
                        .rfind("\n\n")
                        .and_then(|at| Checkpoint::parse(&note[..=at]).ok());
                    if told.is_none_or(|told| told.size != tree.size() || told.root != tree.root())
                    {
                        let entry = self.committed.size();
                        return trouble(
                            self.end.1,
                            entry,
                            "entries were changed, removed or added before a commit",
                            true,
                        );
                    }
                    for hash in group.drain(..) {
                        self.mender.push(&hash)?;
                    }
                    self.segments[here].offsets.append(&mut offsets);
                    self.committed = tree.clone();
                    self.note = Some(note);
                    self.end = (here, reader.offset());
                }
                Ok(None) if tree.size() == self.committed.size() => return Ok(None),
                Ok(None) => {
                    return trouble(
                        self.end.1,
                        self.committed.size(),
                        "the file ends without a commit",
                        true,
                    );
                }
                Err(Fault::Io(error)) => return Err(error),
                Err(Fault::Bad(what)) => return trouble(offset, tree.size(), what, true),
            }
        }
    }

    /// Whether a commit behind the trouble proves that what is troubled was acknowledged: a group's own commit does
    /// not (it may have reached the disk before the rest of a torn write), one after it does.
    fn was_acknowledged(&self, trouble: &Trouble, key: &VerifierKey) -> io::Result<bool> {
        let from = if trouble.offset == 0 { 0 } else { self.end.1 };
        let bytes = std::fs::read(&trouble.path)?;
        let tail = bytes
            .get(usize::try_from(from).unwrap_or(usize::MAX)..)
            .unwrap_or_default();
        let later = segment::find_commits(tail)
            .iter()
            .filter_map(|note| Checkpoint::open(note, key).ok())
            .filter(|checkpoint| checkpoint.size > self.committed.size())
            .count();
        // A segment's header is durable before its first group is written.
        Ok(later > usize::from(trouble.offset != 0))
    }

    /// The last commit stands for everything before it, so its signature is the one that counts.
    fn check_signature(&self, directory: &Path, key: &VerifierKey) -> Result<(), OpenError> {
        let Some(note) = &self.note else {
            return Ok(());
        };
        match Checkpoint::open(note, key) {
            Ok(_) => Ok(()),
            Err(source) => {
                let (path, offset, entry) = self.first_unsigned(directory, key);
                Err(OpenError::NotOurs {
                    path,
                    offset,
                    entry,
                    source,
                })
            }
        }
    }

    /// The first commit that the key did not sign; by then the log has been refused.
    fn first_unsigned(&self, directory: &Path, key: &VerifierKey) -> (PathBuf, u64, u64) {
        let mut entry = 0;
        for segment in &self.segments {
            let path = segment::path(directory, segment.first);
            let Ok(mut reader) = Reader::open(&path, segment.first) else {
                continue;
            };
            let mut offset = reader.offset();
            while let Ok(Some(record)) = reader.next() {
                if let Record::Commit { note } = record {
                    match Checkpoint::open(&note, key) {
                        Ok(checkpoint) => entry = checkpoint.size,
                        Err(_) => return (path, offset, entry),
                    }
                    offset = reader.offset();
                }
            }
        }
        (directory.to_owned(), 0, entry)
    }

    /// The log is true: drops what was never acknowledged and mends what can be made again.
    fn accept(mut self, directory: &Path, hashes: &HashFile) -> io::Result<Recovered> {
        let mut dropped_bytes = 0;
        for first in list(directory)? {
            // A last segment whose header was torn holds nothing yet; it is made again when it is needed.
            if !self.segments.iter().any(|segment| segment.first == first) {
                let path = segment::path(directory, first);
                dropped_bytes += path.metadata()?.len();
                std::fs::remove_file(path)?;
            }
        }
        let (here, mut end) = self.end;
        if let Some(last) = self.segments.get(here) {
            let path = segment::path(directory, last.first);
            let file = OpenOptions::new().write(true).open(path)?;
            let length = file.metadata()?.len();
            if length > end {
                dropped_bytes += length - end;
                file.set_len(end)?;
            }
            // What was read may still be only in memory; nothing is built on it before it is durable.
            file.sync_all()?;
        } else {
            let path = segment::path(directory, 0);
            let file = super::create(&path)?;
            file.write_all_at(&segment::header(0), 0)?;
            file.sync_all()?;
            self.segments.push(SegmentIndex::new(0));
            end = HEADER_BYTES as u64;
        }
        let hashes_mended = self.mender.finish(hashes)?;
        std::fs::File::open(directory)?.sync_all()?;
        let report = OpenReport {
            entries: self.committed.size(),
            dropped_bytes,
            hashes_mended,
        };
        Ok(Recovered {
            tree: self.committed,
            note: self.note,
            segments: self.segments,
            end,
            report,
        })
    }
}
