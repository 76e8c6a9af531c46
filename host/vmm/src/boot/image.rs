//! Kernel images: which kind one is, and getting it into guest memory.
//!
//! `linux-loader` does the loading; its ELF reader trusts the offsets in the program headers, so these are checked
//! against the file first.

use std::fs::File;
use std::os::unix::fs::FileExt;

use dwcp_memory::GuestMemory;
use dwcp_memory::vm_memory::GuestAddress;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader, PvhBootCapability};

use super::{BootError, place};

/// Segments and notes that an ELF kernel may have.
const PROGRAM_HEADERS_MAX: u16 = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const ELF_HEADER_BYTES: usize = 64;
/// `loadflags`, `xloadflags` of the Linux boot protocol: the kernel has a 64-bit entry.
const XLOADFLAG_64BIT: u16 = 1;
const ENTRY_64BIT_OFFSET: u64 = 0x200;

/// A kernel in guest memory.
#[derive(Debug)]
pub enum Image {
    /// To be entered by the 64-bit Linux boot protocol.
    Linux {
        /// First instruction.
        start: GuestAddress,
        /// First byte after it, with the room that it unpacks itself into.
        end: GuestAddress,
        /// What a bzImage says of itself; none for a vmlinux.
        header: Option<setup_header>,
    },
    /// To be entered by PVH.
    Pvh {
        /// First instruction.
        start: GuestAddress,
        /// First byte after it.
        end: GuestAddress,
    },
}

impl Image {
    /// Loads a kernel of any known kind.
    pub fn load(file: &mut File, memory: &GuestMemory) -> Result<Self, BootError> {
        let mut magic = [0; 4];
        file.read_exact_at(&mut magic, 0)
            .map_err(|error| BootError::Read("kernel", error))?;
        if magic == *b"\x7fELF" {
            return Self::load_elf(file, memory);
        }
        file.read_exact_at(&mut magic, 0x202)
            .map_err(|_| BootError::Unknown)?;
        if magic == *b"HdrS" {
            return Self::load_bzimage(file, memory);
        }
        Err(BootError::Unknown)
    }

    fn load_elf(file: &mut File, memory: &GuestMemory) -> Result<Self, BootError> {
        check_elf(file)?;
        let floor = Some(place::HIGH_START);
        let loaded = Elf::load(memory.ram(), None, file, floor).map_err(BootError::Load)?;
        let end = GuestAddress(loaded.kernel_end);
        Ok(match loaded.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(start) => Self::Pvh { start, end },
            _ => Self::Linux {
                start: loaded.kernel_load,
                end,
                header: None,
            },
        })
    }

    fn load_bzimage(file: &mut File, memory: &GuestMemory) -> Result<Self, BootError> {
        let loaded = BzImage::load(memory.ram(), None, file, Some(place::HIGH_START))
            .map_err(BootError::Load)?;
        let header = loaded
            .setup_header
            .ok_or(BootError::Damaged("no setup header"))?;
        if header.version < 0x20c || header.xloadflags & XLOADFLAG_64BIT == 0 {
            return Err(BootError::No64Bit);
        }
        // It unpacks itself to where it prefers to run, and needs `init_size` from there on.
        let runs_at = header.pref_address.max(loaded.kernel_load.0);
        let end = runs_at
            .saturating_add(header.init_size.into())
            .max(loaded.kernel_end);
        Ok(Self::Linux {
            start: GuestAddress(loaded.kernel_load.0 + ENTRY_64BIT_OFFSET),
            end: GuestAddress(end),
            header: Some(header),
        })
    }

    /// First byte that nothing of the kernel needs.
    pub fn end(&self) -> GuestAddress {
        match self {
            Self::Linux { end, .. } | Self::Pvh { end, .. } => *end,
        }
    }

    /// First address that an initrd must not reach.
    pub fn initrd_ceiling(&self) -> u64 {
        match self {
            Self::Linux {
                header: Some(header),
                ..
            } => u64::from(header.initrd_addr_max) + 1,
            _ => u64::MAX,
        }
    }
}

/// Refuses program headers that point outside the file.
fn check_elf(file: &File) -> Result<(), BootError> {
    let read = |error| BootError::Read("kernel", error);
    let length = file.metadata().map_err(read)?.len();
    let mut header = [0; ELF_HEADER_BYTES];
    file.read_exact_at(&mut header, 0).map_err(read)?;
    let (class, machine) = (header[4], u16_at(&header, 18));
    if class != 2 || machine != 62 {
        return Err(BootError::Unknown);
    }
    let (table, count) = (u64_at(&header, 32), u16_at(&header, 56));
    if count > PROGRAM_HEADERS_MAX {
        return Err(BootError::Damaged("it has too many program headers"));
    }
    for number in 0..u64::from(count) {
        let mut entry = [0; PROGRAM_HEADER_BYTES];
        let at = table.checked_add(number * PROGRAM_HEADER_BYTES as u64);
        let at = at.ok_or(BootError::Damaged("its program headers lie outside of it"))?;
        file.read_exact_at(&mut entry, at)
            .map_err(|_| BootError::Damaged("its program headers lie outside of it"))?;
        let (offset, bytes) = (u64_at(&entry, 8), u64_at(&entry, 32));
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(BootError::Damaged("a segment lies outside of it"));
        }
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
