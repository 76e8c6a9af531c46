//! A network card on a tap (virtio 1.3, 5.1).
//!
//! Frames are moved between the guest's memory and the tap by the kernel, without a copy here, checksums and
//! segmentation left to whoever needs them. The launcher made the tap and set its header to 12 bytes; what a frame may
//! say is the host's business (nftables), not this device's.
//!
//! Buffers for frames to the guest are taken ahead and kept in [`Posted`], for a frame may need many; a pause puts back
//! what was not used.

mod posted;
mod tap;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use dwcp_jail::{Condition, allow};
use dwcp_memory::GuestRange;
use nix::poll::PollFlags;

use posted::Posted;

use super::limit::Limits;
use super::{Backend, Broken, Chain, Counters, Kind, OwnRegisters, Rules, Running, queue};
use crate::config::{MacAddress, NetLimits};
use crate::dhcp::Responder;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// The header before every frame (virtio 1.3, 5.1.6).
pub const HEADER_BYTES: u64 = 12;
/// Where it says over how many buffers a frame is spread.
const BUFFERS_OFFSET: u64 = 10;
/// Longest frame without its header: Ethernet, a VLAN tag, and the payload.
const ETHERNET_BYTES: u64 = 18;
/// Longest frame whose segmentation is left to the guest.
const SEGMENTED_BYTES: u64 = 65550;
/// Most frames to the guest before something else is looked at.
const FRAMES_AT_ONCE: usize = 64;
/// Most frames of our own that wait for room in the guest.
const REPLIES_MAX: usize = 4;
/// The shortest and the longest frame that can ask for an address.
const DHCP_BYTES_MIN: u64 = 14 + 20 + 8;
const DHCP_BYTES_MAX: u64 = 1514;
/// As much of a frame, with its header, as says whether it may.
const PEEKED_BYTES: usize = (HEADER_BYTES + DHCP_BYTES_MIN) as usize;

const FEATURE_CHECKSUM: u64 = 1;
const FEATURE_GUEST_CHECKSUM: u64 = 1 << 1;
const FEATURE_MTU: u64 = 1 << 3;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_GUEST_TSO4: u64 = 1 << 7;
const FEATURE_GUEST_TSO6: u64 = 1 << 8;
const FEATURE_HOST_TSO4: u64 = 1 << 11;
const FEATURE_HOST_TSO6: u64 = 1 << 12;
const FEATURE_MERGEABLE: u64 = 1 << 15;
const FEATURE_STATUS: u64 = 1 << 16;

/// The device.
pub struct Net {
    tap: OwnedFd,
    mtu: u16,
    registers: Arc<OwnRegisters>,
    counters: Arc<Counters>,
    posted: Posted,
    responder: Option<Responder>,
    /// Frames of our own to the guest.
    replies: VecDeque<Vec<u8>>,
    /// Whether the guest has room for a frame.
    has_room: bool,
    /// The tap can be read no more: it was deleted.
    is_cut: bool,
    from_guest: Limits,
    to_guest: Limits,
}

impl Net {
    /// A card with this address on a tap.
    pub fn new(
        tap: OwnedFd,
        mac: MacAddress,
        mtu: u16,
        responder: Option<Responder>,
        limits: NetLimits,
    ) -> io::Result<Self> {
        tap::set_non_blocking(&tap)?;
        let mut registers = vec![0; 12];
        registers[..6].copy_from_slice(&mac.0);
        registers[6] = 1; // the link is up
        registers[8..10].copy_from_slice(&1u16.to_le_bytes());
        registers[10..12].copy_from_slice(&mtu.to_le_bytes());
        Ok(Self {
            tap,
            mtu,
            registers: Arc::new(OwnRegisters::new(registers, 0..0)),
            counters: Arc::default(),
            posted: Posted::default(),
            responder,
            replies: VecDeque::new(),
            has_room: false,
            is_cut: false,
            from_guest: Limits::new(limits.frames_per_second, limits.bytes_per_second),
            to_guest: Limits::new(limits.frames_per_second, limits.bytes_per_second),
        })
    }

