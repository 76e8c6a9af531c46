//! A disk that is a chain of image files, the topmost qcow2 (by the crate `imago`).
//!
//! What always holds: which files make the chain, and of what format each is, is the caller's word: what an image says
//! of other files is never believed. Only the topmost file is written.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use dwcp_jail::allow;
use dwcp_memory::{GuestMemory, GuestRange};
use imago::format::PreallocateMode;
use imago::format::builder::FormatDriverBuilder;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::storage::ext::StorageExt;
use imago::{DenyImplicitOpenGate, FormatAccess, Mapping};

use super::request::SECTOR_BYTES;
use super::{Disk, DiskError};
use crate::config::DiskFormat;
use crate::devices::virtio::{Rules, queue};

type Access = FormatAccess<imago::file::File>;

/// Most bytes that are copied at once between guest and image.
const PIECE_BYTES: u64 = 1 << 20;

/// The chain.
pub struct ChainDisk {
    access: Access,
    piece: Vec<u8>,
}

impl ChainDisk {
    /// Opens a chain, the topmost image first.
    pub fn open(chain: Vec<(DiskFormat, OwnedFd)>, is_read_only: bool) -> io::Result<Self> {
        let top = chain.len().saturating_sub(1);
        let mut below: Option<Access> = None;
        for (height, (format, fd)) in chain.into_iter().rev().enumerate() {
            let storage = imago::file::File::try_from(File::from(fd))?;
            let is_written = height == top && !is_read_only;
            below = Some(match format {
                DiskFormat::Raw => {
                    let raw = Raw::builder(storage).write(is_written);
                    Access::new(raw.open(DenyImplicitOpenGate::default())?)
                }
                DiskFormat::Qcow2 => {
                    let image = Qcow2::<imago::file::File>::builder(storage)
                        .write(is_written)
                        .backing(below.take())
                        .data_file(None);
                    Access::new(image.open(DenyImplicitOpenGate::default())?)
                }
            });
        }
        let access = below.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            access,
            piece: Vec::new(),
        })
    }

    /// The ranges in pieces that are not too long, and where on the disk each is.
    fn pieces(at: u64, ranges: &[GuestRange]) -> Vec<(u64, Vec<GuestRange>)> {
        let (mut at, mut rest, mut pieces) = (at, ranges.to_vec(), Vec::new());
        while !rest.is_empty() {
            let bytes = queue::length(&rest).min(PIECE_BYTES);
            let Some((now, later)) = queue::split(&rest, bytes) else {
                break;
            };
            pieces.push((at, now));
            at += bytes;
            rest = later;
        }
        pieces
    }
}

impl Disk for ChainDisk {
    fn bytes(&self) -> u64 {
        self.access.size() / SECTOR_BYTES * SECTOR_BYTES
    }

    fn resize(&mut self, bytes: u64) -> Result<(), DiskError> {
        self.access.resize_grow(bytes, PreallocateMode::None)?;
        // What its header says is what the next process finds.
        self.flush()
    }

    fn read(&mut self, memory: &GuestMemory, at: u64, to: &[GuestRange]) -> Result<(), DiskError> {
        for (at, ranges) in Self::pieces(at, to) {
            self.piece.resize(queue::length(&ranges) as usize, 0);
            self.access.read(&mut self.piece[..], at)?;
            queue::scatter(memory, &ranges, &self.piece).map_err(|_| DiskError::outside())?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        memory: &GuestMemory,
        at: u64,
        from: &[GuestRange],
    ) -> Result<(), DiskError> {
        for (at, ranges) in Self::pieces(at, from) {
            self.piece.resize(queue::length(&ranges) as usize, 0);
            queue::gather(memory, &ranges, &mut self.piece).map_err(|_| DiskError::outside())?;
            self.access.write(&self.piece[..], at)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.access.flush()?;
        Ok(self.access.sync()?)
    }

    fn discard(&mut self, at: u64, bytes: u64) -> Result<(), DiskError> {
        // To zeros, not to what an image below holds: what a guest discarded must not come back. The format's own
        // discard would only forget clusters; the file's space is given back below it.
        let mut held = Vec::new();
        let (mut from, end) = (at, at + bytes);
        while from < end {
            let (mapping, length) = self.access.get_mapping(from, end - from)?;
            if let Mapping::Raw {
                storage,
                offset,
                writable: true,
                ..
            } = mapping
            {
                held.push((storage, offset, length));
            }
            if length == 0 {
                return Err(DiskError::outside());
            }
            from += length;
        }
        self.access.write_zeroes(at, bytes)?;
        for (storage, offset, length) in held {
            storage.discard(offset, length)?;
        }
        Ok(())
    }

    fn zero(&mut self, at: u64, bytes: u64, may_unmap: bool) -> Result<(), DiskError> {
        if may_unmap {
            return self.discard(at, bytes);
        }
        Ok(self.access.write_zeroes(at, bytes)?)
    }

    fn rules(&self) -> Rules {
        let calls = [
            libc::SYS_pread64,
            libc::SYS_preadv,
            libc::SYS_pwrite64,
            libc::SYS_pwritev,
            libc::SYS_fdatasync,
            libc::SYS_fsync,
            libc::SYS_fallocate,
            libc::SYS_ftruncate,
            libc::SYS_fstat,
            libc::SYS_statx,
            libc::SYS_lseek,
        ];
        calls.into_iter().map(allow).collect()
    }
}
