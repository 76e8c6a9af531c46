//! Writing a snapshot into an empty file.
//!
//! Memory goes through one chunk at a time, so what this needs is bounded whatever the guest's size: two chunks, and
//! a record of 184 bytes for each chunk that is held. The header comes last, after everything else is on the disk, so
//! a file that is not finished is not a snapshot. The guest must not run meanwhile, or the pages are not of one moment.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use dwcp_memory::{GuestMemory, MemoryError, MemorySize, MemoryView, PAGE_BYTES, PageIndex};

use crate::digest;
use crate::header::{Encoding, Header};
use crate::manifest::{BadManifest, MANIFEST_BYTES_MAX, Manifest};
use crate::mask::{CHUNK_BYTES, ChunkIndex, PageChoice, PageMask};
use crate::table::{Record, Table};
use crate::{STATE_BYTES_MAX, SnapshotDigest};

/// The level at which Zstandard is as fast as a disk and still halves most memory.
const ZSTD_LEVEL: i32 = 3;

/// Why a page could not be had.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Where pages come from.
pub trait PageSource {
    /// How much memory there is.
    fn size(&self) -> MemorySize;

    /// Copies whole pages, from `first` on, into `buffer`. Only pages that were chosen are asked for.
    fn read_pages(&self, first: PageIndex, buffer: &mut [u8]) -> Result<(), SourceError>;
}

impl PageSource for MemoryView {
    fn size(&self) -> MemorySize {
        self.size()
    }

    fn read_pages(&self, first: PageIndex, buffer: &mut [u8]) -> Result<(), SourceError> {
        Ok(self.read_pages(first, buffer)?)
    }
}

impl PageSource for GuestMemory {
    fn size(&self) -> MemorySize {
        self.size()
    }

    fn read_pages(&self, first: PageIndex, buffer: &mut [u8]) -> Result<(), SourceError> {
        Ok(self.read_pages(first, buffer)?)
    }
}

/// What to write.
#[expect(
    missing_debug_implementations,
    reason = "its parts are traits of the caller's"
)]
pub struct Content<'a> {
    /// What the snapshot is of. With a base it becomes an incremental.
    pub manifest: &'a Manifest,
    /// The device state, at most [`STATE_BYTES_MAX`] bytes.
    pub state: &'a [u8],
    /// Guest memory.
    pub memory: &'a dyn PageSource,
    /// Full: the pages that may hold something; all others must be zeros. Incremental: the pages that changed.
    pub pages: &'a dyn PageChoice,
    /// How memory is to lie in the file.
    pub encoding: Encoding,
}

/// How far writing or checking has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Chunks that are done.
    pub chunks_done: u64,
    /// Chunks of the whole memory.
    pub chunks: u64,
    /// Bytes of memory in the file so far.
    pub bytes: u64,
}

