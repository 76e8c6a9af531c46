//! Guest RAM for the process that runs the guest, and for the mover that fills it: the one type that may write.
//!
//! Two doors: guest-physical addresses through [`GuestMemory::ram`] (loaders and devices, by `vm-memory`), and whole
//! pages in memfd order (the mover). Both mark the device log. The only raw pointers given out are those that KVM's
//! memory slots need.
//!
//! RAM is shared (a memfd, which others may have too) or private (a copy-on-write view of a snapshot or a template,
//! which other processes reach only through the one that has it mapped).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
    mmap::{FromRangesError, MmapRegionBuilder},
};

use crate::private::{PIECES_MAX, Piece, PrivatePages};
use crate::view::{check_pages, read_pages};
use crate::{
    DeviceLog, DirtyBitmap, HostMap, Layout, MemoryError, MemorySize, PAGE_BYTES, PageIndex,
    Region, memfd,
};

/// Guest RAM mapped read-write. Share it by reference or `Arc`; all methods take `&self`.
#[derive(Debug)]
pub struct GuestMemory {
    layout: Layout,
    ram: GuestMemoryMmap<DeviceLog>,
    log: DeviceLog,
    backing: Backing,
}

/// Where pages are when they are not in use.
#[derive(Debug)]
enum Backing {
    Shared(Arc<File>),
    Private(PrivatePages),
}

/// A region with its place in this process, for a KVM memory slot.
#[derive(Debug, Clone, Copy)]
pub struct MappedRegion {
    /// Where it lies for the guest and in the memfd.
    pub region: Region,
    /// First byte in this process; valid as long as the [`GuestMemory`].
    pub host: *mut u8,
}

impl GuestMemory {
    /// Maps a memfd of exactly `size`, which must be writable and sealed against resizing.
    pub fn map(fd: OwnedFd, size: MemorySize) -> Result<Self, MemoryError> {
        if memfd::is_read_only(&fd)? {
            return Err(MemoryError::ReadOnly);
        }
        let file = Arc::new(File::from(fd));
        memfd::check(&file, size.bytes())?;
        let (layout, log) = (Layout::new(size), DeviceLog::new(size));
        let ram = map_regions(&layout, &log, Some(&file))?;
        Ok(Self {
            layout,
            ram,
            log,
            backing: Backing::Shared(file),
        })
    }

    /// Reserves private RAM of zeros. Nothing is allocated until it is touched; pieces of a snapshot or a template can
    /// be laid over it, also after KVM's memory slots were set.
    ///
    /// `page_map` is this process's own `/proc/PID/pagemap`; without it all pages count as private.
    pub fn reserve(size: MemorySize, page_map: Option<OwnedFd>) -> Result<Self, MemoryError> {
        let (layout, log) = (Layout::new(size), DeviceLog::new(size));
        let ram = map_regions(&layout, &log, None)?;
        let hosts = HostMap::new(size, &hosts_of(&ram))?;
        Ok(Self {
            layout,
            ram,
            log,
            backing: Backing::Private(PrivatePages::new(hosts, page_map)),
        })
    }

