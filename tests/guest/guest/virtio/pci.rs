//! PCI functions on bus 0, by configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2): finding them, their base
//! addresses and their capabilities.
//!
//! Base addresses are taken as the firmware or the VMM left them; one that nobody set is given an address here.

use super::dma::Arena;
use super::mmio::Window;
use crate::ports::{in32, out32};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const DEVICES: u8 = 32;
const COMMAND: u8 = 0x04;
const COMMAND_MEMORY_MASTER: u32 = 0x6;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const FIRST_BAR: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;
/// There is room for no more in 192 bytes.
const CAPABILITIES_MAX: usize = 48;
const FIRST_OWN_ADDRESS: u64 = 0xe000_0000;
const LAST_OWN_ADDRESS: u64 = 0xfec0_0000;

/// Function 0 of a device on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    device: u8,
}

/// Gives addresses to what has none.
#[derive(Debug)]
pub struct Addresses {
    next: u64,
}

impl Addresses {
    /// None given yet.
    pub fn new() -> Self {
        Self {
            next: FIRST_OWN_ADDRESS,
        }
    }

    fn take(&mut self, bytes: u64) -> Option<u64> {
        let address = self.next.checked_next_multiple_of(bytes.max(4096))?;
        let end = address.checked_add(bytes)?;
        (end <= LAST_OWN_ADDRESS).then(|| {
            self.next = end;
            address
        })
    }
}

/// All functions that answer.
pub fn functions() -> impl Iterator<Item = Function> {
    (0..DEVICES)
        .map(|device| Function { device })
        .filter(|function| function.vendor() != 0xffff)
}

impl Function {
    fn select(self, offset: u8) {
        let device = u32::from(self.device) << 11;
        out32(ADDRESS_PORT, 1 << 31 | device | u32::from(offset & 0xfc));
    }

    /// Four bytes of configuration space; `offset` is rounded down to a multiple of four.
    pub fn read(self, offset: u8) -> u32 {
        self.select(offset);
        in32(DATA_PORT)
    }

    /// Writes four bytes of configuration space.
    pub fn write(self, offset: u8, value: u32) {
        self.select(offset);
        out32(DATA_PORT, value);
    }

    /// Its slot on the bus.
    pub fn slot(self) -> u8 {
        self.device
    }

    /// Vendor number; all ones if nothing is there.
    pub fn vendor(self) -> u16 {
        self.read(0) as u16
    }

    /// Device number of the vendor.
    pub fn device(self) -> u16 {
        (self.read(0) >> 16) as u16
    }

    /// Lets it decode memory and read and write ours.
    pub fn enable(self) {
        // The status half is written with zeros, which change nothing there.
        let command = self.read(COMMAND) & 0xffff;
        self.write(COMMAND, command | COMMAND_MEMORY_MASTER);
    }

    /// Its capabilities: number and place, in the order of the list.
    pub fn capabilities(self) -> impl Iterator<Item = (u8, u8)> {
        let has_list = self.read(COMMAND) & STATUS_CAPABILITIES != 0;
        let first = has_list.then(|| self.read(CAPABILITIES) as u8 & 0xfc);
        let next = move |at: &u8| Some((self.read(*at) >> 8) as u8 & 0xfc);
        core::iter::successors(first, next)
            .take_while(|at| *at >= 0x40)
            .take(CAPABILITIES_MAX)
            .map(move |at| (self.read(at) as u8, at))
    }

    /// `bytes` bytes from `offset` on of the memory behind base address register `number`.
    pub fn window(
        self,
        number: u8,
        offset: u64,
        bytes: u64,
        addresses: &mut Addresses,
        arena: &mut Arena,
    ) -> Option<Window> {
        let base = self.base(number, addresses)?;
        Window::map(base.checked_add(offset)?, bytes, arena)
    }

    /// The memory address in a base address register; given here if nobody did.
    fn base(self, number: u8, addresses: &mut Addresses) -> Option<u64> {
        if number > 5 {
            return None;
        }
        let at = FIRST_BAR + number * 4;
        let low = self.read(at);
        let is_memory = low & 1 == 0;
        let is_wide = low & 6 == 4;
        if !is_memory || is_wide && number == 5 {
            return None;
        }
        let high = if is_wide { self.read(at + 4) } else { 0 };
        let base = u64::from(high) << 32 | u64::from(low & !0xf);
        if base != 0 {
            return Some(base);
        }
        self.write(at, u32::MAX);
        let bytes = u64::from(!(self.read(at) & !0xf)) + 1;
        let base = addresses.take(bytes)?;
        self.write(at, base as u32);
        if is_wide {
            self.write(at + 4, 0);
        }
        Some(base)
    }
}
