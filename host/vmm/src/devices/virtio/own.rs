//! The registers that are a device's own (virtio 1.3, 4.1.4.6): written by the device, some of them by the driver.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The registers of one device. The generation changes whenever the device changes them.
#[derive(Debug, Default)]
pub struct OwnRegisters {
    bytes: Mutex<Vec<u8>>,
    writable: Range<usize>,
    generation: AtomicU8,
}

impl OwnRegisters {
    /// With these bytes, of which the driver may write a range.
    pub fn new(bytes: Vec<u8>, writable: Range<usize>) -> Self {
        Self {
            bytes: Mutex::new(bytes),
            writable,
            generation: AtomicU8::new(0),
        }
    }

    /// The device changes them.
    pub fn set(&self, offset: usize, value: &[u8]) {
        let mut bytes = self.lock();
        if let Some(place) = bytes.get_mut(offset..offset + value.len()) {
            place.copy_from_slice(value);
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The driver reads; zeros where there is nothing.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let bytes = self.lock();
        for (at, byte) in (offset..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// The driver writes; answers whether it changed anything.
    pub fn write(&self, offset: usize, data: &[u8]) -> bool {
        let mut bytes = self.lock();
        let mut changed = false;
        for (at, byte) in (offset..).zip(data) {
            if self.writable.contains(&at)
                && let Some(place) = bytes.get_mut(at)
            {
                changed |= *place != *byte;
                *place = *byte;
            }
        }
        changed
    }

    /// Changes whenever the device changes them.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    /// All of them.
    pub fn all(&self) -> Vec<u8> {
        self.lock().clone()
    }

    /// Puts back what was saved, as far as it fits.
    pub fn load(&self, saved: &[u8]) {
        let mut bytes = self.lock();
        for (place, byte) in bytes.iter_mut().zip(saved) {
            *place = *byte;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
