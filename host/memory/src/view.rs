//! Guest RAM for a process that only reads it: the source's mover.
//!
//! Pages are copied out by `pread`, not through a mapping: a copy is what hashing and encoding need (the guest may be
//! writing), and reading a page that was never touched does not allocate it, as a mapping of a memfd would. Nothing
//! here can write, whatever the descriptor allows. RAM that is private to a VMM is read the same way, through that
//! process's `/proc/PID/mem`, at about half the speed; when the process ends, reading fails.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use crate::{HostMap, MemoryError, MemorySize, PAGE_BYTES, PageIndex, memfd};

/// Read access to guest RAM.
#[derive(Debug)]
pub struct MemoryView {
    file: File,
    size: MemorySize,
    /// Where RAM lies in the process whose memory `file` is; `None` for a memfd.
    hosts: Option<HostMap>,
}

impl MemoryView {
    /// Takes a memfd of exactly `size`, read-only or not.
    pub fn new(fd: OwnedFd, size: MemorySize) -> Result<Self, MemoryError> {
        let file = File::from(fd);
        memfd::check(&file, size.bytes())?;
        Ok(Self {
            file,
            size,
            hosts: None,
        })
    }

    /// Takes the memory of the process that runs the guest (`/proc/PID/mem`), and where RAM lies in it.
    pub fn of_process(fd: OwnedFd, hosts: HostMap) -> Result<Self, MemoryError> {
        let system = nix::sys::statfs::fstatfs(&fd)
            .map_err(|e| MemoryError::system("inspect a descriptor", e))?;
        // Anything else could make a reader wait for ever.
        if system.filesystem_type() != nix::sys::statfs::PROC_SUPER_MAGIC {
            return Err(MemoryError::NotProcessMemory);
        }
        Ok(Self {
            file: File::from(fd),
            size: hosts.size(),
            hosts: Some(hosts),
        })
    }

    /// How much RAM there is.
    pub fn size(&self) -> MemorySize {
        self.size
    }

    /// Copies whole pages, from `first` on, into `buffer`, whose length must be a multiple of the page size.
    pub fn read_pages(&self, first: PageIndex, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let Some(hosts) = &self.hosts else {
            return read_pages(&self.file, self.size, first, buffer);
        };
        check_pages(self.size, first, buffer.len())?;
        let pages = (buffer.len() / PAGE_BYTES) as u64;
        let mut rest = buffer;
        for (host, bytes) in hosts.spans(first, pages) {
            // Fits: it is a part of the buffer.
            let (now, later) = rest.split_at_mut(bytes as usize);
            self.file
                .read_exact_at(now, host)
                .map_err(|e| MemoryError::system("read a process's memory: has it ended?", e))?;
            rest = later;
        }
        Ok(())
    }
}

pub(crate) fn read_pages(
    file: &File,
    size: MemorySize,
    first: PageIndex,
    buffer: &mut [u8],
) -> Result<(), MemoryError> {
    check_pages(size, first, buffer.len())?;
    file.read_exact_at(buffer, first.offset().0)
        .map_err(|e| MemoryError::system("read guest memory", e))
}

pub(crate) fn check_pages(
    size: MemorySize,
    first: PageIndex,
    bytes: usize,
) -> Result<(), MemoryError> {
    if !bytes.is_multiple_of(PAGE_BYTES) {
        return Err(MemoryError::PartialPage(bytes));
    }
    if !size.holds(first, (bytes / PAGE_BYTES) as u64) {
        return Err(MemoryError::OutOfRange {
            what: "page",
            at: first.0,
            bytes: bytes as u64,
        });
    }
    Ok(())
}
