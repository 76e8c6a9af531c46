//! Guest RAM that is private to its process: a reserved range of zeros, over which pieces of a snapshot or of a
//! template are laid copy-on-write.
//!
//! What always holds: what is laid is never written to (the mappings are private), and nobody can write to it behind
//! the guest: a memfd must be sealed as a template, a file must be as long as what is laid from it. A file on a disk
//! can still be cut off by its owner, or become unreadable; then the process that touches the page gets SIGBUS and
//! ends, as if its memory had failed.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use crate::bitmap::words_of;
use crate::memfd::{data_chunks, is_guest_memory, is_template};
use crate::{DirtyBitmap, HostMap, MemoryError, MemorySize, PAGE_BYTES, PageIndex};

/// Most pieces that are laid over one memory: each may cost two more mappings, and a process has 65,530.
pub const PIECES_MAX: usize = 8192;
/// Pages of the chunks by which a template's memory is looked through (2 MiB), unless there would be too many.
const CHUNK_PAGES: u64 = 512;
/// How many chunks a template has at most.
const CHUNKS_MAX: u64 = PIECES_MAX as u64 / 2;
/// A shorter run of zeroed pages is written: a mapping of its own would cost more than its memory.
const REMAP_PAGES_MIN: u64 = 64;
/// See proc_pid_pagemap(5).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;
/// Entries of the page map that are read at a time.
const ENTRIES: usize = 4096;

/// A piece of a file that becomes guest RAM, copy-on-write.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Its first page in the guest.
    pub first: PageIndex,
    /// How many pages.
    pub pages: u64,
    /// The file: a snapshot, or the sealed memory of a template.
    pub file: BorrowedFd<'a>,
    /// Where the piece begins in the file: a multiple of the page size.
    pub offset_bytes: u64,
}

impl<'a> Piece<'a> {
    /// All of a template's memory that was ever touched, and what lies close to it, in at most [`PIECES_MAX`] pieces.
    ///
    /// Looked for by chunks: memory that is in use is full of holes, and to find each costs more than all the rest of a
    /// fork. A hole that is mapped reads as zeros too; it only costs the template a page when it is read.
    pub fn of_template(file: BorrowedFd<'a>, size: MemorySize) -> Result<Vec<Self>, MemoryError> {
        let least = size.pages() / CHUNKS_MAX;
        let chunk_pages = CHUNK_PAGES.max(least.next_power_of_two());
        let pieces = data_chunks(file, size, chunk_pages)?.into_iter();
        let pieces = pieces.map(|(first, pages)| Self {
            first,
            pages,
            file,
            offset_bytes: first.offset().0,
        });
        Ok(pieces.collect())
    }
}

/// What is known of private RAM beside its mappings.
#[derive(Debug)]
pub(crate) struct PrivatePages {
    hosts: HostMap,
    /// `/proc/PID/pagemap` of this process, if it could be had.
    page_map: Option<File>,
    /// Pages that a piece was laid over.
    laid: Pages,
    /// Pages that were zeroed since by mapping nothing over them.
    zeroed: Pages,
}

impl PrivatePages {
    pub fn new(hosts: HostMap, page_map: Option<OwnedFd>) -> Self {
        let size = hosts.size();
        Self {
            hosts,
            page_map: page_map.map(File::from),
            laid: Pages::none(size),
            zeroed: Pages::none(size),
        }
    }

    /// Whether it can be seen which pages are this process's own.
    pub fn has_page_map(&self) -> bool {
        self.page_map.is_some()
    }

    /// Lays one piece. When it fails, what was there before may be gone: the memory is of no more use.
    pub fn lay(&self, piece: &Piece<'_>) -> Result<(), MemoryError> {
        check_piece(piece, self.hosts.size())?;
        let mut offset = piece.offset_bytes;
        for (host, bytes) in self.hosts.spans(piece.first, piece.pages) {
            map_over(host, bytes, Some((piece.file, offset)))
                .map_err(|errno| MemoryError::system("map guest memory copy-on-write", errno))?;
            offset += bytes;
        }
        self.laid.set(piece.first, piece.pages);
        Ok(())
    }

    /// Makes pages read as zeros and gives their memory back, where that is possible without a write; answers whether
    /// it was.
    pub fn drop_pages(&self, first: PageIndex, count: u64) -> Result<bool, MemoryError> {
        let refused = |errno: Errno| MemoryError::system("zero guest memory", errno);
        if !self.laid.any(first, count) {
            for (host, bytes) in self.hosts.spans(first, count) {
                discard(host, bytes).map_err(refused)?;
            }
            return Ok(true);
        }
        if count < REMAP_PAGES_MIN {
            return Ok(false);
        }
        // Discarding would bring the file's content back, so nothing is mapped over it.
        self.zeroed.set(first, count);
        for (host, bytes) in self.hosts.spans(first, count) {
            match map_over(host, bytes, None) {
                Ok(()) => {}
                // The process has as many mappings as it may.
                Err(Errno::ENOMEM) => return Ok(false),
                Err(errno) => return Err(refused(errno)),
            }
        }
        Ok(true)
    }

