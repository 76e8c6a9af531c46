//! Memory that devices read and write: pages between the checksum table and the fill, given out once.

use core::sync::atomic::{Ordering, fence};

use crate::memory::{DEVICES_END, DEVICES_START};

const PAGE_BYTES: u64 = 4096;

/// What is left to give out.
#[derive(Debug)]
pub struct Arena {
    next: u64,
    end: u64,
}

/// A state of the arena.
#[derive(Debug, Clone, Copy)]
pub struct Mark(u64);

/// Whole pages, zeroed when given out.
#[derive(Debug)]
pub struct Region {
    address: u64,
    bytes: usize,
}

impl Arena {
    /// All of it.
    ///
    /// # Safety
    /// Call it once: it gives out the only references to this memory.
    pub unsafe fn new() -> Self {
        Self {
            next: DEVICES_START,
            end: DEVICES_END,
        }
    }

    /// How much is given out, to come back to.
    pub fn mark(&self) -> Mark {
        Mark(self.next)
    }

    /// Gives out again what was given out since a mark.
    ///
    /// # Safety
    /// All of that is forgotten, and every device that was told of it is reset.
    pub unsafe fn back_to(&mut self, mark: Mark) {
        self.next = self.next.min(mark.0);
    }

    /// A zeroed page that is never given out again; its address.
    pub fn take_for_ever(&mut self) -> Option<u64> {
        if self.end - self.next < PAGE_BYTES {
            return None;
        }
        self.end -= PAGE_BYTES;
        let page = self.end as *mut u64;
        // SAFETY: RAM by the constants, given out here and to nobody else.
        unsafe { page.write_bytes(0, PAGE_BYTES as usize / 8) };
        Some(self.end)
    }

    /// Pages for at least `bytes` bytes; `None` when there are no more.
    pub fn take(&mut self, bytes: usize) -> Option<Region> {
        let length = (bytes as u64).next_multiple_of(PAGE_BYTES);
        if length > self.end - self.next {
            return None;
        }
        let mut region = Region {
            address: self.next,
            bytes: length as usize,
        };
        self.next += length;
        region.slice_mut().fill(0);
        Some(region)
    }
}

impl Region {
    /// Where it is, for the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What it holds. Not to be used for what a device may be writing at this moment.
    pub fn slice(&self) -> &[u8] {
        fence(Ordering::Acquire);
        // SAFETY: RAM by the constants, given out once, identity-mapped; no device writes it by the rule above.
        unsafe { core::slice::from_raw_parts(self.address as *const u8, self.bytes) }
    }

    /// The same, to be written.
    pub fn slice_mut(&mut self) -> &mut [u8] {
        fence(Ordering::Acquire);
        // SAFETY: as in `slice`, and the only reference to it.
        unsafe { core::slice::from_raw_parts_mut(self.address as *mut u8, self.bytes) }
    }

    /// Writes bytes at a place.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.slice_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads a little-endian word that a device may write at any time.
    pub fn read16(&self, at: usize) -> u16 {
        assert!(at + 2 <= self.bytes && at.is_multiple_of(2));
        // SAFETY: inside, aligned; volatile because a device writes it.
        unsafe { ((self.address as usize + at) as *const u16).read_volatile() }
    }

    /// Reads a little-endian double word that a device may write at any time.
    pub fn read32(&self, at: usize) -> u32 {
        assert!(at + 4 <= self.bytes && at.is_multiple_of(4));
        // SAFETY: inside, aligned; volatile because a device writes it.
        unsafe { ((self.address as usize + at) as *const u32).read_volatile() }
    }

    /// Writes a little-endian word that a device may read at any time.
    pub fn write16(&mut self, at: usize, value: u16) {
        assert!(at + 2 <= self.bytes && at.is_multiple_of(2));
        // SAFETY: inside, aligned; volatile because a device reads it.
        unsafe { ((self.address as usize + at) as *mut u16).write_volatile(value) }
    }
}
