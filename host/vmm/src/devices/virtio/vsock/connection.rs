//! One connection between a program of the host and one of the guest.
//!
//! ```text
//! host began:   Greeting --(the host names a port)--> Offered --(the guest accepts)--> Open
//! guest began:  Asked --(a socket has come)--> Open
//! ```
//!
//! What always holds: of what the guest sent at most [`BUFFER_BYTES`] wait for the host, and one that sends more than
//! it was allowed is reset; the guest is sent no more than it allowed; what has to happen has a deadline.

use std::collections::VecDeque;
use std::num::Wrapping;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::packet::{HOST_CID, Header, NO_RECEIVE, NO_SEND, Operation, STREAM};

/// What waits for the host at most, in bytes.
pub const BUFFER_BYTES: u32 = 64 << 10;
/// How long a side may take to accept or to name a port.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take until a connection is gone that neither side wants any more, since the host took something.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The guest is told of room when there is so much that it does not know of.
const NEWS_BYTES: u32 = BUFFER_BYTES / 2;
/// Longest first line of a host's program.
const GREETING_BYTES_MAX: usize = 32;
const NOW: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// Who speaks with whom: the host's port and the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The host's.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The host's program has not said where to.
    Greeting,
    /// The guest has not said whether it accepts.
    Offered,
    /// The host has not given the socket that was asked for under this number.
    Asked(u32),
    /// Both ends are there.
    Open,
}

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes on.
    Goes,
    /// It has ended, and the guest is told.
    Reset,
    /// It has ended, and the guest knows, or never knew of it.
    Gone,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// By which it is known to the descriptor that waits for all of them.
    pub id: u64,
    /// Who speaks with whom; nobody yet while the host's program is silent.
    pub ports: Ports,
    stage: Stage,
    socket: Option<OwnedFd>,
    deadline: Option<Instant>,
    /// Packets without data that the guest has to get.
    owed: Owed,
    /// The socket may have something, or take something.
    can_read: bool,
    has_hung_up: bool,
    host_sends_no_more: bool,
    guest_sends_no_more: bool,
    guest_receives_no_more: bool,
    /// On its way to the host.
    to_host: VecDeque<u8>,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// What the guest knows of `forwarded`.
    told: Wrapping<u32>,
    sent: Wrapping<u32>,
    guest_allocated: u32,
    guest_forwarded: Wrapping<u32>,
    has_asked_for_credit: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Owed {
    request: bool,
    response: bool,
    shutdown: bool,
    credit: bool,
}

/// A packet for the guest; its data is in the buffer that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// What it says.
    pub operation: Operation,
    /// Of a shutdown.
    pub flags: u32,
    /// How much data.
    pub bytes: u32,
}

impl Connection {
    /// The host's program has connected.
    pub fn greeted(id: u64, socket: OwnedFd, now: Instant) -> Self {
        let ports = Ports { host: 0, guest: 0 };
        Self::new(id, ports, Stage::Greeting, Some(socket), now)
    }

    /// The guest asks, and the host is asked under `number`.
    pub fn asked(id: u64, header: &Header, number: u32, now: Instant) -> Self {
        let ports = Ports {
            host: header.destination_port,
            guest: header.source_port,
        };
        let mut connection = Self::new(id, ports, Stage::Asked(number), None, now);
        connection.learn(header);
        connection
    }

    fn new(id: u64, ports: Ports, stage: Stage, socket: Option<OwnedFd>, now: Instant) -> Self {
        Self {
            id,
            ports,
            stage,
            socket,
            deadline: Some(now + OPEN_TIMEOUT),
            owed: Owed::default(),
            can_read: false,
            has_hung_up: false,
            host_sends_no_more: false,
            guest_sends_no_more: false,
            guest_receives_no_more: false,
            to_host: VecDeque::new(),
            received: Wrapping(0),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            sent: Wrapping(0),
            guest_allocated: 0,
            guest_forwarded: Wrapping(0),
            has_asked_for_credit: false,
        }
    }

    /// When it has to be further than it is now.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What it waits for has all the time again: some of it came, or none could, because the VM was paused.
    pub fn go_on(&mut self, now: Instant) {
        let timeout = match self.stage {
            Stage::Open => CLOSE_TIMEOUT,
            _ => OPEN_TIMEOUT,
        };
        self.deadline = self.deadline.map(|_| now + timeout);
    }

    /// As if its deadline had come.
    #[cfg(test)]
    pub fn expire(&mut self) {
        self.deadline = Some(Instant::now());
    }

    /// Whether nothing waits for the host.
    #[cfg(test)]
    pub fn has_all_arrived(&self) -> bool {
        self.to_host.is_empty()
    }

    /// Whether its ports are known.
    pub fn is_named(&self) -> bool {
        self.stage != Stage::Greeting
    }