    /// Lays pieces over private RAM, copy-on-write, in the order given; no page of them is read. When it fails, the
    /// memory is of no more use. The guest must not run.
    pub fn lay(&self, pieces: &[Piece<'_>]) -> Result<(), MemoryError> {
        let Backing::Private(private) = &self.backing else {
            return Err(MemoryError::NotPrivate);
        };
        if pieces.len() > PIECES_MAX {
            return Err(MemoryError::TooManyPieces(pieces.len()));
        }
        for piece in pieces {
            private.lay(piece)?;
            self.log.mark_pages(piece.first, piece.pages);
        }
        Ok(())
    }

    /// How much RAM there is.
    pub fn size(&self) -> MemorySize {
        self.layout.size()
    }

    /// Where it lies for the guest.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Access by guest-physical address (`vm_memory::Bytes`). Writes are tracked.
    pub fn ram(&self) -> &GuestMemoryMmap<DeviceLog> {
        &self.ram
    }

    /// The memfd of shared RAM, for passing on.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.backing {
            Backing::Shared(file) => Some(file.as_fd()),
            Backing::Private(_) => None,
        }
    }

    /// Whether this is private RAM.
    pub fn is_private(&self) -> bool {
        matches!(self.backing, Backing::Private(_))
    }

    /// Whether it is private RAM of which [`GuestMemory::mark_private`] knows which pages changed.
    pub fn knows_private(&self) -> bool {
        match &self.backing {
            Backing::Shared(_) => false,
            Backing::Private(private) => private.has_page_map(),
        }
    }

    /// Where RAM lies in this process, for another one that reads or fills it here.
    pub fn host_map(&self) -> Result<HostMap, MemoryError> {
        HostMap::new(self.size(), &hosts_of(&self.ram))
    }

    /// The regions with their host addresses, for KVM's memory slots; nothing else may write through these pointers.
    pub fn mapped_regions(&self) -> Vec<MappedRegion> {
        let hosts = self.ram.iter().map(|mapped| mapped.as_ptr());
        self.layout
            .regions()
            .zip(hosts)
            .map(|(region, host)| MappedRegion { region, host })
            .collect()
    }

    /// Copies whole pages out; see [`crate::MemoryView::read_pages`].
    pub fn read_pages(&self, first: PageIndex, buffer: &mut [u8]) -> Result<(), MemoryError> {
        match &self.backing {
            Backing::Shared(file) => read_pages(file, self.size(), first, buffer),
            Backing::Private(_) => {
                check_pages(self.size(), first, buffer.len())?;
                let mut rest = buffer;
                for (address, bytes) in self.addresses(first, rest.len()) {
                    let (now, later) = rest.split_at_mut(bytes);
                    self.ram
                        .read_slice(now, address)
                        .map_err(|_| outside(first, bytes))?;
                    rest = later;
                }
                Ok(())
            }
        }
    }

    /// Writes whole pages, from `first` on. `bytes` must be a multiple of the page size.
    ///
    /// Through the mapping, not by `pwrite`: a process that may write no large file may still fill its guest.
    pub fn write_pages(&self, first: PageIndex, bytes: &[u8]) -> Result<(), MemoryError> {
        check_pages(self.size(), first, bytes.len())?;
        let mut rest = bytes;
        for (address, bytes) in self.addresses(first, rest.len()) {
            let (now, later) = rest.split_at(bytes);
            self.ram
                .write_slice(now, address)
                .map_err(|_| outside(first, bytes))?;
            rest = later;
        }
        Ok(())
    }

    /// The pieces of guest-physical space in which `bytes` from a page on lie.
    fn addresses(
        &self,
        first: PageIndex,
        bytes: usize,
    ) -> impl Iterator<Item = (GuestAddress, usize)> {
        let start = first.offset().0;
        let end = start.saturating_add(bytes as u64);
        self.layout.regions().filter_map(move |region| {
            let from = start.max(region.offset.0);
            let to = end.min(region.offset.0 + region.bytes);
            // Fits: it is a part of a buffer.
            (from < to).then(|| {
                (
                    GuestAddress(region.start.0 + from - region.offset.0),
                    (to - from) as usize,
                )
            })
        })
    }

    /// Makes `count` pages from `first` on read as zeros, and gives their memory back to the host.
    pub fn zero_pages(&self, first: PageIndex, count: u64) -> Result<(), MemoryError> {
        if !self.size().holds(first, count) {
            let bytes = count.saturating_mul(PAGE_BYTES as u64);
            return Err(outside(first, usize::try_from(bytes).unwrap_or(usize::MAX)));
        }
        if count == 0 {
            return Ok(());
        }
        match &self.backing {
            Backing::Shared(file) => punch_hole(file, first, count)?,
            Backing::Private(private) => {
                if !private.drop_pages(first, count)? {
                    let zeros = [0; PAGE_BYTES];
                    for page in first.0..first.0 + count {
                        self.write_pages(PageIndex(page), &zeros)?;
                    }
                }
            }
        }
        self.log.mark_pages(first, count);
        Ok(())
    }

    /// Begins to log writes; what was logged before is forgotten.
    pub fn start_tracking(&self) {
        self.log.start();
    }

    /// Ends logging.
    pub fn stop_tracking(&self) {
        self.log.stop();
    }

    /// Marks every page that may hold something else than zeros. What was never touched is a hole, and a hole is zeros
    /// on every host.
    pub fn mark_present(&self, bitmap: &DirtyBitmap) -> Result<(), MemoryError> {
        match &self.backing {
            Backing::Shared(file) => {
                for (first, count) in memfd::data_runs(file, self.size())? {
                    bitmap.set_range(first, count);
                }
                Ok(())
            }
            Backing::Private(private) => private.mark_present(bitmap),
        }
    }

    /// Marks every page that may differ from what was laid: what a snapshot on top of it must hold. All, for shared RAM.
    /// A page over which nothing was laid, and which was only read, may be marked too; it is zeros.
    pub fn mark_private(&self, bitmap: &DirtyBitmap) -> Result<(), MemoryError> {
        match &self.backing {
            Backing::Shared(_) => {
                bitmap.set_all();
                Ok(())
            }
            Backing::Private(private) => private.mark_private(bitmap),
        }
    }

    /// Whether writes are being logged.
    pub fn is_tracking(&self) -> bool {
        self.log.is_tracking()
    }

    /// Moves what was logged since the last call into each of `bitmaps`: who is not among them never learns of it.
    pub fn drain_log(&self, bitmaps: &[&DirtyBitmap]) {
        self.log.drain_into(bitmaps);
    }

    /// Marks a write that did not pass through this type (by the kernel, on behalf of a device): call it before the
    /// completion is shown. What lies outside memory is ignored.
    pub fn mark_written(&self, first: PageIndex, count: u64) {
        self.log.mark_pages(first, count);
    }

    /// Whether all of `bytes` from a guest-physical address on is RAM.
    pub fn contains(&self, address: vm_memory::GuestAddress, bytes: usize) -> bool {
        self.ram.check_range(address, bytes)
    }
}

