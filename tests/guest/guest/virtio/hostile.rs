//! Misbehaves towards a device on purpose, in every way that [`Attack`] names, and then asks whether it works again
//! after a reset.
//!
//! What the device does meanwhile is its own affair, as long as it touches nothing but what it was given. (A balloon
//! that is told to take pages takes them: the longest of lists may cost the guest its own memory.)

use core::fmt::Write;

use super::pci::Function;
use super::probe::{self, Probe, Queues};
use super::queue::{Addresses, Piece, Queue};
use super::{Device, Fault, INDIRECT_DESC, NEEDS_RESET, Platform};
use crate::attacks::{Assault, Attack};
use crate::fill::Random;
use crate::kind::Kind;
use crate::serial::Serial;

const NEXT: u16 = 1;
const INDIRECT: u16 = 4;
const DESCRIPTOR_BYTES: usize = 16;
/// A device that has done nothing by then will do nothing.
const REACTION_MS: u64 = 100;
/// A device that is reset and still writes would do so by then.
const QUIET_MS: u64 = 20;
const MARKER: u8 = 0x3c;
const NOWHERE: u64 = 1 << 45;
const LAST_ADDRESS: u64 = u64::MAX - 15;
const LONGEST: u32 = u32::MAX & !511;
const IN_FLIGHT: usize = 16;
const RANDOM_ROUNDS: u64 = 100;
const RANDOM_STEPS: u64 = 8;
const REGISTER_WRITES: u64 = 1000;

/// What was seen of a device.
struct Seen {
    queue: u16,
    status: u8,
    used: u16,
    is_quiet: bool,
    works: bool,
}

/// Carries out an assault on one device, and tells of each attack.
pub fn assault(
    kind: Kind,
    number: usize,
    function: Function,
    assault: &Assault,
    seed: u64,
    platform: &mut Platform,
) {
    let attacks = Attack::ALL.into_iter();
    for (attack, name) in attacks.filter(|(own, _)| assault.attack.is_none_or(|only| only == *own))
    {
        let mark = platform.arena.mark();
        let seen = run(kind, function, assault.queue, attack, seed, platform);
        let _ = write!(Serial, "guest: {} {number}: hostile {name} ", kind.name());
        let _ = match seen {
            Ok(seen) => {
                // SAFETY: all of it is forgotten, and the device was reset; otherwise there is a fault.
                unsafe { platform.arena.back_to(mark) };
                writeln!(
                    Serial,
                    "queue {} status {:#x} used {} quiet {} works {}",
                    seen.queue,
                    seen.status,
                    seen.used,
                    u8::from(seen.is_quiet),
                    u8::from(seen.works)
                )
            }
            Err(fault) => writeln!(Serial, "fault: {fault}"),
        };
    }
}

fn run(
    kind: Kind,
    function: Function,
    queue: Option<u16>,
    attack: Attack,
    seed: u64,
    platform: &mut Platform,
) -> Result<Seen, Fault> {
    let mut scene = Scene::set_up(kind, function, queue, attack, platform)?;
    let mut random = Random::new(seed);
    scene.misbehave(attack, &mut random, platform)?;
    let seen = Seen {
        queue: scene.number,
        status: scene.device.status(),
        used: scene.queue().used_index(),
        is_quiet: scene.is_quiet_after_reset(platform)?,
        works: false,
    };
    let works = works(kind, function, platform)?;
    Ok(Seen { works, ..seen })
}

/// Whether the device answers when it is treated well again.
fn works(kind: Kind, function: Function, platform: &mut Platform) -> Result<bool, Fault> {
    let mut scene = Scene::set_up(kind, function, None, Attack::Reset, platform)?;
    scene.device.begin();
    let queue = scene.queues[usize::from(scene.number)].as_mut();
    let queue = queue.ok_or(Fault::Queue(scene.number))?;
    let answer = scene.probe.run(queue, platform);
    scene.device.reset(platform.clock)?;
    Ok(answer.is_ok())
}

/// A device with its queues, not begun.
struct Scene {
    device: Device,
    queues: Queues,
    /// The queue that is misused.
    number: u16,
    probe: Probe,
}

