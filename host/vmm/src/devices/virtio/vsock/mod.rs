//! Stream sockets between host and guest (virtio 1.3, 5.10). How connections come about is told in [`crate::vsock`].
//!
//! What always holds: a packet for a connection that there is not is answered with a reset; at most
//! [`CONNECTIONS_MAX`] connections, each with a bounded buffer; refusals that wait for room in the guest are bounded,
//! too: a guest that does not take them is not listened to.
//!
//! Connections live as long as the process that holds their sockets. A pause leaves them alone; after the state of a VM
//! was loaded the driver is told that all of them are gone.

mod connection;
mod outside;
mod packet;

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use dwcp_memory::GuestMemory;
use nix::poll::PollFlags;

use connection::{BUFFER_BYTES, Connection, Ports, Verdict};
use outside::{Event, FIRST_ID, Outside};
use packet::{HEADER_BYTES, HOST_CID, Header, Operation, STREAM};

use super::{Backend, Broken, Chain, Counters, Kind, OwnRegisters, Rules, Running, Unfit, queue};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
const QUEUE_SIZE: u16 = 128;
/// Most connections, those included that are not open yet.
const CONNECTIONS_MAX: usize = 128;
/// The guest is not listened to while so many refusals wait for it.
const REFUSALS_MAX: usize = 128;
/// Most packets to the guest before something else is looked at.
const PACKETS_AT_ONCE: usize = 64;
/// The host's ports for connections that the host begins.
const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;
/// Stream sockets, said by name.
const FEATURE_STREAM: u64 = 1;
/// The event that says that all connections are gone.
const TRANSPORT_RESET: u32 = 0;

/// The device.
#[derive(Debug)]
pub struct Vsock {
    cid: u64,
    outside: Outside,
    connections: Vec<Connection>,
    next_id: u64,
    next_port: u32,
    refusals: VecDeque<Header>,
    /// The connection whose turn it is.
    turn: usize,
    /// The guest is not listened to until it takes refusals.
    is_stalled: bool,
    /// The driver has to be told that all connections are gone.
    has_moved: bool,
    registers: Arc<OwnRegisters>,
    counters: Arc<Counters>,
    buffer: Vec<u8>,
}

impl Vsock {
    /// The guest is `cid`; the descriptors are those of [`crate::vsock`].
    pub fn new(cid: u32, listener: OwnedFd, control: OwnedFd) -> std::io::Result<Self> {
        let cid = u64::from(cid);
        Ok(Self {
            cid,
            outside: Outside::new(listener, control)?,
            connections: Vec::new(),
            next_id: FIRST_ID,
            next_port: HOST_PORTS.start,
            refusals: VecDeque::new(),
            turn: 0,
            is_stalled: false,
            has_moved: false,
            registers: Arc::new(OwnRegisters::new(cid.to_le_bytes().to_vec(), 0..0)),
            counters: Arc::default(),
            buffer: vec![0; BUFFER_BYTES as usize],
        })
    }

    /// Takes what the guest sends.
    fn transmit(&mut self, running: &mut Running) -> Result<(), Broken> {
        for _ in 0..QUEUE_SIZE {
            if self.refusals.len() >= REFUSALS_MAX {
                self.is_stalled = true;
                return running.tell(TRANSMIT);
            }
            let Some(chain) = running.pop(TRANSMIT)? else {
                if running.listen(TRANSMIT)? {
                    running.again(TRANSMIT);
                }
                return running.tell(TRANSMIT);
            };
            self.take(running.memory(), &chain)?;
            running.push(TRANSMIT, chain.head, 0)?;
        }
        running.again(TRANSMIT);
        running.tell(TRANSMIT)
    }

