//! One verified transfer after the other, beside the guest's other work: nothing here waits.
//!
//! A block is read and compared with what was last written to it, then written anew. So a write that was lost, or went
//! elsewhere, is found at any later time, on any host.

use core::fmt::Write;

use super::{Disk, Operation, Outcome, SECTOR_BYTES};
use crate::clock::{self, Clock, Pace};
use crate::fill::Random;
use crate::params::Params;
use crate::pattern;
use crate::serial::Serial;
use crate::virtio::dma::Region;
use crate::virtio::queue::Piece;
use crate::virtio::{Fault, Platform};

const BLOCK_BYTES: usize = 16 << 10;
const BLOCKS_MAX: u64 = 4096;
const FLUSH_EVERY: u64 = 16;
const SLOT: usize = 0;

/// What is under way.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Idle,
    Reading { block: u64 },
    Writing { block: u64 },
    Flushing,
}

/// The transfers of one disk.
#[derive(Debug)]
pub struct Repeat {
    disk: Disk,
    clock: Clock,
    pace: Pace,
    random: Random,
    seed: u64,
    first_sector: u64,
    blocks: u64,
    /// Per block the number of the write that it holds, 0 for none.
    written: Region,
    buffer: Region,
    phase: Phase,
    began: u64,
    writes: u64,
    done: u64,
    bad: u64,
    errors: u64,
    slowest: u64,
}

impl Repeat {
    /// Takes the disk over.
    pub fn new(disk: Disk, params: &Params, platform: &mut Platform) -> Result<Self, Fault> {
        let orders = &params.orders;
        let first_sector = orders.disk_at_mib.saturating_mul((1 << 20) / SECTOR_BYTES);
        let room = disk.sectors.saturating_sub(first_sector) * SECTOR_BYTES;
        let bytes = orders.disk_mib.saturating_mul(1 << 20).min(room);
        let blocks = (bytes / BLOCK_BYTES as u64).min(BLOCKS_MAX);
        let arena = &mut platform.arena;
        Ok(Self {
            disk,
            clock: platform.clock,
            pace: Pace::new(orders.io_rate, platform.clock.ticks_per_s(), clock::now()),
            random: Random::new(params.seed),
            seed: params.seed,
            first_sector,
            blocks,
            written: arena.take(BLOCKS_MAX as usize * 8).ok_or(Fault::Memory)?,
            buffer: arena.take(BLOCK_BYTES).ok_or(Fault::Memory)?,
            phase: Phase::Idle,
            began: 0,
            writes: 0,
            done: 0,
            bad: 0,
            errors: 0,
            slowest: 0,
        })
    }

    /// Goes on if what is under way has ended, or begins something if it is time to.
    pub fn step(&mut self, now: u64) {
        if matches!(self.phase, Phase::Idle) {
            if self.blocks > 0 && self.pace.is_due(now) {
                let block = self.random.next() % self.blocks;
                match self.written_to(block) {
                    0 => self.write(block, now),
                    _ => self.read(block, now),
                }
            }
            return;
        }
        let Some((_, outcome)) = self.disk.poll() else {
            return;
        };
        self.done += 1;
        self.slowest = self.slowest.max(now.saturating_sub(self.began));
        if outcome != Outcome::Done {
            self.errors += 1;
        }
        match self.phase {
            Phase::Reading { block } => {
                if outcome == Outcome::Done && !self.is_as_written(block) {
                    self.bad += 1;
                    let _ = writeln!(
                        Serial,
                        "guest: disk {}: block {block} is not what was written",
                        self.disk.number
                    );
                }
                self.write(block, now);
            }
            Phase::Writing { block } => {
                // After an error nobody knows what the block holds.
                let holds = if outcome == Outcome::Done {
                    self.writes
                } else {
                    0
                };
                self.written.put(block as usize * 8, &holds.to_le_bytes());
                if self.writes.is_multiple_of(FLUSH_EVERY) {
                    self.submit(Phase::Flushing, Operation::Flush, 0, None, now);
                } else {
                    self.phase = Phase::Idle;
                }
            }
            Phase::Flushing | Phase::Idle => self.phase = Phase::Idle,
        }
    }

    fn written_to(&self, block: u64) -> u64 {
        let at = block as usize * 8;
        let mut word = [0; 8];
        word.copy_from_slice(&self.written.slice()[at..at + 8]);
        u64::from_le_bytes(word)
    }

    fn is_as_written(&self, block: u64) -> bool {
        let seed = self.seed.wrapping_add(self.written_to(block));
        pattern::differences(seed, block * BLOCK_BYTES as u64, self.buffer.slice()) == 0
    }

    fn read(&mut self, block: u64, now: u64) {
        self.buffer.slice_mut().fill(0);
        let data = Piece::writable(self.buffer.address(), BLOCK_BYTES);
        self.submit(
            Phase::Reading { block },
            Operation::Read,
            block,
            Some(data),
            now,
        );
    }

    fn write(&mut self, block: u64, now: u64) {
        self.writes += 1;
        let seed = self.seed.wrapping_add(self.writes);
        pattern::fill(seed, block * BLOCK_BYTES as u64, self.buffer.slice_mut());
        let data = Piece::readable(self.buffer.address(), BLOCK_BYTES);
        self.submit(
            Phase::Writing { block },
            Operation::Write,
            block,
            Some(data),
            now,
        );
    }

    fn submit(
        &mut self,
        phase: Phase,
        operation: Operation,
        block: u64,
        data: Option<Piece>,
        now: u64,
    ) {
        let sector = match data {
            Some(_) => self.first_sector + block * (BLOCK_BYTES as u64 / SECTOR_BYTES),
            None => 0,
        };
        self.phase = phase;
        self.began = now;
        if self.disk.submit(SLOT, operation, sector, data) {
            self.disk.notify();
        } else {
            self.errors += 1;
            self.phase = Phase::Idle;
        }
    }

    /// Tells what was done so far, and of a disk that has another length now.
    pub fn tell(&mut self) {
        let number = self.disk.number;
        let slow_us = self.clock.microseconds(self.slowest);
        let _ = writeln!(
            Serial,
            "guest: disk {number}: loop transfers {} bad {} errors {} slow_us {slow_us}",
            self.done, self.bad, self.errors
        );
        self.slowest = 0;
        let sectors = self.disk.current_sectors();
        if sectors != self.disk.sectors {
            self.disk.sectors = sectors;
            let _ = writeln!(Serial, "guest: disk {number}: resized sectors {sectors}");
        }
    }
}
