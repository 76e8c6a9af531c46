//! One device and a guest made of bytes: what the guest writes to registers and memory, and when it kicks, is read from
//! an input, whatever that is.
//!
//! No KVM and no thread: the device does what its thread would do, in the order of the input. For fuzzing, and for
//! tests of every backend; a finding is a panic, a device that does not come to an end, or a check below that fails.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dwcp_memory::vm_memory::{Bytes, GuestAddress};
use dwcp_memory::{GuestMemory, MemorySize, create_memory};
use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, getsockname,
    listen, recv, send, socket, socketpair,
};

use super::registers::{DRIVER_OK, Effect, FEATURES_OK, Offer, Registers};
use super::{
    Backend, Balloon, Block, Broken, Console, Interrupts, Net, OwnRegisters, QueueState, RawDisk,
    Rng, Running, Vsock,
};
use crate::config::{ConsoleSize, DiskLimits, MacAddress, NetLimits};
use crate::devices::Terminal;
use crate::devices::pci::{Deliver, Msix};
use crate::kvm::Message;
use crate::vsock::{ASKED_BYTES, Asked};

/// Memory of the guest.
const MEMORY_BYTES: u64 = 256 << 10;
const DISK_BYTES: usize = 64 << 10;
/// Where the queues are that come up in good order, and how far apart.
const QUEUES_START: u64 = 0x1000;
const QUEUE_BYTES: u64 = 0x1000;
const QUEUE_SIZE: u16 = 16;
/// Most programs of the host at a time.
const PROGRAMS_MAX: usize = 8;
const GUEST_CID: u32 = 3;
const NOW: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);
/// Most times that a device goes on by itself before the guest does something again.
const ROUNDS_MAX: usize = 4;

/// Which device is played with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Played {
    /// Entropy.
    Rng,
    /// A disk of 64 KiB.
    Block,
    /// A disk of 64 KiB that does not change.
    ReadOnlyBlock,
    /// A balloon.
    Balloon,
    /// A console; what is typed comes from outside.
    Console,
    /// Sockets; the host has let the guest connect, and connects itself.
    Vsock,
    /// A network card; its tap is a socket.
    Net,
}

impl Played {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Rng,
        Self::Block,
        Self::ReadOnlyBlock,
        Self::Balloon,
        Self::Console,
        Self::Vsock,
        Self::Net,
    ];
}

/// Plays one input against a device.
pub fn play(device: Played, input: &[u8]) {
    let Ok(mut game) = Game::new(device) else {
        return; // no descriptors left
    };
    let mut input = Input(input);
    while let Some(number) = input.byte() {
        game.step(number, &mut input);
    }
}

/// What is left of an input. Behind its end there are zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |number, _| {
            number << 8 | u64::from(self.byte().unwrap_or(0))
        })
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(self.0.len().min(count));
        self.0 = rest;
        taken
    }
}

/// The outer end of a device.
enum Outside {
    /// There is none.
    Nothing,
    /// The other end of its tap.
    Socket(OwnedFd),
    /// Where its console ends.
    Terminal(Terminal),
    /// Where programs connect, where the host is asked, and the programs.
    Host(OwnedFd, OwnedFd, Vec<OwnedFd>),
}

#[derive(Debug)]
struct Nobody;

impl Deliver for Nobody {
    fn deliver(&self, _message: Message) {}
}

struct Game {
    backend: Box<dyn Backend>,
    offer: Offer,
    registers: Registers,
    own: Arc<OwnRegisters>,
    memory: Arc<GuestMemory>,
    interrupts: Arc<Interrupts>,
    running: Option<Box<Running>>,
    outside: Outside,
}

impl Game {
    fn new(device: Played) -> std::io::Result<Self> {
        let size = MemorySize::new(MEMORY_BYTES).map_err(std::io::Error::other)?;
        let memory = create_memory(size).map_err(std::io::Error::other)?;
        let memory = GuestMemory::map(memory, size).map_err(std::io::Error::other)?;
        let (backend, outside) = backend(device)?;
        let offer = Offer::of(backend.as_ref());
        let queues = offer.queues.len();
        let msix = Arc::new(Msix::new(Arc::new(Nobody), queues as u16 + 1));
        Ok(Self {
            registers: Registers::new(&offer),
            own: backend.registers(),
            interrupts: Arc::new(Interrupts::new(msix, queues)),
            memory: Arc::new(memory),
            running: None,
            backend,
            offer,
            outside,
        })
    }

