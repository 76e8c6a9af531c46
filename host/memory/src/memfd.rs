//! The memfds behind guest RAM and bitmaps: sealed against resizing, so a mapping of one never faults past its end.
//!
//! A second process that must not write gets a descriptor reopened read-only; the kernel then refuses a writable
//! mapping of it, whatever that process asks for.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod};

use crate::{MemoryError, MemorySize};

const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// Makes the memfd of a guest's RAM: all zeros, nothing allocated yet, close-on-exec, never resizable.
pub fn create_memory(size: MemorySize) -> Result<OwnedFd, MemoryError> {
    create(c"dwcp-guest-memory", size.bytes())
}

pub(crate) fn create(name: &std::ffi::CStr, bytes: u64) -> Result<OwnedFd, MemoryError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(name, flags).map_err(|e| MemoryError::system("create a memfd", e))?;
    // Nobody but the launcher may reopen it by name, so a read-only copy cannot be turned into a writable one.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|e| MemoryError::system("restrict a memfd", e))?;
    let file = File::from(fd);
    file.set_len(bytes)
        .map_err(|e| MemoryError::system("size a memfd", e))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS | SealFlag::F_SEAL_SEAL))
        .map_err(|e| MemoryError::system("seal a memfd", e))?;
    Ok(file.into())
}

/// Opens the same memory once more, read-only. Needs `/proc`, so it is the launcher's to call.
pub fn reopen_read_only(fd: impl AsFd) -> Result<OwnedFd, MemoryError> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    open(
        path.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| MemoryError::system("reopen a memfd read-only", e))
}

/// Whether the descriptor gives no right to write.
pub fn is_read_only(fd: impl AsFd) -> Result<bool, MemoryError> {
    let flags =
        fcntl(fd, FcntlArg::F_GETFL).map_err(|e| MemoryError::system("inspect a descriptor", e))?;
    Ok(flags & OFlag::O_ACCMODE.bits() == OFlag::O_RDONLY.bits())
}

/// Refuses a descriptor whose length differs from `expected` or could change later.
pub(crate) fn check(file: &File, expected: u64) -> Result<(), MemoryError> {
    let found = file
        .metadata()
        .map_err(|e| MemoryError::system("inspect a memfd", e))?
        .len();
    if found != expected {
        return Err(MemoryError::WrongLength { expected, found });
    }
    let seals =
        fcntl(file, FcntlArg::F_GET_SEALS).map_err(|e| MemoryError::system("read seals", e))?;
    if !SealFlag::from_bits_retain(seals).contains(SEALS) {
        return Err(MemoryError::NotSealed);
    }
    Ok(())
}