    /// Takes one packet.
    fn take(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<(), Broken> {
        let (bytes, rest) = queue::take::<HEADER_BYTES>(memory, &chain.readable)?;
        let header = Header::decode(&bytes);
        let is_data = header.operation() == Some(Operation::Data);
        let length = if is_data { header.bytes } else { 0 };
        let (data, _) = queue::split(&rest, length.into()).ok_or(Broken::Short)?;
        self.counters.operations.fetch_add(1, Ordering::Relaxed);
        if header.source_cid != self.cid {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let ports = Ports {
            host: header.destination_port,
            guest: header.source_port,
        };
        let is_known = header.destination_cid == HOST_CID && header.kind == STREAM;
        let found = self
            .connections
            .iter()
            .position(|connection| is_known && connection.is_named() && connection.ports == ports);
        match found {
            // More than any connection may have under way.
            Some(at) if length > BUFFER_BYTES => self.end(at, Verdict::Reset),
            Some(at) => {
                let buffer = &mut self.buffer[..length as usize];
                queue::gather(memory, &data, buffer)?;
                let verdict = self.connections[at].take(&header, buffer, Instant::now());
                self.counters
                    .read_bytes
                    .fetch_add(length.into(), Ordering::Relaxed);
                self.end(at, verdict);
            }
            None if is_known && header.operation() == Some(Operation::Request) => {
                self.ask(&header);
            }
            None => self.refuse(&header),
        }
        Ok(())
    }

    /// The guest wants to connect.
    fn ask(&mut self, header: &Header) {
        let has_room = self.connections.len() < CONNECTIONS_MAX;
        let number = has_room.then(|| self.outside.ask(header.destination_port));
        match number.flatten() {
            Some(number) => {
                let id = self.id();
                let connection = Connection::asked(id, header, number, Instant::now());
                self.connections.push(connection);
            }
            None => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: &Header) {
        if header.operation() != Some(Operation::Reset) {
            self.refusals.push_back(header.refusal());
        }
    }

    /// Ends a connection if that is the verdict.
    fn end(&mut self, at: usize, verdict: Verdict) {
        if verdict == Verdict::Goes {
            return;
        }
        let connection = self.connections.swap_remove(at);
        if let Some(socket) = connection.socket() {
            self.outside.remove(socket);
        }
        if verdict == Verdict::Reset {
            self.refusals.push_back(Header {
                source_cid: HOST_CID,
                destination_cid: self.cid,
                source_port: connection.ports.host,
                destination_port: connection.ports.guest,
                kind: STREAM,
                operation: Operation::Reset as u16,
                ..Header::default()
            });
        }
    }

    /// Gives the guest what there is for it, as far as it has room.
    fn receive(&mut self, running: &mut Running) -> Result<(), Broken> {
        for _ in 0..PACKETS_AT_ONCE {
            if !self.has_news() {
                return running.tell(RECEIVE);
            }
            let Some(chain) = running.pop(RECEIVE)? else {
                if running.listen(RECEIVE)? {
                    continue;
                }
                return running.tell(RECEIVE);
            };
            let room = chain.writable_bytes().checked_sub(HEADER_BYTES as u64);
            let room = room.filter(|room| *room > 0).ok_or(Broken::Short)?;
            let Some(header) = self.next(room) else {
                running.put_back(RECEIVE);
                continue;
            };
            let (place, behind) =
                queue::split(&chain.writable, HEADER_BYTES as u64).ok_or(Broken::Short)?;
            queue::scatter(running.memory(), &place, &header.encode())?;
            let data = &self.buffer[..header.bytes as usize];
            queue::scatter(running.memory(), &behind, data)?;
            self.counters.operations.fetch_add(1, Ordering::Relaxed);
            let bytes = u64::from(header.bytes);
            self.counters
                .written_bytes
                .fetch_add(bytes, Ordering::Relaxed);
            running.push(RECEIVE, chain.head, HEADER_BYTES as u32 + header.bytes)?;
        }
        running.again(RECEIVE);
        running.tell(RECEIVE)
    }

    fn has_news(&self) -> bool {
        !self.refusals.is_empty() || self.connections.iter().any(Connection::has_news)
    }

    /// The next packet for the guest; its data, at most `room` bytes, is in the buffer. Connections take turns.
    fn next(&mut self, room: u64) -> Option<Header> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        let room = room.min(BUFFER_BYTES.into()) as usize;
        for step in 0..self.connections.len() {
            let at = (self.turn + step) % self.connections.len();
            let connection = &mut self.connections[at];
            if !connection.has_news() {
                continue;
            }
            match connection.next(&mut self.buffer[..room], Instant::now()) {
                Ok(Some(packet)) => {
                    self.turn = at + 1;
                    return Some(connection.header(self.cid, packet));
                }
                Ok(None) => {}
                Err(verdict) => {
                    self.end(at, verdict);
                    return self.refusals.pop_front();
                }
            }
        }
        None
    }

    /// Takes what happened outside.
    fn look(&mut self) {
        for event in self.outside.happened() {
            match event {
                Event::Accepted(socket) => self.accept(socket),
                Event::Answered(number, socket) => self.answered(number, socket),
                Event::Socket {
                    id,
                    can_read,
                    can_write,
                    has_hung_up,
                } => {
                    let mut all = self.connections.iter();
                    if let Some(at) = all.position(|connection| connection.id == id) {
                        let now = Instant::now();
                        let connection = &mut self.connections[at];
                        let verdict = connection.happened(can_read, can_write, has_hung_up, now);
                        if verdict == Verdict::Goes && !connection.is_named() {
                            self.greet(at);
                        } else {
                            self.end(at, verdict);
                        }
                    }
                }
            }
        }
    }

    /// A program of the host; one too many is sent away at once.
    fn accept(&mut self, socket: OwnedFd) {
        if self.connections.len() < CONNECTIONS_MAX {
            let id = self.id();
            if self.outside.add(&socket, id).is_ok() {
                let connection = Connection::greeted(id, socket, Instant::now());
                self.connections.push(connection);
            }
        }
    }

    /// The host's program may have said where to.
    fn greet(&mut self, at: usize) {
        match self.connections[at].read_greeting() {
            Ok(None) => {}
            Ok(Some(guest)) => {
                let host = self.port(guest);
                self.connections[at].offer(Ports { host, guest }, Instant::now());
            }
            Err(verdict) => self.end(at, verdict),
        }
    }

    fn answered(&mut self, number: u32, socket: Option<OwnedFd>) {
        let mut all = self.connections.iter();
        let Some(at) = all.position(|connection| connection.number() == Some(number)) else {
            return; // too late
        };
        let connection = &mut self.connections[at];
        let usable = socket.filter(|socket| self.outside.add(socket, connection.id).is_ok());
        match usable {
            Some(socket) => connection.open(socket),
            None => self.end(at, Verdict::Reset),
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// A port of the host that no connection with this port of the guest has.
    fn port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = if host + 1 < HOST_PORTS.end {
                host + 1
            } else {
                HOST_PORTS.start
            };
            // Ends: there are more ports than connections.
            let ports = Ports { host, guest };
            if self
                .connections
                .iter()
                .all(|connection| connection.ports != ports)
            {
                return host;
            }
        }
    }

    /// Tells the driver that all connections are gone, if it has to know and has room.
    fn announce(&mut self, running: &mut Running) -> Result<(), Broken> {
        if !self.has_moved {
            return Ok(());
        }
        let Some(chain) = running.pop(EVENT)? else {
            if running.listen(EVENT)? {
                running.again(EVENT);
            }
            return Ok(());
        };
        let event = TRANSPORT_RESET.to_le_bytes();
        let written = queue::scatter(running.memory(), &chain.writable, &event)?;
        if written < event.len() as u32 {
            return Err(Broken::Short);
        }
        self.has_moved = false;
        running.push(EVENT, chain.head, written)?;
        running.tell(EVENT)
    }

    /// After anything that may have made room or news.
    fn go_on(&mut self, running: &mut Running) -> Result<(), Broken> {
        self.receive(running)?;
        if self.is_stalled && self.refusals.len() < REFUSALS_MAX {
            self.is_stalled = false;
            running.again(TRANSMIT);
        }
        Ok(())
    }

    fn forget_all(&mut self) {
        for connection in std::mem::take(&mut self.connections) {
            if let Some(socket) = connection.socket() {
                self.outside.remove(socket);
            }
        }
        self.refusals.clear();
        self.is_stalled = false;
    }
}

impl Backend for Vsock {
    fn hear(&mut self, host: OwnedFd) -> std::io::Result<()> {
        self.outside.hear(host)
    }

    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn registers(&self) -> Arc<OwnRegisters> {
        Arc::clone(&self.registers)
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn rules(&self) -> Rules {
        self.outside.rules()
    }

    fn begin(&mut self, running: &mut Running) -> Result<(), Broken> {
        let now = Instant::now();
        for connection in &mut self.connections {
            connection.go_on(now);
        }
        self.announce(running)
    }

    fn reset(&mut self) {
        self.forget_all();
        self.has_moved = false;
    }

    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), Broken> {
        match queue {
            EVENT => self.announce(running),
            TRANSMIT => {
                self.transmit(running)?;
                self.go_on(running)
            }
            _ => self.go_on(running),
        }
    }

    fn watch(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        Some((self.outside.fd(), PollFlags::POLLIN))
    }

    fn ready(&mut self, running: &mut Running) -> Result<(), Broken> {
        self.look();
        self.go_on(running)
    }

    fn wakes_at(&self) -> Option<Instant> {
        self.connections
            .iter()
            .filter_map(Connection::deadline)
            .min()
    }

    fn wake(&mut self, running: &mut Running) -> Result<(), Broken> {
        let now = Instant::now();
        // From the last to the first, so that ending one does not move those still to be looked at.
        for at in (0..self.connections.len()).rev() {
            let connection = &self.connections[at];
            if connection
                .deadline()
                .is_some_and(|deadline| deadline <= now)
            {
                let verdict = connection.end();
                self.end(at, verdict);
            }
        }
        self.go_on(running)
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), Unfit> {
        if !bytes.is_empty() {
            return Err(Unfit);
        }
        self.forget_all();
        self.has_moved = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
