//! Segment files: how entries and commits lie on disk, and reading them back with every byte checked.
//!
//! A segment is a header (32 bytes: magic, index of its first entry, zeros) and records. A record is a kind (1 byte:
//! `E` entry, `C` commit), the length of its body (u32, little-endian), a check (the first 4 bytes of the body's hash)
//! and the body. A commit's body is the signed checkpoint of the tree so far: every group of entries is followed by
//! one, in the same write and under the same fsync, so a group without its commit was never acknowledged.
//!
//! Knows no tree and no key; whether the commits are true is for [`super::recover`].

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::entry::ENTRY_BYTES_MAX;
use crate::note::NOTE_BYTES_MAX;
use crate::tree::Hash;

const MAGIC: &[u8; 8] = b"DWCPAUD1";
/// Bytes before the first record.
pub(super) const HEADER_BYTES: usize = 32;
/// Bytes of a record before its body.
pub(super) const RECORD_HEADER_BYTES: usize = 9;
const ENTRY: u8 = b'E';
const COMMIT: u8 = b'C';
const READ_BUFFER_BYTES: usize = 1 << 20;

/// The first bytes of the segment whose first entry is `first`.
pub(super) fn header(first: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&first.to_le_bytes());
    header
}

/// Where the segment whose first entry is `first` lies.
pub(super) fn path(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("segment-{first:020}"))
}

/// The first entry of a segment by its file's name; `None` for other files.
pub(super) fn first_of_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?;
    let first = digits.parse().ok()?;
    (digits == format!("{first:020}")).then_some(first)
}

/// Adds an entry's record to `bytes`. The body is at most [`ENTRY_BYTES_MAX`] long.
pub(super) fn put_entry(bytes: &mut Vec<u8>, text: &str, leaf: &Hash) {
    put(bytes, ENTRY, text.as_bytes(), leaf);
}

/// Adds a commit's record to `bytes`.
pub(super) fn put_commit(bytes: &mut Vec<u8>, note: &str) {
    put(
        bytes,
        COMMIT,
        note.as_bytes(),
        &commit_hash(note.as_bytes()),
    );
}

fn put(bytes: &mut Vec<u8>, kind: u8, body: &[u8], hash: &Hash) {
    bytes.push(kind);
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&hash.0[..4]);
    bytes.extend_from_slice(body);
}

fn commit_hash(body: &[u8]) -> Hash {
    Hash(
        Sha256::new()
            .chain_update([COMMIT])
            .chain_update(body)
            .finalize()
            .into(),
    )
}

/// One record, whole and with the right check.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    Entry { text: String, leaf: Hash },
    Commit { note: String },
}

/// Why a record cannot be read.
#[derive(Debug)]
pub(super) enum Fault {
    /// The bytes are not a record; in the tail of the last segment that may be a torn write.
    Bad(&'static str),
    /// The disk or file system failed.
    Io(std::io::Error),
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == ErrorKind::UnexpectedEof {
            Self::Bad("the file ends within a record")
        } else {
            Self::Io(error)
        }
    }
}

/// Reads a segment's records in order.
#[derive(Debug)]
pub(super) struct Reader {
    file: BufReader<File>,
    /// Where the next record begins.
    offset: u64,
    length: u64,
}

impl Reader {
    /// Checks the header.
    pub(super) fn open(path: &Path, first: u64) -> Result<Self, Fault> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut file = BufReader::with_capacity(READ_BUFFER_BYTES, file);
        let mut found = [0; HEADER_BYTES];
        file.read_exact(&mut found)?;
        if found != header(first) {
            return Err(Fault::Bad("the header of the file was changed"));
        }
        Ok(Self {
            file,
            offset: HEADER_BYTES as u64,
            length,
        })
    }

    /// Goes to a record that is known to begin at `offset`.
    pub(super) fn seek(&mut self, offset: u64) -> Result<(), Fault> {
        use std::io::Seek as _;
        self.file.seek(std::io::SeekFrom::Start(offset))?;
        self.offset = offset;
        Ok(())
    }

    /// Where the next record begins, in bytes from the start of the file.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next record; `None` at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<Record>, Fault> {
        if self.offset == self.length {
            return Ok(None);
        }
        let mut header = [0; RECORD_HEADER_BYTES];
        self.file.read_exact(&mut header)?;
        let [kind, l0, l1, l2, l3, check @ ..] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let longest = match kind {
            ENTRY => ENTRY_BYTES_MAX,
            COMMIT => NOTE_BYTES_MAX,
            _ => return Err(Fault::Bad("there is no record where one must begin")),
        };
        if length > longest {
            return Err(Fault::Bad("the length of a record was changed"));
        }
        let mut body = vec![0; length];
        self.file.read_exact(&mut body)?;
        let hash = if kind == ENTRY {
            Hash::of_leaf(&body)
        } else {
            commit_hash(&body)
        };
        if hash.0[..4] != check {
            return Err(Fault::Bad("a byte of a record was changed"));
        }
        let text = String::from_utf8(body).map_err(|_| Fault::Bad("a record is not text"))?;
        self.offset += (RECORD_HEADER_BYTES + length) as u64;
        Ok(Some(if kind == ENTRY {
            Record::Entry { text, leaf: hash }
        } else {
            Record::Commit { note: text }
        }))
    }
}

/// The notes of all whole commits that begin at `from` or after it in `bytes`, wherever they lie: a damaged record
/// hides where the next one begins.
pub(super) fn find_commits(bytes: &[u8]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == COMMIT) {
        rest = &rest[at..];
        let found = rest.get(1..5).and_then(|length| {
            let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
            let end = RECORD_HEADER_BYTES
                .checked_add(length)
                .filter(|_| length <= NOTE_BYTES_MAX)?;
            let body = rest.get(RECORD_HEADER_BYTES..end)?;
            (commit_hash(body).0[..4] == rest[5..9]).then_some(body)
        });
        if let Some(note) = found.and_then(|body| std::str::from_utf8(body).ok()) {
            notes.push(note.to_owned());
        }
        rest = &rest[1..];
    }
    notes
}