impl Scene {
    fn set_up(
        kind: Kind,
        function: Function,
        queue: Option<u16>,
        attack: Attack,
        platform: &mut Platform,
    ) -> Result<Self, Fault> {
        let mut device = Device::open(function, platform)?;
        let wanted = if attack == Attack::Indirect {
            INDIRECT_DESC
        } else {
            0
        };
        device.agree(wanted, platform)?;
        let queues = probe::queues(&mut device, platform)?;
        // Last, so that nothing of ours lies behind it.
        let probe = Probe::new(kind, &mut platform.arena)?;
        let number = queue.unwrap_or(probe.queue);
        if !matches!(queues.get(usize::from(number)), Some(Some(_))) {
            return Err(Fault::Queue(number));
        }
        Ok(Self {
            device,
            queues,
            number,
            probe,
        })
    }

    fn queue(&mut self) -> &mut Queue {
        match &mut self.queues[usize::from(self.number)] {
            Some(queue) => queue,
            None => unreachable!("checked when it was set up"),
        }
    }

    fn misbehave(
        &mut self,
        attack: Attack,
        random: &mut Random,
        platform: &mut Platform,
    ) -> Result<(), Fault> {
        match attack {
            Attack::Unaligned | Attack::Elsewhere => self.misplace(attack, platform)?,
            Attack::Registers => self.write_registers(random),
            Attack::Random => return self.write_random(random, platform),
            _ => {
                self.device.begin();
                self.misuse(attack);
            }
        }
        self.queue().kick();
        if attack != Attack::Reset {
            self.wait(REACTION_MS, platform);
        }
        Ok(())
    }

    /// Waits until the device reacts, or has had the time to.
    fn wait(&mut self, ms: u64, platform: &Platform) {
        let before = self.queue().used_index();
        let deadline = platform.clock.deadline_ms(ms);
        while !deadline.is_over() {
            let is_broken = self.device.status() & NEEDS_RESET != 0;
            if is_broken || self.queue().used_index() != before {
                break;
            }
        }
    }

    /// Puts something into a queue that does not belong there.
    fn misuse(&mut self, attack: Attack) {
        let probe = &self.probe;
        let mut pieces = [Piece::readable(0, 0); 3];
        let count = probe.pieces().len();
        pieces[..count].copy_from_slice(probe.pieces());
        let pieces = &mut pieces[..count];
        let first = pieces[0];
        let middle = count / 2;
        let table = probe.memory.address() + 2048;
        let Some(queue) = self.queues[usize::from(self.number)].as_mut() else {
            return;
        };
        let size = queue.size();
        match attack {
            Attack::Loop => {
                queue.put_descriptor(0, &first, NEXT, 1);
                queue.put_descriptor(1, &first, NEXT, 0);
                queue.put_available(0, 1);
            }
            Attack::Next => {
                queue.put_descriptor(0, &first, NEXT, size);
                queue.put_available(0, 1);
            }
            Attack::Index => queue.put_available(size, 1),
            Attack::Length => {
                pieces[middle].bytes = LONGEST;
                queue.put_chain(0, pieces);
            }
            Attack::Outside => {
                pieces[middle].address = NOWHERE;
                queue.put_chain(0, pieces);
                pieces[middle].address = LAST_ADDRESS;
                queue.put_chain(4, pieces);
            }
            Attack::Jump => {
                queue.put_chain(0, pieces);
                queue.put_available(0, size + 5);
            }
            Attack::Swapped => {
                pieces
                    .iter_mut()
                    .for_each(|p| p.is_writable = !p.is_writable);
                queue.put_chain(0, pieces);
            }
            Attack::Empty => {
                pieces.iter_mut().for_each(|piece| piece.bytes = 0);
                queue.put_chain(0, pieces);
            }
            Attack::Indirect => {
                let piece = Piece::readable(table, DESCRIPTOR_BYTES);
                // The table holds a reference to itself.
                let inner = super::queue::encode(&piece, INDIRECT, 0);
                self.probe.memory.put(2048, &inner);
                let odd = Piece::readable(table, DESCRIPTOR_BYTES + 1);
                queue.put_descriptor(0, &odd, INDIRECT, 0);
                queue.put_descriptor(1, &piece, INDIRECT, 0);
                queue.put_descriptor(2, &piece, INDIRECT | NEXT, 3);
                queue.put_descriptor(3, &first, 0, 0);
                (0..3).for_each(|head| queue.put_available(head, 1));
            }
            Attack::Reset => {
                for _ in 0..IN_FLIGHT {
                    queue.add(pieces);
                }
            }
            Attack::Unaligned | Attack::Elsewhere | Attack::Registers | Attack::Random => {}
        }
    }

