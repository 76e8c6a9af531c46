//! The block device (virtio 1.3, 5.2): requests in slots, over all of its queues in turn.

mod bench;
mod check;
mod repeat;

pub use bench::bench;
pub use check::{check, read};
pub use repeat::Repeat;

use core::fmt::{self, Write};

use crate::serial::Serial;
use crate::virtio::dma::Region;
use crate::virtio::pci::Function;
use crate::virtio::queue::{PIECES_MAX, Piece, Queue, SIZE_MAX};
use crate::virtio::{Device, Fault, Platform};

/// Requests under way at most.
pub const SLOTS: usize = 32;
/// Bytes of a sector.
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of the longest transfer.
pub const TRANSFER_BYTES: usize = 128 << 10;
/// A device that is silent for longer has forgotten the request.
pub const ANSWER_MS: u64 = 10_000;
const QUEUES_MAX: usize = 4;
const SLOT_BYTES: usize = 32;
const STATUS_AT: usize = 16;
const UNANSWERED: u8 = 0xff;

const SIZE_MAX_FEATURE: u64 = 1 << 1;
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
const MULTI_QUEUE: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
const WANTED: u64 = SIZE_MAX_FEATURE
    | SEG_MAX
    | READ_ONLY
    | BLK_SIZE
    | FLUSH
    | TOPOLOGY
    | MULTI_QUEUE
    | DISCARD
    | WRITE_ZEROES;

const CAPACITY: u64 = 0;
const SIZE_MAX_AT: u64 = 8;
const NUM_QUEUES: u64 = 34;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation {
    Read = 0,
    Write = 1,
    Flush = 4,
    GetId = 8,
    Discard = 11,
    WriteZeroes = 13,
    /// No device knows it.
    Nonsense = 0x7777,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// VIRTIO_BLK_S_IOERR.
    Error,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported,
    /// A status that virtio does not know.
    Unknown(u8),
    /// No answer in time.
    Silent,
}

impl Outcome {
    fn of(status: u8) -> Self {
        match status {
            0 => Self::Done,
            1 => Self::Error,
            2 => Self::Unsupported,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(f, "ok"),
            Self::Error => write!(f, "ioerr"),
            Self::Unsupported => write!(f, "unsupp"),
            Self::Unknown(status) => write!(f, "status-{status}"),
            Self::Silent => write!(f, "silent"),
        }
    }
}

/// A disk in use.
#[derive(Debug)]
pub struct Disk {
    /// Its place among the disks, from 0.
    pub number: usize,
    /// Its length.
    pub sectors: u64,
    device: Device,
    queues: [Option<Queue>; QUEUES_MAX],
    next_queue: usize,
    /// Per queue and head, the slot of the request.
    slots_of: [[u8; SIZE_MAX as usize]; QUEUES_MAX],
    /// Header and status of each slot.
    slots: Region,
    piece_bytes: u64,
}

impl Disk {
    /// Sets the device up and tells of it.
    pub fn open(number: usize, function: Function, platform: &mut Platform) -> Result<Self, Fault> {
        let mut device = Device::open(function, platform)?;
        device.agree(WANTED, platform)?;
        let offered_queues = if device.has(MULTI_QUEUE) {
            usize::from(device.config16(NUM_QUEUES)).clamp(1, QUEUES_MAX)
        } else {
            1
        };
        let mut queues = [const { None }; QUEUES_MAX];
        for (number, queue) in queues.iter_mut().take(offered_queues).enumerate() {
            *queue = Some(device.queue(number as u16, SIZE_MAX, platform)?);
        }
        let slots = platform
            .arena
            .take(SLOTS * SLOT_BYTES)
            .ok_or(Fault::Memory)?;
        device.begin();
        let piece_bytes = match device.config32(SIZE_MAX_AT) {
            limit if limit > 0 && device.has(SIZE_MAX_FEATURE) => u64::from(limit),
            _ => u64::from(u32::MAX),
        };
        let mut disk = Self {
            number,
            sectors: device.config64(CAPACITY),
            device,
            queues,
            next_queue: 0,
            slots_of: [[0; SIZE_MAX as usize]; QUEUES_MAX],
            slots,
            piece_bytes,
        };
        disk.tell(offered_queues, platform)?;
        Ok(disk)
    }

