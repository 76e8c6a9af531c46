//! A console (virtio 1.3, 5.3) of one port: `hvc0` to Linux.
//!
//! What the guest says goes where the serial port's output goes, so there is one log and one scrollback. What is typed
//! comes here as long as the driver gives room for it, and goes to the serial port otherwise.

mod typed;

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dwcp_jail::{Condition, allow};
use dwcp_memory::GuestMemory;
use nix::poll::PollFlags;

use typed::TYPED_BYTES_MAX;
pub use typed::Typed;

use super::{Backend, Broken, Chain, Counters, Kind, OwnRegisters, Rules, Running, Unfit, queue};
use crate::config::ConsoleSize;
use crate::devices::{ConsoleBuffer, OUTPUT_BYTES_MAX, Terminal};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 64;
const FEATURE_SIZE: u64 = 1;

/// The device.
#[derive(Debug)]
pub struct Console {
    output: Arc<ConsoleBuffer>,
    typed: Arc<Typed>,
    registers: Arc<OwnRegisters>,
    counters: Arc<Counters>,
}

impl Console {
    /// A console of this size that ends at `terminal`.
    pub fn new(size: ConsoleSize, terminal: &Terminal) -> Self {
        let mut registers = [size.columns.to_le_bytes(), size.rows.to_le_bytes()].concat();
        registers.extend(1u32.to_le_bytes()); // one port
        Self {
            output: Arc::clone(&terminal.output),
            typed: Arc::clone(&terminal.typed),
            registers: Arc::new(OwnRegisters::new(registers, 0..0)),
            counters: Arc::default(),
        }
    }

    /// What the guest says; of one very long piece only the end, which is all that would be kept of it.
    fn show(&self, memory: &GuestMemory, chain: &Chain) -> Result<u32, Broken> {
        let all = chain.readable_bytes();
        let shown = all.min(OUTPUT_BYTES_MAX as u64);
        let (_, last) = queue::split(&chain.readable, all - shown).ok_or(Broken::Short)?;
        let mut bytes = vec![0; shown as usize];
        queue::gather(memory, &last, &mut bytes)?;
        self.output.push(&bytes);
        self.counters.operations.fetch_add(1, Ordering::Relaxed);
        self.counters.read_bytes.fetch_add(all, Ordering::Relaxed);
        Ok(0)
    }

    /// Gives the guest what was typed, and finds out whether it would take more.
    fn give(&self, running: &mut Running) -> Result<(), Broken> {
        let had_room = self.typed.room().is_some_and(|room| room > 0);
        for _ in 0..QUEUE_SIZE {
            if self.typed.is_empty() {
                break;
            }
            let Some(chain) = running.pop(RECEIVE)? else {
                break;
            };
            let room = chain.writable_bytes().min(TYPED_BYTES_MAX as u64) as usize;
            if room == 0 {
                return Err(Broken::Short);
            }
            let typed = self.typed.take(room);
            let written = queue::scatter(running.memory(), &chain.writable, &typed)?;
            self.counters.operations.fetch_add(1, Ordering::Relaxed);
            let bytes = u64::from(written);
            self.counters
                .written_bytes
                .fetch_add(bytes, Ordering::Relaxed);
            running.push(RECEIVE, chain.head, written)?;
        }
        let is_wanted = running.listen(RECEIVE)?;
        self.typed.want(is_wanted);
        if is_wanted && !self.typed.is_empty() {
            running.again(RECEIVE);
        }
        if !had_room && self.typed.room().is_some_and(|room| room > 0) {
            // The event loop may be waiting for room.
            self.output.wake();
        }
        running.tell(RECEIVE)
    }

    /// A device that does not go on takes no input.
    fn or_stop(&self, result: Result<(), Broken>) -> Result<(), Broken> {
        if result.is_err() {
            self.stop();
        }
        result
    }

    fn stop(&self) {
        self.typed.want(false);
        self.output.wake();
    }
}

