//! Reading a snapshot that may be damaged, cut off, foreign or newer.
//!
//! What always holds: nothing of a file is used before its digest was checked, but for memory that is mapped from it
//! ([`crate::seal`]); reading is positional, so one file may serve several readers.

use std::fmt;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use dwcp_memory::{MemorySize, PAGE_BYTES, PageIndex};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::digest::{self, SnapshotDigest};
use crate::header::{Encoding, HEADER_BYTES, Header};
use crate::manifest::{BadManifest, Manifest};
use crate::mask::{CHUNK_BYTES, ChunkIndex, PageChoice, PageMask};
use crate::table::{RECORD_BYTES, Record, Table};
use crate::write::{Progress, is_zero};
use crate::{FORMAT, MAGIC};

/// A part of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first page.
    Header,
    /// What it is of.
    Manifest,
    /// The device state.
    DeviceState,
    /// Where memory lies.
    ChunkTable,
    /// A piece of memory.
    Memory(ChunkIndex),
    /// Bytes after the end.
    End,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("its header"),
            Self::Manifest => f.write_str("its manifest"),
            Self::DeviceState => f.write_str("the device state"),
            Self::ChunkTable => f.write_str("the table of its memory"),
            Self::Memory(chunk) => {
                write!(
                    f,
                    "the guest's memory from {:#x} on",
                    chunk.first_page().offset().0
                )
            }
            Self::End => f.write_str("its end, after which more bytes follow"),
        }
    }
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It does not begin as a snapshot does.
    #[error("This is no snapshot of DWCP")]
    Foreign,
    /// Its writer never finished.
    #[error("This snapshot was never finished: its writer was interrupted")]
    Unfinished,
    /// It is of a format that this program does not know yet.
    #[error("The snapshot is of format {found}, newer than {FORMAT}: upgrade this host")]
    Newer {
        /// Its format.
        found: u32,
    },
    /// Some of its end is missing.
    #[error("The snapshot is cut off: {found} of {expected} bytes are there")]
    Truncated {
        /// How long it was.
        expected: u64,
        /// How long it is.
        found: u64,
    },
    /// A digest does not match, or a part contradicts itself.
    #[error("The snapshot is damaged in {0}: use another one")]
    Damaged(Part),
    /// The manifest says what cannot be.
    #[error("The snapshot's manifest makes no sense")]
    Manifest(#[from] BadManifest),
    /// The file could not be read.
    #[error("The snapshot could not be read")]
    Io(#[from] std::io::Error),
    /// The callback said so.
    #[error("Checking the snapshot was stopped")]
    Stopped,
}

/// A snapshot whose header, manifest, table and device state were checked.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    header: Header,
    manifest: Manifest,
    table: Table,
    size: MemorySize,
    digest: SnapshotDigest,
}

impl Snapshot {
    /// Takes a file and checks everything in it but memory.
    pub fn open(file: File) -> Result<Self, ReadError> {
        let header = read_header(&file)?;
        let manifest = read(&file, header.manifest_offset(), header.manifest_bytes)?;
        if digest::of_manifest(&manifest) != header.manifest {
            return Err(ReadError::Damaged(Part::Manifest));
        }
        let manifest: Manifest =
            serde_json::from_slice(&manifest).map_err(|_| ReadError::Damaged(Part::Manifest))?;
        manifest.check()?;
        let size = manifest.memory_size()?;
        if size.bytes() != header.memory_bytes {
            return Err(ReadError::Damaged(Part::Manifest));
        }
        let table = read_table(&file, &header, manifest.base.is_none())?;
        let digest = digest::of_whole(&header.manifest, &header.state, &table.memory_digest());
        let snapshot = Self {
            file,
            header,
            manifest,
            table,
            size,
            digest,
        };
        snapshot.state()?;
        Ok(snapshot)
    }

    /// What identifies it.
    pub fn digest(&self) -> SnapshotDigest {
        self.digest
    }

    /// What it is of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How its memory lies in the file.
    pub fn encoding(&self) -> Encoding {
        self.header.encoding
    }

