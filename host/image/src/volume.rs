//! Making empty volumes.
//!
//! What always holds: a volume is made in an empty file that the caller opened; no name is written into it. An overlay
//! over an image is an empty qcow2 of the image's size: what it does not hold is read from whatever the chain has below
//! it, and the chain is the caller's to know.

use std::fs::File;
use std::io;

use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;

use crate::limits::VIRTUAL_BYTES_MAX;

/// Smallest unit of a disk, in bytes.
const SECTOR_BYTES: u64 = 512;
/// Units in which an overlay is allocated. What people use; a table of 2 MiB then spans 16 TiB.
const CLUSTER_BYTES: usize = 64 << 10;

/// Why a volume could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Not a size that a disk has.
    #[error("A volume has 512 to {VIRTUAL_BYTES_MAX} bytes and a multiple of 512, not {0}")]
    Size(u64),
    /// Something is in the file already.
    #[error("The file for the volume is not empty")]
    NotEmpty,
    /// The file could not be written.
    #[error("The volume could not be written")]
    Io(#[from] io::Error),
}

/// Makes a raw volume that takes no space until it is written to.
pub fn create_raw(file: &File, bytes: u64) -> Result<(), VolumeError> {
    check(file, bytes)?;
    file.set_len(bytes)?;
    file.sync_all()?;
    Ok(())
}

/// Makes an empty qcow2 of this virtual size, to be the top of a chain or to stand alone.
pub fn create_qcow2(file: File, bytes: u64) -> Result<(), VolumeError> {
    check(&file, bytes)?;
    let synced = file.try_clone()?;
    let storage = imago::file::File::try_from(file)?;
    Qcow2::<imago::file::File>::create_builder(storage)
        .size(bytes)
        .cluster_size(CLUSTER_BYTES)
        .create()?;
    synced.sync_all()?;
    Ok(())
}

fn check(file: &File, bytes: u64) -> Result<(), VolumeError> {
    if bytes == 0 || bytes > VIRTUAL_BYTES_MAX || bytes % SECTOR_BYTES != 0 {
        return Err(VolumeError::Size(bytes));
    }
    match file.metadata()?.len() {
        0 => Ok(()),
        _ => Err(VolumeError::NotEmpty),
    }
}
