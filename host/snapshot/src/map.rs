//! A chain laid over reserved guest memory, copy-on-write, without reading it.
//!
//! Each layer is mapped over the older ones, piece by piece. A process has only so many mappings, so when there are
//! more pieces than [`PIECES_MAX`], the shortest of the newer layers are copied instead; that much is read before the
//! guest is ready, and the caller learns how much it was.
//!
//! What is mapped or copied here is not checked: the caller has seen to that ([`crate::seal`]).

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use dwcp_memory::{GuestMemory, MemoryError, PAGE_BYTES, PIECES_MAX, PageIndex, Piece};

use crate::mask::{CHUNK_PAGES, ChunkIndex};
use crate::{Chain, Encoding, ReadError, Snapshot, SnapshotDigest};

/// Most pieces of the full layer; one more, and its zeros are mapped too, as one piece with the rest.
const FULL_PIECES_MAX: usize = PIECES_MAX / 2;

/// What it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Pieces that were mapped.
    pub pieces: u64,
    /// Pages that were copied, because their pieces would have been too many.
    pub copied_pages: u64,
}

/// Why a chain could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A layer is compressed.
    #[error("Snapshot {0} is compressed and cannot be mapped: have it filled in, or write it raw")]
    Compressed(SnapshotDigest),
    /// Another size.
    #[error("The snapshot has {snapshot} bytes of memory, the VM {memory}")]
    OtherSize {
        /// In the snapshot.
        snapshot: u64,
        /// Reserved.
        memory: u64,
    },
    /// The memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A snapshot could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Neighbouring pages: the first, and how many.
type Run = (PageIndex, u64);

impl Chain {
    /// Lays the chain over private memory that was reserved for it. When it fails, the memory is of no more use.
    pub fn map_into(&self, memory: &GuestMemory) -> Result<Mapped, MapError> {
        if memory.size() != self.size() {
            return Err(MapError::OtherSize {
                snapshot: self.size().bytes(),
                memory: memory.size().bytes(),
            });
        }
        let is_packed = |layer: &&Snapshot| layer.encoding() != Encoding::Raw;
        if let Some(packed) = self.layers().iter().find(is_packed) {
            return Err(MapError::Compressed(packed.digest()));
        }
        let mut mapped = Mapped {
            pieces: 0,
            copied_pages: 0,
        };
        let Some((full, newer)) = self.layers().split_last() else {
            return Ok(mapped);
        };
        let mut runs: Vec<Run> = chunk_runs(full).take(FULL_PIECES_MAX + 1).collect();
        if runs.len() > FULL_PIECES_MAX {
            runs = vec![(PageIndex(0), full.size().pages())];
        }
        mapped.pieces += lay(full, runs.iter().copied(), memory)?;
        let room = PIECES_MAX as u64 - mapped.pieces;
        let shortest = shortest_to_map(newer, room);
        for (at, layer) in newer.iter().enumerate().rev() {
            let (above, _) = newer.split_at(at);
            let is_long = |run: &Run| run.1 >= shortest;
            mapped.pieces += lay(layer, held_runs(layer).filter(is_long), memory)?;
            for run in held_runs(layer).filter(|run| !is_long(run)) {
                mapped.copied_pages += copy(layer, above, run, memory)?;
            }
        }
        Ok(mapped)
    }
}

/// The chunks of a full snapshot that hold anything, neighbours joined.
fn chunk_runs(layer: &Snapshot) -> impl Iterator<Item = Run> {
    let size = layer.size();
    let chunks = layer.table().records().iter().map(move |record| {
        let first = record.chunk.first_page();
        (first, CHUNK_PAGES.min(size.pages() - first.0))
    });
    joined(chunks)
}

/// The pages that an incremental holds, neighbours joined.
fn held_runs(layer: &Snapshot) -> impl Iterator<Item = Run> {
    joined(layer.table().records().iter().flat_map(|record| {
        let start = record.chunk.first_page().0;
        let runs = record.held.runs();
        runs.map(move |(first, count)| (PageIndex(start + first), count))
    }))
}

/// Joins runs that touch; they must ascend.
fn joined(runs: impl Iterator<Item = Run>) -> impl Iterator<Item = Run> {
    let mut runs = runs.peekable();
    std::iter::from_fn(move || {
        let (first, mut count) = runs.next()?;
        while let Some((_, more)) = runs.next_if(|next| next.0.0 == first.0 + count) {
            count += more;
        }
        Some((first, count))
    })
}

/// The length from which on all runs of the layers together are at most `room`: a power of two.
fn shortest_to_map(layers: &[Snapshot], room: u64) -> u64 {
    let mut by_length = [0u64; 64];
    for (_, count) in layers.iter().flat_map(held_runs) {
        by_length[count.ilog2() as usize] += 1;
    }
    let mut total = 0;
    for (exponent, count) in by_length.iter().enumerate().rev() {
        total += count;
        if total > room {
            return 1 << (exponent + 1);
        }
    }
    1
}

fn lay(
    layer: &Snapshot,
    runs: impl Iterator<Item = Run>,
    memory: &GuestMemory,
) -> Result<u64, MapError> {
    let start = layer.encoding().memory_offset();
    let pieces: Vec<_> = runs
        .map(|(first, pages)| Piece {
            first,
            pages,
            file: layer.file().as_fd(),
            offset_bytes: start + first.offset().0,
        })
        .collect();
    memory.lay(&pieces)?;
    Ok(pieces.len() as u64)
}

/// Copies the pages of a run that no layer above holds; answers how many.
fn copy(
    layer: &Snapshot,
    above: &[Snapshot],
    (first, count): Run,
    memory: &GuestMemory,
) -> Result<u64, MapError> {
    let start = layer.encoding().memory_offset();
    let mut bytes = [0; PAGE_BYTES];
    let mut copied = 0;
    for page in (first.0..first.0 + count).map(PageIndex) {
        let is_covered = above.iter().any(|above| {
            let held = above.held(ChunkIndex::of(page));
            held.is_set(page.0 % CHUNK_PAGES)
        });
        if !is_covered {
            layer
                .file()
                .read_exact_at(&mut bytes, start + page.offset().0)
                .map_err(ReadError::from)?;
            memory.write_pages(page, &bytes)?;
            copied += 1;
        }
    }
    Ok(copied)
}
