//! The devices, and which port reaches which.
//!
//! Called by vCPU threads; every device has its own lock and never waits for anything outside of this process. Ports
//! that nobody owns read as all ones and swallow what is written.

mod console;
mod generation;
mod ioapic;
mod pci;
mod power;
mod serial;
mod virtio;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use console::{ConsoleBuffer, OUTPUT_BYTES_MAX, Terminal};
pub use generation::GenerationId;
pub use ioapic::{IO_APIC_ADDRESS, IoApic, IoApicState, IrqLine};
pub use pci::{CONFIG_ADDRESS_PORT, FUNCTIONS_MAX, PciBus, SPACE_LAST, SPACE_START, window_of};
pub use power::{Power, PowerState};
pub use serial::{SERIAL_LINE, SERIAL_PORT, SerialPort, SerialRegisters};
#[cfg(feature = "fuzzing")]
pub use virtio::fuzzing;
pub use virtio::{
    ANSWER_TIMEOUT, Backend, Balloon, Block, ChainDisk, Console, DeviceError, Disk, Function,
    FunctionState, Kind, Net, Order, RawDisk, Rng, SYNC_TIMEOUT, Vsock,
};

use crate::boot::{
    GENERATION_LINE, PM1_CONTROL_PORT, PM1_EVENT_PORT, RESET_PORT, RESET_VALUE, SCI_LINE,
};
use crate::end::GuestEnd;
use crate::kvm::Vm;
use pci::{CONFIG_DATA_LAST, CONFIG_DATA_PORT};

const SERIAL_LAST: u16 = SERIAL_PORT + 7;
const PM1_EVENT_LAST: u16 = PM1_EVENT_PORT + 3;
const PM1_CONTROL_LAST: u16 = PM1_CONTROL_PORT + 1;
/// Command and status of the old keyboard controller, of which only the reset line is there.
const KEYBOARD_PORT: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// Everything that ports and memory-mapped registers reach.
#[derive(Debug)]
pub struct Devices {
    /// The first serial port.
    pub serial: SerialPort,
    /// Power button and soft-off.
    pub power: Power,
    /// Which life of the machine this is.
    pub generation: GenerationId,
    /// Where all three interrupt.
    pub ioapic: Arc<IoApic>,
    /// Where all other devices are.
    pub pci: PciBus,
}

impl Devices {
    /// Makes the devices of `vm`; serial output goes to `console`, and `pci` has the functions that it was asked for.
    pub fn new(vm: Arc<Vm>, console: Arc<ConsoleBuffer>, pci: PciBus) -> Arc<Self> {
        let memory = Arc::clone(vm.memory());
        let ioapic = IoApic::new(vm);
        let line = |pin: u8| IrqLine::new(&ioapic, pin.into());
        Arc::new(Self {
            serial: SerialPort::new(line(SERIAL_LINE), console),
            power: Power::new(line(SCI_LINE)),
            generation: GenerationId::new(memory, line(GENERATION_LINE)),
            ioapic,
            pci,
        })
    }

    /// The descriptors that device code on a vCPU's thread writes to.
    pub fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let functions = self.pci.functions().iter();
        std::iter::once(self.serial.event()).chain(functions.flat_map(Function::events))
    }

    /// The guest wrote to a port; answers whether that ends it.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<GuestEnd> {
        match (port, data) {
            (SERIAL_PORT..=SERIAL_LAST, _) => {
                for byte in data {
                    self.serial.write((port - SERIAL_PORT) as u8, *byte);
                }
                None
            }
            (CONFIG_ADDRESS_PORT, [a, b, c, d]) => {
                self.pci.set_address(u32::from_le_bytes([*a, *b, *c, *d]));
                None
            }
            (CONFIG_DATA_PORT..=CONFIG_DATA_LAST, _) => {
                failed(self.pci.write(port - CONFIG_DATA_PORT, data))
            }
            (PM1_EVENT_PORT..=PM1_EVENT_LAST, _) => {
                self.power.write_event(port - PM1_EVENT_PORT, data);
                None
            }
            (PM1_CONTROL_PORT..=PM1_CONTROL_LAST, _) => {
                self.power.write_control(port - PM1_CONTROL_PORT, data)
            }
            (KEYBOARD_PORT, [KEYBOARD_RESET]) | (RESET_PORT, [RESET_VALUE]) => {
                Some(GuestEnd::Reset)
            }
            _ => None,
        }
    }

    /// The guest reads from a port.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match port {
            SERIAL_PORT..=SERIAL_LAST => {
                for byte in data {
                    *byte = self.serial.read((port - SERIAL_PORT) as u8);
                }
            }
            PM1_EVENT_PORT..=PM1_EVENT_LAST => self.power.read_event(port - PM1_EVENT_PORT, data),
            PM1_CONTROL_PORT..=PM1_CONTROL_LAST => {
                self.power.read_control(port - PM1_CONTROL_PORT, data);
            }
            CONFIG_ADDRESS_PORT if data.len() == 4 => {
                data.copy_from_slice(&self.pci.address().to_le_bytes());
            }
            CONFIG_DATA_PORT..=CONFIG_DATA_LAST => self.pci.read(port - CONFIG_DATA_PORT, data),
            KEYBOARD_PORT => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    /// The guest wrote to memory that is no RAM; answers whether that ends it.
    pub fn write_memory(&self, address: u64, data: &[u8]) -> Option<GuestEnd> {
        if IoApic::owns(address) {
            return failed(self.ioapic.write(address, data));
        }
        let (function, offset) = self.pci.find(address)?;
        failed(function.write(offset, data))
    }

    /// The guest reads from memory that is no RAM.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        if IoApic::owns(address) {
            self.ioapic.read(address, data);
        } else if let Some((function, offset)) = self.pci.find(address) {
            function.read(offset, data);
        } else {
            data.fill(0xff);
        }
    }
}

/// A device that cannot go on ends the guest.
fn failed(result: Result<(), impl std::error::Error>) -> Option<GuestEnd> {
    let error = result.err()?;
    Some(GuestEnd::Failed(crate::process::sentence(&error)))
}
