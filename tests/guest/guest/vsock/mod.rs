//! The socket device (virtio 1.3, 5.10): packets between this guest and its host.

mod client;
pub mod packet;
mod server;

pub use client::connect;
pub use server::Server;

use core::fmt::Write;

use packet::{HEADER_BYTES, Header, Operation};

use crate::serial::Serial;
use crate::virtio::dma::Region;
use crate::virtio::pci::Function;
use crate::virtio::queue::{Piece, Queue};
use crate::virtio::{Device, Fault, Platform};

const RECEIVE: u16 = 0;
const SEND: u16 = 1;
const EVENTS: u16 = 2;
const CID: u64 = 0;

/// Buffers of each direction.
const BUFFERS: usize = 64;
const BUFFER_BYTES: usize = 4096;
/// The longest payload.
pub const PAYLOAD_BYTES: usize = BUFFER_BYTES - HEADER_BYTES;
/// Telling the device of buffers costs an exit, and it has enough of them.
const UNTOLD_PART: u16 = 8;
const EVENT_BYTES: usize = 4;
const EVENT_BUFFERS: usize = 4;
const TRANSPORT_RESET: u32 = 0;

/// A socket device in use.
#[derive(Debug)]
pub struct Vsock {
    /// Its place among its kind, from 0.
    pub number: usize,
    /// Our context number.
    pub cid: u64,
    device: Device,
    receive: Queue,
    send: Queue,
    events: Queue,
    received: Region,
    sent: Region,
    event: Region,
    /// Per head of the queue, the buffer.
    receive_buffer: [u8; 256],
    send_buffer: [u8; 256],
    event_buffer: [u8; 256],
    is_free: [bool; BUFFERS],
    /// Buffers that were offered again since the device was told so.
    untold: u16,
    payload: [u8; PAYLOAD_BYTES],
}

impl Vsock {
    /// Sets the device up and tells of it.
    pub fn open(number: usize, function: Function, platform: &mut Platform) -> Result<Self, Fault> {
        let mut device = Device::open(function, platform)?;
        device.agree(0, platform)?;
        let receive = device.queue(RECEIVE, BUFFERS as u16, platform)?;
        // A packet with payload takes two descriptors.
        let send = device.queue(SEND, 2 * BUFFERS as u16, platform)?;
        let events = device.queue(EVENTS, EVENT_BUFFERS as u16, platform)?;
        let mut region = |bytes| platform.arena.take(bytes).ok_or(Fault::Memory);
        let mut vsock = Self {
            number,
            cid: 0,
            receive,
            send,
            events,
            received: region(BUFFERS * BUFFER_BYTES)?,
            sent: region(BUFFERS * BUFFER_BYTES)?,
            event: region(EVENT_BUFFERS * EVENT_BYTES)?,
            receive_buffer: [0; 256],
            send_buffer: [0; 256],
            event_buffer: [0; 256],
            is_free: [true; BUFFERS],
            untold: 0,
            payload: [0; PAYLOAD_BYTES],
            device,
        };
        vsock.device.begin();
        vsock.cid = vsock.device.config64(CID);
        (0..BUFFERS as u8).for_each(|buffer| vsock.offer(buffer));
        (0..EVENT_BUFFERS as u8).for_each(|buffer| vsock.offer_event(buffer));
        vsock.receive.notify();
        vsock.events.notify();
        let _ = writeln!(
            Serial,
            "guest: vsock {number}: cid {} features {:#x}",
            vsock.cid,
            vsock.device.features()
        );
        Ok(vsock)
    }

    fn offer(&mut self, buffer: u8) {
        let address = self.received.address() + (usize::from(buffer) * BUFFER_BYTES) as u64;
        if let Some(head) = self.receive.add(&[Piece::writable(address, BUFFER_BYTES)]) {
            self.receive_buffer[usize::from(head)] = buffer;
        }
    }