    /// The number under which the host was asked for a socket.
    pub fn number(&self) -> Option<u32> {
        match self.stage {
            Stage::Asked(number) => Some(number),
            _ => None,
        }
    }

    /// What is said when it ends and the guest has to know, if it was told of it at all.
    pub fn end(&self) -> Verdict {
        if self.is_named() && !self.owed.request {
            Verdict::Reset
        } else {
            Verdict::Gone
        }
    }

    /// Reads what the host's program says first: `CONNECT 1234` and a line feed. `Ok(None)` if that is not all there.
    pub fn read_greeting(&mut self) -> Result<Option<u32>, Verdict> {
        let Some(socket) = &self.socket else {
            return Err(Verdict::Gone);
        };
        let mut line = [0; GREETING_BYTES_MAX];
        let seen = match recv(socket.as_raw_fd(), &mut line, NOW | MsgFlags::MSG_PEEK) {
            Ok(0) => return Err(Verdict::Gone),
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(_) => return Err(Verdict::Gone),
        };
        let Some(end) = line[..seen].iter().position(|byte| *byte == b'\n') else {
            let is_too_long = seen == GREETING_BYTES_MAX;
            return if is_too_long {
                Err(Verdict::Gone)
            } else {
                Ok(None)
            };
        };
        // What follows the line is the guest's.
        let taken = recv(socket.as_raw_fd(), &mut line[..=end], NOW);
        let port = std::str::from_utf8(&line[..end]).ok();
        let port = port.and_then(|line| line.strip_prefix("CONNECT "));
        let port = port.and_then(|port| port.parse().ok());
        match (taken, port) {
            (Ok(count), Some(port)) if count == end + 1 => Ok(Some(port)),
            _ => Err(Verdict::Gone),
        }
    }

    /// The host's program has named a port: the guest is asked.
    pub fn offer(&mut self, ports: Ports, now: Instant) {
        self.ports = ports;
        self.stage = Stage::Offered;
        self.owed.request = true;
        self.deadline = Some(now + OPEN_TIMEOUT);
    }

    /// The host gave the socket that was asked for.
    pub fn open(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
        self.stage = Stage::Open;
        self.owed.response = true;
        self.deadline = None;
    }

    /// The socket, if there is one.
    pub fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Something happened to the socket.
    pub fn happened(
        &mut self,
        can_read: bool,
        can_write: bool,
        has_hung_up: bool,
        now: Instant,
    ) -> Verdict {
        self.can_read |= can_read;
        if has_hung_up && !self.has_hung_up {
            self.has_hung_up = true;
            self.owed.shutdown |= self.host_sends_no_more;
        }
        if can_write {
            self.flush(now)
        } else {
            Verdict::Goes
        }
    }

    /// A packet of the guest, its data in `data`.
    pub fn take(&mut self, header: &Header, data: &[u8], now: Instant) -> Verdict {
        self.learn(header);
        let is_open = self.stage == Stage::Open;
        match header.operation() {
            Some(Operation::Reset) => Verdict::Gone,
            Some(Operation::Response) if self.stage == Stage::Offered => {
                self.stage = Stage::Open;
                self.deadline = None;
                let line = format!("OK {}\n", self.ports.host);
                // There is room in a fresh socket.
                match self.send(line.as_bytes()) {
                    Ok(count) if count == line.len() => Verdict::Goes,
                    _ => Verdict::Reset,
                }
            }
            Some(Operation::Data) if is_open && !self.guest_sends_no_more => self.pass(data, now),
            Some(Operation::Shutdown) if is_open => {
                self.guest_sends_no_more |= header.flags & NO_SEND != 0;
                self.guest_receives_no_more |= header.flags & NO_RECEIVE != 0;
                self.settle(now)
            }
            Some(Operation::CreditUpdate) => Verdict::Goes,
            Some(Operation::CreditRequest) => {
                self.owed.credit |= is_open;
                Verdict::Goes
            }
            _ => Verdict::Reset,
        }
    }

    /// Whether the guest is to get something.
    pub fn has_news(&self) -> bool {
        let Owed {
            request,
            response,
            shutdown,
            credit,
        } = self.owed;
        request || response || shutdown || credit || self.may_read() && self.has_use_for_credit()
    }

