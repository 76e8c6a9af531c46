//! Which life of the machine this is: 16 bytes in the guest's memory, and an interrupt when they have changed
//! (Virtual Machine Generation ID, Microsoft 2012; Linux, drivers/virt/vmgenid.c).
//!
//! A guest that finds another number than before has been restored or forked, and renews what must not be used twice,
//! its entropy first. The bytes lie where the guest is told that there is no RAM; one that writes there harms itself.

use std::sync::{Arc, Mutex, PoisonError};

use dwcp_memory::GuestMemory;
use dwcp_memory::vm_memory::{Bytes, GuestMemoryError};

use super::IrqLine;
use crate::boot::GENERATION;
use crate::config::Generation;

/// The number, and how the guest learns of another one.
#[derive(Debug)]
pub struct GenerationId {
    value: Mutex<Generation>,
    memory: Arc<GuestMemory>,
    line: IrqLine,
}

impl GenerationId {
    /// Nothing is in memory yet; `line` is edge-triggered.
    pub fn new(memory: Arc<GuestMemory>, line: IrqLine) -> Self {
        Self {
            value: Mutex::default(),
            memory,
            line,
        }
    }

    /// Puts the first number in place, before the guest runs.
    pub fn begin(&self, value: Generation) -> Result<(), GuestMemoryError> {
        self.put(value)
    }

    /// The number now.
    pub fn save(&self) -> Generation {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest had `saved`, and has `wanted` from now on, if anything is wanted; it is told if that is another one.
    pub fn load(
        &self,
        saved: Generation,
        wanted: Option<Generation>,
    ) -> Result<(), GuestMemoryError> {
        let value = wanted.unwrap_or(saved);
        self.put(value)?;
        if value != saved {
            self.line.pulse();
        }
        Ok(())
    }

    fn put(&self, value: Generation) -> Result<(), GuestMemoryError> {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = value;
        self.memory.ram().write_slice(&value.0, GENERATION)
    }
}
