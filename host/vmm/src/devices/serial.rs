//! The first serial port: a 16550 by `vm-superio`, its output in a bounded buffer, its input from consoles.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, SerialState, Trigger};

use super::{ConsoleBuffer, IrqLine};

/// Its first port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt line, edge-triggered.
pub const SERIAL_LINE: u8 = 4;

type Uart = Serial<Edge, InputWanted, Output>;

/// The port. Locked for the length of one register access.
#[derive(Debug)]
pub struct SerialPort {
    uart: Mutex<Uart>,
    line: IrqLine,
    console: Arc<ConsoleBuffer>,
}

/// The registers and unread input, as saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialRegisters {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl SerialPort {
    /// A port whose output goes to `console` and whose interrupt is `line`.
    pub fn new(line: IrqLine, console: Arc<ConsoleBuffer>) -> Self {
        let uart = Serial::with_events(
            Edge(line.clone()),
            InputWanted(Arc::clone(&console)),
            Output(Arc::clone(&console)),
        );
        Self {
            uart: Mutex::new(uart),
            line,
            console,
        }
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.console.event()
    }

    pub(super) fn write(&self, offset: u8, value: u8) {
        // Neither the line nor the buffer can fail.
        let _ = self.lock().write(offset, value);
    }

    pub(super) fn read(&self, offset: u8) -> u8 {
        self.lock().read(offset)
    }

    /// How many bytes of input it would take now.
    pub fn room(&self) -> usize {
        self.lock().fifo_capacity()
    }

    /// Gives it input; answers how many bytes it took.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.lock().enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    /// The registers now.
    pub fn save(&self) -> SerialRegisters {
        let state = self.lock().state();
        SerialRegisters {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }

    /// Puts saved registers in place; answers whether they can be those of a serial port.
    pub fn load(&self, saved: SerialRegisters) -> bool {
        let state = SerialState {
            baud_divisor_low: saved.baud_divisor_low,
            baud_divisor_high: saved.baud_divisor_high,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.in_buffer,
        };
        let uart = Serial::from_state(
            &state,
            Edge(self.line.clone()),
            InputWanted(Arc::clone(&self.console)),
            Output(Arc::clone(&self.console)),
        );
        match uart {
            Ok(uart) => {
                *self.lock() = uart;
                true
            }
            Err(_) => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Edge(IrqLine);

impl Trigger for Edge {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.pulse();
        Ok(())
    }
}

/// Tells the console side when the guest has read all input.
#[derive(Debug)]
struct InputWanted(Arc<ConsoleBuffer>);

impl SerialEvents for InputWanted {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.wake();
    }
}

#[derive(Debug)]
struct Output(Arc<ConsoleBuffer>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
