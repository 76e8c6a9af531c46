//! A disk (virtio 1.3, 5.2).
//!
//! One request at a time, in the order of the queue: what is given back is done. A request that the disk refuses fails
//! with an I/O error for the guest, and is counted; one that makes no sense is unsupported; one without room for its
//! status breaks the specification.

mod disk;
mod qcow2;
mod raw;
mod request;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dwcp_memory::GuestMemory;

pub use disk::{Disk, DiskError};
pub use qcow2::ChainDisk;
pub use raw::RawDisk;
use request::{Kind as RequestKind, Range, Request, SECTOR_BYTES, Status};

use super::limit::Limits;
use super::{Backend, Broken, Chain, Counters, Kind, OwnRegisters, Rules, Running, queue};
use crate::config::DiskLimits;

const QUEUE_SIZE: u16 = 256;
/// A request is a header, data and a status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes of one discard or write of zeros.
const CLEAR_BYTES_MAX: u64 = 256 << 20;
/// Most bytes of one request: no more than a slow disk moves in a few seconds.
const REQUEST_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of one piece of a request, so that no request of as many pieces as there may be is too long.
const SEGMENT_BYTES_MAX: u32 = 256 << 10;
const _: () = assert!(SEGMENT_BYTES_MAX as u64 * (SEGMENTS_MAX as u64 + 2) <= REQUEST_BYTES_MAX);
/// How long a queue is served before something else is heard.
const TURN: Duration = Duration::from_millis(20);

const FEATURE_SEGMENT_BYTES: u64 = 1 << 1;
const FEATURE_SEGMENTS: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_BLOCK_SIZE: u64 = 1 << 6;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_QUEUES: u64 = 1 << 12;
const FEATURE_DISCARD: u64 = 1 << 13;
const FEATURE_ZEROES: u64 = 1 << 14;

/// The device.
pub struct Block {
    disk: Box<dyn Disk>,
    id: [u8; 20],
    is_read_only: bool,
    queues: u16,
    registers: Arc<OwnRegisters>,
    counters: Arc<Counters>,
    limits: Limits,
    /// Queues that wait for a limit.
    waits: u64,
    /// A flush failed that the guest had not asked for.
    has_lost: bool,
}

impl Block {
    /// A disk that the guest knows by `id`, at most 20 bytes of it.
    pub fn new(
        disk: Box<dyn Disk>,
        id: &str,
        is_read_only: bool,
        queues: u16,
        limits: DiskLimits,
    ) -> Self {
        let mut padded = [0; 20];
        for (place, byte) in padded.iter_mut().zip(id.bytes()) {
            *place = byte;
        }
        Self {
            registers: Arc::new(OwnRegisters::new(
                registers(disk.bytes() / SECTOR_BYTES, queues),
                0..0,
            )),
            disk,
            id: padded,
            is_read_only,
            queues,
            counters: Arc::default(),
            limits: Limits::new(limits.operations_per_second, limits.bytes_per_second),
            waits: 0,
            has_lost: false,
        }
    }

    /// For the guest, which is told as well of what was lost before.
    fn flush(&mut self) -> Result<(), DiskError> {
        let flushed = self.disk.flush();
        if std::mem::take(&mut self.has_lost) {
            return flushed.and(Err(DiskError::lost()));
        }
        flushed
    }

