//! The I/O APIC (Intel 82093AA): 24 lines in, messages to the CPUs' local APICs out.
//!
//! It lives in this process, not in KVM: KVM's own interrupt controllers and timer take tens of milliseconds to tear
//! down, and nothing but the serial port, the power button and the generation uses lines. A line that is a level is sent again after
//! the guest's end of interrupt if it is still high, so KVM has to report those ends: it learns of level lines by
//! their routes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::kvm::{KvmError, Message, PINS, Vm};

/// Where the guest finds it.
pub const IO_APIC_ADDRESS: u64 = 0xfec0_0000;
/// Its first address that is not its own any more.
const IO_APIC_END: u64 = IO_APIC_ADDRESS + 0x1000;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_PIN: u8 = 0x10;
const VERSION_VALUE: u32 = 0x11 | (PINS as u32 - 1) << 16;

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR are the chip's own.
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    select: u8,
    id: u8,
    pins: [u64; PINS],
    /// Lines that are high.
    high: u32,
}

/// The chip.
#[derive(Debug)]
pub struct IoApic {
    state: Mutex<IoApicState>,
    vm: Arc<Vm>,
}

/// One line into it.
#[derive(Debug, Clone)]
pub struct IrqLine {
    chip: Arc<IoApic>,
    pin: usize,
}

impl IrqLine {
    /// Line `pin` of `chip`, below [`PINS`].
    pub fn new(chip: &Arc<IoApic>, pin: usize) -> Self {
        debug_assert!(pin < PINS);
        Self {
            chip: Arc::clone(chip),
            pin,
        }
    }

    /// Raises or lowers a level.
    pub fn set(&self, high: bool) {
        self.chip.set_line(self.pin, high);
    }

    /// Gives one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl IoApic {
    /// As after a reset: every pin masked.
    pub fn new(vm: Arc<Vm>) -> Arc<Self> {
        let state = IoApicState {
            select: 0,
            id: 0,
            pins: [MASKED; PINS],
            high: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            vm,
        })
    }

    /// Whether an address is one of its registers.
    pub fn owns(address: u64) -> bool {
        (IO_APIC_ADDRESS..IO_APIC_END).contains(&address)
    }

    /// The guest reads a register.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        let state = self.lock();
        let value = match address - IO_APIC_ADDRESS {
            SELECT => state.select.into(),
            WINDOW => state.read(),
            _ => 0,
        };
        data.fill(0);
        let count = data.len().min(4);
        data[..count].copy_from_slice(&value.to_le_bytes()[..count]);
    }

    /// The guest writes a register.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), KvmError> {
        let Some(value) = data.first_chunk().copied().map(u32::from_le_bytes) else {
            return Ok(());
        };
        let mut state = self.lock();
        match address - IO_APIC_ADDRESS {
            SELECT => state.select = value as u8,
            WINDOW => self.write_window(&mut state, value)?,
            _ => {}
        }
        Ok(())
    }

    /// The guest has handled an interrupt of a level line.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.lock();
        for pin in 0..PINS {
            let entry = state.pins[pin];
            if entry as u8 == vector && entry & LEVEL != 0 {
                state.pins[pin] &= !REMOTE_IRR;
                self.deliver_level(&mut state, pin);
            }
        }
    }

    /// The registers now.
    pub fn save(&self) -> IoApicState {
        self.lock().clone()
    }

    /// Puts saved registers in place.
    pub fn load(&self, saved: IoApicState) -> Result<(), KvmError> {
        let mut state = self.lock();
        *state = saved;
        self.route(&state)
    }

    fn set_line(&self, pin: usize, high: bool) {
        let mut state = self.lock();
        let was_high = state.high & 1 << pin != 0;
        state.high = state.high & !(1 << pin) | u32::from(high) << pin;
        if state.pins[pin] & LEVEL != 0 {
            self.deliver_level(&mut state, pin);
        } else if high && !was_high && state.pins[pin] & MASKED == 0 {
            self.send(state.pins[pin]);
        }
    }

    /// Sends a level that is high, not masked and not being handled.
    fn deliver_level(&self, state: &mut IoApicState, pin: usize) {
        let entry = state.pins[pin];
        let waits = entry & (MASKED | REMOTE_IRR) == 0 && entry & LEVEL != 0;
        if waits && state.high & 1 << pin != 0 {
            state.pins[pin] |= REMOTE_IRR;
            self.send(entry);
        }
    }

    fn send(&self, entry: u64) {
        // Refused only when the guest has switched its local APICs off; then a real interrupt is lost too.
        let _ = self.vm.send_message(message(entry));
    }

    fn write_window(&self, state: &mut IoApicState, value: u32) -> Result<(), KvmError> {
        let Some((pin, is_high_half)) = half_of_pin(state.select) else {
            if state.select == ID {
                state.id = (value >> 24) as u8 & 0xf;
            }
            return Ok(());
        };
        let old = state.pins[pin];
        let new = if is_high_half {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old & !0xffff_ffff | u64::from(value)
        };
        let mut new = new & !READ_ONLY | old & READ_ONLY;
        if new & LEVEL == 0 {
            new &= !REMOTE_IRR;
        }
        state.pins[pin] = new;
        if routed(old) != routed(new) {
            self.route(state)?;
        }
        self.deliver_level(state, pin);
        Ok(())
    }

    /// Tells KVM of the level lines, whose ends of interrupt it is to report.
    fn route(&self, state: &IoApicState) -> Result<(), KvmError> {
        let routes: Vec<_> = (0..)
            .zip(state.pins)
            .filter_map(|(pin, entry)| Some((pin, routed(entry)?)))
            .collect();
        self.vm.route(&routes)
    }

    fn lock(&self) -> MutexGuard<'_, IoApicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IoApicState {
    fn read(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => u32::from(self.id) << 24,
            VERSION => VERSION_VALUE,
            select => match half_of_pin(select) {
                Some((pin, true)) => (self.pins[pin] >> 32) as u32,
                Some((pin, false)) => self.pins[pin] as u32,
                None => 0,
            },
        }
    }
}

