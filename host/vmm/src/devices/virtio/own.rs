//! The registers that are a device's own (virtio 1.3, 4.1.4.6): written by the device, some of them by the driver.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The registers of one device. The generation changes whenever the device changes them.
#[derive(Debug, Default)]
pub struct OwnRegisters {
    bytes: Mutex<Vec<u8>>,
    writable: Range<usize>,
    /// What a saved state puts back; the rest is as this process was told.
    kept: Range<usize>,
    generation: AtomicU8,
}

impl OwnRegisters {
    /// With these bytes, of which the driver may write a range.
    pub fn new(bytes: Vec<u8>, writable: Range<usize>) -> Self {
        Self {
            bytes: Mutex::new(bytes),
            kept: writable.clone(),
            writable,
            generation: AtomicU8::new(0),
        }
    }

    /// The same, but all of them go where the driver goes: what the device wrote since is nowhere else.
    pub fn travelling(self) -> Self {
        let kept = 0..self.lock().len();
        Self { kept, ..self }
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

    /// Puts back what was written, by the driver above all; answers whether the driver finds other registers than it
    /// knew.
    pub fn load(&self, saved: &[u8]) -> bool {
        let mut bytes = self.lock();
        let mut differs = false;
        for (at, (place, byte)) in bytes.iter_mut().zip(saved).enumerate() {
            if self.kept.contains(&at) {
                *place = *byte;
            }
            differs |= *place != *byte;
        }
        if differs {
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
        differs
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_brings_what_was_written_and_not_what_was_configured() {
        let there = OwnRegisters::new(vec![1, 2, 3, 4], 2..3);
        assert!(there.write(0, &[9; 4]));
        let here = OwnRegisters::new(vec![1, 7, 3, 4], 2..3);
        assert!(here.load(&there.all()));
        assert_eq!((here.all(), here.generation()), (vec![1, 7, 9, 4], 1));
        // Nothing that the driver does not know.
        let same = OwnRegisters::new(vec![1, 2, 3, 4], 2..3);
        assert!(!same.load(&there.all()));
        assert_eq!((same.all(), same.generation()), (vec![1, 2, 9, 4], 0));
        let all = OwnRegisters::new(vec![0; 4], 2..3).travelling();
        assert!(!all.load(&there.all()));
        assert_eq!(all.all(), there.all());
    }
}
