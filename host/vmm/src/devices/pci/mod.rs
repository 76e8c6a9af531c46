//! The PCI bus: one host bridge, and a function in each slot behind it, found by configuration mechanism #1.
//!
//! Called by vCPU threads. A slot without a function reads as all ones.

mod config;
mod msix;

use std::sync::atomic::{AtomicU32, Ordering};

pub use config::{BAR0, COMMAND, ConfigSpace, ConfigState, Identity};
#[cfg(any(test, feature = "fuzzing"))]
pub use msix::Deliver;
pub use msix::{Msix, MsixState};

use super::virtio::{DeviceError, Function};

/// Port of the address register; the data register's four ports follow it.
pub const CONFIG_ADDRESS_PORT: u16 = 0xcf8;
/// First port of the data register.
pub const CONFIG_DATA_PORT: u16 = 0xcfc;
/// Last port of the data register.
pub const CONFIG_DATA_LAST: u16 = 0xcff;
/// First address of the space for windows, which the guest is told of.
pub const SPACE_START: u32 = 0xe000_0000;
/// Its last address.
pub const SPACE_LAST: u32 = 0xefff_ffff;
/// Length of each function's window.
pub const WINDOW_BYTES: u32 = 0x8000;
/// Most functions: slots of the bus, without the bridge's.
pub const FUNCTIONS_MAX: usize = 31;

const ENABLE: u32 = 1 << 31;

/// The bus.
#[derive(Debug)]
pub struct PciBus {
    address: AtomicU32,
    bridge: ConfigSpace,
    functions: Vec<Function>,
}

/// Where the window of the function in a slot lies until the guest moves it.
pub fn window_of(slot: usize) -> u32 {
    SPACE_START + slot as u32 * WINDOW_BYTES
}

/// Whether a whole window from this address on lies in the space for windows.
pub fn in_window(address: u32) -> bool {
    (SPACE_START..=SPACE_LAST - (WINDOW_BYTES - 1)).contains(&address)
}

impl PciBus {
    /// A bus with these functions in slots 1 and up, at most [`FUNCTIONS_MAX`].
    pub fn new(functions: Vec<Function>) -> Self {
        debug_assert!(functions.len() <= FUNCTIONS_MAX);
        Self {
            address: AtomicU32::new(0),
            bridge: ConfigSpace::new(Identity {
                vendor: 0x1b36, // as QEMU's generic bridge
                device: 0x0008,
                revision: 0,
                class: 0x06_00_00,
                subsystem: (0, 0),
            }),
            functions,
        }
    }

    /// The functions, in the order of their slots.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The address register.
    pub fn address(&self) -> u32 {
        self.address.load(Ordering::SeqCst)
    }

    /// The guest writes the address register.
    pub fn set_address(&self, address: u32) {
        self.address.store(address, Ordering::SeqCst);
    }

    /// The guest reads the data register, from its byte `byte` on.
    pub fn read(&self, byte: u16, data: &mut [u8]) {
        match self.target(byte) {
            Some((0, offset)) => self.bridge.read(offset, data),
            Some((slot, offset)) => match self.functions.get(slot - 1) {
                Some(function) => function.read_config(offset, data),
                None => data.fill(0xff),
            },
            None => data.fill(0xff),
        }
    }

    /// The guest writes the data register.
    pub fn write(&self, byte: u16, data: &[u8]) -> Result<(), DeviceError> {
        match self.target(byte) {
            Some((slot @ 1.., offset)) => match self.functions.get(slot - 1) {
                Some(function) => function.write_config(offset, data),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Whose window an address lies in, and where in it.
    pub fn find(&self, address: u64) -> Option<(&Function, usize)> {
        let mut functions = self.functions.iter();
        functions.find_map(|function| Some((function, function.offset_of(address)?)))
    }

    /// The slot and the offset that the address register names: of bus 0, and of function 0.
    fn target(&self, byte: u16) -> Option<(usize, usize)> {
        let address = self.address();
        let is_ours = address & ENABLE != 0 && address & 0x00ff_0700 == 0;
        let slot = (address >> 11 & 0x1f) as usize;
        is_ours.then_some((slot, (address & 0xfc) as usize + usize::from(byte)))
    }
}
