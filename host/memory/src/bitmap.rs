//! One bit per page in memory that two processes share: the VMM sets bits, the mover takes them.
//!
//! Words are `u64`, little-endian, bit `i` of word `w` is page `64 w + i`. Every access is atomic. Bits past the last
//! page are never set by us and never believed: the other process may be anybody.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

use crate::{MemoryError, MemorySize, PAGE_BYTES, PageIndex, memfd};

/// A bitmap over the pages of a guest, backed by a memfd.
#[derive(Debug)]
pub struct DirtyBitmap {
    mapping: MmapRegion,
    file: File,
    size: MemorySize,
}

/// Bits that were set in one word and are now the caller's to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenWord {
    index: usize,
    bits: u64,
}

impl TakenWord {
    /// The pages taken, ascending.
    pub fn pages(self) -> impl Iterator<Item = PageIndex> {
        let mut bits = self.bits;
        std::iter::from_fn(move || {
            if bits == 0 {
                return None;
            }
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            Some(PageIndex(self.index as u64 * 64 + u64::from(bit)))
        })
    }

    /// How many pages were taken.
    pub fn count(self) -> u32 {
        self.bits.count_ones()
    }
}

impl DirtyBitmap {
    /// Makes the memfd of a bitmap for a guest of `size`: all clear, never resizable.
    pub fn create(size: MemorySize) -> Result<OwnedFd, MemoryError> {
        memfd::create_bitmap(Self::file_bytes(size))
    }

    /// Maps a memfd that [`DirtyBitmap::create`] made for the same `size`.
    pub fn map(fd: OwnedFd, size: MemorySize) -> Result<Self, MemoryError> {
        if memfd::is_read_only(&fd)? {
            return Err(MemoryError::ReadOnly);
        }
        let file = File::from(fd);
        let bytes = Self::file_bytes(size);
        memfd::check(&file, bytes)?;
        let length = usize::try_from(bytes).map_err(|_| MemoryError::BadSize(size.bytes()))?;
        let shared = file
            .try_clone()
            .map_err(|e| MemoryError::system("copy a descriptor", e))?;
        let mapping = MmapRegionBuilder::new(length)
            .with_file_offset(vm_memory::FileOffset::new(shared, 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .build()
            .map_err(|e| MemoryError::Map(e.into()))?;
        Ok(Self {
            mapping,
            file,
            size,
        })
    }

    /// The memfd, for handing to another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The guest's size, as given.
    pub fn size(&self) -> MemorySize {
        self.size
    }

    /// How many words there are; the last may have unused bits.
    pub fn words(&self) -> usize {
        self.size.pages().div_ceil(64) as usize
    }

    /// Sets one page's bit; a page outside memory is ignored.
    pub fn set(&self, page: PageIndex) {
        self.or_word((page.0 / 64) as usize, 1 << (page.0 % 64));
    }

    /// Sets the bits of `count` pages from `first` on; pages outside memory are ignored.
    pub fn set_range(&self, first: PageIndex, count: u64) {
        let inside = self.size.pages().saturating_sub(first.0);
        for (word, bits) in words_of(first, count.min(inside)) {
            self.or_word(word, bits);
        }
    }

    /// Sets every page's bit.
    pub fn set_all(&self) {
        self.set_range(PageIndex(0), self.size.pages());
    }

    /// Clears every page's bit.
    pub fn clear_all(&self) {
        for word in self.atoms() {
            word.store(0, Ordering::SeqCst);
        }
    }

    /// Whether a page's bit is set; never for a page outside memory.
    pub fn is_set(&self, page: PageIndex) -> bool {
        let word = (page.0 / 64) as usize;
        word < self.words() && self.load(word) >> (page.0 % 64) & 1 == 1
    }

    /// How many pages are set now.
    pub fn count(&self) -> u64 {
        (0..self.words())
            .map(|word| u64::from(self.load(word).count_ones()))
            .sum()
    }

    /// Adds a log as KVM returns it for a region: bit 0 is the region's first page, `first`, a multiple of 64.
    pub fn or_from_log(&self, first: PageIndex, log: &[u64]) -> Result<(), MemoryError> {
        let word = usize::try_from(first.0 / 64).map_err(|_| MemoryError::UnalignedLog)?;
        let end = word.checked_add(log.len());
        if !first.0.is_multiple_of(64) || end.is_none_or(|end| end > self.words()) {
            return Err(MemoryError::UnalignedLog);
        }
        for (index, bits) in log.iter().enumerate() {
            if *bits != 0 {
                self.or_word(word + index, *bits);
            }
        }
        Ok(())
    }

    /// Takes word `index`: clears it and returns what was set, or `None` if nothing was. Each set bit is returned to
    /// exactly one caller.
    pub fn take_word(&self, index: usize) -> Option<TakenWord> {
        let atom = self.atoms().get(index)?;
        if atom.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let bits = u64::from_le(atom.swap(0, Ordering::SeqCst)) & self.valid_bits(index);
        (bits != 0).then_some(TakenWord { index, bits })
    }

    /// The bits of word `index` as they are now; none past the last word.
    pub fn word(&self, index: usize) -> u64 {
        if index < self.words() {
            self.load(index)
        } else {
            0
        }
    }

    /// The pages set now, ascending; a bit set behind the iterator is missed.
    pub fn iter(&self) -> impl Iterator<Item = PageIndex> {
        (0..self.words()).flat_map(|index| {
            let bits = self.load(index);
            TakenWord { index, bits }.pages()
        })
    }

    pub(crate) fn or_word(&self, index: usize, bits: u64) {
        let bits = bits & self.valid_bits(index);
        if let Some(atom) = self.atoms().get(index) {
            atom.fetch_or(bits.to_le(), Ordering::SeqCst);
        }
    }

    fn load(&self, index: usize) -> u64 {
        u64::from_le(self.atoms()[index].load(Ordering::SeqCst)) & self.valid_bits(index)
    }

    /// All ones, but for what lies past the last page.
    fn valid_bits(&self, index: usize) -> u64 {
        let first = index as u64 * 64;
        match self.size.pages().saturating_sub(first) {
            0 => 0,
            rest if rest >= 64 => u64::MAX,
            rest => (1 << rest) - 1,
        }
    }

    fn atoms(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, at least `words` words long (`map` made it of `file_bytes`), sealed
        // against shrinking and lives as long as `self`; both processes touch it only by atomic operations, or may
        // write what they like, for which atomics are the one sound way to look.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().cast(), self.words()) }
    }

    fn file_bytes(size: MemorySize) -> u64 {
        (size.pages().div_ceil(64) * 8).next_multiple_of(PAGE_BYTES as u64)
    }
}

/// The words, and the bits in each, that stand for `count` pages from `first` on.
pub(crate) fn words_of(first: PageIndex, count: u64) -> impl Iterator<Item = (usize, u64)> {
    let end = first.0.saturating_add(count);
    let mut page = first.0;
    std::iter::from_fn(move || {
        if page >= end {
            return None;
        }
        let in_word = (64 - page % 64).min(end - page);
        let bits = (u64::MAX >> (64 - in_word)) << (page % 64);
        let word = (page / 64) as usize;
        page += in_word;
        Some((word, bits))
    })
}
