//! Fresh boots: a kernel in guest memory, what it expects to find beside it, and the registers it starts with.
//!
//! The image is untrusted: it is bounded by the guest's memory and can only harm its own guest. Nothing here runs
//! after the first instruction of the guest.

mod acpi;
mod image;
mod linux;
mod map;
mod place;
mod pvh;
mod registers;

use std::fs::File;

use dwcp_memory::GuestMemory;
use dwcp_memory::vm_memory::{Bytes, GuestAddress};

pub use acpi::{
    GENERATION_LINE, PM1_CONTROL_PORT, PM1_EVENT_PORT, RESET_PORT, RESET_VALUE, SCI_LINE,
};
pub use place::GENERATION;
pub use registers::prepare as prepare_vcpu;

use image::Image;

/// How the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The 64-bit Linux boot protocol: long mode, `rsi` = boot parameters.
    Linux {
        /// First instruction.
        start: GuestAddress,
    },
    /// PVH: 32-bit protected mode, `ebx` = start info.
    Pvh {
        /// First instruction.
        start: GuestAddress,
    },
}

/// What to boot.
#[derive(Debug)]
pub struct Fresh<'a> {
    /// Kernel image: bzImage, vmlinux, or ELF with a PVH entry.
    pub kernel: File,
    /// Initial RAM disk.
    pub initrd: Option<File>,
    /// Kernel command line, checked printable ASCII.
    pub cmdline: &'a str,
    /// Whether the kernel is a firmware, which gets no command line, not even what we would add.
    pub is_firmware: bool,
    /// How many vCPUs the tables shall tell of.
    pub vcpus: u8,
    /// Speed of the time stamp counter, 0 if unknown.
    pub tsc_khz: u32,
}

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The image is of no kind that is known.
    #[error("The kernel is neither a bzImage nor an x86-64 ELF image")]
    Unknown,
    /// What was to be a firmware is a kernel, which could boot nothing.
    #[error("The firmware has no PVH entry: it must be an ELF image with one")]
    NoFirmware,
    /// The image contradicts itself.
    #[error("The kernel image is damaged: {0}")]
    Damaged(&'static str),
    /// The image is of a known kind, but could not be loaded.
    #[error("The kernel could not be loaded: give the guest more memory, or check the image")]
    Load(#[source] linux_loader::loader::Error),
    /// The kernel cannot be entered in 64-bit mode.
    #[error("The kernel has no 64-bit entry point")]
    No64Bit,
    /// The initrd does not fit.
    #[error("An initrd of {0} bytes does not fit into the guest's memory beside its kernel")]
    InitrdTooLarge(u64),
    /// Something that we write does not fit.
    #[error("The guest's memory is too small to boot in")]
    Memory(#[from] dwcp_memory::vm_memory::GuestMemoryError),
    /// A file could not be read.
    #[error("The {0} could not be read")]
    Read(&'static str, #[source] std::io::Error),
}

/// Puts everything in guest memory; answers where the first vCPU starts.
pub fn load(fresh: Fresh<'_>, memory: &GuestMemory) -> Result<Entry, BootError> {
    let mut kernel = fresh.kernel;
    let image = Image::load(&mut kernel, memory)?;
    let initrd = fresh
        .initrd
        .map(|file| load_initrd(file, &image, memory))
        .transpose()?;
    let map = map::memory_map(memory.layout());
    let rsdp = acpi::write_tables(memory, fresh.vcpus)?;
    let cmdline = match image {
        Image::Linux { .. } if fresh.is_firmware => return Err(BootError::NoFirmware),
        _ if fresh.is_firmware => String::new(),
        // A guest without an operating system may have no other way to learn it.
        Image::Pvh { .. } if fresh.tsc_khz != 0 => {
            format!("{} tsc_khz={}", fresh.cmdline, fresh.tsc_khz)
        }
        _ => fresh.cmdline.to_owned(),
    };
    let mut bytes = cmdline.into_bytes();
    bytes.push(0);
    memory.ram().write_slice(&bytes, place::CMDLINE)?;
    registers::write_tables(memory)?;
    match image {
        Image::Pvh { start, .. } => {
            pvh::write_start_info(memory, &map, initrd, rsdp)?;
            Ok(Entry::Pvh { start })
        }
        Image::Linux { start, header, .. } => {
            linux::write_boot_params(memory, &map, initrd, rsdp, header, bytes.len() as u32)?;
            Ok(Entry::Linux { start })
        }
    }
}

/// A piece of guest memory that the boot protocol tells of.
#[derive(Debug, Clone, Copy)]
struct Blob {
    start: GuestAddress,
    bytes: u64,
}

/// Loads the initrd as high as it may lie.
fn load_initrd(mut file: File, image: &Image, memory: &GuestMemory) -> Result<Blob, BootError> {
    let read = |error| BootError::Read("initrd", error);
    let bytes = file.metadata().map_err(read)?.len();
    let low_end = memory.layout().regions().next().map_or(0, |low| low.bytes);
    let ceiling = low_end.min(image.initrd_ceiling());
    let start = ceiling
        .checked_sub(bytes)
        .map(|start| start & !0xfff)
        .filter(|start| *start >= image.end().0)
        .ok_or(BootError::InitrdTooLarge(bytes))?;
    memory
        .ram()
        .read_exact_volatile_from(GuestAddress(start), &mut file, bytes as usize)?;
    Ok(Blob {
        start: GuestAddress(start),
        bytes,
    })
}
