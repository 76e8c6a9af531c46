//! What the PVH boot protocol leaves in memory (Xen, public/arch-x86/hvm/start_info.h).

use dwcp_memory::GuestMemory;
use dwcp_memory::vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE,
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};

use super::map::MapEntry;
use super::{Blob, place};

/// Writes the start info; the command line is already in its place.
pub fn write_start_info(
    memory: &GuestMemory,
    map: &[MapEntry],
    initrd: Option<Blob>,
    rsdp: GuestAddress,
) -> Result<(), GuestMemoryError> {
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: place::CMDLINE.0,
        rsdp_paddr: rsdp.0,
        memmap_paddr: place::MEMORY_MAP.0,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initrd) = initrd {
        info.nr_modules = 1;
        info.modlist_paddr = place::MODULES.0;
        let module = hvm_modlist_entry {
            paddr: initrd.start.0,
            size: initrd.bytes,
            ..Default::default()
        };
        memory.ram().write_obj(module, place::MODULES)?;
    }
    let mut at = place::MEMORY_MAP;
    for entry in map {
        let told = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.bytes,
            type_: if entry.is_ram {
                XEN_HVM_MEMMAP_TYPE_RAM
            } else {
                XEN_HVM_MEMMAP_TYPE_RESERVED
            },
            reserved: 0,
        };
        memory.ram().write_obj(told, at)?;
        at.0 += size_of::<hvm_memmap_table_entry>() as u64;
    }
    memory.ram().write_obj(info, place::START_INFO)
}
