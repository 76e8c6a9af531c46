//! The memfds behind guest RAM and bitmaps: sealed against resizing, so a mapping of one never faults past its end.
//!
//! A second process that must not write gets a descriptor reopened read-only; the kernel then refuses a writable
//! mapping of it, whatever that process asks for. The memory of a template is sealed for good: then nobody can write.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Whence, lseek};

use crate::{MemoryError, MemorySize, PAGE_BYTES, PageIndex};

/// Bytes of a huge page.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// Makes the memfd of a guest's RAM: all zeros, nothing allocated yet, close-on-exec, never resizable.
pub fn create_memory(size: MemorySize) -> Result<OwnedFd, MemoryError> {
    // More seals may follow: a template's memory is sealed once its VM is gone.
    create(c"dwcp-guest-memory", size.bytes(), SEALS, MFdFlags::empty())
}

/// The same of huge pages ([`HUGE_PAGE_BYTES`]), which the host keeps apart. They are this guest's from the moment that
/// they are mapped, and not before: whether there are enough is known for sure only then.
pub fn create_huge_memory(size: MemorySize) -> Result<OwnedFd, MemoryError> {
    if !size.bytes().is_multiple_of(HUGE_PAGE_BYTES) {
        return Err(MemoryError::PartialHugePage(size.bytes()));
    }
    let needed = size.bytes() / HUGE_PAGE_BYTES;
    let free = free_huge_pages()?;
    if needed > free {
        return Err(MemoryError::HugePages { needed, free });
    }
    let huge = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    create(c"dwcp-guest-memory", size.bytes(), SEALS, huge)
}

/// Huge pages of this host that are free and promised to nobody.
pub fn free_huge_pages() -> Result<u64, MemoryError> {
    let read = |name: &str| -> std::io::Result<u64> {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        let text = std::fs::read_to_string(path)?;
        text.trim().parse().map_err(std::io::Error::other)
    };
    let free =
        read("free_hugepages").and_then(|free| Ok(free.saturating_sub(read("resv_hugepages")?)));
    free.map_err(|e| MemoryError::system("count huge pages", e))
}

/// Whether a memfd is of huge pages.
pub(crate) fn is_huge(file: &File) -> Result<bool, MemoryError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file
        .metadata()
        .map_err(|e| MemoryError::system("inspect a memfd", e))?;
    Ok(metadata.blksize() >= HUGE_PAGE_BYTES)
}

/// Seals the memory of a VM that will never run again, so that others can be made from it: from now on no process can
/// write to it, by any descriptor, old or new. Refused while somebody has it mapped for writing, as a VMM has.
pub fn seal_template(fd: impl AsFd) -> Result<(), MemoryError> {
    let seals = SEALS | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    match fcntl(fd, FcntlArg::F_ADD_SEALS(seals)) {
        Ok(_) => Ok(()),
        Err(Errno::EBUSY) => Err(MemoryError::StillMapped),
        Err(errno) => Err(MemoryError::system("seal a template's memory", errno)),
    }
}

/// Whether a memfd is sealed as the memory of a template.
pub fn is_template(fd: impl AsFd) -> Result<bool, MemoryError> {
    let seals =
        fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|e| MemoryError::system("read seals", e))?;
    Ok(SealFlag::from_bits_retain(seals).contains(SEALS | SealFlag::F_SEAL_WRITE))
}

/// Whether a descriptor is the memory of a guest, template or not. Files on disks have no seals, and those of a tmpfs
/// only the one that forbids more.
pub(crate) fn is_guest_memory(fd: impl AsFd) -> bool {
    let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    seals.is_ok_and(|seals| seals != SealFlag::F_SEAL_SEAL)
}

/// The runs of pages that a memfd holds: what was never touched is a hole, and a hole is zeros on every host.
pub(crate) fn data_runs(
    fd: impl AsFd,
    size: MemorySize,
) -> Result<Vec<(PageIndex, u64)>, MemoryError> {
    let refused =
        |errno: Errno| MemoryError::system("say which pages the guest's memory holds", errno);
    let end = size.bytes() as i64;
    let (mut at, mut runs) = (0, Vec::new());
    while at < end {
        let data = match lseek(fd.as_fd(), at, Whence::SeekData) {
            // No data from here to the end.
            Err(Errno::ENXIO) => break,
            other => other.map_err(refused)?,
        };
        let hole = lseek(fd.as_fd(), data, Whence::SeekHole).map_err(refused)?;
        let first = data as u64 / PAGE_BYTES as u64;
        let beyond = (hole as u64).div_ceil(PAGE_BYTES as u64).min(size.pages());
        runs.push((PageIndex(first), beyond - first));
        at = hole;
    }
    Ok(runs)
}

/// The same by chunks of so many pages: those that hold anything, neighbours joined. One look for each.
pub(crate) fn data_chunks(
    fd: impl AsFd,
    size: MemorySize,
    chunk_pages: u64,
) -> Result<Vec<(PageIndex, u64)>, MemoryError> {
    let refused =
        |errno: Errno| MemoryError::system("say which pages the guest's memory holds", errno);
    let (mut at, mut runs) = (0, Vec::<(PageIndex, u64)>::new());
    while at < size.pages() {
        let offset = PageIndex(at).offset().0 as i64;
        let data = match lseek(fd.as_fd(), offset, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            other => other.map_err(refused)?,
        };
        let first = data as u64 / PAGE_BYTES as u64 / chunk_pages * chunk_pages;
        let end = (first + chunk_pages).min(size.pages());
        match runs.last_mut() {
            Some((start, pages)) if start.0 + *pages == first => *pages = end - start.0,
            _ => runs.push((PageIndex(first), end - first)),
        }
        at = end;
    }
    Ok(runs)
}

/// The memfd of a bitmap.
pub(crate) fn create_bitmap(bytes: u64) -> Result<OwnedFd, MemoryError> {
    let seals = SEALS | SealFlag::F_SEAL_SEAL;
    create(c"dwcp-dirty-bitmap", bytes, seals, MFdFlags::empty())
}

fn create(
    name: &std::ffi::CStr,
    bytes: u64,
    seals: SealFlag,
    flags: MFdFlags,
) -> Result<OwnedFd, MemoryError> {
    let flags = flags | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(name, flags).map_err(|e| MemoryError::system("create a memfd", e))?;
    // Nobody but the launcher may reopen it by name, so a read-only copy cannot be turned into a writable one.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|e| MemoryError::system("restrict a memfd", e))?;
    let file = File::from(fd);
    file.set_len(bytes)
        .map_err(|e| MemoryError::system("size a memfd", e))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
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
