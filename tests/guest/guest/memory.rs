//! Where things lie, and the one place that makes references to them out of addresses.
//!
//! 2 MiB: this program; 4 MiB: one sum per page of the fill; 10 MiB: what devices read and write; 64 MiB (16 MiB in a
//! small machine): the fill; above it: spare.

use core::ops::Range;

use crate::fill::Page;
use crate::params::Params;

const SUMS_START: u64 = 4 << 20;
const SUMS_END: u64 = DEVICES_START;
/// Where memory for devices begins.
pub const DEVICES_START: u64 = 10 << 20;
/// Where it ends.
pub const DEVICES_END: u64 = 16 << 20;
const FILL_STARTS: [u64; 2] = [64 << 20, 16 << 20];
const PAGE_BYTES: u64 = 4096;
const RAM: u32 = 1;

/// Memory of the machine, divided up. Made once.
pub struct Memory {
    /// The fill.
    pub pages: &'static mut [Page],
    /// Per page of the fill: 0 if we never wrote it, otherwise its sum, shifted by [`WRITTEN`].
    pub sums: &'static mut [u64],
    /// Addresses of whole pages of RAM that nobody uses.
    pub spare: Range<u64>,
}

/// Added to a stored sum, so that the sum of a written page is not 0.
pub const WRITTEN: u64 = 0x5bd1_e995_7b7d_159b;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_address: u64,
    cmdline_address: u64,
    rsdp_address: u64,
    memory_map_address: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct MapEntry {
    address: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

fn info() -> &'static StartInfo {
    // SAFETY: the boot protocol passes the address of this structure in mapped memory, and nobody writes it again.
    unsafe { &*(crate::boot::start_info_address() as *const StartInfo) }
}

/// The command line, at most 2 KiB.
pub fn command_line() -> &'static [u8] {
    let start = info().cmdline_address as *const u8;
    if start.is_null() {
        return &[];
    }
    // SAFETY: the boot protocol passes a zero-terminated string in mapped memory; we stop at the zero or at the bound.
    unsafe {
        let length = (0..2048).find(|at| *start.add(*at) == 0).unwrap_or(0);
        core::slice::from_raw_parts(start, length)
    }
}

/// End of the RAM that is contiguous from 1 MiB on (or from 0, if the map does not split it there).
fn ram_end() -> u64 {
    let info = info();
    let entries = match info.version {
        0 => 0,
        _ => info.memory_map_entries.min(128) as usize,
    };
    // SAFETY: as many entries as the start info says, in mapped memory.
    let map =
        unsafe { core::slice::from_raw_parts(info.memory_map_address as *const MapEntry, entries) };
    map.iter()
        .filter(|entry| entry.kind == RAM && entry.address <= 1 << 20)
        .map(|entry| entry.address + entry.bytes)
        .max()
        .unwrap_or(0)
}

impl Memory {
    /// Divides memory up; `None` if the fill does not fit into it.
    ///
    /// # Safety
    /// Call it once: it makes the only references to this memory.
    pub unsafe fn divide(params: &Params) -> Option<Self> {
        let fill_bytes = params.fill_mib.checked_mul(1 << 20)?;
        let pages = (fill_bytes / PAGE_BYTES) as usize;
        let end = ram_end().min(3 << 30);
        let fits = |start: &u64| {
            start
                .checked_add(fill_bytes)
                .is_some_and(|fill| fill <= end)
        };
        let start = FILL_STARTS.into_iter().find(fits)?;
        if pages as u64 * 8 > SUMS_END - SUMS_START {
            return None;
        }
        // SAFETY: RAM by the memory map, identity-mapped, apart from each other and from this program by the constants
        // above and the linker script, and referred to only by the caller.
        unsafe {
            Some(Self {
                pages: core::slice::from_raw_parts_mut(start as *mut Page, pages),
                sums: core::slice::from_raw_parts_mut(SUMS_START as *mut u64, pages),
                spare: start + fill_bytes..end & !(PAGE_BYTES - 1),
            })
        }
    }
}
