//! Listens on a port beside the work, and sends back what comes; one connection at a time.

use core::fmt::Write;

use super::packet::{Connection, Header, Operation};
use super::{PAYLOAD_BYTES, Vsock};
use crate::pattern;
use crate::serial::Serial;
use crate::virtio::dma::Region;
use crate::virtio::{Fault, Platform};

/// What has come and could not be sent back yet.
const ROOM: usize = 64 << 10;
/// Packets that are looked at in one step.
const PACKETS_PER_STEP: usize = 8;

/// The service on one port.
#[derive(Debug)]
pub struct Server {
    vsock: Vsock,
    port: u32,
    /// A ring: `start` is where its `held` bytes begin.
    ring: Region,
    session: Option<Session>,
    served: u64,
}

#[derive(Debug)]
struct Session {
    connection: Connection,
    peer_port: u32,
    start: usize,
    held: usize,
    echoed: u64,
    sum: u64,
    /// Packets for which we had no room.
    excess: u64,
    is_closing: bool,
    has_asked: bool,
}

impl Server {
    /// Takes the device over.
    pub fn new(vsock: Vsock, port: u32, platform: &mut Platform) -> Result<Self, Fault> {
        let ring = platform.arena.take(ROOM).ok_or(Fault::Memory)?;
        let _ = writeln!(Serial, "guest: vsock {}: listen port {port}", vsock.number);
        Ok(Self {
            vsock,
            port,
            ring,
            session: None,
            served: 0,
        })
    }

    /// Looks at what has arrived, and sends back what can be.
    pub fn step(&mut self) {
        if self.vsock.was_reset() {
            self.end("reset");
        }
        for _ in 0..PACKETS_PER_STEP {
            let Some(header) = self.vsock.receive() else {
                break;
            };
            self.take(&header);
        }
        self.send_back();
    }

    fn take(&mut self, header: &Header) {
        let is_own = |session: &Session| session.connection.owns(header);
        if !self.session.as_ref().is_some_and(is_own) {
            let is_welcome = self.session.is_none() && header.to.1 == self.port;
            if is_welcome && header.operation == Operation::Request {
                self.accept(header);
            } else {
                self.vsock.refuse(header);
            }
            return;
        }
        let Some(session) = self.session.as_mut() else {
            return;
        };
        let is_within = session.connection.take(header);
        session.excess += u64::from(!is_within);
        match header.operation {
            Operation::Data if is_within => {
                let payload = self.vsock.payload(header);
                session.sum = pattern::add_to_sum(session.sum, payload);
                let end = (session.start + session.held) % ROOM;
                let first = payload.len().min(ROOM - end);
                self.ring.put(end, &payload[..first]);
                self.ring.put(0, &payload[first..]);
                session.held += payload.len();
            }
            Operation::Shutdown => session.is_closing = true,
            Operation::Reset => self.end("peer"),
            Operation::CreditRequest => {
                let update = session.connection.header(Operation::CreditUpdate, 0);
                self.vsock.send(&update, |_| {});
            }
            Operation::CreditUpdate => session.has_asked = false,
            Operation::Data | Operation::Request | Operation::Response => {}
        }
    }

    fn accept(&mut self, header: &Header) {
        let mut connection = Connection::new(header.to, header.from, ROOM as u32);
        connection.take(header);
        let response = connection.header(Operation::Response, 0);
        self.vsock.send(&response, |_| {});
        self.session = Some(Session {
            connection,
            peer_port: header.from.1,
            start: 0,
            held: 0,
            echoed: 0,
            sum: pattern::SUM_START,
            excess: 0,
            is_closing: false,
            has_asked: false,
        });
    }

    fn send_back(&mut self) {
        let Some(session) = self.session.as_mut() else {
            return;
        };
        while session.held > 0 && self.vsock.can_send() {
            let credit = session.connection.credit() as usize;
            let whole = ROOM - session.start;
            let bytes = session.held.min(credit).min(PAYLOAD_BYTES).min(whole);
            if bytes == 0 {
                if !session.has_asked {
                    session.has_asked = true;
                    let question = session.connection.header(Operation::CreditRequest, 0);
                    self.vsock.send(&question, |_| {});
                }
                return;
            }
            session.connection.consume(bytes as u32);
            let header = session.connection.header(Operation::Data, bytes as u32);
            let content = &self.ring.slice()[session.start..session.start + bytes];
            self.vsock
                .send(&header, |payload| payload.copy_from_slice(content));
            session.start = (session.start + bytes) % ROOM;
            session.held -= bytes;
            session.echoed += bytes as u64;
        }
        if session.is_closing && session.held == 0 && self.vsock.can_send() {
            let farewell = session.connection.header(Operation::Reset, 0);
            self.vsock.send(&farewell, |_| {});
            self.end("done");
        }
    }

    fn end(&mut self, why: &str) {
        if let Some(session) = self.session.take() {
            self.served += 1;
            let _ = writeln!(
                Serial,
                "guest: vsock {}: served peer_port {} echoed {} excess {} sum {:#x} connections {} end {why}",
                self.vsock.number,
                session.peer_port,
                session.echoed,
                session.excess,
                session.sum,
                self.served
            );
        }
    }
}
