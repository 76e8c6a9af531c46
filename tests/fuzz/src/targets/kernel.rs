//! Kernel images from wherever a user has them: ELF, bzImage, PVH notes, and the initial RAM disk beside them.

use std::fs::File;
use std::io::Write;

use dwcp_memory::{GuestMemory, MemorySize, create_memory};
use dwcp_vmm::fuzzing::load_kernel;

use crate::input::Input;

const MEMORY_MIB: u64 = 64;

/// Four bytes say how long the initial RAM disk is (zero: there is none), the rest is the kernel.
pub(super) fn kernel(input: &[u8]) {
    let mut input = Input(input);
    let initrd_bytes = u64::from(input.u32());
    let loaded = memfile(input.0, input.0.len() as u64).and_then(|kernel| {
        // A file with holes: its length is what matters.
        let initrd = (initrd_bytes > 0).then(|| memfile(b"initrd", initrd_bytes));
        let initrd = initrd.transpose()?;
        let memory = memory()?;
        // Refused or not: it came back, and touched nothing but its guest's memory.
        let _ = load_kernel(kernel, initrd, "console=ttyS0", &memory);
        Ok(())
    });
    if let Err(error) = loaded {
        panic!("{error}");
    }
}

fn memory() -> std::io::Result<GuestMemory> {
    MemorySize::mib(MEMORY_MIB)
        .and_then(|size| GuestMemory::map(create_memory(size)?, size))
        .map_err(std::io::Error::other)
}

/// A file without a name.
fn memfile(content: &[u8], bytes: u64) -> std::io::Result<File> {
    let mut file = tempfile::tempfile_in(super::scratch())?;
    file.write_all(content)?;
    file.set_len(bytes)?;
    Ok(file)
}
