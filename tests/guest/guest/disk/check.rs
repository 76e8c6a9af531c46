//! Everything a disk can be asked for, once, with the outcome of each step; and reading what somebody else wrote.

use core::fmt::{Display, Write};

use super::{DISCARD, Disk, FLUSH, Operation, Outcome, SECTOR_BYTES, TRANSFER_BYTES, WRITE_ZEROES};
use crate::params::Params;
use crate::pattern;
use crate::serial::Serial;
use crate::virtio::dma::Region;
use crate::virtio::queue::Piece;
use crate::virtio::{Fault, Platform};

const MAX_DISCARD_SECTORS: u64 = 36;
const MAX_ZEROES_SECTORS: u64 = 48;
/// Lengths of the pieces of a request whose framing is odd but allowed (virtio 1.3, 2.7.4): a transfer of 4 KiB.
const ODD_PIECES: [usize; 5] = [1, 511, 1000, 2000, 584];

/// What a step showed.
enum Shown {
    Ended(Outcome),
    /// The content is not what it should be.
    Differs,
    /// The device does not offer it.
    Absent,
    /// Nothing was to be shown any more.
    Finished,
}

impl Display for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Ended(outcome) => outcome.fmt(f),
            Self::Differs => write!(f, "differs"),
            Self::Absent => write!(f, "absent"),
            Self::Finished => write!(f, "finished"),
        }
    }
}

/// A part of the disk, in bytes; whole sectors.
#[derive(Clone, Copy)]
struct Part {
    start: u64,
    bytes: u64,
}

impl Part {
    /// What the parameters name, as far as the disk goes.
    fn of(disk: &Disk, at_mib: u64, mib: u64) -> Self {
        let end = disk.sectors.saturating_mul(SECTOR_BYTES);
        let start = at_mib.saturating_mul(1 << 20).min(end);
        let bytes = mib.saturating_mul(1 << 20).min(end - start);
        Self { start, bytes }
    }

    /// One of its quarters, in whole sectors.
    fn quarter(self, number: u64) -> Self {
        let bytes = self.bytes / 4 / SECTOR_BYTES * SECTOR_BYTES;
        Self {
            start: self.start + number * bytes,
            bytes,
        }
    }

    /// Its transfers: start and length.
    fn transfers(self) -> impl Iterator<Item = (u64, usize)> {
        let step = TRANSFER_BYTES as u64;
        (0..self.bytes.div_ceil(step)).map(move |number| {
            let done = number * step;
            (self.start + done, (self.bytes - done).min(step) as usize)
        })
    }
}

struct Check<'a> {
    disk: &'a mut Disk,
    platform: &'a mut Platform,
    buffer: Region,
    seed: u64,
}

/// Does everything, and tells of every step.
pub fn check(disk: &mut Disk, params: &Params, platform: &mut Platform) -> Result<(), Fault> {
    let buffer = platform.arena.take(TRANSFER_BYTES).ok_or(Fault::Memory)?;
    let part = Part::of(disk, params.orders.disk_at_mib, params.orders.disk_mib);
    let mut check = Check {
        disk,
        platform,
        buffer,
        // Other than what `disk=read` expects, so that a write that was not done is noticed.
        seed: params.seed.wrapping_add(1),
    };
    check.write(part);
    if !check.disk.is_read_only() {
        check.content(part);
        check.discard(part.quarter(0));
        check.zeroes(part.quarter(1));
    }
    check.edges();
    check.tell("check", &Shown::Finished);
    Ok(())
}

