//! The memory balloon (virtio 1.3, 5.5): gives spare pages to the host as it asks, and tells it of those that are free.
//!
//! Only pages that nothing else uses are given or reported. One request is under way at a time.

use core::fmt::Write;
use core::ops::Range;

use crate::clock::{self, Clock, Pace};
use crate::serial::Serial;
use crate::virtio::dma::Region;
use crate::virtio::pci::Function;
use crate::virtio::queue::{Piece, Queue};
use crate::virtio::{Device, Fault, Platform};

const MUST_TELL_HOST: u64 = 1 << 0;
const STATS: u64 = 1 << 1;
const FREE_PAGE_HINT: u64 = 1 << 3;
const REPORTING: u64 = 1 << 5;

const NUM_PAGES: u64 = 0;
const ACTUAL: u64 = 4;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;

const PAGE_BYTES: u64 = 4096;
/// Pages of one request.
const LIST_PAGES: u64 = 256;
/// What is reported is whole blocks, as Linux does it.
const BLOCK_BYTES: u64 = 2 << 20;
const BLOCKS_PER_REPORT: usize = 16;
const ANSWER_MS: u64 = 10_000;
const LOOKS_PER_S: u64 = 20;
const STAT_BYTES: usize = 20;
const MEMORY_FREE: u16 = 4;
const MEMORY_TOTAL: u16 = 5;

/// What is under way.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Idle,
    Inflating(u64),
    Deflating(u64),
}

/// A balloon in use.
#[derive(Debug)]
pub struct Balloon {
    number: usize,
    device: Device,
    inflate: Queue,
    deflate: Queue,
    report: Option<Queue>,
    statistics: Option<(Queue, Region)>,
    list: Region,
    spare: Range<u64>,
    pace: Pace,
    phase: Phase,
    /// Pages that the host has, from the start of the spare ones on.
    given: u64,
    told: (u32, u64),
}

impl Balloon {
    /// Sets the device up and tells of it.
    pub fn open(
        number: usize,
        function: Function,
        spare: Range<u64>,
        platform: &mut Platform,
    ) -> Result<Self, Fault> {
        let mut device = Device::open(function, platform)?;
        let hints = device.offered() & FREE_PAGE_HINT;
        device.agree(MUST_TELL_HOST | STATS | REPORTING, platform)?;
        let size = LIST_PAGES as u16;
        let inflate = device.queue(INFLATE, size, platform)?;
        let deflate = device.queue(DEFLATE, size, platform)?;
        let statistics = if device.has(STATS) {
            let memory = platform.arena.take(STAT_BYTES).ok_or(Fault::Memory)?;
            Some((device.queue(STATISTICS, size, platform)?, memory))
        } else {
            None
        };
        let report = if device.has(REPORTING) {
            let place = report_place(&device, hints != 0);
            Some(device.queue(place, size, platform)?)
        } else {
            None
        };
        device.begin();
        let list = platform.arena.take(LIST_PAGES as usize * 4);
        let hz = platform.clock.ticks_per_s();
        let mut balloon = Self {
            number,
            device,
            inflate,
            deflate,
            report,
            statistics,
            list: list.ok_or(Fault::Memory)?,
            spare,
            pace: Pace::new(LOOKS_PER_S, hz, clock::now()),
            phase: Phase::Idle,
            given: 0,
            told: (0, 0),
        };
        balloon.offer_statistics();
        let _ = writeln!(
            Serial,
            "guest: balloon {number}: features {:#x} spare {}",
            balloon.device.features(),
            balloon.pages()
        );
        Ok(balloon)
    }

    /// Pages that could be given.
    fn pages(&self) -> u64 {
        (self.spare.end - self.spare.start) / PAGE_BYTES
    }