    /// Begins with a queue that is where no queue can be.
    fn misplace(&mut self, attack: Attack, platform: &Platform) -> Result<(), Fault> {
        let own = self.queue().addresses();
        let addresses = match attack {
            Attack::Unaligned => Addresses {
                descriptors: own.descriptors + 1,
                available: own.available + 1,
                used: own.used + 1,
            },
            _ => Addresses {
                descriptors: NOWHERE,
                available: LAST_ADDRESS,
                used: NOWHERE,
            },
        };
        self.device.reset(platform.clock)?;
        self.device.agree(0, platform)?;
        if let Some(queue) = &self.queues[usize::from(self.number)] {
            self.device.misplace(queue, &addresses);
        }
        self.device.begin();
        Ok(())
    }

    /// Writes nonsense to registers of every kind and width, while the device is in use.
    fn write_registers(&mut self, random: &mut Random) {
        self.device.begin();
        let windows = self.device.windows();
        for _ in 0..REGISTER_WRITES {
            let window = windows[(random.next() % 3) as usize];
            let offset = random.next() % window.bytes().clamp(1, 4096);
            let value = random.next();
            match random.next() % 3 {
                0 => window.write8(offset, value as u8),
                1 => window.write16(offset, value as u16),
                _ => window.write32(offset, value as u32),
            }
        }
    }

    /// Sets the device up again and again, each time with random descriptors; addresses are nowhere, or ours.
    fn write_random(&mut self, random: &mut Random, platform: &Platform) -> Result<(), Fault> {
        let memory = self.probe.memory.address();
        let size = self.queue().size();
        for _ in 0..RANDOM_ROUNDS {
            self.device.reset(platform.clock)?;
            self.device.agree(0, platform)?;
            for queue in self.queues.iter_mut().flatten() {
                queue.empty();
                self.device.place(queue);
            }
            self.device.begin();
            for _ in 0..RANDOM_STEPS {
                let (address, longest) = match random.next() % 4 {
                    0 => (NOWHERE + random.next() % 4096, u64::from(u32::MAX)),
                    1 => (LAST_ADDRESS + random.next() % 16, u64::from(u32::MAX)),
                    _ => (memory + random.next() % 4096, 4096),
                };
                let piece = Piece {
                    address,
                    bytes: (random.next() % longest) as u32,
                    is_writable: random.next().is_multiple_of(2),
                };
                let near = |random: &mut Random| (random.next() % 8).min(u64::from(size)) as u16;
                let (at, next) = (near(random), near(random));
                let flags = (random.next() & u64::from(NEXT | INDIRECT)) as u16;
                let head = near(random);
                let queue = self.queue();
                queue.put_descriptor(at.min(size - 1), &piece, flags, next);
                queue.put_available(head, near(random));
            }
            self.queue().kick();
            self.wait(2, platform);
        }
        Ok(())
    }

    /// Resets the device; answers whether it leaves alone from then on what it knew of.
    fn is_quiet_after_reset(&mut self, platform: &Platform) -> Result<bool, Fault> {
        self.device.reset(platform.clock)?;
        let used = self.queue().used_index();
        self.probe.memory.slice_mut().fill(MARKER);
        let deadline = platform.clock.deadline_ms(QUIET_MS);
        while !deadline.is_over() {}
        let is_untouched = self.probe.memory.slice().iter().all(|byte| *byte == MARKER);
        Ok(is_untouched && self.queue().used_index() == used)
    }
}
