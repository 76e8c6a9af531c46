//! Which pages of a chunk: chunks cut guest memory into pieces of 2 MiB, and a mask has one bit for each page of one.
//!
//! Must not know where a chunk lies in a file, or what its pages hold.

use dwcp_memory::{DirtyBitmap, MemorySize, PAGE_BYTES, PageIndex};

/// Pages of a chunk.
pub const CHUNK_PAGES: u64 = 512;
/// Bytes of a chunk: 2 MiB. The last one of a memory may be shorter.
pub const CHUNK_BYTES: usize = CHUNK_PAGES as usize * PAGE_BYTES;
const WORDS: usize = CHUNK_PAGES as usize / 64;
/// Length of a mask in a file.
pub(crate) const MASK_BYTES: usize = WORDS * 8;

/// Number of a chunk, counted from 0 in the order of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u64);

impl ChunkIndex {
    /// How many chunks a memory has.
    pub fn count(size: MemorySize) -> u64 {
        size.pages().div_ceil(CHUNK_PAGES)
    }

    /// All chunks of a memory, ascending.
    pub fn all(size: MemorySize) -> impl Iterator<Item = Self> {
        (0..Self::count(size)).map(Self)
    }

    /// The chunk that holds a page.
    pub fn of(page: PageIndex) -> Self {
        Self(page.0 / CHUNK_PAGES)
    }

    /// Its first page.
    pub fn first_page(self) -> PageIndex {
        PageIndex(self.0.saturating_mul(CHUNK_PAGES))
    }

    /// The pages that it has in a memory of `size`: all, fewer in the last chunk, none past the end.
    pub fn pages(self, size: MemorySize) -> PageMask {
        PageMask::first(size.pages().saturating_sub(self.first_page().0))
    }
}

/// A set of pages of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct PageMask([u64; WORDS]);

impl PageMask {
    /// No page.
    pub const EMPTY: Self = Self([0; WORDS]);
    /// Every page.
    pub const FULL: Self = Self([u64::MAX; WORDS]);

    /// The first `count` pages; all from 512 on.
    pub fn first(count: u64) -> Self {
        let mut words = [0; WORDS];
        for (word, start) in words.iter_mut().zip((0..).step_by(64)) {
            *word = match count.saturating_sub(start) {
                0 => 0,
                rest if rest >= 64 => u64::MAX,
                rest => (1 << rest) - 1,
            };
        }
        Self(words)
    }

    /// Adds a page, numbered from the chunk's first; one outside is ignored.
    pub fn set(&mut self, page: u64) {
        if let Some(word) = self.0.get_mut((page / 64) as usize) {
            *word |= 1 << (page % 64);
        }
    }

    /// Whether a page is in it.
    pub fn is_set(self, page: u64) -> bool {
        let word = self.0.get((page / 64) as usize);
        word.is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// How many pages.
    pub fn count(self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    /// The pages of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.zip(other, |a, b| a & b)
    }

    /// The pages of either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.zip(other, |a, b| a | b)
    }

    /// The pages of this one that are not in the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }

    /// The pages, ascending.
    pub fn pages(self) -> impl Iterator<Item = u64> {
        (0..CHUNK_PAGES).filter(move |page| self.is_set(*page))
    }

    /// The runs of neighbouring pages, ascending: first page and length.
    pub fn runs(self) -> impl Iterator<Item = (u64, u64)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.next(at, true)?;
            at = self.next(first, false).unwrap_or(CHUNK_PAGES);
            Some((first, at - first))
        })
    }

    /// The first page from `from` on that is (or is not) in it.
    fn next(self, from: u64, wanted: bool) -> Option<u64> {
        let mut at = from;
        while at < CHUNK_PAGES {
            let word = self.0[(at / 64) as usize];
            let word = if wanted { word } else { !word } >> (at % 64);
            if word != 0 {
                return Some(at + u64::from(word.trailing_zeros()));
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    fn zip(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|at| join(self.0[at], other.0[at])))
    }

    pub(crate) fn to_bytes(self) -> [u8; MASK_BYTES] {
        let mut bytes = [0; MASK_BYTES];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; MASK_BYTES]) -> Self {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Self(words)
    }
}

/// Which pages of a memory are meant.
pub trait PageChoice {
    /// Those of one chunk. Bits past the end of memory are ignored.
    fn mask(&self, chunk: ChunkIndex) -> PageMask;
}

/// Every page.
#[derive(Debug, Clone, Copy)]
pub struct AllPages;

impl PageChoice for AllPages {
    fn mask(&self, _: ChunkIndex) -> PageMask {
        PageMask::FULL
    }
}

/// The pages whose bits are set.
impl PageChoice for DirtyBitmap {
    fn mask(&self, chunk: ChunkIndex) -> PageMask {
        let first = usize::try_from(chunk.0).unwrap_or(usize::MAX);
        let first = first.saturating_mul(WORDS);
        PageMask(std::array::from_fn(|at| {
            self.word(first.saturating_add(at))
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn mask(pages: &BTreeSet<u64>) -> PageMask {
        let mut mask = PageMask::EMPTY;
        pages.iter().for_each(|page| mask.set(*page));
        mask
    }

    proptest! {
        #[test]
        fn a_mask_is_a_set(
            a in prop::collection::btree_set(0..CHUNK_PAGES, 0..600),
            b in prop::collection::btree_set(0..CHUNK_PAGES, 0..600),
        ) {
            let (one, other) = (mask(&a), mask(&b));
            prop_assert_eq!(one.pages().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(one.count(), a.len() as u64);
            prop_assert_eq!(one.and(other).pages().collect::<BTreeSet<_>>(), &a & &b);
            prop_assert_eq!(one.or(other).pages().collect::<BTreeSet<_>>(), &a | &b);
            prop_assert_eq!(one.without(other).pages().collect::<BTreeSet<_>>(), &a - &b);
            prop_assert_eq!(PageMask::from_bytes(&one.to_bytes()), one);
            let mut end = None;
            let mut seen = BTreeSet::new();
            for (first, length) in one.runs() {
                prop_assert!(length > 0);
                prop_assert!(end.is_none_or(|end| first > end), "runs touch");
                end = Some(first + length);
                seen.extend(first..first + length);
            }
            prop_assert_eq!(seen, a);
        }

        #[test]
        fn the_first_pages_are_counted(count in 0..700u64) {
            let first = PageMask::first(count);
            prop_assert_eq!(first.pages().collect::<Vec<_>>(), (0..count.min(512)).collect::<Vec<_>>());
        }
    }
}
