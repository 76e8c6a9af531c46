//! The devices, and which port reaches which.
//!
//! Called by vCPU threads; every device has its own lock and never waits for anything outside of this process. Ports
//! that nobody owns read as all ones and swallow what is written.

mod console;
mod ioapic;
mod power;
mod serial;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use console::ConsoleBuffer;
pub use ioapic::{IO_APIC_ADDRESS, IoApic, IoApicState, IrqLine};
pub use power::{Power, PowerState};
pub use serial::{SERIAL_LINE, SERIAL_PORT, SerialPort, SerialRegisters};

use crate::boot::{PM1_CONTROL_PORT, PM1_EVENT_PORT, RESET_PORT, RESET_VALUE, SCI_LINE};
use crate::end::GuestEnd;
use crate::kvm::Vm;

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
    /// Where both interrupt.
    pub ioapic: Arc<IoApic>,
}

impl Devices {
    /// Makes the devices of `vm`; serial output goes to `console`.
    pub fn new(vm: Arc<Vm>, console: Arc<ConsoleBuffer>) -> Arc<Self> {
        let ioapic = IoApic::new(vm);
        let line = |pin: u8| IrqLine::new(&ioapic, pin.into());
        Arc::new(Self {
            serial: SerialPort::new(line(SERIAL_LINE), console),
            power: Power::new(line(SCI_LINE)),
            ioapic,
        })
    }

    /// The descriptors that device code on a vCPU's thread writes to.
    pub fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.serial.event())
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
            KEYBOARD_PORT => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    /// The guest wrote to memory that is no RAM; answers whether that ends it.
    pub fn write_memory(&self, address: u64, data: &[u8]) -> Option<GuestEnd> {
        if !IoApic::owns(address) {
            return None;
        }
        let written = self.ioapic.write(address, data);
        written
            .err()
            .map(|error| GuestEnd::Failed(crate::process::sentence(&error)))
    }

    /// The guest reads from memory that is no RAM.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        if IoApic::owns(address) {
            self.ioapic.read(address, data);
        } else {
            data.fill(0xff);
        }
    }
}
