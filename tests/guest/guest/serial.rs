//! The first serial port, polled, and the ports that reset or power off a machine.

use core::fmt;

use crate::ports::{in8, out8, out16};

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = 0x3fd;
const KEYBOARD_CONTROL: u16 = 0x64;
const RESET_CONTROL: u16 = 0xcf9;
const POWER_CONTROL: u16 = 0x604;

/// Where `write!` goes.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out8(DATA, byte));
        Ok(())
    }
}

/// A byte from the console, if one waits.
pub fn poll() -> Option<u8> {
    match in8(LINE_STATUS) {
        0xff => None,
        status => (status & 1 == 1).then(|| in8(DATA)),
    }
}

/// Asks the keyboard controller, then the chipset, for a reset.
pub fn reset() -> ! {
    out8(KEYBOARD_CONTROL, 0xfe);
    out8(RESET_CONTROL, 0x06);
    hang()
}

/// Asks the power management block at its usual place for the soft-off state.
pub fn power_off() -> ! {
    out16(POWER_CONTROL, 0x2000);
    hang()
}

/// Does nothing for ever.
pub fn hang() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