    /// The next packet for the guest, with at most as much data as `buffer` holds, which is not empty.
    pub fn next(&mut self, buffer: &mut [u8], now: Instant) -> Result<Option<Outgoing>, Verdict> {
        let plain = |operation| {
            Ok(Some(Outgoing {
                operation,
                flags: 0,
                bytes: 0,
            }))
        };
        if std::mem::take(&mut self.owed.request) {
            return plain(Operation::Request);
        }
        if std::mem::take(&mut self.owed.response) {
            return plain(Operation::Response);
        }
        if self.may_read() {
            if self.credit() == 0 && !self.has_asked_for_credit {
                self.has_asked_for_credit = true;
                return plain(Operation::CreditRequest);
            }
            let bytes = self.read(buffer)?;
            if bytes > 0 {
                return Ok(Some(Outgoing {
                    operation: Operation::Data,
                    flags: 0,
                    bytes,
                }));
            }
        }
        if std::mem::take(&mut self.owed.shutdown) {
            let flags = if self.has_hung_up {
                // The guest answers with a reset, if it does.
                self.deadline = Some(now + CLOSE_TIMEOUT);
                NO_SEND | NO_RECEIVE
            } else {
                NO_SEND
            };
            return Ok(Some(Outgoing {
                operation: Operation::Shutdown,
                flags,
                bytes: 0,
            }));
        }
        if std::mem::take(&mut self.owed.credit) {
            return plain(Operation::CreditUpdate);
        }
        Ok(None)
    }

    /// The header of a packet for the guest with this address.
    pub fn header(&mut self, cid: u64, packet: Outgoing) -> Header {
        self.told = self.forwarded;
        self.owed.credit = false;
        Header {
            source_cid: HOST_CID,
            destination_cid: cid,
            source_port: self.ports.host,
            destination_port: self.ports.guest,
            bytes: packet.bytes,
            kind: STREAM,
            operation: packet.operation as u16,
            flags: packet.flags,
            allocated: BUFFER_BYTES,
            forwarded: self.forwarded.0,
        }
    }

    fn learn(&mut self, header: &Header) {
        self.guest_allocated = header.allocated;
        self.guest_forwarded = Wrapping(header.forwarded);
        self.has_asked_for_credit = false;
    }

    /// How much the guest takes now.
    fn credit(&self) -> u32 {
        let under_way = (self.sent - self.guest_forwarded).0;
        self.guest_allocated.saturating_sub(under_way)
    }

    fn has_use_for_credit(&self) -> bool {
        self.credit() > 0 || !self.has_asked_for_credit
    }

    /// Whether the host may have something for a guest that wants it.
    fn may_read(&self) -> bool {
        let is_over = self.host_sends_no_more || self.guest_receives_no_more;
        self.stage == Stage::Open && self.can_read && !is_over
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<u32, Verdict> {
        let most = buffer.len().min(self.credit() as usize);
        let (Some(socket), true) = (&self.socket, most > 0) else {
            return Ok(0);
        };
        match recv(socket.as_raw_fd(), &mut buffer[..most], NOW) {
            Ok(0) => {
                self.host_sends_no_more = true;
                self.owed.shutdown = true;
                Ok(0)
            }
            Ok(count) => {
                self.sent += count as u32;
                Ok(count as u32)
            }
            Err(Errno::EAGAIN) => {
                self.can_read = false;
                Ok(0)
            }
            Err(Errno::EINTR) => Ok(0),
            Err(_) => Err(Verdict::Reset),
        }
    }

    /// Data of the guest on its way to the host.
    fn pass(&mut self, data: &[u8], now: Instant) -> Verdict {
        let waiting = (self.received - self.forwarded).0;
        if data.len() > (BUFFER_BYTES - waiting) as usize {
            return Verdict::Reset;
        }
        self.received += data.len() as u32;
        self.to_host.extend(data);
        self.flush(now)
    }

    /// Gives the host as much as it takes.
    fn flush(&mut self, now: Instant) -> Verdict {
        let waiting = self.to_host.len();
        while !self.to_host.is_empty() {
            let count = match self.send(self.to_host.as_slices().0) {
                Ok(count) => count,
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                // The host has closed its end, which ends both directions, as with TCP.
                Err(_) => return Verdict::Reset,
            };
            self.to_host.drain(..count);
            self.forwarded += count as u32;
        }
        self.owed.credit |= (self.forwarded - self.told).0 >= NEWS_BYTES;
        if self.to_host.len() < waiting {
            self.go_on(now);
        }
        self.settle(now)
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let socket = self.socket.as_ref().ok_or(Errno::ENOTCONN)?;
        send(socket.as_raw_fd(), bytes, NOW)
    }

    /// Hands on what the guest has ended.
    fn settle(&mut self, now: Instant) -> Verdict {
        let Some(socket) = &self.socket else {
            return Verdict::Goes;
        };
        let is_flushed = self.to_host.is_empty();
        // Either may have been done before, which does no harm.
        if self.guest_sends_no_more && is_flushed {
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
        }
        if self.guest_receives_no_more {
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Read);
        }
        match (
            self.guest_sends_no_more && self.guest_receives_no_more,
            is_flushed,
        ) {
            (true, true) => Verdict::Reset,
            (true, false) => {
                self.deadline.get_or_insert(now + CLOSE_TIMEOUT);
                Verdict::Goes
            }
            (false, _) => Verdict::Goes,
        }
    }
}