    /// Sends what the guest gives; answers whether a limit was met.
    fn transmit(&mut self, running: &mut Running) -> Result<(), Broken> {
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = running.pop(TRANSMIT)? else {
                if running.listen(TRANSMIT)? {
                    running.again(TRANSMIT);
                }
                return running.tell(TRANSMIT);
            };
            if !self.from_guest.allow(chain.readable_bytes()) {
                running.put_back(TRANSMIT);
                return running.tell(TRANSMIT);
            }
            self.from_guest.pay(chain.readable_bytes());
            match self.answer(running, &chain)? {
                Some(reply) if self.replies.len() < REPLIES_MAX => self.replies.push_back(reply),
                // One that asks again is answered again.
                Some(_) => {}
                None => self.send(running, &chain),
            }
            running.push(TRANSMIT, chain.head, 0)?;
        }
        running.again(TRANSMIT);
        running.tell(TRANSMIT)
    }

    /// The answer to a frame that asks for an address.
    fn answer(&self, running: &Running, chain: &Chain) -> Result<Option<Vec<u8>>, Broken> {
        let Some(responder) = &self.responder else {
            return Ok(None);
        };
        let bytes = chain.readable_bytes();
        if !(HEADER_BYTES + DHCP_BYTES_MIN..=HEADER_BYTES + DHCP_BYTES_MAX).contains(&bytes) {
            return Ok(None);
        }
        let (head, _) = queue::take::<PEEKED_BYTES>(running.memory(), &chain.readable)?;
        let head = &head[HEADER_BYTES as usize..];
        // IPv4 and UDP; the rest is the responder's to look at.
        if head[12..14] != [0x08, 0x00] || head[23] != 17 {
            return Ok(None);
        }
        let mut frame = vec![0; bytes as usize];
        queue::gather(running.memory(), &chain.readable, &mut frame)?;
        Ok(responder.answer(&frame[HEADER_BYTES as usize..]))
    }

    /// A frame that the tap does not take is lost, as on a wire.
    fn send(&self, running: &Running, chain: &Chain) {
        match running.memory().drain(&self.tap, &chain.readable) {
            Ok(_) => {
                let bytes = chain.readable_bytes();
                self.counters.operations.fetch_add(1, Ordering::Relaxed);
                self.counters.read_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(_) => {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Gives the guest what waits at the tap.
    fn receive(&mut self, running: &mut Running) -> Result<(), Broken> {
        for _ in 0..FRAMES_AT_ONCE {
            if !self.to_guest.allow(1) || !self.post(running)? {
                break;
            }
            let taken = match self.replies.pop_front() {
                Some(reply) => self.give_frame(running, &reply)?,
                None => self.take_frame(running)?,
            };
            if !taken {
                break;
            }
        }
        running.tell(RECEIVE)
    }

    /// Takes buffers until a whole frame fits; answers whether it does.
    fn post(&mut self, running: &mut Running) -> Result<bool, Broken> {
        let is_mergeable = running.has(FEATURE_MERGEABLE);
        let needed = self.frame_bytes(running);
        let fits = |posted: &Posted| {
            if is_mergeable {
                posted.bytes() >= needed
            } else {
                posted.count() >= 1
            }
        };
        while !fits(&self.posted) {
            match running.pop(RECEIVE)? {
                Some(chain) if !self.posted.is_full() => self.posted.add(chain),
                Some(_) => return Err(Broken::Short),
                None if running.listen(RECEIVE)? => {}
                None => break,
            }
        }
        self.has_room = fits(&self.posted);
        Ok(self.has_room)
    }

    /// Reads one frame into the buffers; answers whether there was one.
    fn take_frame(&mut self, running: &mut Running) -> Result<bool, Broken> {
        let is_mergeable = running.has(FEATURE_MERGEABLE);
        let most = if is_mergeable { usize::MAX } else { 1 };
        let ranges = self.posted.ranges(self.frame_bytes(running), most);
        match running.memory().fill(&self.tap, &ranges) {
            Ok(bytes) => self.given(running, &ranges, bytes as u64),
            Err(error) => {
                let is_empty = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
                if !is_empty.contains(&error.kind()) {
                    // Waiting for it would never end, for it is always ready to fail.
                    self.is_cut = true;
                    self.counters.errors.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false)
            }
        }
    }

    /// Writes a frame of our own into the buffers.
    fn give_frame(&mut self, running: &mut Running, frame: &[u8]) -> Result<bool, Broken> {
        let is_mergeable = running.has(FEATURE_MERGEABLE);
        let most = if is_mergeable { usize::MAX } else { 1 };
        let ranges = self.posted.ranges(self.frame_bytes(running), most);
        let mut bytes = vec![0; HEADER_BYTES as usize];
        bytes.extend_from_slice(frame);
        let written = queue::scatter(running.memory(), &ranges, &bytes)?;
        self.given(running, &ranges, written.into())
    }

    /// Gives the buffers that a frame filled to the guest.
    fn given(
        &mut self,
        running: &mut Running,
        ranges: &[GuestRange],
        bytes: u64,
    ) -> Result<bool, Broken> {
        self.to_guest.pay(bytes);
        self.counters.operations.fetch_add(1, Ordering::Relaxed);
        self.counters
            .written_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        let used = self.posted.take(bytes);
        let buffers = (used.len() as u16).to_le_bytes();
        let (_, behind) = queue::split(ranges, BUFFERS_OFFSET).ok_or(Broken::Short)?;
        queue::scatter(running.memory(), &behind, &buffers)?;
        for (head, written) in used {
            running.push(RECEIVE, head, written)?;
        }
        Ok(true)
    }

    /// Room that the longest frame needs, with its header.
    fn frame_bytes(&self, running: &Running) -> u64 {
        let is_segmented = running.features & (FEATURE_GUEST_TSO4 | FEATURE_GUEST_TSO6) != 0;
        let plain = u64::from(self.mtu) + ETHERNET_BYTES;
        HEADER_BYTES + if is_segmented { SEGMENTED_BYTES } else { plain }
    }
}

impl Backend for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        let offloads = FEATURE_CHECKSUM
            | FEATURE_GUEST_CHECKSUM
            | FEATURE_GUEST_TSO4
            | FEATURE_GUEST_TSO6
            | FEATURE_HOST_TSO4
            | FEATURE_HOST_TSO6;
        offloads | FEATURE_MTU | FEATURE_MAC | FEATURE_MERGEABLE | FEATURE_STATUS
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
        let fd = self.tap.as_raw_fd() as u32;
        let io = [libc::SYS_readv, libc::SYS_writev];
        let mut rules: Rules = io
            .into_iter()
            .map(|call| allow(call).when(Condition::IntIs(0, fd)))
            .collect();
        let offload = allow(libc::SYS_ioctl)
            .when(Condition::IntIs(0, fd))
            .when(Condition::IntIs(1, tap::SET_OFFLOAD as u32));
        rules.push(offload);
        rules
    }

    fn begin(&mut self, running: &mut Running) -> Result<(), Broken> {
        let wanted = tap::Offload {
            checksum: running.has(FEATURE_GUEST_CHECKSUM),
            tso4: running.has(FEATURE_GUEST_TSO4),
            tso6: running.has(FEATURE_GUEST_TSO6),
        };
        if tap::set_offload(&self.tap, wanted).is_err() {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.posted = Posted::default();
        self.replies.clear();
        self.has_room = false;
        self.is_cut = false;
    }

    fn rest(&mut self, running: &mut Running) {
        for _ in 0..self.posted.count() {
            running.put_back(RECEIVE);
        }
        self.reset();
    }

    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), Broken> {
        match queue {
            RECEIVE => self.receive(running),
            _ => {
                self.transmit(running)?;
                if self.replies.is_empty() {
                    return Ok(());
                }
                self.receive(running)
            }
        }
    }

    fn watch(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let listens = self.has_room && !self.is_cut && self.to_guest.waits_until().is_none();
        listens.then(|| (self.tap.as_fd(), PollFlags::POLLIN))
    }

    fn ready(&mut self, running: &mut Running) -> Result<(), Broken> {
        self.receive(running)
    }

    fn wakes_at(&self) -> Option<Instant> {
        let both = [self.from_guest.waits_until(), self.to_guest.waits_until()];
        both.into_iter().flatten().min()
    }

    fn wake(&mut self, running: &mut Running) -> Result<(), Broken> {
        let now = Instant::now();
        if self.from_guest.is_over(now) {
            running.again(TRANSMIT);
        }
        if self.to_guest.is_over(now) {
            running.again(RECEIVE);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;

    use super::*;
    use crate::devices::virtio::driver::{QUEUE_BYTES, memory, start, writable};

    #[test]
    fn a_tap_that_is_gone_is_not_waited_for() {
        // Always ready, and never to be read, as a tap that was deleted.
        let gone = File::open("/").unwrap();
        let mac = MacAddress([2, 0, 0, 0, 0, 1]);
        let net = Net::new(gone.into(), mac, 1500, None, NetLimits::default()).unwrap();
        let (mut device, mut drivers) = start(net, &memory(1 << 20), FEATURE_MTU);
        let errors = Arc::clone(&device.backend.counters);
        let before = errors.errors.load(Ordering::Relaxed);
        drivers[RECEIVE].add(&[writable(2 * QUEUE_BYTES, 2048)]);
        device.serve(RECEIVE).unwrap();
        assert!(device.backend.has_room && device.backend.watch().is_none());
        assert_eq!(errors.errors.load(Ordering::Relaxed), before + 1);
        // A driver that starts anew may find another one.
        device.backend.reset();
        device.serve(RECEIVE).unwrap();
        assert_eq!(errors.errors.load(Ordering::Relaxed), before + 1);
        drivers[RECEIVE].add(&[writable(2 * QUEUE_BYTES, 2048)]);
        device.serve(RECEIVE).unwrap();
        assert_eq!(errors.errors.load(Ordering::Relaxed), before + 2);
    }
}