    /// One thing that a guest, the host or time does.
    fn step(&mut self, number: u8, input: &mut Input<'_>) {
        let queues = self.offer.queues.len();
        match number % 12 {
            0 => {
                let offset = input.number(1) as usize;
                let width = [1, 2, 4, 8][input.number(1) as usize % 4];
                let value = input.number(width).to_le_bytes();
                self.write_common(offset, &value[..width]);
            }
            1 => {
                let offset = input.number(1) as usize;
                let count = input.number(1) as usize % 9;
                self.own.write(offset, input.bytes(count));
            }
            2 => {
                let at = input.number(3) % (MEMORY_BYTES + 64);
                let count = input.number(1) as usize;
                let _ = self
                    .memory
                    .ram()
                    .write(input.bytes(count), GuestAddress(at));
            }
            3 => self.come_up(input.number(1) as u8, input.number(8)),
            4 => {
                let queue = input.number(1) % queues as u64;
                self.describe(queue, input);
            }
            5 => {
                let queue = input.number(1) % queues as u64;
                self.make_available(queue, input.number(1) as u16);
            }
            6 => {
                let queue = input.number(1) as usize % queues;
                self.work(|backend, running| backend.serve(queue, running));
            }
            7 => {
                let count = input.number(1) as usize * 8;
                self.happen_outside(input.bytes(count));
            }
            8 => self.work(|backend, running| {
                let is_ready = backend.watch().is_some_and(|(fd, events)| {
                    let mut fds = [PollFd::new(fd, events)];
                    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
                });
                if is_ready {
                    backend.ready(running)?;
                }
                match backend.wakes_at() {
                    Some(_) => backend.wake(running),
                    None => Ok(()),
                }
            }),
            9 => {
                let _ = self.backend.sync();
                if let Some(running) = self.running.as_deref_mut() {
                    self.backend.rest(running);
                }
                self.begin();
            }
            10 => {
                let saved = self.backend.save();
                let count = input.number(1) as usize;
                // What it saved it takes; what somebody else wrote, perhaps.
                let _ = self.backend.load(input.bytes(count));
                assert_eq!(self.backend.load(&saved), Ok(()));
            }
            _ => {
                let bytes = input.number(4) % (64 << 20);
                let _ = self.backend.resize(bytes);
            }
        }
    }

    /// As a function's common registers do.
    fn write_common(&mut self, offset: usize, data: &[u8]) {
        let before: Vec<QueueState> = self.registers.queues.clone();
        let was_ready = self.registers.status & DRIVER_OK != 0;
        match self.registers.write(offset, data, &self.offer) {
            Effect::None => {}
            Effect::Vector(queue, vector) => self.interrupts.set_vector(queue, vector),
            Effect::Reset => {
                self.running = None;
                self.backend.reset();
                self.interrupts.reset();
                return;
            }
            Effect::Activate => {
                let memory = Arc::clone(&self.memory);
                let interrupts = Arc::clone(&self.interrupts);
                match Running::open(&self.registers, &self.offer, memory, interrupts) {
                    Ok(running) => {
                        self.running = Some(Box::new(running));
                        self.begin();
                    }
                    Err(_) => self.interrupts.need_reset(),
                }
            }
        }
        // Only a reset changes a queue in use.
        assert!(!was_ready || before == self.registers.queues);
        let offered = self.offer.features | !0 << 33;
        let status = self.registers.status;
        assert!(status & FEATURES_OK == 0 || self.registers.driver_features & !offered == 0);
    }