    /// The guest's memory size.
    pub fn size(&self) -> MemorySize {
        self.size
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The device state, checked.
    pub fn state(&self) -> Result<Vec<u8>, ReadError> {
        let state = read(
            &self.file,
            self.header.state_offset(),
            self.header.state_bytes,
        )?;
        if digest::of_state(&state) != self.header.state {
            return Err(ReadError::Damaged(Part::DeviceState));
        }
        Ok(state)
    }

    /// Bytes of memory in the file, holes not counted.
    pub fn stored_bytes(&self) -> u64 {
        let records = self.table.records().iter();
        records.map(|record| u64::from(record.stored_bytes)).sum()
    }

    /// The pages of a chunk that it speaks of: all, if it is full.
    pub fn held(&self, chunk: ChunkIndex) -> PageMask {
        match (self.manifest.base, self.table.get(chunk)) {
            (None, _) => chunk.pages(self.size),
            (Some(_), record) => record.map_or(PageMask::EMPTY, |record| record.held),
        }
    }

    /// Those of them that are not zeros.
    pub fn filled(&self, chunk: ChunkIndex) -> PageMask {
        self.table
            .get(chunk)
            .map_or(PageMask::EMPTY, |record| record.filled)
    }

    /// Checks all memory against its digests.
    pub fn verify(
        &self,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let mut buffer = ChunkBuffer::new()?;
        let mut bytes = 0;
        for record in self.table.records() {
            self.load(record, &mut buffer)?;
            if self.encoding() == Encoding::Raw {
                self.verify_zeros(record, &mut buffer)?;
            }
            bytes += u64::from(record.stored_bytes);
            let so_far = Progress {
                chunks_done: record.chunk.0 + 1,
                chunks: ChunkIndex::count(self.size),
                bytes,
            };
            if progress(so_far).is_break() {
                return Err(ReadError::Stopped);
            }
        }
        if self.encoding() == Encoding::Raw && self.manifest.base.is_none() {
            self.verify_gaps(bytes, &mut buffer, progress)?;
        }
        Ok(())
    }

    /// In a raw file, chunks without a record may be mapped with their neighbours, so they must be zeros.
    fn verify_gaps(
        &self,
        bytes: u64,
        buffer: &mut ChunkBuffer,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let offset_of = |chunk: ChunkIndex| {
            let pages = chunk.first_page().0.min(self.size.pages());
            self.encoding().memory_offset() + PageIndex(pages).offset().0
        };
        let chunks = ChunkIndex::count(self.size);
        let recorded = self.table.records().iter().map(|record| record.chunk.0);
        let mut gap = 0;
        for next in recorded.chain([chunks]) {
            let end = offset_of(ChunkIndex(next));
            let mut at = offset_of(ChunkIndex(gap));
            while let Some(data) = next_data(&self.file, at, end)? {
                let within = (data - self.encoding().memory_offset()) / CHUNK_BYTES as u64;
                let chunk = ChunkIndex(within);
                at = offset_of(ChunkIndex(within + 1));
                let run = &mut buffer.pages[..(at - data) as usize];
                self.file.read_exact_at(run, data)?;
                if !is_zero(run) {
                    return Err(ReadError::Damaged(Part::Memory(chunk)));
                }
                let so_far = Progress {
                    chunks_done: chunks,
                    chunks,
                    bytes,
                };
                if progress(so_far).is_break() {
                    return Err(ReadError::Stopped);
                }
            }
            gap = next + 1;
        }
        Ok(())
    }

    /// The records, for those who walk over them.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Reads the filled pages of a chunk, in order, and checks them.
    pub(crate) fn load<'a>(
        &self,
        record: &Record,
        buffer: &'a mut ChunkBuffer,
    ) -> Result<&'a [u8], ReadError> {
        let damaged = || ReadError::Damaged(Part::Memory(record.chunk));
        let length = record.content_bytes();
        match self.encoding() {
            Encoding::Raw => self.load_raw(record, buffer)?,
            Encoding::Zstd if record.stored_bytes as usize == length => {
                let pages = &mut buffer.pages[..length];
                self.file.read_exact_at(pages, record.offset)?;
            }
            Encoding::Zstd => {
                let stored = &mut buffer.stored[..record.stored_bytes as usize];
                self.file.read_exact_at(stored, record.offset)?;
                let room = &mut buffer.pages[..length];
                let unpacked = buffer.decompressor.decompress_to_buffer(stored, room);
                if !unpacked.is_ok_and(|bytes| bytes == length) {
                    return Err(damaged());
                }
            }
        }
        let content = &buffer.pages[..length];
        if digest::of_content(content) != record.content {
            return Err(damaged());
        }
        Ok(content)
    }

    fn load_raw(&self, record: &Record, buffer: &mut ChunkBuffer) -> Result<(), ReadError> {
        let mut end = 0;
        for (first, count) in record.filled.runs() {
            let run = end..end + count as usize * PAGE_BYTES;
            let offset = record.offset + first * PAGE_BYTES as u64;
            self.file
                .read_exact_at(&mut buffer.pages[run.clone()], offset)?;
            end = run.end;
        }
        Ok(())
    }

    /// In a raw file, pages that are held and not filled are mapped too, so they must be zeros.
    fn verify_zeros(&self, record: &Record, buffer: &mut ChunkBuffer) -> Result<(), ReadError> {
        for (first, count) in record.held.without(record.filled).runs() {
            let run = &mut buffer.pages[..count as usize * PAGE_BYTES];
            let offset = record.offset + first * PAGE_BYTES as u64;
            self.file.read_exact_at(run, offset)?;
            if !is_zero(run) {
                return Err(ReadError::Damaged(Part::Memory(record.chunk)));
            }
        }
        Ok(())
    }
}

