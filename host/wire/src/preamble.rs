//! The first 32 bytes of every connection to the DWCP port, in the clear: what it is for, and for whom.
//!
//! The accepting daemon reads them under a deadline, to route the socket: a session it serves itself, a transfer
//! stream it passes on to the mover of that transfer. They are routing, not a secret and not a proof: whoever sends
//! them must still authenticate itself by TLS, which starts with the byte after them.
//!
//! ```text
//! 0      4        6     8          16      18         28      32
//! "DWCP" version  kind  transfer   stream  zero       crc32c          (little-endian)
//! ```
//!
//! Always holds: exactly [`PREAMBLE_BYTES`] are read, never one more. Must not know what a transfer is.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Length of a preamble on the wire, in bytes.
pub const PREAMBLE_BYTES: usize = 32;
/// The protocol version that this build speaks.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"DWCP";
const CRC_AT: usize = PREAMBLE_BYTES - 4;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A session between two daemons.
    Session,
    /// One stream of a transfer.
    Stream,
}

/// The head of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// What the connection is for.
    pub purpose: Purpose,
    /// The transfer that the stream belongs to; 0 for a session.
    pub transfer: u64,
    /// The stream's number within its transfer, from 0; 0 for a session.
    pub stream: u16,
}

/// Why a preamble was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PreambleError {
    /// Fewer than [`PREAMBLE_BYTES`] were there.
    #[error("A preamble of {0} bytes is too short; it has {PREAMBLE_BYTES}")]
    Short(usize),
    /// The first bytes are not ours.
    #[error("The connection does not speak DWCP")]
    Foreign,
    /// The checksum is wrong.
    #[error("The preamble is damaged")]
    Damaged,
    /// Another version of the protocol.
    #[error("The peer speaks DWCP version {0}; this host speaks {VERSION}")]
    Version(u16),
    /// A purpose that this version does not have.
    #[error("The preamble names an unknown purpose ({0})")]
    Purpose(u16),
    /// Reserved bytes are not zero.
    #[error("The preamble uses reserved bytes")]
    Reserved,
    /// The deadline passed first.
    #[error("The peer did not send its preamble in time")]
    Deadline,
    /// The socket failed or was closed.
    #[error("The connection failed before its preamble was through")]
    Io(#[from] std::io::Error),
}

impl Preamble {
    /// A session between two daemons.
    pub const fn session() -> Self {
        Self {
            purpose: Purpose::Session,
            transfer: 0,
            stream: 0,
        }
    }

    /// Stream number `stream` of transfer `transfer`.
    pub const fn stream(transfer: u64, stream: u16) -> Self {
        Self {
            purpose: Purpose::Stream,
            transfer,
            stream,
        }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let kind: u16 = match self.purpose {
            Purpose::Session => 0,
            Purpose::Stream => 1,
        };
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.transfer.to_le_bytes());
        bytes[16..18].copy_from_slice(&self.stream.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a preamble from the first [`PREAMBLE_BYTES`] of `bytes`; what follows them is not looked at.
    ///
    /// # Errors
    /// Anything that [`Preamble::encode`] of this version cannot have produced.
    pub fn decode(bytes: &[u8]) -> Result<Self, PreambleError> {
        let Some(bytes) = bytes.first_chunk::<PREAMBLE_BYTES>() else {
            return Err(PreambleError::Short(bytes.len()));
        };
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if bytes[..4] != MAGIC {
            return Err(PreambleError::Foreign);
        }
        let (body, crc) = bytes.split_at(CRC_AT);
        if crc != crc32c::crc32c(body).to_le_bytes() {
            return Err(PreambleError::Damaged);
        }
        if u16_at(4) != VERSION {
            return Err(PreambleError::Version(u16_at(4)));
        }
        let purpose = match u16_at(6) {
            0 => Purpose::Session,
            1 => Purpose::Stream,
            other => return Err(PreambleError::Purpose(other)),
        };
        if bytes[18..CRC_AT].iter().any(|&byte| byte != 0) {
            return Err(PreambleError::Reserved);
        }
        let mut transfer = [0; 8];
        transfer.copy_from_slice(&bytes[8..16]);
        Ok(Self {
            purpose,
            transfer: u64::from_le_bytes(transfer),
            stream: u16_at(16),
        })
    }

    /// Sends the preamble on a new connection.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn write(&self, connection: &mut impl Write) -> Result<(), PreambleError> {
        connection.write_all(&self.encode())?;
        Ok(())
    }

    /// Reads the preamble of a new connection, all of it within `deadline`, and leaves the socket without a timeout.
    ///
    /// # Errors
    /// [`PreambleError::Deadline`] when it is not there in time, however slowly the bytes drip.
    pub fn read(mut connection: &TcpStream, deadline: Duration) -> Result<Self, PreambleError> {
        let end = Instant::now() + deadline;
        let mut bytes = [0; PREAMBLE_BYTES];
        let mut got = 0;
        while got < PREAMBLE_BYTES {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PreambleError::Deadline);
            }
            connection.set_read_timeout(Some(left))?;
            match connection.read(&mut bytes[got..]) {
                Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                Ok(more) => got += more,
                Err(error) => match error.kind() {
                    std::io::ErrorKind::Interrupted => {}
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                        return Err(PreambleError::Deadline);
                    }
                    _ => return Err(error.into()),
                },
            }
        }
        connection.set_read_timeout(None)?;
        Self::decode(&bytes)
    }
}
