//! Connects to a port of the host, sends bytes, and wants them back.

use core::fmt::Write;

use super::packet::{Connection, HOST, Header, Operation};
use super::{PAYLOAD_BYTES, Vsock};
use crate::clock::Clock;
use crate::pattern;
use crate::serial::Serial;

/// A peer that does nothing for longer is gone.
const PATIENCE_MS: u64 = 10_000;
const FIRST_PORT: u32 = 0x4000_0000;
/// So little that the peer must wait for us again and again.
const ROOM: u32 = 16 << 10;

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Good,
    Refused,
    Ended,
    Silent,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Refused => "refused",
            Self::Ended => "ended",
            Self::Silent => "silent",
        }
    }
}

struct Client<'a> {
    vsock: &'a mut Vsock,
    clock: Clock,
    connection: Connection,
    seed: u64,
    wanted: u64,
    sent: u64,
    echoed: u64,
    bad: u64,
    sum: u64,
    /// Packets for which we had no room.
    excess: u64,
}

/// Sends `bytes` bytes to a port of the host, compares what comes back, and tells of it.
pub fn connect(vsock: &mut Vsock, port: u32, bytes: u64, seed: u64, clock: Clock) {
    let own = (vsock.cid, FIRST_PORT + port % 0x1000);
    let mut client = Client {
        connection: Connection::new(own, (HOST, port), ROOM),
        vsock,
        clock,
        seed,
        wanted: bytes,
        sent: 0,
        echoed: 0,
        bad: 0,
        sum: pattern::SUM_START,
        excess: 0,
    };
    let outcome = client.run();
    let _ = writeln!(
        Serial,
        "guest: vsock {}: connect port {port} sent {} echoed {} bad {} excess {} sum {:#x} outcome {}",
        client.vsock.number,
        client.sent,
        client.echoed,
        client.bad,
        client.excess,
        client.sum,
        outcome.name()
    );
}

impl Client<'_> {
    fn say(&mut self, operation: Operation) {
        let header = self.connection.header(operation, 0);
        self.vsock.send(&header, |_| {});
    }

    /// The next packet of this connection; others are refused. `None` when there is none.
    fn receive(&mut self) -> Option<Header> {
        let header = self.vsock.receive()?;
        if !self.connection.owns(&header) {
            self.vsock.refuse(&header);
            return None;
        }
        self.excess += u64::from(!self.connection.take(&header));
        Some(header)
    }

    fn run(&mut self) -> Outcome {
        self.say(Operation::Request);
        let mut patience = self.clock.deadline_ms(PATIENCE_MS);
        loop {
            match self.receive().map(|header| header.operation) {
                Some(Operation::Response) => break,
                Some(Operation::Reset) => return Outcome::Refused,
                _ if patience.is_over() => return Outcome::Silent,
                _ => {}
            }
        }
        let mut has_asked = false;
        while self.echoed < self.wanted {
            let went = self.send_some();
            if !went && self.connection.credit() == 0 && !has_asked && self.sent < self.wanted {
                self.say(Operation::CreditRequest);
                has_asked = true;
            }
            let header = self.receive();
            match header.map(|header| header.operation) {
                Some(Operation::Reset | Operation::Shutdown) => return Outcome::Ended,
                Some(Operation::Data) => self.compare(header),
                Some(Operation::CreditRequest) => self.say(Operation::CreditUpdate),
                Some(_) => has_asked = false,
                None => {}
            }
            if went || header.is_some() {
                patience = self.clock.deadline_ms(PATIENCE_MS);
            } else if patience.is_over() {
                return Outcome::Silent;
            }
        }
        self.say(Operation::Shutdown);
        let patience = self.clock.deadline_ms(PATIENCE_MS);
        loop {
            match self.receive().map(|header| header.operation) {
                Some(Operation::Reset) => return Outcome::Good,
                _ if patience.is_over() => return Outcome::Silent,
                _ => {}
            }
        }
    }

    /// Sends as much as one packet and the peer's room hold, in whole words.
    fn send_some(&mut self) -> bool {
        let credit = u64::from(self.connection.credit());
        let left = self.wanted - self.sent;
        let mut bytes = left.min(credit).min(PAYLOAD_BYTES as u64);
        if bytes < left {
            bytes -= bytes % 8;
        }
        if bytes == 0 || !self.vsock.can_send() {
            return false;
        }
        let header = self.connection.header(Operation::Data, bytes as u32);
        let (seed, sent) = (self.seed, self.sent);
        self.vsock
            .send(&header, |payload| pattern::fill(seed, sent, payload));
        self.sent += bytes;
        true
    }

    fn compare(&mut self, header: Option<Header>) {
        let Some(header) = header else {
            return;
        };
        let payload = self.vsock.payload(&header);
        self.sum = pattern::add_to_sum(self.sum, payload);
        self.bad += pattern::wrong_bytes(self.seed, self.echoed, payload);
        self.echoed += u64::from(header.bytes);
        self.connection.consume(header.bytes);
        if self.connection.owes_update() {
            self.say(Operation::CreditUpdate);
        }
    }
}
