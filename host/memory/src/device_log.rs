//! Which pages devices (and the destination's mover) wrote: the half of "dirty" that KVM's log does not see.
//!
//! `vm-memory` calls `mark_dirty` after it has copied bytes and before the call returns, so a page is marked before a
//! device can show the guest a completion. Off, it costs one relaxed load per write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};

use crate::bitmap::words_of;
use crate::{DirtyBitmap, MemoryOffset, MemorySize, PageIndex};

/// The log as one region of guest memory sees it: offsets count from the region's start. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeviceLog {
    shared: Arc<Shared>,
    base: MemoryOffset,
}

#[derive(Debug)]
struct Shared {
    tracking: AtomicBool,
    size: MemorySize,
    words: Box<[AtomicU64]>,
}

impl DeviceLog {
    pub(crate) fn new(size: MemorySize) -> Self {
        let words = size.pages().div_ceil(64) as usize;
        let shared = Shared {
            tracking: AtomicBool::new(false),
            size,
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        };
        Self {
            shared: Arc::new(shared),
            base: MemoryOffset(0),
        }
    }

    pub(crate) fn for_region(&self, base: MemoryOffset) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            base,
        }
    }

    pub(crate) fn start(&self) {
        for word in &self.shared.words {
            word.store(0, Ordering::Relaxed);
        }
        self.shared.tracking.store(true, Ordering::SeqCst);
    }

    pub(crate) fn stop(&self) {
        self.shared.tracking.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_tracking(&self) -> bool {
        self.shared.tracking.load(Ordering::SeqCst)
    }

    /// Marks `count` pages from `first` on; what lies outside memory is ignored.
    pub(crate) fn mark_pages(&self, first: PageIndex, count: u64) {
        if !self.shared.tracking.load(Ordering::SeqCst) {
            return;
        }
        let inside = self.shared.size.pages().saturating_sub(first.0);
        for (word, bits) in words_of(first, count.min(inside)) {
            self.shared.words[word].fetch_or(bits, Ordering::SeqCst);
        }
    }

    pub(crate) fn drain_into(&self, bitmaps: &[&DirtyBitmap]) {
        for (index, word) in self.shared.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) != 0 {
                let bits = word.swap(0, Ordering::SeqCst);
                for bitmap in bitmaps {
                    bitmap.or_word(index, bits);
                }
            }
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DeviceLog {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DeviceLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let start = self.base.0.saturating_add(offset as u64);
        let first = MemoryOffset(start).page();
        let last = MemoryOffset(start.saturating_add(len as u64 - 1)).page();
        self.mark_pages(first, last.0 - first.0 + 1);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = MemoryOffset(self.base.0.saturating_add(offset as u64)).page();
        let word = self.shared.words.get((page.0 / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::SeqCst) >> (page.0 % 64) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}
