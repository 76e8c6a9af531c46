//! A disk that is a file, byte for byte.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};

use dwcp_jail::{Condition, allow};
use dwcp_memory::{GuestMemory, GuestRange};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::request::SECTOR_BYTES;
use super::{Disk, DiskError};
use crate::devices::virtio::{Rules, queue};

/// The file, and how long it was when that was last looked at.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    bytes: u64,
}

impl RawDisk {
    /// Uses a file or a block device; what is behind its last whole sector is not used.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(fd);
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            bytes: bytes / SECTOR_BYTES * SECTOR_BYTES,
        })
    }

    fn clear(&self, flags: FallocateFlags, at: u64, bytes: u64) -> Result<(), DiskError> {
        if bytes == 0 {
            return Ok(());
        }
        // Both fit: they are inside of the file.
        let cleared = fallocate(
            &self.file,
            flags | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            at as i64,
            bytes as i64,
        );
        match cleared {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP) => Err(DiskError::Unsupported),
            Err(errno) => Err(DiskError::Failed(errno.into())),
        }
    }

    fn write_zeros(&self, at: u64, bytes: u64) -> Result<(), DiskError> {
        use std::os::unix::fs::FileExt;
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut done = 0;
        while done < bytes {
            let count = (bytes - done).min(ZEROS.len() as u64);
            self.file
                .write_all_at(&ZEROS[..count as usize], at + done)?;
            done += count;
        }
        Ok(())
    }
}

impl Disk for RawDisk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn resize(&mut self, bytes: u64) -> Result<(), DiskError> {
        // Somebody may have made it longer already, as is the only way with a block device.
        if self.file.seek(SeekFrom::End(0))? < bytes {
            self.file.set_len(bytes)?;
        }
        self.bytes = bytes;
        Ok(())
    }

    fn read(&mut self, memory: &GuestMemory, at: u64, to: &[GuestRange]) -> Result<(), DiskError> {
        let moved = memory.fill_at(&self.file, at, to)?;
        whole(moved, to)
    }

    fn write(
        &mut self,
        memory: &GuestMemory,
        at: u64,
        from: &[GuestRange],
    ) -> Result<(), DiskError> {
        let moved = memory.drain_at(&self.file, at, from)?;
        whole(moved, from)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(self.file.sync_data()?)
    }

    fn discard(&mut self, at: u64, bytes: u64) -> Result<(), DiskError> {
        self.clear(FallocateFlags::FALLOC_FL_PUNCH_HOLE, at, bytes)
    }

    fn zero(&mut self, at: u64, bytes: u64, may_unmap: bool) -> Result<(), DiskError> {
        let flags = if may_unmap {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE
        } else {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        };
        match self.clear(flags, at, bytes) {
            Err(DiskError::Unsupported) => self.write_zeros(at, bytes),
            other => other,
        }
    }

    fn rules(&self) -> Rules {
        let calls = [
            libc::SYS_preadv,
            libc::SYS_pwritev,
            libc::SYS_pwrite64,
            libc::SYS_fdatasync,
            libc::SYS_fallocate,
            libc::SYS_ftruncate,
            libc::SYS_lseek,
        ];
        let fd = self.file.as_raw_fd() as u32;
        calls
            .into_iter()
            .map(|call| allow(call).when(Condition::IntIs(0, fd)))
            .collect()
    }
}

/// The kernel moved everything, or the file has become shorter.
fn whole(moved: usize, ranges: &[GuestRange]) -> Result<(), DiskError> {
    if moved as u64 == queue::length(ranges) {
        Ok(())
    } else {
        Err(DiskError::Failed(io::ErrorKind::UnexpectedEof.into()))
    }
}
