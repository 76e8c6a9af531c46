//! What a disk can do, whatever it is stored in.
//!
//! Offsets are in bytes, checked against the size by the caller. Called by one thread.

use std::io;

use dwcp_memory::{GuestMemory, GuestRange};

use crate::devices::virtio::Rules;

/// Why a disk did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot do such a thing at all.
    #[error("The disk cannot do this")]
    Unsupported,
    /// It failed.
    #[error("The disk failed")]
    Failed(#[from] io::Error),
}

/// Where a disk's content is.
pub trait Disk: Send {
    /// Its size: whole sectors.
    fn bytes(&self) -> u64;

    /// Makes it so long, which is not shorter than it is.
    fn resize(&mut self, bytes: u64) -> Result<(), DiskError>;

    /// From the disk to the guest.
    fn read(&mut self, memory: &GuestMemory, at: u64, to: &[GuestRange]) -> Result<(), DiskError>;

    /// From the guest to the disk.
    fn write(
        &mut self,
        memory: &GuestMemory,
        at: u64,
        from: &[GuestRange],
    ) -> Result<(), DiskError>;

    /// Makes everything durable that was written.
    fn flush(&mut self) -> Result<(), DiskError>;

    /// Gives the space of a range back; what it reads as afterwards is undefined, but never another guest's data.
    fn discard(&mut self, at: u64, bytes: u64) -> Result<(), DiskError>;

    /// Makes a range read as zeros; as a hole if it may be one.
    fn zero(&mut self, at: u64, bytes: u64, may_unmap: bool) -> Result<(), DiskError>;

    /// The system calls that this takes.
    fn rules(&self) -> Rules;
}

impl DiskError {
    /// Outside of the disk.
    pub fn outside() -> Self {
        Self::Failed(io::ErrorKind::InvalidInput.into())
    }

    /// What was written before did not arrive.
    pub fn lost() -> Self {
        Self::Failed(io::ErrorKind::Other.into())
    }

    /// A change of a disk that does not change.
    pub fn read_only() -> Self {
        Self::Failed(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Unsupported => io::ErrorKind::Unsupported.into(),
            DiskError::Failed(error) => error,
        }
    }
}
