//! One split virtqueue, seen from the device (virtio 1.3, section 2.7).
//!
//! Everything in it was written by a hostile driver and may change while it is read: each field is read once, and
//! checked before it is used. What breaks the specification ends the queue with [`Broken`], never the process.
//!
//! What always holds: a [`Chain`] lies wholly in RAM, has no loop, and its writable part follows its readable part.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use dwcp_memory::vm_memory::{Bytes, GuestAddress};
use dwcp_memory::{GuestMemory, GuestRange, RANGES_MAX};
use serde::{Deserialize, Serialize};

/// Longest chain, indirect descriptors included.
pub const CHAIN_MAX: usize = RANGES_MAX;
/// Longest queue that the specification knows.
const SIZE_MAX: u16 = 32768;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const DESCRIPTOR_BYTES: u64 = 16;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// How a driver broke the specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A part of the queue is not in RAM, or not aligned.
    #[error("its queue does not lie in memory")]
    Place,
    /// A size that is no power of two, or more than the device offers.
    #[error("its queue has a size that was not offered")]
    Size,
    /// The driver made more available than the queue holds.
    #[error("its available ring ran {0} entries ahead")]
    Ahead(u16),
    /// A descriptor number that the table does not have.
    #[error("descriptor {0} does not exist")]
    Number(u16),
    /// A chain with a loop, or one too long.
    #[error("a descriptor chain has no end")]
    Endless,
    /// A buffer that is not in RAM.
    #[error("a buffer of {bytes} bytes at {start:#x} is not in memory")]
    Buffer {
        /// Its first address.
        start: u64,
        /// Its length.
        bytes: u32,
    },
    /// A readable buffer after a writable one.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// An indirect table in an indirect table, of a wrong length, or not negotiated.
    #[error("an indirect descriptor is malformed")]
    Indirect,
    /// A request that is too short for its device.
    #[error("a request is too short")]
    Short,
    /// A request that is longer than its device has a use for.
    #[error("a request is too long")]
    Long,
}

/// The registers of a queue, and how far the device is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries: a power of two.
    pub size: u16,
    /// Whether the driver enabled it.
    pub enabled: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Of the available ring, which the driver writes.
    pub driver: u64,
    /// Of the used ring, which the device writes.
    pub device: u64,
    /// Next entry of the available ring to take.
    pub next_available: u16,
    /// Next entry of the used ring to fill.
    pub next_used: u16,
}

/// What the driver asks with one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Names it when it is given back.
    pub head: u16,
    /// What the device may read, in order.
    pub readable: Vec<GuestRange>,
    /// What the device may write, in order.
    pub writable: Vec<GuestRange>,
}

/// A queue in use.
#[derive(Debug)]
pub struct Queue {
    state: QueueState,
    has_event_index: bool,
    has_indirect: bool,
    /// Entries used when the driver was last told.
    told: Wrapping<u16>,
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    start: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

impl Queue {
    /// Takes a queue into use whose registers the driver wrote; `offered` is the longest that the device offers.
    pub fn new(
        state: QueueState,
        offered: u16,
        has_event_index: bool,
        has_indirect: bool,
        memory: &GuestMemory,
    ) -> Result<Self, Broken> {
        let size = u64::from(state.size);
        if !state.size.is_power_of_two() || state.size > offered.min(SIZE_MAX) {
            return Err(Broken::Size);
        }
        // With the event index each ring has one more field at its end.
        let parts = [
            (state.descriptors, 16, DESCRIPTOR_BYTES * size),
            (state.driver, 2, 6 + 2 * size),
            (state.device, 4, 6 + 8 * size),
        ];
        let lies = |(start, align, bytes): (u64, u64, u64)| {
            start.is_multiple_of(align) && memory.contains(GuestAddress(start), bytes as usize)
        };
        if !parts.into_iter().all(lies) {
            return Err(Broken::Place);
        }
        Ok(Self {
            state,
            has_event_index,
            has_indirect,
            told: Wrapping(state.next_used),
        })
    }

    /// The registers, and how far it is.
    pub fn state(&self) -> QueueState {
        self.state
    }

    /// How many entries it has.
    pub fn size(&self) -> u16 {
        self.state.size
    }

    /// Takes the next entry.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, Broken> {
        if self.waiting(memory)? == 0 {
            return Ok(None);
        }
        let at = u64::from(self.state.next_available % self.state.size);
        let head = self.load(memory, self.state.driver + 4 + 2 * at)?;
        let chain = self.chain(memory, head)?;
        self.state.next_available = self.state.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Puts back the entry that was taken last.
    pub fn put_back(&mut self) {
        self.state.next_available = self.state.next_available.wrapping_sub(1);
    }

