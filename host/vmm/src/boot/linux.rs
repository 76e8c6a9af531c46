//! What the 64-bit Linux boot protocol leaves in memory (Documentation/arch/x86/boot.rst, zero-page.rst).

use dwcp_memory::GuestMemory;
use dwcp_memory::vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};

use super::map::MapEntry;
use super::{Blob, place};

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without a number of its own.
const LOADER_OTHER: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Writes the boot parameters; the command line is already in its place.
pub fn write_boot_params(
    memory: &GuestMemory,
    map: &[MapEntry],
    initrd: Option<Blob>,
    rsdp: GuestAddress,
    header: Option<setup_header>,
    cmdline_bytes: u32,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params {
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            kernel_alignment: KERNEL_ALIGNMENT,
            ..Default::default()
        }),
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_OTHER;
    // Every address is below 3 GiB.
    params.hdr.cmd_line_ptr = place::CMDLINE.0 as u32;
    params.hdr.cmdline_size = cmdline_bytes;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.start.0 as u32;
        params.hdr.ramdisk_size = initrd.bytes as u32;
    }
    params.acpi_rsdp_addr = rsdp.0;
    for (slot, entry) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.bytes,
            r#type: if entry.is_ram {
                E820_RAM
            } else {
                E820_RESERVED
            },
        };
    }
    params.e820_entries = map.len() as u8;
    memory.ram().write_obj(params, place::BOOT_PARAMS)
}