    /// Writes to every spare page, reports all of them, and writes to each block again.
    pub fn report(&mut self, clock: Clock) -> Result<(), Fault> {
        let number = self.number;
        touch(self.spare.clone().step_by(PAGE_BYTES as usize));
        let _ = writeln!(Serial, "guest: balloon {number}: touched {}", self.pages());
        let Some(queue) = self.report.as_mut() else {
            let _ = writeln!(Serial, "guest: balloon {number}: reporting absent");
            return Ok(());
        };
        let start = self.spare.start.next_multiple_of(BLOCK_BYTES);
        let blocks = self.spare.end.saturating_sub(start) / BLOCK_BYTES;
        let mut done = 0;
        while done < blocks {
            let mut pieces = [Piece::writable(0, BLOCK_BYTES as usize); BLOCKS_PER_REPORT];
            let count = (blocks - done).min(BLOCKS_PER_REPORT as u64);
            for (number, piece) in (done..).zip(&mut pieces) {
                piece.address = start + number * BLOCK_BYTES;
            }
            queue.add(&pieces[..count as usize]);
            queue.notify();
            let deadline = clock.deadline_ms(ANSWER_MS);
            while queue.take_used().is_none() {
                if deadline.is_over() {
                    return Err(Fault::Silent);
                }
            }
            done += count;
        }
        let pages = blocks * (BLOCK_BYTES / PAGE_BYTES);
        let _ = writeln!(Serial, "guest: balloon {number}: reported {pages}");
        touch((start..start + blocks * BLOCK_BYTES).step_by(BLOCK_BYTES as usize));
        Ok(())
    }

    /// Goes on if what is under way has ended, or looks what the host wants if it is time to.
    pub fn step(&mut self, now: u64) {
        match self.phase {
            Phase::Idle => {
                if self.pace.is_due(now) {
                    self.follow();
                }
            }
            Phase::Inflating(pages) => {
                if self.inflate.take_used().is_some() {
                    self.settle(self.given + pages);
                }
            }
            Phase::Deflating(pages) => {
                if self.deflate.take_used().is_some() {
                    let left = self.given - pages;
                    touch((left..self.given).map(|page| self.spare.start + page * PAGE_BYTES));
                    self.settle(left);
                }
            }
        }
        if let Some((queue, _)) = &mut self.statistics
            && queue.take_used().is_some()
        {
            self.offer_statistics();
        }
    }

    /// Begins to give or to take back pages, if the host wants another number of them.
    fn follow(&mut self) {
        let wanted = u64::from(self.device.config32(NUM_PAGES)).min(self.pages());
        let (from, pages) = if wanted > self.given {
            (self.given, (wanted - self.given).min(LIST_PAGES))
        } else {
            let pages = (self.given - wanted).min(LIST_PAGES);
            (self.given - pages, pages)
        };
        if pages == 0 {
            return;
        }
        for (place, page) in (from..from + pages).enumerate() {
            let frame = (self.spare.start / PAGE_BYTES + page) as u32;
            self.list.put(place * 4, &frame.to_le_bytes());
        }
        let piece = Piece::readable(self.list.address(), pages as usize * 4);
        let (queue, phase) = if wanted > self.given {
            (&mut self.inflate, Phase::Inflating(pages))
        } else {
            (&mut self.deflate, Phase::Deflating(pages))
        };
        if queue.add(&[piece]).is_some() {
            queue.notify();
            self.phase = phase;
        }
    }

    fn settle(&mut self, given: u64) {
        self.given = given;
        self.device.set_config32(ACTUAL, given as u32);
        self.phase = Phase::Idle;
        self.follow();
    }

    fn offer_statistics(&mut self) {
        let (pages, given) = (self.pages(), self.given);
        let Some((queue, memory)) = &mut self.statistics else {
            return;
        };
        let values = [(MEMORY_FREE, pages - given), (MEMORY_TOTAL, pages)];
        for (place, (tag, pages)) in values.into_iter().enumerate() {
            memory.put(place * 10, &tag.to_le_bytes());
            memory.put(place * 10 + 2, &(pages * PAGE_BYTES).to_le_bytes());
        }
        queue.add(&[Piece::readable(memory.address(), STAT_BYTES)]);
        queue.notify();
    }

    /// Tells of it if something has changed.
    pub fn tell(&mut self) {
        let now = (self.device.config32(NUM_PAGES), self.given);
        if now != self.told {
            self.told = now;
            let _ = writeln!(
                Serial,
                "guest: balloon {}: follow target {} actual {}",
                self.number, now.0, now.1
            );
        }
    }
}

/// Where the reporting queue is: virtio says 4, while QEMU and Linux leave out the queues of what is not offered.
fn report_place(device: &Device, has_hints: bool) -> u16 {
    let compact = 2 + u16::from(device.has(STATS)) + u16::from(has_hints);
    if device.queues() > compact + 1 {
        4
    } else {
        compact
    }
}

/// Writes to a word of each page, which must be spare.
fn touch(addresses: impl Iterator<Item = u64>) {
    for address in addresses {
        // SAFETY: a page of RAM that nobody uses.
        unsafe { (address as *mut u64).write_volatile(address) };
    }
}