impl Backend for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        FEATURE_SIZE
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn registers(&self) -> Arc<OwnRegisters> {
        Arc::clone(&self.registers)
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn rules(&self) -> Rules {
        let event = self.output.event().as_raw_fd() as u32;
        vec![allow(libc::SYS_write).when(Condition::IntIs(0, event))]
    }

    fn begin(&mut self, running: &mut Running) -> Result<(), Broken> {
        // Linux looks at the size only when it is told that it has changed.
        running.tell_registers();
        Ok(())
    }

    fn reset(&mut self) {
        self.typed.load(&[]);
        self.stop();
    }

    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), Broken> {
        let result = match queue {
            TRANSMIT => running.each(TRANSMIT, |memory, chain| self.show(memory, chain)),
            _ => self.give(running),
        };
        self.or_stop(result)
    }

    fn watch(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        Some((self.typed.event(), PollFlags::POLLIN))
    }

    fn ready(&mut self, running: &mut Running) -> Result<(), Broken> {
        self.typed.quiet();
        let result = self.give(running);
        self.or_stop(result)
    }

    fn save(&self) -> Vec<u8> {
        self.typed.save()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), Unfit> {
        if self.typed.load(bytes) {
            Ok(())
        } else {
            Err(Unfit)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::devices::virtio::driver::{
        Driver, QUEUE_BYTES, Started, memory, readable, start, writable,
    };

    const BUFFER: u64 = 2 * QUEUE_BYTES;

    fn started() -> (Started<Console>, Vec<Driver>, Terminal) {
        let terminal = Terminal::new().unwrap();
        let size = ConsoleSize {
            columns: 100,
            rows: 30,
        };
        let (device, drivers) = start(Console::new(size, &terminal), &memory(2 << 20), u64::MAX);
        (device, drivers, terminal)
    }

    #[test]
    fn it_has_a_size_of_which_it_tells_and_one_port() {
        let (device, _, _) = started();
        assert_eq!(device.told.take(), 1);
        let all = device.backend.registers.all();
        assert_eq!(all, [100, 0, 30, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn what_the_guest_says_is_shown_and_of_very_much_the_end() {
        let (mut device, mut drivers, terminal) = started();
        let driver = &mut drivers[TRANSMIT];
        driver.write(BUFFER, b"hello, world");
        driver.add(&[readable(BUFFER, 5), readable(BUFFER + 5, 7)]);
        device.serve(TRANSMIT).unwrap();
        assert_eq!(terminal.output.take(), b"hello, world");
        let driver = &mut drivers[TRANSMIT];
        assert!(driver.take().is_some());
        driver.add(&[readable(BUFFER, 1 << 20), readable(BUFFER, 12)]);
        device.serve(TRANSMIT).unwrap();
        let shown = terminal.output.take();
        assert_eq!(shown.len(), OUTPUT_BYTES_MAX);
        assert!(shown.ends_with(b"hello, world"));
    }

    #[test]
    fn input_is_wanted_only_while_there_is_room_for_it() {
        let (mut device, mut drivers, terminal) = started();
        device.serve(RECEIVE).unwrap();
        assert_eq!(terminal.typed.room(), None);
        drivers[RECEIVE].add(&[writable(BUFFER, 4)]);
        device.serve(RECEIVE).unwrap();
        assert_eq!(terminal.typed.room(), Some(TYPED_BYTES_MAX));
        terminal.typed.add(b"typed");
        device.look().unwrap();
        assert_eq!(drivers[RECEIVE].take().map(|(_, written)| written), Some(4));
        assert_eq!(drivers[RECEIVE].read(BUFFER, 4), b"type");
        // The rest waits, and no more is wanted.
        assert_eq!(
            (terminal.typed.room(), terminal.typed.save()),
            (None, b"d".to_vec())
        );
        drivers[RECEIVE].add(&[writable(BUFFER, 4)]);
        drivers[RECEIVE].add(&[writable(BUFFER + 8, 4)]);
        device.serve(RECEIVE).unwrap();
        assert_eq!(drivers[RECEIVE].take().map(|(_, written)| written), Some(1));
        assert_eq!(terminal.typed.room(), Some(TYPED_BYTES_MAX));
        device.backend.reset();
        assert_eq!(terminal.typed.room(), None);
    }

    #[test]
    fn a_device_that_is_broken_takes_no_input() {
        let (mut device, mut drivers, terminal) = started();
        drivers[RECEIVE].add(&[readable(BUFFER, 4)]);
        drivers[RECEIVE].add(&[writable(BUFFER, 4)]);
        device.serve(RECEIVE).unwrap();
        assert!(terminal.typed.room().is_some());
        terminal.typed.add(b"x");
        assert_eq!(device.look(), Err(Broken::Short));
        assert_eq!(terminal.typed.room(), None);
    }

    #[test]
    fn what_waits_moves_along() {
        let (device, _, terminal) = started();
        terminal.typed.add(b"wait");
        let (mut other, mut drivers, _) = started();
        other.backend.load(&device.backend.save()).unwrap();
        assert_eq!(other.backend.load(&[0; TYPED_BYTES_MAX + 1]), Err(Unfit));
        drivers[RECEIVE].add(&[writable(BUFFER, 8)]);
        other.serve(RECEIVE).unwrap();
        assert_eq!(drivers[RECEIVE].read(BUFFER, 5), b"wait\0");
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_changed(
            steps in prop::collection::vec(prop_oneof![
                (1..40u32).prop_map(|room| (room, Vec::new())),
                prop::collection::vec(any::<u8>(), 1..60).prop_map(|typed| (0, typed)),
            ], 1..60),
        ) {
            let (mut device, mut drivers, terminal) = started();
            let (mut expected, mut seen): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
            for (n, (room, typed)) in (0..).zip(steps) {
                if room > 0 {
                    drivers[RECEIVE].add(&[writable(BUFFER + 64 * (n % 64), room)]);
                    device.serve(RECEIVE).unwrap();
                } else if let Some(room) = terminal.typed.room() {
                    let count = typed.len().min(room);
                    expected.extend(&typed[..count]);
                    terminal.typed.add(&typed);
                    device.look().unwrap();
                }
                while let Some((head, written)) = drivers[RECEIVE].take() {
                    let at = drivers[RECEIVE].start_of(head);
                    seen.extend(drivers[RECEIVE].read(at, written as usize));
                }
            }
            let waiting = terminal.typed.save();
            prop_assert_eq!([seen, waiting].concat(), expected);
        }
    }
}
