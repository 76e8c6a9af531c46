//! The first page of a snapshot: what follows it, and the digests that vouch for it.
//!
//! It is written last, so a file whose writer died has none. Magic, version and digest lie where they lie in every
//! version, so that a newer snapshot is told from a damaged one.

use crate::digest::{self, DIGEST_BYTES, Digest};
use crate::manifest::{MANIFEST_BYTES_MAX, MEMORY_BYTES_MAX};
use crate::mask::{CHUNK_BYTES, ChunkIndex};
use crate::table::RECORD_BYTES;
use crate::{FORMAT, MAGIC, Part, ReadError, STATE_BYTES_MAX};

use dwcp_memory::MemorySize;

/// Length of the header.
pub const HEADER_BYTES: usize = 4096;
const DIGEST_AT: usize = HEADER_BYTES - DIGEST_BYTES;

/// How memory lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it lay in the guest, each page in its place, zeros as holes: can be mapped.
    Raw,
    /// Each chunk compressed on its own: for archives and slow links.
    Zstd,
}

impl Encoding {
    /// Where memory begins in the file.
    pub(crate) fn memory_offset(self) -> u64 {
        match self {
            // Congruent with guest memory to the size of a huge page, for file systems that can map one.
            Self::Raw => CHUNK_BYTES as u64,
            Self::Zstd => HEADER_BYTES as u64,
        }
    }
}

/// The header's fields. The areas follow each other without a gap: memory, table, manifest, device state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub encoding: Encoding,
    pub memory_bytes: u64,
    /// Length of the memory area in the file.
    pub stored_bytes: u64,
    pub records: u64,
    pub manifest_bytes: u64,
    pub state_bytes: u64,
    pub manifest: Digest,
    pub state: Digest,
    pub table: Digest,
}

impl Header {
    pub fn table_offset(&self) -> u64 {
        self.encoding.memory_offset() + self.stored_bytes
    }

    pub fn manifest_offset(&self) -> u64 {
        self.table_offset() + self.records * RECORD_BYTES as u64
    }

    pub fn state_offset(&self) -> u64 {
        self.manifest_offset() + self.manifest_bytes
    }

    pub fn file_bytes(&self) -> u64 {
        self.state_offset() + self.state_bytes
    }

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let encoding: u32 = match self.encoding {
            Encoding::Raw => 0,
            Encoding::Zstd => 1,
        };
        let mut page = Vec::with_capacity(HEADER_BYTES);
        page.extend(MAGIC);
        page.extend(FORMAT.to_le_bytes());
        page.extend(encoding.to_le_bytes());
        let lengths = [
            self.memory_bytes,
            self.encoding.memory_offset(),
            self.stored_bytes,
            self.records,
            self.manifest_bytes,
            self.state_bytes,
            self.file_bytes(),
        ];
        for number in lengths {
            page.extend(number.to_le_bytes());
        }
        for digest in [self.manifest, self.state, self.table] {
            page.extend(digest);
        }
        page.resize(DIGEST_AT, 0);
        page.extend(digest::of_header(&page));
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&page);
        header
    }

    /// Reads a header. `file_bytes` is how long the file is that it came from.
    pub fn decode(page: &[u8; HEADER_BYTES], file_bytes: u64) -> Result<Self, ReadError> {
        if page.iter().all(|byte| *byte == 0) {
            return Err(ReadError::Unfinished);
        }
        if !page.starts_with(&MAGIC) {
            return Err(ReadError::Foreign);
        }
        let damaged = ReadError::Damaged(Part::Header);
        let (content, digest) = page.split_at(DIGEST_AT);
        if digest::of_header(content)[..] != *digest {
            return Err(damaged);
        }
        let mut fields = Fields(&content[MAGIC.len()..]);
        let format = fields.u32();
        if format > FORMAT {
            return Err(ReadError::Newer { found: format });
        }
        let encoding = match (format, fields.u32()) {
            (FORMAT, 0) => Encoding::Raw,
            (FORMAT, 1) => Encoding::Zstd,
            _ => return Err(damaged),
        };
        let memory_bytes = fields.u64();
        let memory_offset = fields.u64();
        let header = Self {
            encoding,
            memory_bytes,
            stored_bytes: fields.u64(),
            records: fields.u64(),
            manifest_bytes: fields.u64(),
            state_bytes: fields.u64(),
            manifest: [0; DIGEST_BYTES],
            state: [0; DIGEST_BYTES],
            table: [0; DIGEST_BYTES],
        };
        let total = fields.u64();
        let header = Self {
            manifest: fields.digest(),
            state: fields.digest(),
            table: fields.digest(),
            ..header
        };
        // The digest finds accidents; an author may still have written nonsense.
        let is_sound = memory_offset == encoding.memory_offset() && header.is_bounded();
        if !is_sound || header.file_bytes() != total {
            return Err(damaged);
        }
        match file_bytes {
            found if found < total => Err(ReadError::Truncated {
                expected: total,
                found,
            }),
            found if found > total => Err(ReadError::Damaged(Part::End)),
            _ => Ok(header),
        }
    }

    /// Whether every length is within its limit; so no sum of them overflows.
    fn is_bounded(&self) -> bool {
        let Ok(size) = MemorySize::new(self.memory_bytes) else {
            return false;
        };
        let stored_fits = match self.encoding {
            Encoding::Raw => self.stored_bytes == self.memory_bytes,
            Encoding::Zstd => self.stored_bytes <= self.memory_bytes,
        };
        stored_fits
            && self.memory_bytes <= MEMORY_BYTES_MAX
            && self.records <= ChunkIndex::count(size)
            && self.manifest_bytes <= MANIFEST_BYTES_MAX
            && self.state_bytes <= STATE_BYTES_MAX
    }
}

/// Numbers taken in turn from the front of a page that is known to be long enough.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((taken, rest)) => {
                self.0 = rest;
                *taken
            }
            None => [0; N],
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn digest(&mut self) -> Digest {
        self.take()
    }
}
