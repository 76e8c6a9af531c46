//! Between files and guest memory without a copy in between: the kernel reads and writes the guest's pages itself.
//!
//! What always holds: every page that the kernel may have written is marked before the call returns, whether or not it
//! succeeded; a range that is not wholly RAM is refused before anything is moved.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::{DeviceLog, GuestMemory};

/// Most ranges of one call; the kernel takes no more (`UIO_MAXIOV`).
pub const RANGES_MAX: usize = 1024;

/// A piece of guest-physical space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestRange {
    /// Its first address.
    pub start: GuestAddress,
    /// Its length in bytes.
    pub bytes: u32,
}

type Slices<'a> = Vec<VolatileSlice<'a, vm_memory::bitmap::RefSlice<'a, DeviceLog>>>;

impl GuestMemory {
    /// Fills `ranges`, one after another, from byte `offset` of a file; less than all only at the file's end.
    pub fn fill_at(
        &self,
        file: impl AsFd,
        offset: u64,
        ranges: &[GuestRange],
    ) -> io::Result<usize> {
        self.all(offset, ranges, true, |vectors, at| {
            // SAFETY: the vectors are guest memory mapped by `self`, which nobody takes for Rust data.
            unsafe {
                libc::preadv(
                    file.as_fd().as_raw_fd(),
                    vectors.as_ptr(),
                    vectors.len() as i32,
                    at,
                )
            }
        })
    }

    /// Writes `ranges`, one after another, to byte `offset` of a file.
    pub fn drain_at(
        &self,
        file: impl AsFd,
        offset: u64,
        ranges: &[GuestRange],
    ) -> io::Result<usize> {
        self.all(offset, ranges, false, |vectors, at| {
            // SAFETY: as above; the kernel only reads.
            unsafe {
                libc::pwritev(
                    file.as_fd().as_raw_fd(),
                    vectors.as_ptr(),
                    vectors.len() as i32,
                    at,
                )
            }
        })
    }

    /// Fills `ranges` from a stream or a device, by one call.
    pub fn fill(&self, file: impl AsFd, ranges: &[GuestRange]) -> io::Result<usize> {
        let slices = self.slices(ranges)?;
        let vectors = vectors(&slices, 0);
        // SAFETY: as above.
        let result = unsafe {
            libc::readv(
                file.as_fd().as_raw_fd(),
                vectors.as_ptr(),
                vectors.len() as i32,
            )
        };
        let result = outcome(result);
        mark(&slices, *result.as_ref().unwrap_or(&usize::MAX));
        result
    }

    /// Writes `ranges` to a stream or a device, by one call.
    pub fn drain(&self, file: impl AsFd, ranges: &[GuestRange]) -> io::Result<usize> {
        let slices = self.slices(ranges)?;
        let vectors = vectors(&slices, 0);
        // SAFETY: as above; the kernel only reads.
        outcome(unsafe {
            libc::writev(
                file.as_fd().as_raw_fd(),
                vectors.as_ptr(),
                vectors.len() as i32,
            )
        })
    }

    /// Calls until everything is moved, the file ends, or the kernel refuses.
    fn all(
        &self,
        offset: u64,
        ranges: &[GuestRange],
        fills: bool,
        call: impl Fn(&[libc::iovec], i64) -> isize,
    ) -> io::Result<usize> {
        let slices = self.slices(ranges)?;
        let total: usize = slices.iter().map(VolatileSlice::len).sum();
        let mut moved = 0;
        let result = loop {
            if moved == total {
                break Ok(moved);
            }
            let at = offset.checked_add(moved as u64);
            let Some(at) = at.and_then(|at| i64::try_from(at).ok()) else {
                break Err(io::ErrorKind::InvalidInput.into());
            };
            match outcome(call(&vectors(&slices, moved), at)) {
                Ok(0) => break Ok(moved),
                Ok(count) => moved += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        if fills {
            mark(&slices, *result.as_ref().unwrap_or(&usize::MAX));
        }
        result
    }

    fn slices(&self, ranges: &[GuestRange]) -> io::Result<Slices<'_>> {
        if ranges.len() > RANGES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let slice = |range: &GuestRange| self.ram().get_slice(range.start, range.bytes as usize);
        let slices: Result<Slices<'_>, _> = ranges.iter().map(slice).collect();
        slices.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
    }
}

/// What is left of the slices behind the first `skip` bytes.
fn vectors<B: vm_memory::bitmap::BitmapSlice>(
    slices: &[VolatileSlice<'_, B>],
    mut skip: usize,
) -> Vec<libc::iovec> {
    let mut vectors = Vec::with_capacity(slices.len());
    for slice in slices {
        let skipped = skip.min(slice.len());
        skip -= skipped;
        if skipped < slice.len() {
            let start = slice.ptr_guard_mut().as_ptr();
            vectors.push(libc::iovec {
                iov_base: start.wrapping_add(skipped).cast(),
                iov_len: slice.len() - skipped,
            });
        }
    }
    vectors
}

/// Marks the first `bytes` of the slices.
fn mark<B: vm_memory::bitmap::BitmapSlice>(slices: &[VolatileSlice<'_, B>], mut bytes: usize) {
    for slice in slices {
        let here = bytes.min(slice.len());
        slice.bitmap().mark_dirty(0, here);
        bytes -= here;
    }
}

fn outcome(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
