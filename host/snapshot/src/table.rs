//! The chunk table: for each chunk that a snapshot holds, which of its pages, where they lie, and their digest.
//!
//! What always holds in a table that was read: records ascend, lie inside the memory area without overlapping, and
//! speak of no page outside memory.

use dwcp_memory::{MemorySize, PAGE_BYTES};

use crate::digest::{self, DIGEST_BYTES, Digest};
use crate::header::{Encoding, Header};
use crate::mask::{CHUNK_BYTES, ChunkIndex, MASK_BYTES, PageMask};
use crate::{Part, ReadError};

/// Length of a record.
pub(crate) const RECORD_BYTES: usize = 24 + 2 * MASK_BYTES + DIGEST_BYTES;

/// One chunk that a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub chunk: ChunkIndex,
    /// Where its content begins in the file. Raw: where the chunk's first page lies.
    pub offset: u64,
    /// Length of its content in the file. Raw: that of the filled pages, wherever they lie.
    pub stored_bytes: u32,
    /// The pages that this snapshot speaks of.
    pub held: PageMask,
    /// Those of them that are not zeros.
    pub filled: PageMask,
    /// Of the filled pages, in order.
    pub content: Digest,
}

impl Record {
    /// Length of the filled pages.
    pub fn content_bytes(&self) -> usize {
        self.filled.count() as usize * PAGE_BYTES
    }

    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = Vec::with_capacity(RECORD_BYTES);
        bytes.extend(self.chunk.0.to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
        bytes.extend(self.stored_bytes.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.held.to_bytes());
        bytes.extend(self.filled.to_bytes());
        bytes.extend(self.content);
        let mut record = [0; RECORD_BYTES];
        record.copy_from_slice(&bytes);
        record
    }

    fn decode(bytes: &[u8; RECORD_BYTES]) -> Self {
        let (chunk, rest) = split(bytes);
        let (offset, rest) = split(rest);
        let (stored_bytes, rest) = split(rest);
        let (_, rest) = split::<4>(rest);
        let (held, rest) = split(rest);
        let (filled, rest) = split(rest);
        let (content, _) = split(rest);
        Self {
            chunk: ChunkIndex(u64::from_le_bytes(chunk)),
            offset: u64::from_le_bytes(offset),
            stored_bytes: u32::from_le_bytes(stored_bytes),
            held: PageMask::from_bytes(&held),
            filled: PageMask::from_bytes(&filled),
            content,
        }
    }

    /// What identifies the memory, however it is encoded.
    fn hash_into(&self, memory: &mut blake3::Hasher) {
        memory.update(&self.chunk.0.to_le_bytes());
        memory.update(&self.held.to_bytes());
        memory.update(&self.filled.to_bytes());
        memory.update(&self.content);
    }
}

fn split<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    // A record is as long as its fields; zeros stand for what cannot be missing.
    bytes
        .split_first_chunk()
        .map_or(([0; N], &[]), |(taken, rest)| (*taken, rest))
}

/// The records of a snapshot, ascending.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Record>);

impl Table {
    /// Adds a record; chunks must come in ascending order.
    pub fn push(&mut self, record: Record) {
        debug_assert!(self.0.last().is_none_or(|last| last.chunk < record.chunk));
        self.0.push(record);
    }

    pub fn records(&self) -> &[Record] {
        &self.0
    }

    pub fn get(&self, chunk: ChunkIndex) -> Option<&Record> {
        let at = self
            .0
            .binary_search_by_key(&chunk, |record| record.chunk)
            .ok()?;
        self.0.get(at)
    }

    /// The digest of the memory that it describes.
    pub fn memory_digest(&self) -> Digest {
        let mut hasher = digest::memory_hasher();
        self.0
            .iter()
            .for_each(|record| record.hash_into(&mut hasher));
        hasher.finalize().into()
    }

    /// Reads the table of a header. `is_full` says whether the snapshot has no base.
    pub fn decode(bytes: &[u8], header: &Header, is_full: bool) -> Result<Self, ReadError> {
        let damaged = || ReadError::Damaged(Part::ChunkTable);
        let size = MemorySize::new(header.memory_bytes).map_err(|_| damaged())?;
        let mut records: Vec<Record> = Vec::with_capacity(bytes.len() / RECORD_BYTES);
        let mut free_from = header.encoding.memory_offset();
        for bytes in bytes.as_chunks::<RECORD_BYTES>().0 {
            let record = Record::decode(bytes);
            let ascends = records
                .last()
                .is_none_or(|last: &Record| last.chunk < record.chunk);
            if !ascends || !is_sound(&record, header, size, is_full) || record.offset < free_from {
                return Err(damaged());
            }
            free_from = record.offset
                + match header.encoding {
                    Encoding::Raw => CHUNK_BYTES as u64,
                    Encoding::Zstd => u64::from(record.stored_bytes),
                };
            records.push(record);
        }
        Ok(Self(records))
    }
}

/// Whether a record makes sense by itself.
fn is_sound(record: &Record, header: &Header, size: MemorySize, is_full: bool) -> bool {
    let here = record.chunk.pages(size);
    let outside = record.held.without(here);
    let unheld = record.filled.without(record.held);
    let masks_fit = !record.held.is_empty()
        && outside.is_empty()
        && unheld.is_empty()
        && (!is_full || record.held == here);
    let content_bytes = record.content_bytes();
    let stored_bytes = record.stored_bytes as usize;
    let start = header.encoding.memory_offset();
    let lies_well = match header.encoding {
        Encoding::Raw => {
            record.offset == start + record.chunk.first_page().offset().0
                && stored_bytes == content_bytes
        }
        Encoding::Zstd => {
            let end = record.offset.checked_add(u64::from(record.stored_bytes));
            record.offset >= start
                && end.is_some_and(|end| end <= header.table_offset())
                && stored_bytes <= content_bytes
                && (stored_bytes > 0 || content_bytes == 0)
        }
    };
    masks_fit && lies_well
}
