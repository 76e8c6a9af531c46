//! One secure stream: TLS over one TCP socket, driven by one thread that never blocks on either direction alone.
//!
//! A thread that sends pages must read acknowledgements in between, so reading and writing are separate steps:
//! [`SecureStream::queue`] encrypts, [`SecureStream::flush`] writes what the socket takes, [`SecureStream::fill`] reads
//! what is there, and [`SecureStream::wait`] sleeps until one of these can go on or another thread calls.
//!
//! Always holds: what is received is at most one read ahead of what has been consumed; what is queued is the caller's
//! to bound, by looking at [`SecureStream::queued_bytes`]. Must not know frames.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use rustls::{ClientConfig, ServerConfig};

use crate::tls;

/// Most that one [`SecureStream::fill`] reads from the socket, in bytes.
const READ_BYTES: usize = 256 << 10;
/// Plaintext in one TLS record, and what a record adds to it at most, in bytes.
const RECORD_BYTES: usize = 16 << 10;
const RECORD_OVERHEAD_BYTES: usize = 64;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// TLS refused: the wrong certificate, another version, or bytes changed on the way.
    #[error("TLS ended the stream")]
    Tls(#[from] rustls::Error),
    /// The handshake was not over in time.
    #[error("The peer did not finish the TLS handshake in time")]
    Deadline,
    /// The peer ended the stream.
    #[error("The peer closed the stream")]
    Closed,
    /// The socket failed.
    #[error("The connection failed")]
    Io(#[from] std::io::Error),
}

/// What [`SecureStream::wait`] woke up for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There is something to read, or the connection has ended.
    pub readable: bool,
    /// The socket takes bytes.
    pub writable: bool,
    /// The caller's own descriptor became readable.
    pub called: bool,
}

/// A TLS 1.3 stream whose handshake is done.
pub struct SecureStream {
    socket: TcpStream,
    tls: Connection,
    incoming: Vec<u8>,
    incoming_bytes: usize,
    plain: Vec<u8>,
    consumed: usize,
    outgoing: Vec<u8>,
    flushed: usize,
    written_bytes: u64,
    read_bytes: u64,
}

impl std::fmt::Debug for SecureStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecureStream")
            .field("socket", &self.socket)
            .field("written_bytes", &self.written_bytes)
            .field("read_bytes", &self.read_bytes)
            .finish_non_exhaustive()
    }
}

impl SecureStream {
    /// Performs the client's side of the handshake, within `deadline`.
    ///
    /// # Errors
    /// When the peer cannot prove to be one of those pinned in `config`, or is too slow.
    pub fn connect(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        deadline: Duration,
    ) -> Result<Self, StreamError> {
        let connection = UnbufferedClientConnection::new(config, tls::server_name())?;
        Self::handshake(socket, Connection::Client(connection), deadline)
    }

    /// Performs the server's side of the handshake, within `deadline`.
    ///
    /// # Errors
    /// As [`SecureStream::connect`].
    pub fn accept(
        socket: TcpStream,
        config: Arc<ServerConfig>,
        deadline: Duration,
    ) -> Result<Self, StreamError> {
        let connection = UnbufferedServerConnection::new(config)?;
        Self::handshake(socket, Connection::Server(connection), deadline)
    }