impl Check<'_> {
    fn tell(&self, step: &str, shown: &Shown) {
        let _ = writeln!(Serial, "guest: disk {}: {step} {shown}", self.disk.number);
    }

    fn run(&mut self, operation: Operation, at: u64, data: Option<Piece>) -> Outcome {
        self.disk
            .run(operation, at / SECTOR_BYTES, data, self.platform)
    }

    fn read_into_buffer(&mut self, at: u64, bytes: usize) -> Outcome {
        self.buffer.slice_mut().fill(0x5a);
        let data = Piece::writable(self.buffer.address(), bytes);
        self.run(Operation::Read, at, Some(data))
    }

    fn write(&mut self, part: Part) {
        let mut outcome = Outcome::Done;
        for (at, bytes) in part.transfers() {
            pattern::fill(self.seed, at, &mut self.buffer.slice_mut()[..bytes]);
            let data = Piece::readable(self.buffer.address(), bytes);
            outcome = self.run(Operation::Write, at, Some(data));
            if outcome != Outcome::Done {
                break;
            }
        }
        self.tell("write", &Shown::Ended(outcome));
        let flushed = if self.disk.device.has(FLUSH) {
            Shown::Ended(self.run(Operation::Flush, 0, None))
        } else {
            Shown::Absent
        };
        self.tell("flush", &flushed);
    }

    fn content(&mut self, part: Part) {
        let mut shown = Shown::Ended(Outcome::Done);
        for (at, bytes) in part.transfers() {
            let outcome = self.read_into_buffer(at, bytes);
            if outcome != Outcome::Done {
                shown = Shown::Ended(outcome);
            } else if pattern::differences(self.seed, at, &self.buffer.slice()[..bytes]) > 0 {
                shown = Shown::Differs;
            }
        }
        self.tell("verify", &shown);
        let shown = self.oddly_framed(part);
        self.tell("frames", &shown);
    }

    /// Reads the first 4 KiB with a header in two pieces and data in pieces that end within sectors.
    fn oddly_framed(&mut self, part: Part) -> Shown {
        let total: usize = ODD_PIECES.iter().sum();
        if part.bytes < total as u64 {
            return Shown::Absent;
        }
        self.buffer.slice_mut()[..total].fill(0x5a);
        let sector = part.start / SECTOR_BYTES;
        let (header, status) = self.disk.fill_slot(0, Operation::Read, sector);
        let mut pieces = [status; ODD_PIECES.len() + 3];
        pieces[0] = Piece { bytes: 3, ..header };
        pieces[1] = Piece::readable(header.address + 3, header.bytes as usize - 3);
        let mut at = self.buffer.address();
        for (piece, bytes) in pieces[2..].iter_mut().zip(ODD_PIECES) {
            *piece = Piece::writable(at, bytes);
            at += bytes as u64;
        }
        if !self.disk.submit_pieces(0, &pieces) {
            return Shown::Absent;
        }
        match self.disk.wait(self.platform) {
            Outcome::Done => {
                let read = &self.buffer.slice()[..total];
                match pattern::differences(self.seed, part.start, read) {
                    0 => Shown::Ended(Outcome::Done),
                    _ => Shown::Differs,
                }
            }
            other => Shown::Ended(other),
        }
    }

    /// Discards or zeroes a part, as much of it as the device takes at once.
    fn give_up(&mut self, operation: Operation, part: Part, limit_at: u64) -> (Outcome, Part) {
        let limit = u64::from(self.disk.device.config32(limit_at));
        let sectors = (part.bytes / SECTOR_BYTES).min(limit);
        let segment = &mut self.buffer.slice_mut()[..16];
        segment[..8].copy_from_slice(&(part.start / SECTOR_BYTES).to_le_bytes());
        segment[8..12].copy_from_slice(&(sectors as u32).to_le_bytes());
        segment[12..].fill(0);
        let data = Piece::readable(self.buffer.address(), 16);
        let bytes = sectors * SECTOR_BYTES;
        (self.run(operation, 0, Some(data)), Part { bytes, ..part })
    }

    fn discard(&mut self, part: Part) {
        if !self.disk.device.has(DISCARD) {
            return self.tell("discard", &Shown::Absent);
        }
        let (mut outcome, done) = self.give_up(Operation::Discard, part, MAX_DISCARD_SECTORS);
        // What it holds now is the device's choice, but it must be readable.
        if let Some((at, bytes)) = done.transfers().next()
            && outcome == Outcome::Done
        {
            outcome = self.read_into_buffer(at, bytes);
        }
        self.tell("discard", &Shown::Ended(outcome));
    }

    fn zeroes(&mut self, part: Part) {
        if !self.disk.device.has(WRITE_ZEROES) {
            return self.tell("zeroes", &Shown::Absent);
        }
        let (outcome, done) = self.give_up(Operation::WriteZeroes, part, MAX_ZEROES_SECTORS);
        let mut shown = Shown::Ended(outcome);
        for (at, bytes) in done.transfers() {
            let outcome = self.read_into_buffer(at, bytes);
            if outcome != Outcome::Done {
                shown = Shown::Ended(outcome);
            } else if self.buffer.slice()[..bytes].iter().any(|byte| *byte != 0) {
                shown = Shown::Differs;
            }
        }
        self.tell("zeroes", &shown);
    }

    /// The last sector can be read, the one after it cannot, and an unknown request is refused.
    fn edges(&mut self) {
        let end = self.disk.sectors.saturating_mul(SECTOR_BYTES);
        let last = self.read_into_buffer(end.saturating_sub(SECTOR_BYTES), SECTOR_BYTES as usize);
        self.tell("last", &Shown::Ended(last));
        let beyond = self.read_into_buffer(end, SECTOR_BYTES as usize);
        self.tell("beyond", &Shown::Ended(beyond));
        let data = Piece::writable(self.buffer.address(), SECTOR_BYTES as usize);
        let nonsense = self.run(Operation::Nonsense, 0, Some(data));
        self.tell("nonsense", &Shown::Ended(nonsense));
    }
}

/// Reads a part that somebody filled with the pattern of the seed; tells its sum and what is wrong with it.
pub fn read(disk: &mut Disk, params: &Params, platform: &mut Platform) -> Result<(), Fault> {
    let orders = &params.orders;
    let mut buffer = platform.arena.take(TRANSFER_BYTES).ok_or(Fault::Memory)?;
    let part = Part::of(disk, orders.disk_at_mib, orders.disk_read_mib);
    let (mut sum, mut wrong, mut done) = (pattern::SUM_START, 0, 0);
    let mut outcome = Outcome::Done;
    for (at, bytes) in part.transfers() {
        let data = Piece::writable(buffer.address(), bytes);
        buffer.slice_mut().fill(0);
        outcome = disk.run(Operation::Read, at / SECTOR_BYTES, Some(data), platform);
        if outcome != Outcome::Done {
            break;
        }
        let read = &buffer.slice()[..bytes];
        sum = pattern::add_to_sum(sum, read);
        wrong += pattern::differences(params.seed, at, read);
        done += bytes;
    }
    let _ = writeln!(
        Serial,
        "guest: disk {}: read bytes {done} sum {sum:#x} wrong {wrong} outcome {outcome}",
        disk.number
    );
    Ok(())
}
