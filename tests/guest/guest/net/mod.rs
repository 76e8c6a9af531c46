//! The network device (virtio 1.3, 5.1): frames out of one queue and into another.

pub mod dhcp;
pub mod packet;
mod services;
mod stack;
mod tasks;

pub use services::NetServices;
pub use stack::Stack;
pub use tasks::{bench, obtain_address, send};

use core::fmt::Write;

use packet::{Mac, UDP_AT, UDP_SUM_AT};

use crate::serial::Serial;
use crate::virtio::dma::Region;
use crate::virtio::pci::Function;
use crate::virtio::queue::{Piece, Queue};
use crate::virtio::{Device, Fault, Platform};

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const MERGEABLE: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;

const MTU_AT: u64 = 10;
const STATUS_AT: u64 = 6;
const LINK_UP: u16 = 1;

const RECEIVE: u16 = 0;
const SEND: u16 = 1;
const HEADER_BYTES: usize = 12;
const NEEDS_SUM: u8 = 1;
const SUM_IS_GOOD: u8 = 2;
/// Entries of each queue.
const ENTRIES: u16 = 128;
/// A frame and its header.
const BUFFER_BYTES: usize = 2048;
/// The longest frame: 1500 bytes of payload and the Ethernet header.
pub const FRAME_BYTES: usize = 1514;
/// With mergeable buffers: so short that most frames take several.
const MERGEABLE_BYTES: usize = 512;

/// A network interface in use.
#[derive(Debug)]
pub struct Net {
    /// Its place among the interfaces, from 0.
    pub number: usize,
    /// Its address on the link.
    pub mac: Mac,
    /// The longest IP packet.
    pub mtu: u16,
    device: Device,
    receive: Queue,
    send: Queue,
    received: Region,
    sent: Region,
    /// Per head of the receiving queue, the buffer.
    buffer_of: [u8; ENTRIES as usize],
    buffer_bytes: usize,
    /// Sending buffers that are free.
    free: [bool; ENTRIES as usize],
    /// Per head of the sending queue, the buffer.
    sending_of: [u8; ENTRIES as usize],
}

/// A frame that arrived.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Its length.
    pub bytes: usize,
    /// Its sums are to be checked; otherwise the device vouches for them.
    pub check_sum: bool,
}

impl Net {
    /// Sets the device up and tells of it.
    pub fn open(
        number: usize,
        function: Function,
        use_offloads: bool,
        platform: &mut Platform,
    ) -> Result<Self, Fault> {
        let mut device = Device::open(function, platform)?;
        let mut wanted = MTU | MAC | STATUS;
        if use_offloads {
            wanted |= CSUM | GUEST_CSUM | MERGEABLE;
        }
        device.agree(wanted, platform)?;
        let receive = device.queue(RECEIVE, ENTRIES, platform)?;
        let send = device.queue(SEND, ENTRIES, platform)?;
        let bytes = usize::from(ENTRIES) * BUFFER_BYTES;
        let received = platform.arena.take(bytes).ok_or(Fault::Memory)?;
        let sent = platform.arena.take(bytes).ok_or(Fault::Memory)?;
        let has_mac = device.has(MAC);
        let mac = core::array::from_fn(|place| device.config8(place as u64));
        let mut net = Self {
            number,
            // Locally administered; the slot makes it the only one of its kind in this machine.
            mac: if has_mac {
                mac
            } else {
                [2, 0, 0, 0, 0, function.slot()]
            },
            mtu: if device.has(MTU) {
                device.config16(MTU_AT).clamp(68, 1500)
            } else {
                1500
            },
            buffer_bytes: if device.has(MERGEABLE) {
                MERGEABLE_BYTES
            } else {
                BUFFER_BYTES
            },
            device,
            receive,
            send,
            received,
            sent,
            buffer_of: [0; ENTRIES as usize],
            free: [true; ENTRIES as usize],
            sending_of: [0; ENTRIES as usize],
        };
        net.device.begin();
        for buffer in 0..net.receive.size() {
            net.offer(buffer as u8);
        }
        net.receive.notify();
        net.tell();
        Ok(net)
    }

