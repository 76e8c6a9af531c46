//! The first serial port, polled, and the ports that reset or power off a machine.

use core::arch::asm;
use core::fmt;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = 0x3fd;
const KEYBOARD_CONTROL: u16 = 0x64;
const RESET_CONTROL: u16 = 0xcf9;
const POWER_CONTROL: u16 = 0x604;

fn out8(port: u16, value: u8) {
    // SAFETY: a port write; the permission bitmap allows it and no memory is touched.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: a port read; the permission bitmap allows it and no memory is touched.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

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
    // SAFETY: a port write; the permission bitmap allows it and no memory is touched.
    unsafe {
        asm!("out dx, ax", in("dx") POWER_CONTROL, in("ax") 0x2000_u16, options(nomem, nostack));
    }
    hang()
}

/// Does nothing for ever.
pub fn hang() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
