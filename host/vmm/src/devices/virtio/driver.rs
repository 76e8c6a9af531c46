//! The driver of one queue, as tests play it: well-behaved, unless a test writes into its memory.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dwcp_memory::vm_memory::{Bytes, GuestAddress};
use dwcp_memory::{GuestMemory, GuestRange, MemorySize, create_memory};

use super::registers::{Offer, Registers};
use super::{Backend, Broken, Interrupts, QueueState, Running};
use crate::devices::pci::{Deliver, Msix};
use crate::kvm::Message;

/// Memory of a guest with nothing in it.
pub fn memory(bytes: u64) -> Arc<GuestMemory> {
    let size = MemorySize::new(bytes).unwrap();
    Arc::new(GuestMemory::map(create_memory(size).unwrap(), size).unwrap())
}

/// One piece of what a driver asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where, and how long.
    pub range: GuestRange,
    /// Whether the device may write it, or else read it.
    pub is_writable: bool,
}

/// A piece that the device may read.
pub fn readable(start: u64, bytes: u32) -> Piece {
    piece(start, bytes, false)
}

/// A piece that the device may write.
pub fn writable(start: u64, bytes: u32) -> Piece {
    piece(start, bytes, true)
}

fn piece(start: u64, bytes: u32, is_writable: bool) -> Piece {
    let start = GuestAddress(start);
    Piece {
        range: GuestRange { start, bytes },
        is_writable,
    }
}

/// The driver's side of a queue.
#[derive(Debug)]
pub struct Driver {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// Where the queue is; the device's numbers in it are those of the beginning.
    pub state: QueueState,
    free: Vec<u16>,
    /// Descriptors of each entry that the device has, by its head.
    held: Vec<(u16, Vec<u16>)>,
    /// Next entry of the available ring.
    pub available: u16,
    /// Next entry of the used ring.
    pub used: u16,
}

/// Where a queue of up to 256 entries ends that begins at 0.
pub const QUEUE_BYTES: u64 = 0x4000;
const DRIVER_OFFSET: u64 = 0x1000;
const DEVICE_OFFSET: u64 = 0x1800;
/// Indirect tables of 16 entries each, one a descriptor.
const TABLES_OFFSET: u64 = 0x2200;
const TABLE_BYTES: u64 = 256;

impl Driver {
    /// A queue of `size` entries from `start` on, at most 16 if there are to be indirect tables, whose indices begin
    /// at `index`.
    pub fn new(memory: &Arc<GuestMemory>, start: u64, size: u16, index: u16) -> Self {
        let state = QueueState {
            size,
            enabled: true,
            descriptors: start,
            driver: start + DRIVER_OFFSET,
            device: start + DEVICE_OFFSET,
            next_available: index,
            next_used: index,
        };
        let driver = Self {
            memory: Arc::clone(memory),
            state,
            free: (0..size).rev().collect(),
            held: Vec::new(),
            available: index,
            used: index,
        };
        driver.put(state.driver + 2, index);
        driver.put(state.device + 2, index);
        driver
    }

    /// Writes a number.
    pub fn put(&self, at: u64, value: u16) {
        let at = GuestAddress(at);
        let ram = self.memory.ram();
        ram.store(value.to_le(), at, Ordering::SeqCst).unwrap();
    }

    /// Reads one.
    pub fn get(&self, at: u64) -> u16 {
        let at = GuestAddress(at);
        let value: u16 = self.memory.ram().load(at, Ordering::SeqCst).unwrap();
        u16::from_le(value)
    }

    /// Writes a descriptor into a table.
    pub fn describe(&self, table: u64, at: u16, piece: Piece, flags: u16, next: u16) {
        let number = u128::from(piece.range.start.0)
            | u128::from(piece.range.bytes) << 64
            | u128::from(flags | u16::from(piece.is_writable) << 1) << 96
            | u128::from(next) << 112;
        let at = GuestAddress(table + 16 * u64::from(at));
        let bytes = number.to_le_bytes();
        self.memory.ram().write_slice(&bytes, at).unwrap();
    }

    /// Makes a head available, whatever it names.
    pub fn offer(&mut self, head: u16) {
        let at = u64::from(self.available % self.state.size);
        self.put(self.state.driver + 4 + 2 * at, head);
        self.available = self.available.wrapping_add(1);
        self.put(self.state.driver + 2, self.available);
    }

    /// Asks something of the device, if there is room; answers under which head.
    pub fn add(&mut self, pieces: &[Piece]) -> Option<u16> {
        if pieces.is_empty() || pieces.len() > self.free.len() {
            return None;
        }
        let left = self.free.len() - pieces.len();
        let numbers = self.free.split_off(left);
        for (n, piece) in pieces.iter().enumerate() {
            let next = numbers.get(n + 1).copied();
            let flags = u16::from(next.is_some());
            let table = self.state.descriptors;
            self.describe(table, numbers[n], *piece, flags, next.unwrap_or(0));
        }
        let head = numbers[0];
        self.held.push((head, numbers));
        self.offer(head);
        Some(head)
    }

