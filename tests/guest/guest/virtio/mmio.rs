//! Device registers in memory: read and written one plain instruction at a time, so that any interpreter knows it.
//!
//! The boot code maps the first 4 GiB, the last of them uncached; what lies higher is mapped here on demand, which
//! ring 3 can do because the page tables are its own.

use core::arch::asm;
use core::fmt;

use super::dma::Arena;

const PRESENT_WRITABLE_USER: u64 = 0x7;
const UNCACHED_LARGE: u64 = 0x9f;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const FIRST_UNMAPPED: u64 = 4 << 30;
const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;

/// A stretch of registers.
#[derive(Clone, Copy)]
pub struct Window {
    address: u64,
    bytes: u64,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.address, self.bytes)
    }
}

macro_rules! accessors {
    ($read:ident, $write:ident, $kind:ty, $class:ident, $load:literal, $store:literal) => {
        /// Reads a register; all ones beyond the end.
        pub fn $read(&self, offset: u64) -> $kind {
            if !self.holds(offset, size_of::<$kind>()) {
                return <$kind>::MAX;
            }
            let value: $kind;
            // SAFETY: a read inside a mapped stretch of registers.
            unsafe {
                asm!($load, out($class) value, in(reg) self.address + offset, options(nostack, preserves_flags));
            }
            value
        }

        /// Writes a register; nothing beyond the end.
        pub fn $write(&self, offset: u64, value: $kind) {
            if self.holds(offset, size_of::<$kind>()) {
                // SAFETY: a write inside a mapped stretch of registers; memory that the device reads is written before.
                unsafe {
                    asm!($store, in($class) value, in(reg) self.address + offset, options(nostack, preserves_flags));
                }
            }
        }
    };
}

impl Window {
    /// Registers at a physical address, mapped if they were not.
    pub fn map(address: u64, bytes: u64, arena: &mut Arena) -> Option<Self> {
        let end = address.checked_add(bytes)?;
        let mut page = address & !(LARGE_PAGE_BYTES - 1);
        while page < end {
            if page >= FIRST_UNMAPPED {
                map_page(page, arena)?;
            }
            page += LARGE_PAGE_BYTES;
        }
        Some(Self { address, bytes })
    }

    /// A part of it, cut at its end.
    pub fn part(&self, offset: u64, bytes: u64) -> Option<Self> {
        let available = self.bytes.checked_sub(offset)?;
        Some(Self {
            address: self.address + offset,
            bytes: bytes.min(available),
        })
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn holds(&self, offset: u64, bytes: usize) -> bool {
        offset
            .checked_add(bytes as u64)
            .is_some_and(|end| end <= self.bytes)
    }

    accessors!(
        read8,
        write8,
        u8,
        reg_byte,
        "mov {0}, [{1}]",
        "mov [{1}], {0}"
    );
    accessors!(
        read16,
        write16,
        u16,
        reg,
        "mov {0:x}, [{1}]",
        "mov [{1}], {0:x}"
    );
    accessors!(
        read32,
        write32,
        u32,
        reg,
        "mov {0:e}, [{1}]",
        "mov [{1}], {0:e}"
    );

    /// Writes a 64-bit register as two halves, the lower first (virtio 1.3, 4.1.3.1).
    pub fn write64(&self, offset: u64, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}

/// Adds a large page to the tables. An entry that was not present needs no flush.
fn map_page(address: u64, arena: &mut Arena) -> Option<()> {
    let mut table = crate::boot::page_tables();
    for shift in [39, 30] {
        let entry = entry(table, address, shift);
        // SAFETY: a page table of ours, or one that was allocated below.
        unsafe {
            if entry.read_volatile() & 1 == 0 {
                entry.write_volatile(arena.take_for_ever()? | PRESENT_WRITABLE_USER);
            }
            table = entry.read_volatile() & ADDRESS_MASK;
        }
    }
    // SAFETY: as above; nothing but registers is reached by the new entry.
    unsafe { entry(table, address, 21).write_volatile(address | UNCACHED_LARGE) };
    Some(())
}

fn entry(table: u64, address: u64, shift: u32) -> *mut u64 {
    (table + (address >> shift & 511) * 8) as *mut u64
}
