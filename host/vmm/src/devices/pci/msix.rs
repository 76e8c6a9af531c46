//! Message-signalled interrupts of one PCI function: the table, and what is pending (PCI 3.0, 6.8.2).
//!
//! Written by vCPU threads, used by the device's own thread. A vector that is masked is remembered and sent when it is
//! unmasked; so none is lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::kvm::{Message, Vm};

/// Most vectors of a function: as many as one word of pending bits holds.
pub const VECTORS_MAX: u16 = 64;
/// Bytes of one entry of the table.
const ENTRY_BYTES: usize = 16;
const CONTROL: usize = 12;
const MASKED: u32 = 1;
/// In the capability's message control register.
const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

/// One entry of the table, as the guest sees it: address low and high, data, control.
type Entry = [u32; 4];

/// Table, pending bits and control register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    table: Vec<Entry>,
    pending: u64,
    control: u16,
}

/// The interrupts of one function.
#[derive(Debug)]
pub struct Msix {
    state: Mutex<MsixState>,
    vm: Arc<Vm>,
}

impl Msix {
    /// `vectors` of them, at most [`VECTORS_MAX`], all masked.
    pub fn new(vm: Arc<Vm>, vectors: u16) -> Self {
        debug_assert!((1..=VECTORS_MAX).contains(&vectors));
        let state = MsixState {
            table: vec![[0, 0, 0, MASKED]; vectors.into()],
            pending: 0,
            control: 0,
        };
        Self {
            state: Mutex::new(state),
            vm,
        }
    }

    /// Whether the table has such a vector.
    pub fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.lock().table.len()
    }

    /// Sends the interrupt of a vector, now or once it is unmasked. No vector, or none enabled, no interrupt.
    pub fn signal(&self, vector: u16) {
        let mut state = self.lock();
        if usize::from(vector) < state.table.len() && state.control & ENABLE != 0 {
            state.pending |= 1 << vector;
            self.deliver(&mut state);
        }
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        let state = self.lock();
        for (at, byte) in (offset..).zip(data) {
            let entry = state.table.get(at / ENTRY_BYTES);
            let word = entry.map_or(0, |entry| entry[at % ENTRY_BYTES / 4]);
            *byte = word.to_le_bytes()[at % 4];
        }
    }

    /// The guest writes the table.
    pub fn write_table(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        for (at, byte) in (offset..).zip(data) {
            let Some(entry) = state.table.get_mut(at / ENTRY_BYTES) else {
                break;
            };
            let word = &mut entry[at % ENTRY_BYTES / 4];
            let mut bytes = word.to_le_bytes();
            bytes[at % 4] = *byte;
            *word = u32::from_le_bytes(bytes);
            if at % ENTRY_BYTES >= CONTROL {
                *word &= MASKED;
            }
        }
        self.deliver(&mut state);
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let bytes = self.lock().pending.to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// The guest wrote the capability's control register.
    pub fn set_control(&self, control: u16) {
        let mut state = self.lock();
        state.control = control;
        self.deliver(&mut state);
    }

    /// Table and pending bits now.
    pub fn save(&self) -> MsixState {
        self.lock().clone()
    }

    /// Puts a saved table in place; answers whether it fits.
    #[must_use]
    pub fn load(&self, saved: MsixState) -> bool {
        let mut state = self.lock();
        let fits = saved.table.len() == state.table.len();
        if fits {
            *state = saved;
        }
        fits
    }

    /// Sends what is pending and not masked.
    fn deliver(&self, state: &mut MsixState) {
        if state.control & ENABLE == 0 || state.control & MASK_ALL != 0 {
            return;
        }
        for (vector, [low, high, data, control]) in state.table.iter().enumerate() {
            if state.pending & 1 << vector == 0 || control & MASKED != 0 {
                continue;
            }
            state.pending &= !(1 << vector);
            if *high == 0 {
                let message = Message {
                    address: *low,
                    data: *data,
                };
                // Refused only when the guest has switched its local APICs off; then a real interrupt is lost too.
                let _ = self.vm.send_message(message);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, MsixState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