/// Why a snapshot could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] BadManifest),
    /// The manifest is too long.
    #[error("The manifest has {0} bytes, more than {MANIFEST_BYTES_MAX}")]
    ManifestTooLong(u64),
    /// The device state is too long.
    #[error("The device state has {0} bytes, more than {STATE_BYTES_MAX}")]
    StateTooLong(u64),
    /// Manifest and memory disagree.
    #[error("The manifest tells of {manifest} bytes of memory, but there are {memory}")]
    OtherMemory {
        /// In the manifest.
        manifest: u64,
        /// In the source.
        memory: u64,
    },
    /// The file holds something already.
    #[error("The file for the snapshot is not empty: give a fresh one")]
    NotEmpty,
    /// A page could not be had.
    #[error("Guest memory could not be read")]
    Source(#[source] SourceError),
    /// The callback said so.
    #[error("Writing the snapshot was stopped")]
    Stopped,
    /// The compressor failed.
    #[error("Guest memory could not be compressed")]
    Compress(#[source] std::io::Error),
    /// The file system failed.
    #[error("The snapshot could not be written: is the disk full?")]
    Io(#[from] std::io::Error),
}

impl From<MemoryError> for WriteError {
    fn from(error: MemoryError) -> Self {
        Self::Source(error.into())
    }
}

/// Writes a snapshot into an empty file; when this returns it is on the disk. `progress` is called after each chunk and
/// may stop it.
pub fn write(
    file: &File,
    content: &Content<'_>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<SnapshotDigest, WriteError> {
    let manifest = check(file, content)?;
    let mut memory = MemoryWriter::new(file, content)?;
    let size = content.memory.size();
    for chunk in ChunkIndex::all(size) {
        memory.chunk(chunk)?;
        let so_far = Progress {
            chunks_done: chunk.0 + 1,
            chunks: ChunkIndex::count(size),
            bytes: memory.written_bytes,
        };
        if progress(so_far).is_break() {
            return Err(WriteError::Stopped);
        }
    }
    let stored_bytes = match content.encoding {
        Encoding::Raw => size.bytes(),
        Encoding::Zstd => memory.written_bytes,
    };
    finish(file, content, &manifest, &memory.table, stored_bytes)
}

/// Refuses what could not be read again; answers the manifest as it will be written.
fn check(file: &File, content: &Content<'_>) -> Result<Vec<u8>, WriteError> {
    content.manifest.check()?;
    let size = content.manifest.memory_size()?;
    if size != content.memory.size() {
        return Err(WriteError::OtherMemory {
            manifest: size.bytes(),
            memory: content.memory.size().bytes(),
        });
    }
    let state_bytes = content.state.len() as u64;
    if state_bytes > STATE_BYTES_MAX {
        return Err(WriteError::StateTooLong(state_bytes));
    }
    let manifest = serde_json::to_vec(content.manifest).map_err(std::io::Error::from)?;
    if manifest.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(WriteError::ManifestTooLong(manifest.len() as u64));
    }
    if file.metadata()?.len() != 0 {
        return Err(WriteError::NotEmpty);
    }
    Ok(manifest)
}

/// Writes what comes after memory, and then, when all of that is on the disk, the header.
fn finish(
    file: &File,
    content: &Content<'_>,
    manifest: &[u8],
    table: &Table,
    stored_bytes: u64,
) -> Result<SnapshotDigest, WriteError> {
    let mut header = Header {
        encoding: content.encoding,
        memory_bytes: content.memory.size().bytes(),
        stored_bytes,
        records: table.records().len() as u64,
        manifest_bytes: manifest.len() as u64,
        state_bytes: content.state.len() as u64,
        manifest: digest::of_manifest(manifest),
        state: digest::of_state(content.state),
        table: Default::default(),
    };
    // For a guest of zeros, or a table without a record, the length must still be right.
    file.set_len(header.file_bytes())?;
    let mut hasher = digest::table_hasher();
    let mut at = header.table_offset();
    for records in table.records().chunks(4096) {
        let bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        hasher.update(&bytes);
        file.write_all_at(&bytes, at)?;
        at += bytes.len() as u64;
    }
    header.table = hasher.finalize().into();
    file.write_all_at(manifest, header.manifest_offset())?;
    file.write_all_at(content.state, header.state_offset())?;
    file.sync_all()?;
    file.write_all_at(&header.encode(), 0)?;
    file.sync_all()?;
    Ok(digest::of_whole(
        &header.manifest,
        &header.state,
        &table.memory_digest(),
    ))
}

/// Takes chunks from memory to the file.
struct MemoryWriter<'a> {
    file: &'a File,
    content: &'a Content<'a>,
    table: Table,
    /// The filled pages of one chunk, in order.
    pages: Vec<u8>,
    compressor: Option<(zstd::bulk::Compressor<'static>, Vec<u8>)>,
    written_bytes: u64,
}

impl<'a> MemoryWriter<'a> {
    fn new(file: &'a File, content: &'a Content<'a>) -> Result<Self, WriteError> {
        let compressor = match content.encoding {
            Encoding::Raw => None,
            Encoding::Zstd => {
                let compressor =
                    zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(WriteError::Compress)?;
                let room = zstd::zstd_safe::compress_bound(CHUNK_BYTES);
                Some((compressor, Vec::with_capacity(room)))
            }
        };
        Ok(Self {
            file,
            content,
            table: Table::default(),
            pages: vec![0; CHUNK_BYTES],
            compressor,
            written_bytes: 0,
        })
    }

    fn chunk(&mut self, chunk: ChunkIndex) -> Result<(), WriteError> {
        let here = chunk.pages(self.content.memory.size());
        let chosen = self.content.pages.mask(chunk).and(here);
        if chosen.is_empty() {
            return Ok(());
        }
        let filled = self.gather(chunk, chosen)?;
        let is_full = self.content.manifest.base.is_none();
        if is_full && filled.is_empty() {
            return Ok(());
        }
        let length = filled.count() as usize * PAGE_BYTES;
        let content = digest::of_content(&self.pages[..length]);
        let (offset, stored_bytes) = match self.compressor {
            None => self.store_raw(chunk, filled)?,
            Some(_) => self.store_compressed(length)?,
        };
        self.written_bytes += u64::from(stored_bytes);
        self.table.push(Record {
            chunk,
            offset,
            stored_bytes,
            held: if is_full { here } else { chosen },
            filled,
            content,
        });
        Ok(())
    }

    /// Reads the chosen pages of a chunk and moves those that are not zeros together; answers which those are.
    fn gather(&mut self, chunk: ChunkIndex, chosen: PageMask) -> Result<PageMask, WriteError> {
        let mut filled = PageMask::EMPTY;
        let mut end = 0;
        for (first, count) in chosen.runs() {
            // What is chosen and not yet read never needs more room than its own place.
            let room = &mut self.pages[end..end + count as usize * PAGE_BYTES];
            let page = PageIndex(chunk.first_page().0 + first);
            self.content
                .memory
                .read_pages(page, room)
                .map_err(WriteError::Source)?;
            let start = end;
            for at in 0..count as usize {
                let page = start + at * PAGE_BYTES..start + (at + 1) * PAGE_BYTES;
                if is_zero(&self.pages[page.clone()]) {
                    continue;
                }
                filled.set(first + at as u64);
                if page.start != end {
                    self.pages.copy_within(page, end);
                }
                end += PAGE_BYTES;
            }
        }
        Ok(filled)
    }

    fn store_raw(&self, chunk: ChunkIndex, filled: PageMask) -> Result<(u64, u32), WriteError> {
        let start = self.content.encoding.memory_offset() + chunk.first_page().offset().0;
        let mut rest = &self.pages[..];
        let mut stored_bytes = 0;
        for (first, count) in filled.runs() {
            let (run, later) = rest.split_at(count as usize * PAGE_BYTES);
            self.file
                .write_all_at(run, start + first * PAGE_BYTES as u64)?;
            stored_bytes += run.len() as u32;
            rest = later;
        }
        Ok((start, stored_bytes))
    }

    fn store_compressed(&mut self, length: usize) -> Result<(u64, u32), WriteError> {
        let offset = self.content.encoding.memory_offset() + self.written_bytes;
        let plain = &self.pages[..length];
        let mut stored = plain;
        if let Some((compressor, room)) = &mut self.compressor
            && length > 0
        {
            room.clear();
            compressor
                .compress_to_buffer(plain, room)
                .map_err(WriteError::Compress)?;
            if room.len() < length {
                stored = room;
            }
        }
        self.file.write_all_at(stored, offset)?;
        Ok((offset, stored.len() as u32))
    }
}

/// Whether a page holds only zeros.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    page.as_chunks::<16>()
        .0
        .iter()
        .all(|bytes| u128::from_ne_bytes(*bytes) == 0)
}
