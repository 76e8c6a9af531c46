//! A snapshot and the ones that it is a change of, as one memory.
//!
//! What always holds: each layer names the next one by digest, the last one is full, and all are of one memory size.

use std::sync::{Mutex, PoisonError};

use dwcp_memory::{MemorySize, PAGE_BYTES, PageIndex};

use crate::mask::{CHUNK_BYTES, CHUNK_PAGES, ChunkIndex, PageMask};
use crate::read::ChunkBuffer;
use crate::write::SourceError;
use crate::{PageSource, ReadError, Snapshot, SnapshotDigest};

/// Most layers of a chain: after so many, a full snapshot is due.
pub const CHAIN_MAX: usize = 64;

/// Snapshots that belong together, newest first.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Snapshot>,
}

/// Why snapshots do not belong together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// None at all.
    #[error("A chain needs at least one snapshot")]
    Empty,
    /// Too many.
    #[error("A chain has {0} snapshots, more than {CHAIN_MAX}: flatten it")]
    TooLong(usize),
    /// The last one has a base, which was not given.
    #[error("Snapshot {snapshot} is incremental, and its base {base} is missing")]
    NoBase {
        /// The last one given.
        snapshot: SnapshotDigest,
        /// What it needs.
        base: SnapshotDigest,
    },
    /// One follows that is not the base of the one before it.
    #[error("Snapshot {snapshot} is a change of {base}, not of {found}")]
    OtherBase {
        /// The newer one.
        snapshot: SnapshotDigest,
        /// What it needs.
        base: SnapshotDigest,
        /// What was given.
        found: SnapshotDigest,
    },
    /// One follows although the one before it is full.
    #[error("Snapshot {0} is full: nothing can lie below it")]
    BelowFull(SnapshotDigest),
    /// A layer of another size.
    #[error("The snapshots of a chain must be of one memory size")]
    OtherSize,
}

impl Chain {
    /// Puts snapshots together: the newest first, each followed by its base, down to a full one.
    pub fn new(layers: Vec<Snapshot>) -> Result<Self, ChainError> {
        let (Some(first), Some(last)) = (layers.first(), layers.last()) else {
            return Err(ChainError::Empty);
        };
        if layers.len() > CHAIN_MAX {
            return Err(ChainError::TooLong(layers.len()));
        }
        for pair in layers.windows(2) {
            let [newer, older] = pair else { continue };
            let (snapshot, found) = (newer.digest(), older.digest());
            match newer.manifest().base {
                None => return Err(ChainError::BelowFull(snapshot)),
                Some(base) if base != found => {
                    return Err(ChainError::OtherBase {
                        snapshot,
                        base,
                        found,
                    });
                }
                Some(_) => {}
            }
            if older.size() != first.size() {
                return Err(ChainError::OtherSize);
            }
        }
        if let Some(base) = last.manifest().base {
            let snapshot = last.digest();
            return Err(ChainError::NoBase { snapshot, base });
        }
        Ok(Self { layers })
    }

    /// The snapshots, newest first; there is at least one.
    pub fn layers(&self) -> &[Snapshot] {
        &self.layers
    }

    /// The snapshot that is restored: the newest.
    pub fn newest(&self) -> &Snapshot {
        // `new` refuses an empty chain.
        &self.layers[0]
    }

    /// The guest's memory size.
    pub fn size(&self) -> MemorySize {
        self.newest().size()
    }

    /// The pages of a chunk that are not zeros, without reading any.
    pub fn filled(&self, chunk: ChunkIndex) -> PageMask {
        let mut open = chunk.pages(self.size());
        let mut filled = PageMask::EMPTY;
        for layer in &self.layers {
            filled = filled.or(layer.filled(chunk).and(open));
            open = open.without(layer.held(chunk));
        }
        filled
    }

    /// Reads a chunk, every piece of it checked against its digest.
    pub fn load(&self, chunk: ChunkIndex, content: &mut ChunkContent) -> Result<(), ReadError> {
        content.load(&self.layers, chunk)
    }
}

/// The pages of one chunk, each in its place.
#[derive(Debug)]
pub struct ChunkContent {
    chunk: Option<ChunkIndex>,
    filled: PageMask,
    bytes: Vec<u8>,
    buffer: ChunkBuffer,
}

impl ChunkContent {
    /// Room for a chunk.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            chunk: None,
            filled: PageMask::EMPTY,
            bytes: vec![0; CHUNK_BYTES],
            buffer: ChunkBuffer::new()?,
        })
    }

    /// The pages that are not zeros.
    pub fn filled(&self) -> PageMask {
        self.filled
    }

    /// `count` pages from `first` on, numbered within the chunk: what was loaded last. Pages that are not filled, or lie
    /// outside the chunk, are not defined.
    pub fn run(&self, first: u64, count: u64) -> &[u8] {
        let start = first.min(CHUNK_PAGES) as usize * PAGE_BYTES;
        let end = first.saturating_add(count).min(CHUNK_PAGES) as usize * PAGE_BYTES;
        &self.bytes[start..end.max(start)]
    }

    /// Fills it from the first of `layers` that holds each page.
    pub(crate) fn load(&mut self, layers: &[Snapshot], chunk: ChunkIndex) -> Result<(), ReadError> {
        // Half of a chunk is no chunk, should reading fail.
        self.chunk = None;
        self.filled = PageMask::EMPTY;
        let mut open = PageMask::FULL;
        for layer in layers {
            let wanted = layer.filled(chunk).and(open);
            open = open.without(layer.held(chunk));
            let Some(record) = layer.table().get(chunk).filter(|_| !wanted.is_empty()) else {
                continue;
            };
            let content = layer.load(record, &mut self.buffer)?;
            for (page, bytes) in record.filled.pages().zip(content.chunks_exact(PAGE_BYTES)) {
                if wanted.is_set(page) {
                    let start = page as usize * PAGE_BYTES;
                    self.bytes[start..start + PAGE_BYTES].copy_from_slice(bytes);
                }
            }
            self.filled = self.filled.or(wanted);
        }
        self.chunk = Some(chunk);
        Ok(())
    }
}

/// Pages of snapshots as a source for another one.
pub(crate) struct LayerSource<'a> {
    layers: &'a [Snapshot],
    size: MemorySize,
    content: Mutex<ChunkContent>,
}

impl<'a> LayerSource<'a> {
    /// Pages of the first of `layers` that holds them. `size` is theirs.
    pub fn new(layers: &'a [Snapshot], size: MemorySize) -> std::io::Result<Self> {
        Ok(Self {
            layers,
            size,
            content: Mutex::new(ChunkContent::new()?),
        })
    }
}

impl PageSource for LayerSource<'_> {
    fn size(&self) -> MemorySize {
        self.size
    }

    fn read_pages(&self, first: PageIndex, buffer: &mut [u8]) -> Result<(), SourceError> {
        // Whoever panicked while reading left no half of a chunk behind.
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        for (page, bytes) in (first.0..).zip(buffer.chunks_exact_mut(PAGE_BYTES)) {
            let chunk = ChunkIndex::of(PageIndex(page));
            if content.chunk != Some(chunk) {
                content.load(self.layers, chunk)?;
            }
            let inside = page % CHUNK_PAGES;
            if content.filled().is_set(inside) {
                bytes.copy_from_slice(content.run(inside, 1));
            } else {
                bytes.fill(0);
            }
        }
        Ok(())
    }
}