    /// Every queue that `queues` has a bit for, with `features` of those that are offered.
    fn come_up(&mut self, queues: u8, features: u64) {
        let features = self.offer.features & (features | 1 << 32);
        self.write_common(0x14, &[0]);
        self.write_common(0x14, &[3]);
        for (half, value) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            self.write_common(0x08, &half.to_le_bytes());
            self.write_common(0x0c, &value.to_le_bytes());
        }
        self.write_common(0x14, &[3 | FEATURES_OK]);
        for queue in (0..self.offer.queues.len()).filter(|queue| queues & 1 << queue == 0) {
            let place = QUEUES_START + queue as u64 * QUEUE_BYTES;
            self.write_common(0x16, &(queue as u16).to_le_bytes());
            self.write_common(0x18, &QUEUE_SIZE.to_le_bytes());
            for (offset, place) in [(0x20, place), (0x28, place + 0x400), (0x30, place + 0x800)] {
                self.write_common(offset, &place.to_le_bytes());
            }
            self.write_common(0x1c, &1u16.to_le_bytes());
        }
        self.write_common(0x14, &[3 | FEATURES_OK | DRIVER_OK]);
    }

    /// A descriptor of a queue, most often in memory.
    fn describe(&mut self, queue: u64, input: &mut Input<'_>) {
        let at = QUEUES_START + queue * QUEUE_BYTES + input.number(1) % u64::from(QUEUE_SIZE) * 16;
        let start = input.number(3);
        let bytes = input.number(2);
        let flags = input.number(1);
        let next = input.number(1);
        // The highest bit is for what lies far outside.
        let start = start & 0x3_ffff | (start >> 23) << 60;
        let words = [start, bytes | flags << 32 | next << 48];
        let _ = self.memory.ram().write_obj(words, GuestAddress(at));
    }

    fn make_available(&mut self, queue: u64, head: u16) {
        let ring = QUEUES_START + queue * QUEUE_BYTES + 0x400;
        let ram = self.memory.ram();
        let index: u16 = ram.read_obj(GuestAddress(ring + 2)).unwrap_or(0);
        let at = ring + 4 + 2 * u64::from(index % QUEUE_SIZE);
        let _ = ram.write_obj(head, GuestAddress(at));
        let _ = ram.write_obj(index.wrapping_add(1), GuestAddress(ring + 2));
    }

    fn happen_outside(&mut self, bytes: &[u8]) {
        match &mut self.outside {
            Outside::Nothing => {}
            Outside::Socket(socket) => {
                say(socket, bytes);
                hear(socket);
            }
            Outside::Terminal(terminal) => {
                terminal.typed.add(bytes);
                terminal.output.take();
            }
            Outside::Host(listener, control, programs) => {
                if let ([first, rest @ ..], true) = (bytes, programs.len() < PROGRAMS_MAX) {
                    programs.extend(program(first % 4, rest, listener, control));
                }
                for program in programs.iter() {
                    say(program, bytes);
                    hear(program);
                }
                if bytes.len() % 64 == 8 {
                    programs.clear();
                }
            }
        }
    }

    fn begin(&mut self) {
        if let Some(running) = self.running.as_deref_mut() {
            for queue in 0..self.offer.queues.len() {
                running.again(queue);
            }
        }
        self.work(|backend, running| backend.begin(running));
    }

    /// As the device's thread does.
    fn work(&mut self, first: impl FnOnce(&mut dyn Backend, &mut Running) -> Result<(), Broken>) {
        let (Some(running), false) = (self.running.as_deref_mut(), self.interrupts.needs_reset())
        else {
            return;
        };
        let mut result = first(self.backend.as_mut(), running);
        for _ in 0..ROUNDS_MAX {
            let again = running.take_again();
            let queues = (0..self.offer.queues.len()).filter(|queue| again & 1 << queue != 0);
            for queue in queues {
                result = result.and_then(|()| self.backend.serve(queue, running));
            }
        }
        if result.is_err() {
            self.backend
                .counters()
                .errors
                .fetch_add(1, Ordering::Relaxed);
            self.interrupts.need_reset();
        }
    }
}

fn say(socket: &OwnedFd, bytes: &[u8]) {
    let _ = send(socket.as_raw_fd(), bytes, NOW);
}

fn hear(socket: &OwnedFd) {
    let mut frame = [0; 4096];
    while recv(socket.as_raw_fd(), &mut frame, NOW).is_ok_and(|count| count > 0) {}
}

/// A program of the host: one that connects, or one that the guest may connect to.
fn program(kind: u8, said: &[u8], listener: &OwnedFd, control: &OwnedFd) -> Option<OwnedFd> {
    if kind < 2 {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let program = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
        let address: UnixAddr = getsockname(listener.as_raw_fd()).ok()?;
        connect(program.as_raw_fd(), &address).ok()?;
        if kind == 0 {
            say(&program, b"CONNECT 1024\n");
        }
        say(&program, said);
        return Some(program);
    }
    let mut asked = [0; ASKED_BYTES];
    recv(control.as_raw_fd(), &mut asked, NOW).ok()?;
    let asked = Asked::decode(asked);
    let (ours, theirs) = pair(SockType::Stream).ok()?;
    asked.answer(control, (kind == 2).then_some(theirs)).ok()?;
    Some(ours)
}