/// Which pin a register belongs to, and whether it is its upper half.
fn half_of_pin(select: u8) -> Option<(usize, bool)> {
    let at = usize::from(select.checked_sub(FIRST_PIN)?);
    (at / 2 < PINS).then_some((at / 2, at % 2 == 1))
}

/// What KVM has to know of a pin: its message, if it is an open level line.
fn routed(entry: u64) -> Option<Message> {
    (entry & LEVEL != 0 && entry & MASKED == 0).then(|| message(entry))
}

/// The message that a pin sends (82093AA, 3.2.4; Intel SDM 3A, 11.11).
fn message(entry: u64) -> Message {
    const LOCAL_APICS: u32 = 0xfee0_0000;
    let destination = (entry >> 56) as u32;
    let is_logical = (entry >> 11 & 1) as u32;
    let delivery_mode = (entry >> 8 & 7) as u32;
    let is_lowest_priority = u32::from(delivery_mode == 1);
    let is_level = (entry >> 15 & 1) as u32;
    Message {
        address: LOCAL_APICS | destination << 12 | is_lowest_priority << 3 | is_logical << 2,
        data: entry as u32 & 0xff | delivery_mode << 8 | 1 << 14 | is_level << 15,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_the_pin_says() {
        let entry = 3 << 56 | LEVEL | 1 << 11 | 1 << 8 | 0x51;
        let expected = Message {
            address: 0xfee0_300c,
            data: 0xc151,
        };
        assert_eq!(message(entry), expected);
        assert_eq!(routed(entry), Some(expected));
        assert_eq!(routed(entry | MASKED), None);
        assert_eq!(routed(entry & !LEVEL), None);
    }

    #[test]
    fn registers_name_their_pins() {
        assert_eq!(half_of_pin(0x0f), None);
        assert_eq!(half_of_pin(0x10), Some((0, false)));
        assert_eq!(half_of_pin(0x3f), Some((23, true)));
        assert_eq!(half_of_pin(0x40), None);
    }
}
