//! Port input and output, which ring 3 may do: the permission bitmap of the task state is all zero.

use core::arch::asm;

/// Writes a byte.
pub fn out8(port: u16, value: u8) {
    // SAFETY: a port write; the permission bitmap allows it and no memory is touched.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Reads a byte.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: a port read; the permission bitmap allows it and no memory is touched.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

/// Writes two bytes.
pub fn out16(port: u16, value: u16) {
    // SAFETY: a port write; the permission bitmap allows it and no memory is touched.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

/// Writes four bytes. Memory is in the state that the machine shall see.
pub fn out32(port: u16, value: u32) {
    // SAFETY: a port write; the permission bitmap allows it.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) }
}

/// Reads four bytes.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: a port read; the permission bitmap allows it and no memory is touched.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}
