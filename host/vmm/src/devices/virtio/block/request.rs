//! What a driver asks of a disk, taken apart (virtio 1.3, 5.2.6).

use dwcp_memory::{GuestMemory, GuestRange};

use super::DiskError;
use crate::devices::virtio::{Broken, Chain, queue};

/// The unit of addresses, whatever the disk's own block size.
pub const SECTOR_BYTES: u64 = 512;
/// One range of a discard or of zeros.
const CLEAR_BYTES: usize = 16;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From the disk to the guest.
    Read,
    /// From the guest to the disk.
    Write,
    /// Make durable what was written.
    Flush,
    /// The disk's name.
    Id,
    /// Forget a range.
    Discard,
    /// Make a range read as zeros.
    Zeroes,
    /// Something else.
    Unknown,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Well.
    Done = 0,
    /// The disk could not.
    Failed = 1,
    /// The device does not do such a thing.
    Unsupported = 2,
}

/// A request.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub kind: Kind,
    /// Where.
    pub sector: u64,
    /// Data of the guest.
    pub readable: Vec<GuestRange>,
    /// Room for data.
    pub writable: Vec<GuestRange>,
    /// Where the status goes.
    pub status: GuestRange,
}

/// A range of the disk, inside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Length.
    pub bytes: u64,
    /// Whether it may become a hole.
    pub may_unmap: bool,
}

impl Request {
    /// Takes a chain apart.
    pub fn parse(memory: &GuestMemory, chain: &Chain) -> Result<Self, Broken> {
        let (header, readable) = queue::take::<16>(memory, &chain.readable)?;
        let room = chain.writable_bytes().checked_sub(1).ok_or(Broken::Short)?;
        let (writable, status) = queue::split(&chain.writable, room).ok_or(Broken::Short)?;
        let header = u128::from_le_bytes(header);
        Ok(Self {
            kind: match header as u32 {
                0 => Kind::Read,
                1 => Kind::Write,
                4 => Kind::Flush,
                8 => Kind::Id,
                11 => Kind::Discard,
                13 => Kind::Zeroes,
                _ => Kind::Unknown,
            },
            sector: (header >> 64) as u64,
            readable,
            writable,
            status: *status.first().ok_or(Broken::Short)?,
        })
    }

    /// The range of a discard or of zeros: exactly one.
    pub fn cleared(&self, memory: &GuestMemory, size: u64, most: u64) -> Result<Range, DiskError> {
        let taken = queue::take::<CLEAR_BYTES>(memory, &self.readable);
        let Ok((range, rest)) = taken else {
            return Err(DiskError::Unsupported);
        };
        let range = u128::from_le_bytes(range);
        let bytes = u64::from((range >> 64) as u32) * SECTOR_BYTES;
        let flags = (range >> 96) as u32;
        let may_unmap = flags & 1 != 0 && self.kind == Kind::Zeroes;
        let is_known = flags == 0 || may_unmap;
        if !is_known || !rest.is_empty() || bytes > most {
            return Err(DiskError::Unsupported);
        }
        let range = Range::of_data(range as u64, bytes, size)?;
        Ok(Range { may_unmap, ..range })
    }
}

impl Range {
    /// From a sector on, whole sectors, inside a disk of `size` bytes.
    pub fn of_data(sector: u64, bytes: u64, size: u64) -> Result<Self, DiskError> {
        let start = sector.checked_mul(SECTOR_BYTES);
        let end = start.and_then(|start| start.checked_add(bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= size && bytes.is_multiple_of(SECTOR_BYTES) => {
                Ok(Self {
                    start,
                    bytes,
                    may_unmap: false,
                })
            }
            _ => Err(DiskError::outside()),
        }
    }
}