    fn tell(&mut self, queues: usize, platform: &mut Platform) -> Result<(), Fault> {
        let id = self.id(platform)?;
        let read_only = u8::from(self.is_read_only());
        let _ = write!(
            Serial,
            "guest: disk {}: sectors {} features {:#x} queues {queues} read_only {read_only} id \"",
            self.number,
            self.sectors,
            self.device.features(),
        );
        for byte in id.iter().take_while(|byte| **byte != 0) {
            let is_plain = byte.is_ascii_graphic() && *byte != b'"';
            let _ = Serial.write_char(if is_plain { char::from(*byte) } else { '.' });
        }
        let _ = writeln!(Serial, "\"");
        Ok(())
    }

    /// What the device calls itself; empty if it does not know the question.
    fn id(&mut self, platform: &mut Platform) -> Result<[u8; 20], Fault> {
        let buffer = platform.arena.take(20).ok_or(Fault::Memory)?;
        let data = Piece::writable(buffer.address(), 20);
        let mut id = [0; 20];
        if self.run(Operation::GetId, 0, Some(data), platform) == Outcome::Done {
            id.copy_from_slice(&buffer.slice()[..20]);
        }
        Ok(id)
    }

    /// Whether it takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.device.has(READ_ONLY)
    }

    /// Reads its length again.
    pub fn current_sectors(&self) -> u64 {
        self.device.config64(CAPACITY)
    }

    /// Adds a request in a slot that is free; answers whether there was room. Follow it by [`Self::notify`].
    pub fn submit(
        &mut self,
        slot: usize,
        operation: Operation,
        sector: u64,
        data: Option<Piece>,
    ) -> bool {
        let (header, status) = self.fill_slot(slot, operation, sector);
        let mut pieces = [header; PIECES_MAX];
        let mut used = 1;
        let mut left = data;
        while let Some(piece) = left.filter(|piece| piece.bytes > 0) {
            if used + 1 == PIECES_MAX {
                return false;
            }
            let bytes = u64::from(piece.bytes).min(self.piece_bytes) as u32;
            pieces[used] = Piece { bytes, ..piece };
            used += 1;
            left = Some(Piece {
                address: piece.address + u64::from(bytes),
                bytes: piece.bytes - bytes,
                ..piece
            });
        }
        pieces[used] = status;
        self.submit_pieces(slot, &pieces[..=used])
    }

    /// Writes the header of a request and readies its status: where they are.
    fn fill_slot(&mut self, slot: usize, operation: Operation, sector: u64) -> (Piece, Piece) {
        let at = slot * SLOT_BYTES;
        self.slots.put(at, &(operation as u32).to_le_bytes());
        self.slots.put(at + 4, &[0; 4]);
        self.slots.put(at + 8, &sector.to_le_bytes());
        self.slots.put(at + STATUS_AT, &[UNANSWERED]);
        let address = self.slots.address() + at as u64;
        (
            Piece::readable(address, STATUS_AT),
            Piece::writable(address + STATUS_AT as u64, 1),
        )
    }

    fn submit_pieces(&mut self, slot: usize, pieces: &[Piece]) -> bool {
        let count = self.queues.iter().flatten().count();
        let number = self.next_queue % count.max(1);
        self.next_queue = number + 1;
        let Some(head) = self.queues[number]
            .as_mut()
            .and_then(|queue| queue.add(pieces))
        else {
            return false;
        };
        self.slots_of[number][usize::from(head)] = slot as u8;
        true
    }

    /// Tells the device of what was submitted.
    pub fn notify(&mut self) {
        self.queues.iter_mut().flatten().for_each(Queue::notify);
    }

    /// A request that has ended: its slot and its outcome.
    pub fn poll(&mut self) -> Option<(usize, Outcome)> {
        for (queue, slots_of) in self.queues.iter_mut().flatten().zip(&self.slots_of) {
            if let Some((head, _)) = queue.take_used() {
                let slot = usize::from(slots_of[usize::from(head)]);
                let status = self.slots.slice()[slot * SLOT_BYTES + STATUS_AT];
                return Some((slot, Outcome::of(status)));
            }
        }
        None
    }

    /// One request, waited for. Nothing else may be under way.
    pub fn run(
        &mut self,
        operation: Operation,
        sector: u64,
        data: Option<Piece>,
        platform: &Platform,
    ) -> Outcome {
        if !self.submit(0, operation, sector, data) {
            return Outcome::Silent;
        }
        self.wait(platform)
    }

    /// Notifies, and waits for one request.
    fn wait(&mut self, platform: &Platform) -> Outcome {
        self.notify();
        let deadline = platform.clock.deadline_ms(ANSWER_MS);
        loop {
            if let Some((_, outcome)) = self.poll() {
                return outcome;
            }
            if deadline.is_over() {
                return Outcome::Silent;
            }
        }
    }
}
