//! A split virtqueue (virtio 1.3, 2.7), as a driver that polls uses it.
//!
//! A device is not trusted with our memory safety: what it puts into the used ring is checked before it is believed.

use core::sync::atomic::{Ordering, fence};

use super::dma::{Arena, Region};
use super::mmio::Window;

/// The longest queue that is used here.
pub const SIZE_MAX: u16 = 256;
/// Pieces of one request at most.
pub const PIECES_MAX: usize = 64;
const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
const DESCRIPTOR_BYTES: usize = 16;

/// A piece of memory that a request is made of.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Physical address.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u32,
    /// Whether the device writes it; otherwise it reads it.
    pub is_writable: bool,
}

impl Piece {
    /// To be read by the device.
    pub fn readable(address: u64, bytes: usize) -> Self {
        let bytes = bytes as u32;
        Self {
            address,
            bytes,
            is_writable: false,
        }
    }

    /// To be written by the device.
    pub fn writable(address: u64, bytes: usize) -> Self {
        Self {
            is_writable: true,
            ..Self::readable(address, bytes)
        }
    }
}

/// How a queue is to be used, as agreed with the device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// VIRTIO_F_EVENT_IDX was agreed.
    pub event_index: bool,
    /// VIRTIO_F_INDIRECT_DESC was agreed and requests of several pieces are to use it.
    pub indirect: bool,
    /// The device is to interrupt after each request.
    pub interrupts: bool,
}

/// Where the parts of a queue lie, to be told to the device.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
}

/// A queue in use.
#[derive(Debug)]
pub struct Queue {
    /// Entries; a power of two.
    size: u16,
    number: u16,
    style: Style,
    descriptors: Region,
    available: Region,
    used: Region,
    tables: Option<Region>,
    notify: Window,
    /// First of the free descriptors, linked by their `next`.
    free: u16,
    free_count: u16,
    /// Pieces of the request that begins at a descriptor; 0 if none does.
    lengths: [u8; SIZE_MAX as usize],
    added: u16,
    notified: u16,
    seen: u16,
}

impl Queue {
    /// Makes an empty queue of `size` entries, at most [`SIZE_MAX`], a power of two.
    pub fn new(
        size: u16,
        number: u16,
        style: Style,
        notify: Window,
        arena: &mut Arena,
    ) -> Option<Self> {
        let entries = usize::from(size);
        let table_bytes = entries * PIECES_MAX * DESCRIPTOR_BYTES;
        let mut queue = Self {
            size,
            number,
            style,
            descriptors: arena.take(entries * DESCRIPTOR_BYTES)?,
            available: arena.take(entries * 2 + 6)?,
            used: arena.take(entries * 8 + 6)?,
            tables: if style.indirect {
                Some(arena.take(table_bytes)?)
            } else {
                None
            },
            notify,
            free: 0,
            free_count: size,
            lengths: [0; SIZE_MAX as usize],
            added: 0,
            notified: 0,
            seen: 0,
        };
        queue.empty();
        Some(queue)
    }