/// The pages that it holds.
impl PageChoice for Snapshot {
    fn mask(&self, chunk: ChunkIndex) -> PageMask {
        self.held(chunk)
    }
}

/// Room for one chunk as it lies in a file and as it lies in memory.
pub(crate) struct ChunkBuffer {
    stored: Vec<u8>,
    pages: Vec<u8>,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl ChunkBuffer {
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            stored: vec![0; CHUNK_BYTES],
            pages: vec![0; CHUNK_BYTES],
            decompressor: zstd::bulk::Decompressor::new()?,
        })
    }
}

impl fmt::Debug for ChunkBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkBuffer").finish_non_exhaustive()
    }
}

fn read_header(file: &File) -> Result<Header, ReadError> {
    let found = file.metadata()?.len();
    let mut page = [0; HEADER_BYTES];
    if found < HEADER_BYTES as u64 {
        let start = &mut page[..found.min(MAGIC.len() as u64) as usize];
        file.read_exact_at(start, 0)?;
        return Err(match start {
            [] => ReadError::Unfinished,
            start if MAGIC.starts_with(start) => ReadError::Truncated {
                expected: HEADER_BYTES as u64,
                found,
            },
            _ => ReadError::Foreign,
        });
    }
    file.read_exact_at(&mut page, 0)?;
    Header::decode(&page, found)
}

/// Reads the table; its digest is checked before its records are looked at.
fn read_table(file: &File, header: &Header, is_full: bool) -> Result<Table, ReadError> {
    let bytes = read(
        file,
        header.table_offset(),
        header.records * RECORD_BYTES as u64,
    )?;
    let mut hasher = digest::table_hasher();
    hasher.update(&bytes);
    if *hasher.finalize().as_bytes() != header.table {
        return Err(ReadError::Damaged(Part::ChunkTable));
    }
    Table::decode(&bytes, header, is_full)
}

/// Where a file has data next, holes left out, but before `end`.
fn next_data(file: &File, at: u64, end: u64) -> std::io::Result<Option<u64>> {
    if at >= end {
        return Ok(None);
    }
    // The place that this moves is used by nobody.
    let data = match lseek(file, at as i64, Whence::SeekData) {
        Ok(data) => data as u64,
        Err(Errno::ENXIO) => return Ok(None),
        // A file system that knows of no holes.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => at,
        Err(errno) => return Err(errno.into()),
    };
    Ok((data < end).then_some(data))
}

/// Reads an area that is known to lie inside the file.
fn read(file: &File, offset: u64, bytes: u64) -> Result<Vec<u8>, ReadError> {
    let mut area = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut area, offset)?;
    Ok(area)
}
