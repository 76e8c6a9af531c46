//! Where the pieces lie in the first MiB of the guest. None overlaps another.

use dwcp_memory::vm_memory::GuestAddress;

/// Segment descriptors.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// An empty interrupt table.
pub const IDT: GuestAddress = GuestAddress(0x600);
/// PVH start info.
pub const START_INFO: GuestAddress = GuestAddress(0x1000);
/// PVH module list, one entry.
pub const MODULES: GuestAddress = GuestAddress(0x1100);
/// PVH memory map.
pub const MEMORY_MAP: GuestAddress = GuestAddress(0x1200);
/// Linux boot parameters, one page.
pub const BOOT_PARAMS: GuestAddress = GuestAddress(0x7000);
/// Top of the stack that the 64-bit Linux entry gets.
pub const STACK: GuestAddress = GuestAddress(0x8ff0);
/// Page tables that map the first GiB onto itself: three pages.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// End of the RAM below the old BIOS and video areas.
pub const LOW_END: GuestAddress = GuestAddress(0x9_fc00);
/// ACPI tables: the RSDP first, where an operating system without other help would look for it.
pub const ACPI: GuestAddress = GuestAddress(0xe_0000);
/// The number of the machine's life, 16 bytes in a page of its own behind the tables.
pub const GENERATION: GuestAddress = GuestAddress(0xf_f000);
/// Behind the ACPI tables and the page after them, where RAM begins again.
pub const HIGH_START: GuestAddress = GuestAddress(0x10_0000);
