//! How fast a disk is: random 4 KiB reads, one at a time and many at once, and 128 KiB reads in order.

use super::{ANSWER_MS, Disk, Operation, Outcome, SECTOR_BYTES, SLOTS, TRANSFER_BYTES};
use crate::bench::Bench;
use crate::clock;
use crate::fill::Random;
use crate::params::Params;
use crate::virtio::dma::Region;
use crate::virtio::queue::Piece;
use crate::virtio::{Fault, Platform};

const SMALL_BYTES: usize = 4096;
const BUFFERS_BYTES: usize = 1 << 20;

/// How it is read.
struct Plan {
    name: &'static str,
    depth: usize,
    block_bytes: usize,
    is_random: bool,
}

const PLANS: [Plan; 3] = [
    Plan {
        name: "random-1",
        depth: 1,
        block_bytes: SMALL_BYTES,
        is_random: true,
    },
    Plan {
        name: "random-32",
        depth: SLOTS,
        block_bytes: SMALL_BYTES,
        is_random: true,
    },
    Plan {
        name: "sequential-8",
        depth: BUFFERS_BYTES / TRANSFER_BYTES,
        block_bytes: TRANSFER_BYTES,
        is_random: false,
    },
];

/// Measures each way of reading for as long as the parameters say, and tells.
pub fn bench(disk: &mut Disk, params: &Params, platform: &mut Platform) -> Result<(), Fault> {
    let buffers = platform.arena.take(BUFFERS_BYTES).ok_or(Fault::Memory)?;
    let mut bench = Bench::new(platform.clock, &mut platform.arena)?;
    for plan in &PLANS {
        let mut run = Run {
            disk,
            plan,
            buffers: &buffers,
            random: Random::new(params.seed),
            next: 0,
            began: [0; SLOTS],
        };
        run.measure(params.orders.disk_bench_s, &mut bench, platform)?;
        bench.tell(format_args!("disk {} {}", disk.number, plan.name));
    }
    Ok(())
}

struct Run<'a> {
    disk: &'a mut Disk,
    plan: &'a Plan,
    buffers: &'a Region,
    random: Random,
    next: u64,
    began: [u64; SLOTS],
}

impl Run<'_> {
    fn submit(&mut self, slot: usize) -> bool {
        let bytes = self.plan.block_bytes;
        let blocks = (self.disk.sectors * SECTOR_BYTES / bytes as u64).max(1);
        let block = if self.plan.is_random {
            self.random.next() % blocks
        } else {
            self.next % blocks
        };
        self.next += 1;
        let address = self.buffers.address() + (slot * bytes) as u64;
        let sector = block * bytes as u64 / SECTOR_BYTES;
        self.began[slot] = clock::now();
        self.disk.submit(
            slot,
            Operation::Read,
            sector,
            Some(Piece::writable(address, bytes)),
        )
    }

    fn measure(
        &mut self,
        seconds: u64,
        bench: &mut Bench,
        platform: &Platform,
    ) -> Result<(), Fault> {
        bench.begin();
        let end = platform.clock.deadline_ms(seconds.saturating_mul(1000));
        let mut under_way = 0;
        for slot in 0..self.plan.depth {
            under_way += usize::from(self.submit(slot));
        }
        self.disk.notify();
        let mut patience = platform.clock.deadline_ms(ANSWER_MS);
        while under_way > 0 {
            let mut is_any_done = false;
            while let Some((slot, outcome)) = self.disk.poll() {
                is_any_done = true;
                if outcome == Outcome::Done {
                    bench.count(self.began[slot], self.plan.block_bytes as u64);
                }
                if end.is_over() || !self.submit(slot) {
                    under_way -= 1;
                }
            }
            if is_any_done {
                self.disk.notify();
                patience = platform.clock.deadline_ms(ANSWER_MS);
            } else if patience.is_over() {
                return Err(Fault::Silent);
            }
        }
        Ok(())
    }
}
