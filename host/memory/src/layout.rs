//! Where guest RAM lies in guest-physical space: below 3 GiB, and the rest from 4 GiB on.
//!
//! The memfd has no hole: offsets run on from the first region into the second. The gap between 3 and 4 GiB belongs
//! to devices, and its two ends are multiples of 64 pages, so a kernel's log of a region begins at a bitmap word.

use vm_memory::GuestAddress;

use crate::{MemoryOffset, MemorySize, PageIndex};

/// First address after low RAM that is never RAM (3 GiB).
pub const GAP_START: GuestAddress = GuestAddress(3 << 30);
/// Where high RAM begins (4 GiB).
pub const GAP_END: GuestAddress = GuestAddress(4 << 30);

/// A piece of RAM that is contiguous in guest-physical space and in the memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address.
    pub start: GuestAddress,
    /// Where it begins in the memfd.
    pub offset: MemoryOffset,
    /// Length in bytes, never zero.
    pub bytes: u64,
}

/// The regions of a guest of a given size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    size: MemorySize,
    low: Region,
    high: Option<Region>,
}

impl Layout {
    /// Lays out `size`.
    pub fn new(size: MemorySize) -> Self {
        let low_bytes = size.bytes().min(GAP_START.0);
        let rest = size.bytes() - low_bytes;
        Self {
            size,
            low: Region {
                start: GuestAddress(0),
                offset: MemoryOffset(0),
                bytes: low_bytes,
            },
            high: (rest > 0).then_some(Region {
                start: GAP_END,
                offset: MemoryOffset(low_bytes),
                bytes: rest,
            }),
        }
    }

    /// The guest's size.
    pub fn size(&self) -> MemorySize {
        self.size
    }

    /// One or two regions, lowest first.
    pub fn regions(&self) -> impl Iterator<Item = Region> + use<> {
        [Some(self.low), self.high].into_iter().flatten()
    }

    /// The guest-physical address of a page's first byte; `None` outside memory.
    pub fn address_of(&self, page: PageIndex) -> Option<GuestAddress> {
        let offset = page.offset().0;
        self.regions().find_map(|region| {
            let inside = offset.checked_sub(region.offset.0)?;
            (inside < region.bytes).then(|| GuestAddress(region.start.0 + inside))
        })
    }

    /// The page that holds a guest-physical address; `None` where there is no RAM.
    pub fn page_of(&self, address: GuestAddress) -> Option<PageIndex> {
        self.regions().find_map(|region| {
            let inside = address.0.checked_sub(region.start.0)?;
            (inside < region.bytes).then(|| MemoryOffset(region.offset.0 + inside).page())
        })
    }
}