    fn answer(
        &mut self,
        memory: &GuestMemory,
        chain: &Chain,
        writes_through: bool,
    ) -> Result<u32, Broken> {
        let request = Request::parse(memory, chain)?;
        let carried_out = if length(chain) > REQUEST_BYTES_MAX {
            Err(DiskError::outside())
        } else {
            self.carry_out(memory, &request, writes_through)
        };
        let (status, written) = match carried_out {
            Ok(written) => (Status::Done, written),
            Err(DiskError::Unsupported) => (Status::Unsupported, 0),
            Err(DiskError::Failed(_)) => (Status::Failed, 0),
        };
        if status != Status::Done {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        self.counters.operations.fetch_add(1, Ordering::Relaxed);
        queue::scatter(memory, &[request.status], &[status as u8])?;
        Ok(written.saturating_add(1))
    }

    /// Answers how many bytes the guest got.
    fn carry_out(
        &mut self,
        memory: &GuestMemory,
        request: &Request,
        writes_through: bool,
    ) -> Result<u32, DiskError> {
        let changes = !matches!(
            request.kind,
            RequestKind::Read | RequestKind::Flush | RequestKind::Id
        );
        if changes && self.is_read_only {
            return Err(DiskError::read_only());
        }
        let size = self.disk.bytes();
        match request.kind {
            RequestKind::Read => {
                let bytes = queue::length(&request.writable);
                let at = Range::of_data(request.sector, bytes, size)?;
                self.disk.read(memory, at.start, &request.writable)?;
                self.counters
                    .written_bytes
                    .fetch_add(bytes, Ordering::Relaxed);
                Ok(u32::try_from(bytes).unwrap_or(u32::MAX))
            }
            RequestKind::Write => {
                let bytes = queue::length(&request.readable);
                let at = Range::of_data(request.sector, bytes, size)?;
                self.disk.write(memory, at.start, &request.readable)?;
                self.counters.read_bytes.fetch_add(bytes, Ordering::Relaxed);
                if writes_through {
                    self.flush()?;
                }
                Ok(0)
            }
            RequestKind::Flush => self.flush().map(|()| 0),
            RequestKind::Id => {
                let count = queue::scatter(memory, &request.writable, &self.id);
                count.map_err(|_| DiskError::Unsupported)
            }
            RequestKind::Discard | RequestKind::Zeroes => {
                let range = request.cleared(memory, size, CLEAR_BYTES_MAX)?;
                // Paid for afterwards: how much it is stands inside the request.
                self.limits.pay_bytes(range.bytes);
                if request.kind == RequestKind::Discard {
                    self.disk.discard(range.start, range.bytes)?;
                } else {
                    self.disk.zero(range.start, range.bytes, range.may_unmap)?;
                }
                if writes_through {
                    self.flush()?;
                }
                Ok(0)
            }
            RequestKind::Unknown => Err(DiskError::Unsupported),
        }
    }
}

impl Backend for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let writable = FEATURE_DISCARD | FEATURE_ZEROES;
        let pieces = FEATURE_SEGMENT_BYTES | FEATURE_SEGMENTS;
        let common = pieces | FEATURE_BLOCK_SIZE | FEATURE_FLUSH;
        let kind = if self.is_read_only {
            FEATURE_READ_ONLY
        } else {
            writable
        };
        let queues = if self.queues > 1 { FEATURE_QUEUES } else { 0 };
        common | kind | queues
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn registers(&self) -> Arc<OwnRegisters> {
        Arc::clone(&self.registers)
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn rules(&self) -> Rules {
        self.disk.rules()
    }

    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), Broken> {
        let writes_through = !running.has(FEATURE_FLUSH);
        let until = Instant::now() + TURN;
        while Instant::now() < until {
            let Some(chain) = running.pop(queue)? else {
                if running.listen(queue)? {
                    running.again(queue);
                }
                return running.tell(queue);
            };
            // What is longer is not moved.
            let bytes = length(&chain).min(REQUEST_BYTES_MAX);
            if !self.limits.allow(bytes) {
                running.put_back(queue);
                self.waits |= 1 << queue;
                return running.tell(queue);
            }
            self.limits.pay(bytes);
            let written = self.answer(running.memory(), &chain, writes_through)?;
            running.push(queue, chain.head, written)?;
        }
        running.again(queue);
        running.tell(queue)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.is_read_only {
            return Ok(());
        }
        let flushed = self.disk.flush();
        // The kernel tells of what it lost only once, and the guest has to know.
        self.has_lost |= flushed.is_err();
        Ok(flushed?)
    }

    fn wakes_at(&self) -> Option<Instant> {
        self.limits.waits_until()
    }

    fn wake(&mut self, running: &mut Running) -> Result<(), Broken> {
        if !self.limits.is_over(Instant::now()) {
            return Ok(());
        }
        let waits = std::mem::take(&mut self.waits);
        for queue in (0..usize::from(self.queues)).filter(|queue| waits & 1 << queue != 0) {
            running.again(queue);
        }
        Ok(())
    }

    fn resize(&mut self, bytes: u64) -> io::Result<bool> {
        let before = self.disk.bytes();
        if bytes < before || !bytes.is_multiple_of(SECTOR_BYTES) || self.is_read_only {
            let why =
                format!("it has {before} bytes, and can only be made longer, by whole sectors");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.disk.resize(bytes)?;
        let sectors = self.disk.bytes() / SECTOR_BYTES;
        self.registers.set(0, &sectors.to_le_bytes());
        Ok(before != self.disk.bytes())
    }

    fn reset(&mut self) {
        self.waits = 0;
        self.limits.forget_wait();
    }
}

/// How many bytes a request has, both ways.
fn length(chain: &Chain) -> u64 {
    chain.readable_bytes() + chain.writable_bytes()
}

/// The device's registers (virtio 1.3, 5.2.4).
fn registers(sectors: u64, queues: u16) -> Vec<u8> {
    let clear_sectors = (CLEAR_BYTES_MAX / SECTOR_BYTES) as u32;
    let mut bytes = vec![0; 60];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &sectors.to_le_bytes());
    put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &(SECTOR_BYTES as u32).to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &clear_sectors.to_le_bytes());
    put(40, &1u32.to_le_bytes()); // one range in a discard
    put(44, &8u32.to_le_bytes()); // 4 KiB, of which files are made
    put(48, &clear_sectors.to_le_bytes());
    put(52, &1u32.to_le_bytes());
    put(56, &[1]); // zeros may be holes
    bytes
}

#[cfg(test)]
mod tests;
