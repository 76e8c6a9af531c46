//! Guest RAM for the process that runs the guest, and for the mover that fills it: the one type that may write.
//!
//! Two doors: guest-physical addresses through [`GuestMemory::ram`] (loaders and devices, by `vm-memory`), and whole
//! pages in memfd order (the mover). Both mark the device log. The only raw pointers given out are those that KVM's
//! memory slots need.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
    mmap::{FromRangesError, MmapRegionBuilder},
};

use crate::view::{check_pages, read_pages};
use crate::{
    DeviceLog, DirtyBitmap, Layout, MemoryError, MemorySize, PAGE_BYTES, PageIndex, Region, memfd,
};

/// Guest RAM mapped read-write. Share it by reference or `Arc`; all methods take `&self`.
#[derive(Debug)]
pub struct GuestMemory {
    layout: Layout,
    ram: GuestMemoryMmap<DeviceLog>,
    log: DeviceLog,
    file: Arc<File>,
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
        let layout = Layout::new(size);
        let log = DeviceLog::new(size);
        let regions = layout
            .regions()
            .map(|region| map_region(&file, region, log.for_region(region.offset)))
            .collect::<Result<Vec<_>, _>>()?;
        let ram = GuestMemoryMmap::from_regions(regions).map_err(|e| MemoryError::Map(e.into()))?;
        Ok(Self {
            layout,
            ram,
            log,
            file,
        })
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

    /// The memfd, for mapping elsewhere (userfaultfd) or passing on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
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
        read_pages(&self.file, self.size(), first, buffer)
    }

    /// Writes whole pages, from `first` on. `bytes` must be a multiple of the page size.
    ///
    /// Through the mapping, not by `pwrite`: a process that may write no large file may still fill its guest.
    pub fn write_pages(&self, first: PageIndex, bytes: &[u8]) -> Result<(), MemoryError> {
        check_pages(self.size(), first, bytes.len())?;
        let outside = MemoryError::OutOfRange {
            what: "page",
            at: first.0,
            bytes: bytes.len() as u64,
        };
        let (mut at, mut rest) = (first.offset().0, bytes);
        for region in self.layout.regions() {
            let inside = match at.checked_sub(region.offset.0) {
                Some(inside) if inside < region.bytes => inside,
                _ => continue,
            };
            let room = usize::try_from(region.bytes - inside).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            let address = GuestAddress(region.start.0 + inside);
            if self.ram.write_slice(now, address).is_err() {
                return Err(outside);
            }
            at += now.len() as u64;
            rest = later;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(outside)
        }
    }

    /// Makes `count` pages from `first` on read as zeros, and gives their memory back to the host.
    pub fn zero_pages(&self, first: PageIndex, count: u64) -> Result<(), MemoryError> {
        let bytes = count.saturating_mul(PAGE_BYTES as u64);
        if !self.size().holds(first, count) {
            return Err(MemoryError::OutOfRange {
                what: "page",
                at: first.0,
                bytes,
            });
        }
        if count == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // Both fit: `holds` bounds them by the size, which is at most 16 TiB.
        let (offset, length) = (first.offset().0 as i64, bytes as i64);
        fallocate(&self.file, flags, offset, length)
            .map_err(|e| MemoryError::system("zero guest memory", e))?;
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

    /// Marks every page that the memfd holds. What was never touched is a hole, and a hole is zeros on every host.
    pub fn mark_present(&self, bitmap: &DirtyBitmap) -> Result<(), MemoryError> {
        use nix::errno::Errno;
        use nix::unistd::{Whence, lseek};
        let refused = |errno: Errno| MemoryError::System {
            action: "say which pages the guest's memory holds",
            source: errno.into(),
        };
        let end = self.size().bytes() as i64;
        let mut at = 0;
        while at < end {
            let data = match lseek(&*self.file, at, Whence::SeekData) {
                // No data from here to the end.
                Err(Errno::ENXIO) => break,
                other => other.map_err(refused)?,
            };
            let hole = lseek(&*self.file, data, Whence::SeekHole).map_err(refused)?;
            let first = data as u64 / PAGE_BYTES as u64;
            let beyond = (hole as u64).div_ceil(PAGE_BYTES as u64);
            bitmap.set_range(PageIndex(first), beyond - first);
            at = hole;
        }
        Ok(())
    }

    /// Whether writes are being logged.
    pub fn is_tracking(&self) -> bool {
        self.log.is_tracking()
    }

    /// Moves what was logged since the last call into `bitmap`.
    pub fn drain_log(&self, bitmap: &DirtyBitmap) {
        self.log.drain_into(bitmap);
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

fn map_region(
    file: &Arc<File>,
    region: Region,
    log: DeviceLog,
) -> Result<GuestRegionMmap<DeviceLog>, MemoryError> {
    let length = usize::try_from(region.bytes).map_err(|_| MemoryError::BadSize(region.bytes))?;
    let mapping = MmapRegionBuilder::new_with_bitmap(length, log)
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), region.offset.0))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_NORESERVE | libc::MAP_SHARED)
        .build()
        .map_err(|e| MemoryError::Map(FromRangesError::MmapRegion(e)))?;
    let mapped = GuestRegionMmap::new(mapping, region.start)
        .ok_or(MemoryError::Map(FromRangesError::InvalidGuestRegion))?;
    debug_assert_eq!(mapped.len(), region.bytes);
    Ok(mapped)
}