    /// Gives an entry back to the driver, `written` bytes of its writable part filled.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), Broken> {
        let at = u64::from(self.state.next_used % self.state.size);
        let element = u64::from(head) | u64::from(written) << 32;
        let ram = memory.ram();
        let place = |_| Broken::Place;
        ram.write_obj(
            element.to_le(),
            GuestAddress(self.state.device + 4 + 8 * at),
        )
        .map_err(place)?;
        self.state.next_used = self.state.next_used.wrapping_add(1);
        let index = GuestAddress(self.state.device + 2);
        ram.store(self.state.next_used.to_le(), index, Ordering::Release)
            .map_err(place)
    }

    /// Whether the driver wants to be told of what was given back since this was asked last.
    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        let now = Wrapping(self.state.next_used);
        let before = std::mem::replace(&mut self.told, now);
        if now == before {
            return Ok(false);
        }
        // The driver must see the used index before we see what it wants (2.7.7).
        fence(Ordering::SeqCst);
        if self.has_event_index {
            let at = self.state.driver + 4 + 2 * u64::from(self.state.size);
            let event = Wrapping(self.load(memory, at)?);
            return Ok(now - event - Wrapping(1) < now - before);
        }
        Ok(self.load(memory, self.state.driver)? & NO_INTERRUPT == 0)
    }

    /// Asks the driver to be told of new entries; answers whether some have come already.
    pub fn listen(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        if self.has_event_index {
            let at = self.state.device + 4 + 8 * u64::from(self.state.size);
            self.store(memory, at, self.state.next_available)?;
        } else {
            self.store(memory, self.state.device, 0)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.waiting(memory)? > 0)
    }

    /// Spares the driver from telling of new entries, for as long as they are being taken anyway.
    pub fn ignore(&mut self, memory: &GuestMemory) -> Result<(), Broken> {
        // With the event index, the driver tells once for each `listen`.
        if self.has_event_index {
            return Ok(());
        }
        self.store(memory, self.state.device, NO_NOTIFY)
    }

    fn waiting(&self, memory: &GuestMemory) -> Result<u16, Broken> {
        let index = GuestAddress(self.state.driver + 2);
        let index: u16 = memory
            .ram()
            .load(index, Ordering::Acquire)
            .map_err(|_| Broken::Place)?;
        let waiting = u16::from_le(index).wrapping_sub(self.state.next_available);
        if waiting > self.state.size {
            return Err(Broken::Ahead(waiting));
        }
        Ok(waiting)
    }

    fn chain(&self, memory: &GuestMemory, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain {
            head,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let (mut table, mut number) = ((self.state.descriptors, self.state.size), head);
        let (mut is_indirect, mut in_table) = (false, 0);
        for _ in 0..CHAIN_MAX {
            let mut descriptor = self.descriptor(memory, table, number)?;
            // As many of a table as it has, or there is a loop.
            if in_table == table.1 {
                return Err(Broken::Endless);
            }
            // The last of a chain may be a table with the rest of it (2.7.5.3.2), but for one in a table.
            if descriptor.flags & INDIRECT != 0 && !is_indirect {
                table = self.indirect(descriptor)?;
                (is_indirect, in_table) = (true, 0);
                descriptor = self.descriptor(memory, table, 0)?;
            }
            if descriptor.flags & INDIRECT != 0 {
                return Err(Broken::Indirect);
            }
            chain.add(descriptor, memory)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(chain);
            }
            in_table += 1;
            number = descriptor.next;
        }
        Err(Broken::Endless)
    }

    /// The table that a descriptor is: where, and how many entries it has.
    fn indirect(&self, descriptor: Descriptor) -> Result<(u64, u16), Broken> {
        let Descriptor { start, bytes, .. } = descriptor;
        let entries = bytes / DESCRIPTOR_BYTES as u32;
        let is_whole = bytes.is_multiple_of(DESCRIPTOR_BYTES as u32);
        if !self.has_indirect || !is_whole || entries == 0 || descriptor.flags & NEXT != 0 {
            return Err(Broken::Indirect);
        }
        Ok((start, u16::try_from(entries).unwrap_or(u16::MAX)))
    }

    fn descriptor(
        &self,
        memory: &GuestMemory,
        (table, entries): (u64, u16),
        number: u16,
    ) -> Result<Descriptor, Broken> {
        if number >= entries {
            return Err(Broken::Number(number));
        }
        let at = table
            .checked_add(DESCRIPTOR_BYTES * u64::from(number))
            .ok_or(Broken::Indirect)?;
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        memory
            .ram()
            .read_slice(&mut bytes, GuestAddress(at))
            .map_err(|_| Broken::Indirect)?;
        let number = u128::from_le_bytes(bytes);
        Ok(Descriptor {
            start: number as u64,
            bytes: (number >> 64) as u32,
            flags: (number >> 96) as u16,
            next: (number >> 112) as u16,
        })
    }

    fn load(&self, memory: &GuestMemory, at: u64) -> Result<u16, Broken> {
        let value: u16 = memory
            .ram()
            .load(GuestAddress(at), Ordering::Relaxed)
            .map_err(|_| Broken::Place)?;
        Ok(u16::from_le(value))
    }

    fn store(&self, memory: &GuestMemory, at: u64, value: u16) -> Result<(), Broken> {
        memory
            .ram()
            .store(value.to_le(), GuestAddress(at), Ordering::Relaxed)
            .map_err(|_| Broken::Place)
    }
}