fn backend(device: Played) -> std::io::Result<(Box<dyn Backend>, Outside)> {
    let disk = |is_read_only| -> std::io::Result<Box<dyn Backend>> {
        let fd = memfd_create(c"dwcp-played-disk", MFdFlags::MFD_CLOEXEC)?;
        let mut file = std::fs::File::from(fd);
        file.write_all(&[7; DISK_BYTES])?;
        let disk = Box::new(RawDisk::new(file.into())?);
        let limits = DiskLimits::default();
        Ok(Box::new(Block::new(
            disk,
            "played",
            is_read_only,
            2,
            limits,
        )))
    };
    Ok(match device {
        Played::Rng => (Box::new(Rng), Outside::Nothing),
        Played::Balloon => (Box::new(Balloon::default()), Outside::Nothing),
        Played::Block => (disk(false)?, Outside::Nothing),
        Played::ReadOnlyBlock => (disk(true)?, Outside::Nothing),
        Played::Console => {
            let terminal = Terminal::new()?;
            let console = Console::new(ConsoleSize::default(), &terminal);
            (Box::new(console), Outside::Terminal(terminal))
        }
        Played::Vsock => {
            let flags = SockFlag::SOCK_CLOEXEC;
            let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            // The kernel chooses a name.
            bind(listener.as_raw_fd(), &UnixAddr::new_unnamed())?;
            listen(&listener, Backlog::new(PROGRAMS_MAX as i32)?)?;
            let (ours, control) = pair(SockType::SeqPacket)?;
            let vsock = Vsock::new(GUEST_CID, listener.try_clone()?, ours)?;
            (
                Box::new(vsock),
                Outside::Host(listener, control, Vec::new()),
            )
        }
        Played::Net => {
            let (tap, outside) = pair(SockType::SeqPacket)?;
            let mac = MacAddress([2, 0, 0, 0, 0, 1]);
            let net = Net::new(tap, mac, 1500, None, NetLimits::default())?;
            (Box::new(net), Outside::Socket(outside))
        }
    })
}

fn pair(kind: SockType) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socketpair(AddressFamily::Unix, kind, None, flags)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A step that means something, more often than any bytes would.
    fn step() -> impl Strategy<Value = Vec<u8>> {
        let any_step = (0..12u8, prop::collection::vec(any::<u8>(), 0..12));
        let up = any::<u64>().prop_map(|features| {
            let mut step = vec![3, 0];
            step.extend(features.to_be_bytes());
            step
        });
        let buffer = (0..3u8, 0..16u8, 0..0x3_ffffu32, 0..600u16, 0..4u8, 0..16u8).prop_map(
            |(queue, slot, start, bytes, flags, next)| {
                let mut step = vec![4, queue, slot];
                step.extend(&start.to_be_bytes()[1..]);
                step.extend(bytes.to_be_bytes());
                step.extend([flags, next]);
                step
            },
        );
        let header = (0..0x3_0000u32, 0..14u8, 0..140u8).prop_map(|(at, kind, sector)| {
            let mut step = vec![2];
            step.extend(&at.to_be_bytes()[1..]);
            step.extend([16, kind, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0]);
            step
        });
        let packet =
            (0..0x3_0000u32, 0..9u8, 0..4u8, 0..80u8).prop_map(|(at, operation, flags, bytes)| {
                let mut step = vec![2];
                step.extend(&at.to_be_bytes()[1..]);
                step.push(44);
                let mut header = [0; 44];
                (header[0], header[8], header[17], header[21]) = (3, 2, 4, 4);
                (header[24], header[28], header[30]) = (bytes, 1, operation);
                (header[32], header[38]) = (flags, 1);
                step.extend(header);
                step
            });
        let outside = (0..4u8, 1..4u8).prop_map(|(kind, eights)| {
            let mut step = vec![7, eights, kind];
            step.extend(vec![b'x'; usize::from(eights) * 8 - 1]);
            step.push(8);
            step
        });
        let ask = (0..3u8, 0..16u8).prop_map(|(queue, head)| vec![5, queue, head, 6, queue]);
        prop_oneof![
            2 => any_step.prop_map(|(number, mut bytes)| { bytes.insert(0, number); bytes }),
            1 => up,
            4 => buffer,
            1 => header,
            1 => packet,
            1 => outside,
            4 => ask,
        ]
    }

    proptest! {
        #[test]
        fn no_guest_gets_the_better_of_a_device(steps in prop::collection::vec(step(), 1..60)) {
            let mut input = vec![3, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
            input.extend(steps.concat());
            for device in Played::ALL {
                play(device, &input);
            }
        }

        #[test]
        fn no_bytes_get_the_better_of_a_device(input in prop::collection::vec(any::<u8>(), 0..400)) {
            for device in Played::ALL {
                play(device, &input);
            }
        }
    }

    #[test]
    fn a_played_device_does_what_it_is_asked() {
        let mut game = Game::new(Played::Rng).expect("descriptors");
        game.come_up(0, u64::MAX);
        let ask = [4, 0, 0, 0, 0x80, 0, 0, 16, 2, 0, 5, 0, 0, 6, 0];
        let mut input = Input(&ask);
        while let Some(number) = input.byte() {
            game.step(number, &mut input);
        }
        let mut used = [0; 12];
        let place = GuestAddress(QUEUES_START + 0x800);
        game.memory
            .ram()
            .read_slice(&mut used, place)
            .expect("in memory");
        assert_eq!(used, [0, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0, 0]);
    }
}