    fn offer_event(&mut self, buffer: u8) {
        let address = self.event.address() + (usize::from(buffer) * EVENT_BYTES) as u64;
        if let Some(head) = self.events.add(&[Piece::writable(address, EVENT_BYTES)]) {
            self.event_buffer[usize::from(head)] = buffer;
        }
    }

    /// A packet that has arrived; [`Self::payload`] holds what it carries. One that is no packet is left out.
    pub fn receive(&mut self) -> Option<Header> {
        let (head, written) = self.receive.take_used()?;
        let buffer = self.receive_buffer[usize::from(head)];
        let start = usize::from(buffer) * BUFFER_BYTES;
        let written = (written as usize).min(BUFFER_BYTES);
        let packet = &self.received.slice()[start..start + written];
        let header = Header::read(packet)
            .filter(|header| header.bytes as usize == written - HEADER_BYTES)
            .filter(|header| header.to.0 == self.cid);
        if header.is_some() {
            let payload = &packet[HEADER_BYTES..];
            self.payload[..payload.len()].copy_from_slice(payload);
        } else {
            let number = self.number;
            let _ = writeln!(Serial, "guest: vsock {number}: odd packet of {written}");
        }
        self.offer(buffer);
        self.untold += 1;
        if self.untold >= self.receive.size() / UNTOLD_PART {
            self.untold = 0;
            self.receive.notify();
        }
        header
    }

    /// What the packet that was received last carries.
    pub fn payload(&self, header: &Header) -> &[u8] {
        &self.payload[..(header.bytes as usize).min(PAYLOAD_BYTES)]
    }

    /// Whether a packet could be sent now.
    pub fn can_send(&mut self) -> bool {
        while let Some((head, _)) = self.send.take_used() {
            self.is_free[usize::from(self.send_buffer[usize::from(head)])] = true;
        }
        self.is_free.contains(&true) && self.send.room_for(2) > 0
    }

    /// Sends a packet whose payload `write` writes; nothing if there is no room for it.
    pub fn send(&mut self, header: &Header, write: impl FnOnce(&mut [u8])) {
        if !self.can_send() {
            return;
        }
        let Some(buffer) = self.is_free.iter().position(|free| *free) else {
            return;
        };
        let start = buffer * BUFFER_BYTES;
        let payload_bytes = (header.bytes as usize).min(PAYLOAD_BYTES);
        self.sent.put(start, &header.write());
        let payload_at = start + HEADER_BYTES;
        write(&mut self.sent.slice_mut()[payload_at..payload_at + payload_bytes]);
        let address = self.sent.address() + start as u64;
        let pieces = [
            Piece::readable(address, HEADER_BYTES),
            Piece::readable(address + HEADER_BYTES as u64, payload_bytes),
        ];
        let count = if payload_bytes > 0 { 2 } else { 1 };
        if let Some(head) = self.send.add(&pieces[..count]) {
            self.is_free[buffer] = false;
            self.send_buffer[usize::from(head)] = buffer as u8;
        }
        self.send.notify();
    }

    /// Answers a packet that nobody expects.
    pub fn refuse(&mut self, header: &Header) {
        if header.operation != Operation::Reset {
            self.send(&header.refusal(), |_| {});
        }
    }

    /// Whether the device says that all connections are gone; our context number may be another then.
    pub fn was_reset(&mut self) -> bool {
        let Some((head, _)) = self.events.take_used() else {
            return false;
        };
        let buffer = self.event_buffer[usize::from(head)];
        let event = self.event.read32(usize::from(buffer) * EVENT_BYTES);
        self.offer_event(buffer);
        self.events.notify();
        let is_reset = event == TRANSPORT_RESET;
        if is_reset {
            self.cid = self.device.config64(CID);
            let (number, cid) = (self.number, self.cid);
            let _ = writeln!(Serial, "guest: vsock {number}: reset cid {cid}");
        }
        is_reset
    }
}
