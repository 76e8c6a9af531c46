//! Where a round is in the bitmap: takes dirty pages in ascending order, clearing their bits as it goes.
//!
//! One pass: a bit that is set behind the cursor stays for the next round. Must not know what the pages hold.

use dwcp_memory::DirtyBitmap;
use dwcp_wire::ladder::Run;

/// Longest run, in pages; a reader copies one run at a time.
pub(crate) const RUN_PAGES_MAX: u64 = 64;

/// A pass over a bitmap.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    word: usize,
    /// Pages whose bits are cleared already, in reverse.
    left: Vec<u64>,
    taken: u64,
}

impl Cursor {
    /// Takes up to `pages` pages; none when the pass is over.
    pub(crate) fn take(&mut self, bitmap: &DirtyBitmap, pages: usize) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for _ in 0..pages {
            let Some(page) = self.next(bitmap) else { break };
            self.taken += 1;
            match runs.last_mut() {
                Some(run) if run.end() == page && run.pages < RUN_PAGES_MAX => run.pages += 1,
                _ => runs.push(Run {
                    first: page,
                    pages: 1,
                }),
            }
        }
        runs
    }

    /// How many pages have been taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether the pass is over.
    pub(crate) fn is_spent(&self, bitmap: &DirtyBitmap) -> bool {
        self.left.is_empty() && self.word >= bitmap.words()
    }

    fn next(&mut self, bitmap: &DirtyBitmap) -> Option<u64> {
        while self.left.is_empty() && self.word < bitmap.words() {
            if let Some(taken) = bitmap.take_word(self.word) {
                self.left.extend(taken.pages().map(|page| page.0));
                self.left.reverse();
            }
            self.word += 1;
        }
        self.left.pop()
    }
}