fn outside(first: PageIndex, bytes: usize) -> MemoryError {
    MemoryError::OutOfRange {
        what: "page",
        at: first.0,
        bytes: bytes as u64,
    }
}

fn punch_hole(file: &File, first: PageIndex, count: u64) -> Result<(), MemoryError> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    // Both fit: the caller has bounded them by the size, which is at most 16 TiB.
    let (offset, length) = (first.offset().0 as i64, PageIndex(count).offset().0 as i64);
    fallocate(file, flags, offset, length).map_err(|e| MemoryError::system("zero guest memory", e))
}

fn hosts_of(ram: &GuestMemoryMmap<DeviceLog>) -> Vec<u64> {
    ram.iter().map(|mapped| mapped.as_ptr() as u64).collect()
}

/// Maps the regions of a guest: shared from a file, or else private and of nothing.
fn map_regions(
    layout: &Layout,
    log: &DeviceLog,
    file: Option<&Arc<File>>,
) -> Result<GuestMemoryMmap<DeviceLog>, MemoryError> {
    let regions = layout
        .regions()
        .map(|region| map_region(file, region, log.for_region(region.offset)))
        .collect::<Result<Vec<_>, _>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(|e| MemoryError::Map(e.into()))
}

fn map_region(
    file: Option<&Arc<File>>,
    region: Region,
    log: DeviceLog,
) -> Result<GuestRegionMmap<DeviceLog>, MemoryError> {
    let length = usize::try_from(region.bytes).map_err(|_| MemoryError::BadSize(region.bytes))?;
    let builder = MmapRegionBuilder::new_with_bitmap(length, log)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let builder = match file {
        Some(file) => {
            // Huge pages are reserved by mapping them: a guest that found none later would be ended.
            let reserved = match memfd::is_huge(file)? {
                true => 0,
                false => libc::MAP_NORESERVE,
            };
            builder
                .with_file_offset(FileOffset::from_arc(Arc::clone(file), region.offset.0))
                .with_mmap_flags(reserved | libc::MAP_SHARED)
        }
        None => {
            builder.with_mmap_flags(libc::MAP_NORESERVE | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        }
    };
    let mapping = builder
        .build()
        .map_err(|e| MemoryError::Map(FromRangesError::MmapRegion(e)))?;
    let mapped = GuestRegionMmap::new(mapping, region.start)
        .ok_or(MemoryError::Map(FromRangesError::InvalidGuestRegion))?;
    debug_assert_eq!(mapped.len(), region.bytes);
    Ok(mapped)
}