impl Chain {
    /// How many bytes the device may read.
    pub fn readable_bytes(&self) -> u64 {
        length(&self.readable)
    }

    /// How many bytes the device may write.
    pub fn writable_bytes(&self) -> u64 {
        length(&self.writable)
    }

    fn add(&mut self, descriptor: Descriptor, memory: &GuestMemory) -> Result<(), Broken> {
        let Descriptor { start, bytes, .. } = descriptor;
        if bytes == 0 {
            return Ok(());
        }
        let range = GuestRange {
            start: GuestAddress(start),
            bytes,
        };
        if !memory.contains(range.start, bytes as usize) {
            return Err(Broken::Buffer { start, bytes });
        }
        if descriptor.flags & WRITE != 0 {
            self.writable.push(range);
        } else if self.writable.is_empty() {
            self.readable.push(range);
        } else {
            return Err(Broken::Order);
        }
        Ok(())
    }
}

/// How many bytes ranges have.
pub fn length(ranges: &[GuestRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.bytes)).sum()
}

/// The first `bytes` of ranges, and what follows; `None` if there are fewer.
pub fn split(ranges: &[GuestRange], bytes: u64) -> Option<(Vec<GuestRange>, Vec<GuestRange>)> {
    let (mut front, mut back, mut left) = (Vec::new(), Vec::new(), bytes);
    for range in ranges {
        let here = left.min(range.bytes.into()) as u32;
        left -= u64::from(here);
        if here > 0 {
            front.push(GuestRange {
                bytes: here,
                ..*range
            });
        }
        if here < range.bytes {
            back.push(GuestRange {
                start: GuestAddress(range.start.0 + u64::from(here)),
                bytes: range.bytes - here,
            });
        }
    }
    (left == 0).then_some((front, back))
}

/// Copies the first bytes of ranges out; answers what follows them.
pub fn take<const N: usize>(
    memory: &GuestMemory,
    ranges: &[GuestRange],
) -> Result<([u8; N], Vec<GuestRange>), Broken> {
    let (front, rest) = split(ranges, N as u64).ok_or(Broken::Short)?;
    let mut bytes = [0; N];
    gather(memory, &front, &mut bytes)?;
    Ok((bytes, rest))
}

/// Copies ranges out; both have the same length.
pub fn gather(memory: &GuestMemory, ranges: &[GuestRange], out: &mut [u8]) -> Result<(), Broken> {
    let mut rest = out;
    for range in ranges {
        let (now, later) = rest
            .split_at_mut_checked(range.bytes as usize)
            .ok_or(Broken::Short)?;
        let read = memory.ram().read_slice(now, range.start);
        read.map_err(|_| Broken::Short)?;
        rest = later;
    }
    Ok(())
}

/// Copies `bytes` into ranges, as many as they hold; answers how many.
pub fn scatter(memory: &GuestMemory, ranges: &[GuestRange], bytes: &[u8]) -> Result<u32, Broken> {
    let (mut rest, mut done) = (bytes, 0);
    for range in ranges {
        let (now, later) = rest.split_at(rest.len().min(range.bytes as usize));
        let written = memory.ram().write_slice(now, range.start);
        written.map_err(|_| Broken::Short)?;
        rest = later;
        done += now.len() as u32;
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
