//! Pages, offsets and sizes of guest RAM: three kinds of number that are never mixed.
//!
//! A page is 4 KiB. None of these is a guest-physical address; [`crate::Layout`] translates.

use std::fmt;

use crate::MemoryError;

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;
const PAGE_SHIFT: u32 = PAGE_BYTES.trailing_zeros();
/// Most memory of one guest: 16 TiB.
const SIZE_BYTES_MAX: u64 = 16 << 40;

/// Number of a page of guest RAM, counted from 0 in the order of the memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

impl PageIndex {
    /// Where the page begins in the memfd; saturates far outside any real memory.
    pub fn offset(self) -> MemoryOffset {
        MemoryOffset(self.0.saturating_mul(PAGE_BYTES as u64))
    }

    /// The page `pages` further on, or `None` past the end of numbers.
    pub fn checked_add(self, pages: u64) -> Option<Self> {
        self.0.checked_add(pages).map(Self)
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
    }
}

/// Byte offset in the memfd that holds guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemoryOffset(pub u64);

impl MemoryOffset {
    /// The page that this byte lies in.
    pub fn page(self) -> PageIndex {
        PageIndex(self.0 >> PAGE_SHIFT)
    }
}

/// How much RAM a guest has: a multiple of the page size, from one page to 16 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemorySize(u64);

impl MemorySize {
    /// Checks `bytes`.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        if bytes == 0 || bytes > SIZE_BYTES_MAX || !bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(MemoryError::BadSize(bytes));
        }
        Ok(Self(bytes))
    }

    /// A size in MiB.
    pub fn mib(mib: u64) -> Result<Self, MemoryError> {
        Self::new(mib.saturating_mul(1 << 20))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// In pages.
    pub fn pages(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }

    /// Whether `count` pages from `first` on lie inside.
    pub fn holds(self, first: PageIndex, count: u64) -> bool {
        first
            .0
            .checked_add(count)
            .is_some_and(|end| end <= self.pages())
    }
}