    fn handshake(
        socket: TcpStream,
        tls: Connection,
        deadline: Duration,
    ) -> Result<Self, StreamError> {
        socket.set_nonblocking(true)?;
        let mut stream = Self {
            socket,
            tls,
            incoming: vec![0; READ_BYTES + RECORD_BYTES + RECORD_OVERHEAD_BYTES],
            incoming_bytes: 0,
            plain: Vec::new(),
            consumed: 0,
            outgoing: Vec::new(),
            flushed: 0,
            written_bytes: 0,
            read_bytes: 0,
        };
        let end = Instant::now() + deadline;
        while stream.process(Send::Nothing)? || stream.queued_bytes() > 0 {
            stream.flush()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StreamError::Deadline);
            }
            if stream.is_handshaking() || stream.queued_bytes() > 0 {
                let ready = stream.wait(None, true, left)?;
                if ready.readable {
                    stream.read_socket()?;
                }
            }
        }
        Ok(stream)
    }

    /// Encrypts `bytes` for sending. They leave with the next calls of [`SecureStream::flush`].
    ///
    /// # Errors
    /// When TLS has ended.
    pub fn queue(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        if self.flushed == self.outgoing.len() {
            self.outgoing.clear();
            self.flushed = 0;
        }
        self.process(Send::Bytes(bytes))?;
        Ok(())
    }

    /// Bytes that are encrypted and not yet in the socket.
    pub fn queued_bytes(&self) -> usize {
        self.outgoing.len() - self.flushed
    }

    /// Writes as much as the socket takes without blocking; returns how much that was.
    ///
    /// # Errors
    /// When the connection has failed.
    pub fn flush(&mut self) -> Result<usize, StreamError> {
        let mut total = 0;
        while self.flushed < self.outgoing.len() {
            match self.socket.write(&self.outgoing[self.flushed..]) {
                Ok(0) => return Err(StreamError::Closed),
                Ok(written) => {
                    self.flushed += written;
                    total += written;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.written_bytes += total as u64;
        Ok(total)
    }

    /// Reads once what the socket has, without blocking, and decrypts it; returns how many plaintext bytes came.
    ///
    /// # Errors
    /// [`StreamError::Closed`] when the peer has ended the stream, whether it said so by TLS or not, and everything
    /// that it sent has been returned.
    pub fn fill(&mut self) -> Result<usize, StreamError> {
        if self.consumed > 0 {
            self.plain.drain(..self.consumed);
            self.consumed = 0;
        }
        let before = self.plain.len();
        self.read_socket()?;
        self.process(Send::Nothing)?;
        Ok(self.plain.len() - before)
    }

    /// Plaintext that has arrived and is not yet consumed.
    pub fn received(&self) -> &[u8] {
        &self.plain[self.consumed..]
    }

    /// Drops the first `bytes` of [`SecureStream::received`].
    pub fn consume(&mut self, bytes: usize) {
        self.consumed = (self.consumed + bytes).min(self.plain.len());
    }

    /// Sleeps until the socket can be read (or written, if something is queued), `call` is readable, or `patience` is over.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn wait(
        &self,
        call: Option<BorrowedFd<'_>>,
        read: bool,
        patience: Duration,
    ) -> Result<Ready, StreamError> {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::POLLIN, read);
        interest.set(PollFlags::POLLOUT, self.queued_bytes() > 0);
        let mut fds = vec![PollFd::new(self.socket.as_fd(), interest)];
        fds.extend(call.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // Rounded up, so that a wait for less than a millisecond does not spin.
        let patience = patience.saturating_add(Duration::from_micros(999));
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(std::io::Error::from(errno).into()),
        }
        let events = |index: usize| {
            let fd: Option<&PollFd<'_>> = fds.get(index);
            fd.and_then(PollFd::revents).unwrap_or(PollFlags::empty())
        };
        let ended = PollFlags::POLLERR | PollFlags::POLLHUP;
        Ok(Ready {
            readable: events(0).intersects(PollFlags::POLLIN | ended),
            writable: events(0).intersects(PollFlags::POLLOUT | ended),
            called: events(1).intersects(PollFlags::POLLIN),
        })
    }

    /// Says by TLS that nothing more comes, as far as the socket takes it, and closes our direction.
    pub fn close(mut self) {
        // The peer may have gone already, and then there is nobody to tell.
        let _ = self.process(Send::CloseNotify);
        let _ = self.flush();
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// The socket, for measuring and tuning it.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Bytes that TLS has put into the socket, the handshake included.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Bytes that TLS has taken from the socket, the handshake included.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    fn is_handshaking(&self) -> bool {
        match &self.tls {
            Connection::Client(connection) => connection.is_handshaking(),
            Connection::Server(connection) => connection.is_handshaking(),
        }
    }

    fn read_socket(&mut self) -> Result<(), StreamError> {
        let end = (self.incoming_bytes + READ_BYTES).min(self.incoming.len());
        loop {
            match self
                .socket
                .read(&mut self.incoming[self.incoming_bytes..end])
            {
                Ok(0) => return Err(StreamError::Closed),
                Ok(read) => {
                    self.incoming_bytes += read;
                    self.read_bytes += read as u64;
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets TLS look at what has arrived and encrypt what is to be sent; returns whether the handshake still goes on.
    fn process(&mut self, send: Send<'_>) -> Result<bool, StreamError> {
        let incoming = &mut self.incoming[..self.incoming_bytes];
        let (plain, outgoing) = (&mut self.plain, &mut self.outgoing);
        let result = match &mut self.tls {
            Connection::Client(connection) => advance(connection, incoming, send, plain, outgoing),
            Connection::Server(connection) => advance(connection, incoming, send, plain, outgoing),
        };
        match result {
            Ok(used) => {
                self.incoming.copy_within(used..self.incoming_bytes, 0);
                self.incoming_bytes -= used;
                Ok(self.is_handshaking())
            }
            Err(error) => {
                // The alert that tells the peer why is in `outgoing`; it goes if the socket takes it.
                let _ = self.flush();
                Err(error)
            }
        }
    }
}

/// Either side of TLS.
enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What goes out when TLS can send.
#[derive(Clone, Copy)]
enum Send<'a> {
    Nothing,
    Bytes(&'a [u8]),
    CloseNotify,
}

/// What both sides of rustls can do, though it gives them no common name.
trait Records<D> {
    fn records<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, D>;
}

impl Records<ClientConnectionData> for UnbufferedClientConnection {
    fn records<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(incoming)
    }
}

impl Records<ServerConnectionData> for UnbufferedServerConnection {
    fn records<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(incoming)
    }
}

/// Consumes what it can of `incoming`: plaintext goes to `plain`, what must be sent to `outgoing`, then `send` with it.
/// Returns how many bytes of `incoming` are used up. rustls keeps places in `incoming` between calls, so each call must
/// be given exactly what the last one left.
fn advance<D>(
    connection: &mut impl Records<D>,
    incoming: &mut [u8],
    send: Send<'_>,
    plain: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
) -> Result<usize, StreamError> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { discard, state } = connection.records(&mut incoming[used..]);
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                alert(connection, &mut incoming[used + discard..], outgoing);
                return Err(error.into());
            }
        };
        let mut discard = discard;
        let mut done = false;
        match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
            }
            ConnectionState::EncodeTlsData(mut data) => {
                encode(&mut data, outgoing);
            }
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::WriteTraffic(mut traffic) => {
                let hint = match send {
                    Send::Bytes(bytes) => {
                        bytes.len() + bytes.len().div_ceil(RECORD_BYTES) * RECORD_OVERHEAD_BYTES
                    }
                    _ => 0,
                };
                let mut exhausted = false;
                with_room(outgoing, hint, |room| {
                    let result = match send {
                        Send::Nothing => Ok(0),
                        Send::Bytes(bytes) => traffic.encrypt(bytes, room),
                        Send::CloseNotify => traffic.queue_close_notify(room),
                    };
                    match result {
                        Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                        Err(EncryptError::EncryptExhausted) => {
                            exhausted = true;
                            Ok(0)
                        }
                        Ok(written) => Ok(written),
                    }
                });
                if exhausted {
                    return Err(StreamError::Closed);
                }
                done = true;
            }
            ConnectionState::BlockedHandshake => done = true,
            // Everything the peer sent has been taken; the socket's own end is what reports it.
            ConnectionState::PeerClosed => {}
            ConnectionState::Closed => done = true,
            // No early data is ever offered or accepted.
            ConnectionState::ReadEarlyData(_) => return Err(StreamError::Closed),
            _ => return Err(StreamError::Closed),
        }
        used += discard;
        if done {
            return Ok(used);
        }
    }
}

/// After an error, rustls has an alert for the peer.
fn alert<D>(connection: &mut impl Records<D>, rest: &mut [u8], outgoing: &mut Vec<u8>) {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.records(rest).state {
        encode(&mut data, outgoing);
    }
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) {
    with_room(outgoing, 0, |room| match data.encode(room) {
        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
        other => Ok(other.unwrap_or(0)),
    });
}

/// Lets `write` append to `buffer`; it is given `hint` bytes of room first, and what it asks for if that is too little.
fn with_room(
    buffer: &mut Vec<u8>,
    hint: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>,
) {
    let start = buffer.len();
    let mut room = hint;
    for _ in 0..2 {
        buffer.resize(start + room, 0);
        match write(&mut buffer[start..]) {
            Ok(written) => {
                buffer.truncate(start + written);
                return;
            }
            Err(needed) => room = needed,
        }
    }
    buffer.truncate(start);
}
