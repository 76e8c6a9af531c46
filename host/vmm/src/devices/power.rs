//! Fixed ACPI power management: the power button as an event, and soft-off (ACPI 6.5, 4.8.3).
//!
//! The interrupt line is a level: high while an enabled event is pending.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::IrqLine;
use crate::end::GuestEnd;

const POWER_BUTTON: u16 = 1 << 8;
/// The operating system owns power management; set from the start and for good.
const SCI_ENABLED: u16 = 1;
const SLEEP_TYPE: u16 = 7 << 10;
const SLEEP_ENABLE: u16 = 1 << 13;
/// The sleep type of soft-off, as the DSDT says.
const SOFT_OFF: u16 = 0;

/// The registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    status: u16,
    enable: u16,
    control: u16,
}

/// The power management block.
#[derive(Debug)]
pub struct Power {
    state: Mutex<PowerState>,
    line: IrqLine,
}

impl Power {
    /// A block whose interrupt is `line`.
    pub fn new(line: IrqLine) -> Self {
        Self {
            state: Mutex::default(),
            line,
        }
    }

    /// Presses the power button. What follows is the guest's decision.
    pub fn press_button(&self) {
        self.change(|state| state.status |= POWER_BUTTON);
    }

    /// The registers now.
    pub fn save(&self) -> PowerState {
        *self.lock()
    }

    /// Puts saved registers in place.
    pub fn load(&self, saved: PowerState) {
        self.change(|state| *state = saved);
    }

    pub(super) fn write_event(&self, offset: u16, data: &[u8]) {
        self.change(|state| {
            for (at, byte) in (offset..4).zip(data) {
                let bits = u16::from(*byte) << (8 * (at % 2));
                if at < 2 {
                    state.status &= !bits; // writing one clears
                } else {
                    state.enable = state.enable & !(0xff << (8 * (at % 2))) | bits;
                }
            }
        });
    }

    pub(super) fn read_event(&self, offset: u16, data: &mut [u8]) {
        let state = *self.lock();
        let [s0, s1] = state.status.to_le_bytes();
        let [e0, e1] = state.enable.to_le_bytes();
        fill(data, &[s0, s1, e0, e1][usize::from(offset)..]);
    }

    pub(super) fn write_control(&self, offset: u16, data: &[u8]) -> Option<GuestEnd> {
        let mut state = self.lock();
        for (at, byte) in (offset..2).zip(data) {
            let bits = u16::from(*byte) << (8 * at);
            state.control = state.control & !(0xff << (8 * at)) | bits;
        }
        let sleeps = state.control & SLEEP_ENABLE != 0;
        state.control &= !SLEEP_ENABLE;
        (sleeps && state.control & SLEEP_TYPE == SOFT_OFF << 10).then_some(GuestEnd::PowerOff)
    }

    pub(super) fn read_control(&self, offset: u16, data: &mut [u8]) {
        let control = (self.lock().control | SCI_ENABLED).to_le_bytes();
        fill(data, &control[usize::from(offset)..]);
    }

    fn change(&self, change: impl FnOnce(&mut PowerState)) {
        let mut state = self.lock();
        change(&mut state);
        // Under the lock, so that the line follows the registers.
        self.line.set(state.status & state.enable != 0);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PowerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies what there is; the rest reads as ones.
fn fill(data: &mut [u8], from: &[u8]) {
    data.fill(0xff);
    let count = data.len().min(from.len());
    data[..count].copy_from_slice(&from[..count]);
}
