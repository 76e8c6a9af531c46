//! Disk images as vendors ship them: formats, partitions, file systems, boot loaders' files.
//!
//! An image is mostly zeros, so an input is its length in blocks of 512 bytes (four bytes), and then the blocks that are
//! not zeros, each behind its number (four bytes).

use std::fs::File;
use std::os::unix::fs::FileExt;

use dwcp_image::boot;
use dwcp_image::disk::{Disk, Expected};
use dwcp_image::limits::VIRTUAL_BYTES_MAX;
use dwcp_image::system::System;

use crate::input::Input;

const BLOCK_BYTES: usize = 512;
/// Longest file, in blocks (1 GiB): the file has holes, but something may read them.
const BLOCKS_MAX: u32 = 2 << 20;

/// An image, up to where the kernel that it boots would be copied.
pub(super) fn image(input: &[u8]) {
    let file = match write(Input(input)) {
        Ok(file) => file,
        Err(error) => panic!("{error}"),
    };
    let Ok(disk) = Disk::open(vec![(file, Expected::Detect)]) else {
        return;
    };
    assert!(disk.bytes() <= VIRTUAL_BYTES_MAX);
    let disk_bytes = disk.bytes();
    let Ok(system) = System::open(disk) else {
        return;
    };
    for part in &system.parts {
        let end = part.partition.start.checked_add(part.partition.bytes);
        assert!(
            end.is_some_and(|end| end <= disk_bytes),
            "a partition beyond the disk"
        );
    }
    // Whether there is a plan or none: it came back.
    let _ = boot::find(&system);
}

fn write(mut input: Input<'_>) -> std::io::Result<File> {
    let file = tempfile::tempfile_in(super::scratch())?;
    let blocks = input.u32() % (BLOCKS_MAX + 1);
    file.set_len(u64::from(blocks) * BLOCK_BYTES as u64)?;
    while !input.is_empty() {
        let number = input.u32();
        let block = input.take(BLOCK_BYTES);
        if number < blocks {
            file.write_all_at(block, u64::from(number) * BLOCK_BYTES as u64)?;
        }
    }
    Ok(file)
}