    /// The same by an indirect table, of at most 16 pieces, the first `direct` of them before the table.
    pub fn add_indirect(&mut self, pieces: &[Piece], direct: usize) -> Option<u16> {
        let (before, inside) = pieces.split_at_checked(direct)?;
        if inside.is_empty() || before.len() >= self.free.len() {
            return None;
        }
        let left = self.free.len() - before.len() - 1;
        let numbers = self.free.split_off(left);
        let last = numbers[before.len()];
        let table = self.state.descriptors + TABLES_OFFSET + TABLE_BYTES * u64::from(last);
        for (n, piece) in (0u16..).zip(inside) {
            let more = usize::from(n) + 1 < inside.len();
            self.describe(table, n, *piece, u16::from(more), n + 1);
        }
        for (n, piece) in before.iter().enumerate() {
            self.describe(
                self.state.descriptors,
                numbers[n],
                *piece,
                1,
                numbers[n + 1],
            );
        }
        let whole = readable(table, 16 * inside.len() as u32);
        self.describe(self.state.descriptors, last, whole, 4, 0);
        let head = numbers[0];
        self.held.push((head, numbers));
        self.offer(head);
        Some(head)
    }

    /// What the device gave back since: head, and how much it wrote.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if self.get(self.state.device + 2) == self.used {
            return None;
        }
        let at = u64::from(self.used % self.state.size);
        let at = GuestAddress(self.state.device + 4 + 8 * at);
        let element: u64 = self.memory.ram().read_obj(at).unwrap();
        self.used = self.used.wrapping_add(1);
        let head = element as u16;
        let held = self.held.iter().position(|(other, _)| *other == head);
        let (_, numbers) = self
            .held
            .swap_remove(held.expect("the device gives back what it has"));
        self.free.extend(numbers);
        Some((head, (element >> 32) as u32))
    }

    /// Where the first piece of an entry is.
    pub fn start_of(&self, head: u16) -> u64 {
        let at = GuestAddress(self.state.descriptors + 16 * u64::from(head));
        self.memory.ram().read_obj(at).unwrap()
    }

    /// Writes bytes somewhere.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let at = GuestAddress(at);
        self.memory.ram().write_slice(bytes, at).unwrap();
    }

    /// Reads bytes from somewhere.
    pub fn read(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        let at = GuestAddress(at);
        self.memory.ram().read_slice(&mut buffer, at).unwrap();
        buffer
    }
}

/// A device whose driver is ready.
#[derive(Debug)]
pub struct Started<B> {
    /// The device.
    pub backend: B,
    /// What it has.
    pub running: Running,
    /// What it told its driver.
    pub told: Arc<Told>,
}

/// Counts interrupts.
#[derive(Debug, Default)]
pub struct Told(std::sync::atomic::AtomicUsize);

impl Told {
    /// How many since this was asked last.
    pub fn take(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl Deliver for Told {
    fn deliver(&self, _message: Message) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Starts a device as a driver would, with those of its features that `features` has; answers the drivers of its
/// queues, of 64 entries, one after another from address 0 on.
pub fn start<B: Backend>(
    mut backend: B,
    memory: &Arc<GuestMemory>,
    features: u64,
) -> (Started<B>, Vec<Driver>) {
    let offer = Offer::of(&backend);
    let count = offer.queues.len();
    let drivers: Vec<_> = (0..count as u64)
        .map(|queue| Driver::new(memory, queue * QUEUE_BYTES, 64, 0))
        .collect();
    let told = Arc::new(Told::default());
    let msix = Msix::new(Arc::clone(&told) as _, count as u16 + 1);
    for vector in 0..=count {
        msix.write_table(vector * 16 + 12, &[0; 4]);
    }
    msix.set_control(1 << 15);
    let interrupts = Interrupts::new(Arc::new(msix), count);
    for queue in 0..count {
        interrupts.set_vector(Some(queue), queue as u16);
    }
    interrupts.set_vector(None, count as u16);
    let mut registers = Registers::new(&offer);
    // Without the event index and indirect tables, unless a test has a use for them.
    registers.driver_features = offer.features & features & !(3 << 28);
    registers.queues = drivers.iter().map(|driver| driver.state).collect();
    let interrupts = Arc::new(interrupts);
    let mut running = Running::open(&registers, &offer, Arc::clone(memory), interrupts).unwrap();
    backend.begin(&mut running).unwrap();
    let started = Started {
        backend,
        running,
        told,
    };
    (started, drivers)
}

impl<B: Backend> Started<B> {
    /// The driver kicks a queue; the device goes on until it has nothing more to do.
    pub fn serve(&mut self, queue: usize) -> Result<(), Broken> {
        self.backend.serve(queue, &mut self.running)?;
        self.go_on()
    }

    /// What the device watches is looked at.
    pub fn look(&mut self) -> Result<(), Broken> {
        self.backend.ready(&mut self.running)?;
        self.go_on()
    }

    fn go_on(&mut self) -> Result<(), Broken> {
        loop {
            let again = self.running.take_again();
            if again == 0 {
                return Ok(());
            }
            for queue in (0..64).filter(|queue| again & 1 << queue != 0) {
                self.backend.serve(queue, &mut self.running)?;
            }
        }
    }
}