    /// Where it lies.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            descriptors: self.descriptors.address(),
            available: self.available.address(),
            used: self.used.address(),
        }
    }

    /// Its place among the queues of its device.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Requests of this many pieces that could be added now.
    pub fn room_for(&self, pieces: usize) -> usize {
        usize::from(self.free_count)
            / if self.style.indirect {
                1
            } else {
                pieces.max(1)
            }
    }

    /// Adds a request; answers the number under which its end will be told, `None` if there is no room.
    pub fn add(&mut self, pieces: &[Piece]) -> Option<u16> {
        if pieces.is_empty() || pieces.len() > PIECES_MAX || self.room_for(pieces.len()) == 0 {
            return None;
        }
        let head = self.free;
        if self.style.indirect && pieces.len() > 1 {
            self.free = self.write_indirect(head, pieces)?;
            self.free_count -= 1;
            self.lengths[usize::from(head)] = 1;
        } else {
            self.free = self.write_chain(head, pieces);
            self.free_count -= pieces.len() as u16;
            self.lengths[usize::from(head)] = pieces.len() as u8;
        }
        let place = 4 + usize::from(self.added % self.size) * 2;
        self.available.write16(place, head);
        self.added = self.added.wrapping_add(1);
        fence(Ordering::Release);
        self.available.write16(2, self.added);
        Some(head)
    }

    /// Answers the descriptor after the chain.
    fn write_chain(&mut self, head: u16, pieces: &[Piece]) -> u16 {
        let mut at = head;
        for (number, piece) in pieces.iter().enumerate() {
            let next = self.descriptors.read16(next_place(at));
            let has_next = number + 1 < pieces.len();
            let bytes = encode(piece, if has_next { NEXT } else { 0 }, next);
            self.descriptors
                .put(usize::from(at) * DESCRIPTOR_BYTES, &bytes);
            at = next;
        }
        at
    }

    fn write_indirect(&mut self, head: u16, pieces: &[Piece]) -> Option<u16> {
        let tables = self.tables.as_mut()?;
        let table = usize::from(head) * PIECES_MAX * DESCRIPTOR_BYTES;
        for (number, piece) in pieces.iter().enumerate() {
            let has_next = number + 1 < pieces.len();
            let bytes = encode(piece, if has_next { NEXT } else { 0 }, number as u16 + 1);
            tables.put(table + number * DESCRIPTOR_BYTES, &bytes);
        }
        let whole = Piece::readable(
            tables.address() + table as u64,
            pieces.len() * DESCRIPTOR_BYTES,
        );
        let next = self.descriptors.read16(next_place(head));
        self.descriptors.put(
            usize::from(head) * DESCRIPTOR_BYTES,
            &encode(&whole, INDIRECT, next),
        );
        Some(next)
    }

    /// Tells the device that there is something to do, unless it asked not to be told.
    pub fn notify(&mut self) {
        fence(Ordering::SeqCst);
        let wants = if self.style.event_index {
            // virtio 1.3, 2.7.10: the device names the entry after which it wants to be told.
            let event = self.used.read16(4 + usize::from(self.size) * 8);
            let since = self.added.wrapping_sub(self.notified);
            self.added.wrapping_sub(event).wrapping_sub(1) < since
        } else {
            self.used.read16(0) & NO_NOTIFY == 0
        };
        self.notified = self.added;
        if wants {
            self.kick();
        }
    }

    /// Tells the device, wanted or not.
    pub fn kick(&self) {
        self.notify.write16(0, self.number);
    }

    /// A request that the device has ended: its number, and how many bytes it says it wrote.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used.read16(2) == self.seen {
            return None;
        }
        fence(Ordering::Acquire);
        let place = 4 + usize::from(self.seen % self.size) * 8;
        let (head, bytes) = (self.used.read32(place), self.used.read32(place + 4));
        self.seen = self.seen.wrapping_add(1);
        self.ask_for_interrupt();
        let head = u16::try_from(head).ok().filter(|head| *head < self.size)?;
        let pieces = core::mem::take(&mut self.lengths[usize::from(head)]);
        self.give_back(head, pieces);
        (pieces > 0).then_some((head, bytes))
    }

    /// Entries that the device has put into its used ring since the start, modulo 65536.
    pub fn used_index(&self) -> u16 {
        self.used.read16(2)
    }

    /// Forgets everything: as it was made.
    pub fn empty(&mut self) {
        self.available.slice_mut().fill(0);
        self.used.slice_mut().fill(0);
        self.lengths.fill(0);
        (self.free, self.free_count) = (0, self.size);
        (self.added, self.notified, self.seen) = (0, 0, 0);
        for index in 0..self.size {
            self.descriptors.write16(next_place(index), index + 1);
        }
        if !self.style.interrupts {
            self.available.write16(0, NO_INTERRUPT);
        }
        self.ask_for_interrupt();
    }

    /// Writes a descriptor as it is given, right or wrong.
    pub fn put_descriptor(&mut self, at: u16, piece: &Piece, flags: u16, next: u16) {
        let place = usize::from(at) * DESCRIPTOR_BYTES;
        self.descriptors.put(place, &encode(piece, flags, next));
    }

    /// Makes a head available, right or wrong, and lets the index go on by `steps`.
    pub fn put_available(&mut self, head: u16, steps: u16) {
        let place = 4 + usize::from(self.added % self.size) * 2;
        self.available.write16(place, head);
        self.added = self.added.wrapping_add(steps);
        fence(Ordering::Release);
        self.available.write16(2, self.added);
    }

    /// Writes pieces into descriptors from `at` on, and makes them available.
    pub fn put_chain(&mut self, at: u16, pieces: &[Piece]) {
        for (number, piece) in (at..).zip(pieces) {
            let has_next = usize::from(number - at) + 1 < pieces.len();
            let flags = if has_next { NEXT } else { 0 };
            self.put_descriptor(number, piece, flags, number + 1);
        }
        self.put_available(at, 1);
    }

    fn give_back(&mut self, head: u16, pieces: u8) {
        if pieces == 0 {
            return;
        }
        let mut last = head;
        for _ in 1..pieces {
            last = self.descriptors.read16(next_place(last));
        }
        self.descriptors.write16(next_place(last), self.free);
        self.free = head;
        self.free_count += u16::from(pieces);
    }

    /// With event indices: where the next interrupt is wanted; as far away as can be if none is.
    fn ask_for_interrupt(&mut self) {
        if self.style.event_index {
            let event = if self.style.interrupts {
                self.seen
            } else {
                self.seen.wrapping_sub(1)
            };
            self.available
                .write16(4 + usize::from(self.size) * 2, event);
        }
    }
}

fn next_place(descriptor: u16) -> usize {
    usize::from(descriptor) * DESCRIPTOR_BYTES + 14
}

/// A descriptor as it lies in memory.
pub fn encode(piece: &Piece, flags: u16, next: u16) -> [u8; DESCRIPTOR_BYTES] {
    let flags = flags | if piece.is_writable { WRITABLE } else { 0 };
    let mut bytes = [0; DESCRIPTOR_BYTES];
    bytes[..8].copy_from_slice(&piece.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&piece.bytes.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
