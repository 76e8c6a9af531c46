//! What a device tells its driver: queues with used entries, changed registers, the need of a reset.
//!
//! Shared by the device's thread, which tells, and vCPU threads, which say by which vectors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use crate::devices::pci::Msix;

/// No vector.
pub const NO_VECTOR: u16 = 0xffff;
const ISR_QUEUE: u8 = 1;
const ISR_CONFIGURATION: u8 = 2;

/// The ways to tell.
#[derive(Debug)]
pub struct Interrupts {
    msix: Arc<Msix>,
    configuration: AtomicU16,
    queues: Vec<AtomicU16>,
    status: AtomicU8,
    needs_reset: AtomicBool,
}

impl Interrupts {
    /// Of a device with so many queues; no vector yet.
    pub fn new(msix: Arc<Msix>, queues: usize) -> Self {
        Self {
            msix,
            configuration: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            status: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    /// Tells that a queue has used entries.
    pub fn queue(&self, queue: usize) {
        self.status.fetch_or(ISR_QUEUE, Ordering::SeqCst);
        if let Some(vector) = self.queues.get(queue) {
            self.msix.signal(vector.load(Ordering::SeqCst));
        }
    }

    /// Tells that the device's registers changed.
    pub fn configuration(&self) {
        self.status.fetch_or(ISR_CONFIGURATION, Ordering::SeqCst);
        self.msix.signal(self.configuration.load(Ordering::SeqCst));
    }

    /// Tells that the device does not go on until it is reset.
    pub fn need_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.configuration();
    }

    /// Whether the device waits for a reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// As after a reset.
    pub fn reset(&self) {
        self.needs_reset.store(false, Ordering::SeqCst);
        self.status.store(0, Ordering::SeqCst);
        for vector in self.queues.iter().chain([&self.configuration]) {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
    }

    /// Reads the interrupt status, which clears it (virtio 1.3, 4.1.4.5).
    pub fn take_status(&self) -> u8 {
        self.status.swap(0, Ordering::SeqCst)
    }

    /// The interrupt status, without clearing it.
    pub fn peek_status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    /// Puts back what was saved.
    pub fn set_status(&self, status: u8, needs_reset: bool) {
        self.status.store(status, Ordering::SeqCst);
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
    }

    /// The vector for the registers, or for a queue.
    pub fn vector(&self, queue: Option<usize>) -> u16 {
        self.slot(queue)
            .map_or(NO_VECTOR, |slot| slot.load(Ordering::SeqCst))
    }

    /// Chooses a vector; one that the table does not have becomes none (4.1.5.1.2).
    pub fn set_vector(&self, queue: Option<usize>, vector: u16) {
        let vector = if self.msix.has(vector) {
            vector
        } else {
            NO_VECTOR
        };
        if let Some(slot) = self.slot(queue) {
            slot.store(vector, Ordering::SeqCst);
        }
    }

    fn slot(&self, queue: Option<usize>) -> Option<&AtomicU16> {
        match queue {
            Some(queue) => self.queues.get(queue),
            None => Some(&self.configuration),
        }
    }
}
