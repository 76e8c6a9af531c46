//! The smallest harmless request to each kind of device: whether it answers shows that it works.

use super::dma::{Arena, Region};
use super::queue::{Piece, Queue, SIZE_MAX};
use super::{Device, Fault, Platform};
use crate::kind::Kind;

/// Queues of a device that are set up.
pub const QUEUES_MAX: usize = 5;
const ANSWER_MS: u64 = 5000;
const RNG_BYTES: usize = 64;
const SECTOR_BYTES: usize = 512;
const DISK_HEADER_BYTES: usize = 16;
/// Header, and the shortest frame.
const NET_BYTES: usize = 12 + 60;
const VSOCK_BYTES: usize = 44;
const PAGE_BYTES: u64 = 4096;

/// A request in memory.
#[derive(Debug)]
pub struct Probe {
    /// The queue that takes it.
    pub queue: u16,
    pieces: [Piece; 3],
    count: usize,
    /// Where it lies: two pages.
    pub memory: Region,
}

impl Probe {
    /// The request for a kind of device.
    pub fn new(kind: Kind, arena: &mut Arena) -> Result<Self, Fault> {
        let mut memory = arena.take(2 * PAGE_BYTES as usize).ok_or(Fault::Memory)?;
        let address = memory.address();
        let (queue, pieces, count) = match kind {
            Kind::Rng => (0, [Piece::writable(address, RNG_BYTES); 3], 1),
            // Reads the first sector: type and sector are zero.
            Kind::Disk => {
                let header = Piece::readable(address, DISK_HEADER_BYTES);
                let data = Piece::writable(address + 512, SECTOR_BYTES);
                (0, [header, data, Piece::writable(address + 16, 1)], 3)
            }
            // A frame from nobody to nobody, of a protocol for experiments.
            Kind::Net => {
                memory.put(12 + 12, &[0x88, 0xb5]);
                (1, [Piece::readable(address, NET_BYTES); 3], 1)
            }
            // One page of our own, which loses its content.
            Kind::Balloon => {
                let page = (address / PAGE_BYTES + 1) as u32;
                for at in (0..PAGE_BYTES as usize).step_by(4) {
                    memory.put(at, &page.to_le_bytes());
                }
                (0, [Piece::readable(address, 4); 3], 1)
            }
            // From us to the host: a reset of a connection that never was.
            Kind::Vsock => {
                memory.put(8, &2_u64.to_le_bytes());
                memory.put(28, &[1, 0, 3, 0]);
                (1, [Piece::readable(address, VSOCK_BYTES); 3], 1)
            }
        };
        Ok(Self {
            queue,
            pieces,
            count,
            memory,
        })
    }

    /// What it is made of.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces[..self.count]
    }

    /// Makes the request and waits for its end.
    pub fn run(&self, queue: &mut Queue, platform: &Platform) -> Result<(), Fault> {
        queue.add(self.pieces());
        queue.notify();
        let deadline = platform.clock.deadline_ms(ANSWER_MS);
        while queue.take_used().is_none() {
            if deadline.is_over() {
                return Err(Fault::Silent);
            }
        }
        Ok(())
    }
}

/// Every queue of a device.
pub type Queues = [Option<Queue>; QUEUES_MAX];

/// Makes all queues of a device that is reset and agreed with.
pub fn queues(device: &mut Device, platform: &mut Platform) -> Result<Queues, Fault> {
    let mut queues = [const { None }; QUEUES_MAX];
    let count = usize::from(device.queues()).min(QUEUES_MAX);
    for (number, queue) in queues.iter_mut().take(count).enumerate() {
        *queue = Some(device.queue(number as u16, SIZE_MAX, platform)?);
    }
    Ok(queues)
}