    fn tell(&self) {
        let [a, b, c, d, e, f] = self.mac;
        let is_up = !self.device.has(STATUS) || self.device.config16(STATUS_AT) & LINK_UP != 0;
        let _ = writeln!(
            Serial,
            "guest: net {}: mac {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} features {:#x} mtu {} link {}",
            self.number,
            self.device.features(),
            self.mtu,
            u8::from(is_up)
        );
    }

    fn offer(&mut self, buffer: u8) {
        let at = usize::from(buffer) * BUFFER_BYTES;
        let piece = Piece::writable(self.received.address() + at as u64, self.buffer_bytes);
        if let Some(head) = self.receive.add(&[piece]) {
            self.buffer_of[usize::from(head)] = buffer;
        }
    }

    /// Takes a buffer that the device has filled; appends what is after its first `skip` bytes to `frame` at `at`.
    /// Answers the header and how many bytes were appended.
    fn take_buffer(
        &mut self,
        skip: usize,
        frame: &mut [u8],
        at: usize,
    ) -> Option<([u8; HEADER_BYTES], usize)> {
        let (head, written) = self.receive.take_used()?;
        let buffer = self.buffer_of[usize::from(head)];
        let start = usize::from(buffer) * BUFFER_BYTES;
        let written = (written as usize).min(self.buffer_bytes);
        let content = &self.received.slice()[start..start + written];
        let header = content.first_chunk().copied().unwrap_or_default();
        let content = content.get(skip..).unwrap_or_default();
        let fits = content.len().min(frame.len().saturating_sub(at));
        frame[at..at + fits].copy_from_slice(&content[..fits]);
        self.offer(buffer);
        Some((header, fits))
    }

    /// Copies a frame that has arrived; what does not fit is cut off. The buffers are offered again.
    pub fn receive(&mut self, frame: &mut [u8; FRAME_BYTES]) -> Option<Received> {
        let (header, mut bytes) = self.take_buffer(HEADER_BYTES, frame, 0)?;
        if self.device.has(MERGEABLE) {
            let buffers = u16::from_le_bytes([header[10], header[11]]).min(ENTRIES);
            for _ in 1..buffers {
                // All buffers of a frame are there before the first is seen (virtio 1.3, 5.1.6.4).
                let Some((_, more)) = self.take_buffer(0, frame, bytes) else {
                    break;
                };
                bytes += more;
            }
        }
        self.receive.notify();
        let is_vouched_for =
            self.device.has(GUEST_CSUM) && header[0] & (NEEDS_SUM | SUM_IS_GOOD) != 0;
        Some(Received {
            bytes,
            check_sum: !is_vouched_for,
        })
    }

    /// Whether the device completes sums.
    pub fn sums_for_us(&self) -> bool {
        self.device.has(CSUM)
    }

    /// Sends the frame that `write` writes; answers whether there was room. The device is told by [`Self::flush`].
    pub fn send(&mut self, is_sum_begun: bool, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        while let Some((head, _)) = self.send.take_used() {
            self.free[usize::from(self.sending_of[usize::from(head)])] = true;
        }
        let size = usize::from(self.send.size());
        let Some(buffer) = self.free[..size].iter().position(|free| *free) else {
            return false;
        };
        let at = buffer * BUFFER_BYTES;
        let content = &mut self.sent.slice_mut()[at..at + BUFFER_BYTES];
        content[..HEADER_BYTES].fill(0);
        if is_sum_begun {
            content[0] = NEEDS_SUM;
            content[6..8].copy_from_slice(&(UDP_AT as u16).to_le_bytes());
            content[8..10].copy_from_slice(&(UDP_SUM_AT as u16).to_le_bytes());
        }
        let bytes = write(&mut content[HEADER_BYTES..HEADER_BYTES + FRAME_BYTES]);
        let piece = Piece::readable(self.sent.address() + at as u64, HEADER_BYTES + bytes);
        let Some(head) = self.send.add(&[piece]) else {
            return false;
        };
        self.free[buffer] = false;
        self.sending_of[usize::from(head)] = buffer as u8;
        true
    }

    /// Tells the device of what was sent.
    pub fn flush(&mut self) {
        self.send.notify();
    }
}