    /// Marks every page that may differ from what was laid.
    pub fn mark_private(&self, bitmap: &DirtyBitmap) -> Result<(), MemoryError> {
        let Some(page_map) = &self.page_map else {
            bitmap.set_all();
            return Ok(());
        };
        let mut entries = vec![0; ENTRIES * 8];
        for (first, host, pages) in self.hosts.regions() {
            for at in (0..pages).step_by(ENTRIES) {
                let count = (pages - at).min(ENTRIES as u64);
                let entries = &mut entries[..count as usize * 8];
                page_map
                    .read_exact_at(entries, (host / PAGE_BYTES as u64 + at) * 8)
                    .map_err(|e| MemoryError::system("read the page map", e))?;
                for (page, entry) in (first.0 + at..).zip(entries.as_chunks::<8>().0) {
                    let entry = u64::from_ne_bytes(*entry);
                    if entry & (PRESENT | SWAPPED) != 0 && entry & OF_A_FILE == 0 {
                        bitmap.set(PageIndex(page));
                    }
                }
            }
        }
        self.zeroed.mark(bitmap);
        Ok(())
    }

    /// Marks every page that may not be zeros.
    pub fn mark_present(&self, bitmap: &DirtyBitmap) -> Result<(), MemoryError> {
        self.laid.mark(bitmap);
        self.mark_private(bitmap)
    }
}

fn check_piece(piece: &Piece<'_>, size: MemorySize) -> Result<(), MemoryError> {
    let bytes = piece.pages.saturating_mul(PAGE_BYTES as u64);
    if piece.pages == 0 || !size.holds(piece.first, piece.pages) {
        return Err(MemoryError::OutOfRange {
            what: "page",
            at: piece.first.0,
            bytes,
        });
    }
    if !piece.offset_bytes.is_multiple_of(PAGE_BYTES as u64) {
        return Err(MemoryError::UnalignedPiece(piece.offset_bytes));
    }
    let found = nix::sys::stat::fstat(piece.file)
        .map_err(|e| MemoryError::system("inspect a descriptor", e))?
        .st_size;
    let found = u64::try_from(found).unwrap_or(0);
    let expected = piece.offset_bytes.saturating_add(bytes);
    if found < expected {
        return Err(MemoryError::WrongLength { expected, found });
    }
    if is_guest_memory(piece.file) && !is_template(piece.file)? {
        return Err(MemoryError::NotATemplate);
    }
    Ok(())
}

/// Replaces what is mapped at `host` by a private mapping of a file, or of nothing.
fn map_over(host: u64, bytes: u64, file: Option<(BorrowedFd<'_>, u64)>) -> Result<(), Errno> {
    let (fd, offset, kind) = match file {
        Some((file, offset)) => (file.as_raw_fd(), offset, 0),
        None => (-1, 0, libc::MAP_ANONYMOUS),
    };
    let length = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the range lies inside a mapping that the guest's memory owns and unmaps as a whole; it stays readable
    // and writable, and is accessed only by volatile copies and by the guest, which may find any bytes there anyway.
    let mapped = unsafe {
        libc::mmap(
            host as *mut libc::c_void,
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE | kind,
            fd,
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(())
}

/// Gives back the pages of a private mapping of nothing.
fn discard(host: u64, bytes: u64) -> Result<(), Errno> {
    let length = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: as for `map_over`; the pages read as zeros afterwards.
    let done = unsafe { libc::madvise(host as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    Errno::result(done).map(drop)
}

/// Opens what tells which pages of this process are its own. `None` where there is no `/proc`.
pub fn open_page_map() -> Option<OwnedFd> {
    let file = File::open("/proc/self/pagemap").ok()?;
    file.as_fd().try_clone_to_owned().ok()
}

/// Opens this process's memory for reading, to be handed to a [`crate::MemoryView`] elsewhere. `None` where there is no
/// `/proc`.
pub fn open_own_memory() -> Option<OwnedFd> {
    File::open("/proc/self/mem").ok().map(OwnedFd::from)
}

/// A set of pages that only grows.
#[derive(Debug)]
struct Pages {
    words: Box<[AtomicU64]>,
}

impl Pages {
    fn none(size: MemorySize) -> Self {
        let words = size.pages().div_ceil(64);
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn set(&self, first: PageIndex, count: u64) {
        for (word, bits) in words_of(first, count) {
            if let Some(word) = self.words.get(word) {
                word.fetch_or(bits, Ordering::SeqCst);
            }
        }
    }

    fn any(&self, first: PageIndex, count: u64) -> bool {
        words_of(first, count).any(|(word, bits)| {
            let word = self.words.get(word);
            word.is_some_and(|word| word.load(Ordering::SeqCst) & bits != 0)
        })
    }

    fn mark(&self, bitmap: &DirtyBitmap) {
        for (index, word) in self.words.iter().enumerate() {
            let bits = word.load(Ordering::SeqCst);
            if bits != 0 {
                bitmap.or_word(index, bits);
            }
        }
    }
}
