//! Frames: what a stream is cut into. Each is checked by itself and says where it belongs.
//!
//! ```text
//! 0       4        6     8         16        24      32      36      40
//! "DWCF"  version  kind  transfer  sequence  offset  length  crc32c  payload[length]       (little-endian)
//! ```
//!
//! `transfer` must be the transfer's own number. `sequence` counts from 1 the frames that are acknowledged (pages,
//! zero runs, device state, end); acknowledgements and errors carry 0. `offset` is a byte offset, in guest memory or
//! in the device state. The checksum covers the header (with the checksum itself taken as zero) and the payload.
//!
//! Always holds: decoding never panics and never believes a length over [`PAYLOAD_BYTES_MAX`]; what is not exactly
//! what this version writes is refused. Must not know what happens to a payload.

/// Length of a frame's header, in bytes.
pub const HEADER_BYTES: usize = 40;
/// Longest payload: a raw batch of 1 MiB, and room for the list of its pages.
pub const PAYLOAD_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// The frame format that this build speaks.
pub const VERSION: u16 = 1;
/// Most sequence numbers in one acknowledgement.
pub const ACKS_MAX: usize = 1024;
/// Longest text of an error, in bytes; longer ones are cut.
pub const ERROR_BYTES_MAX: usize = 512;

const MAGIC: [u8; 4] = *b"DWCF";
const CRC_AT: usize = 36;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// Contents of pages.
    Pages = 1,
    /// Numbers of pages that are all zeros.
    ZeroRuns = 2,
    /// A piece of the device state.
    DeviceState = 3,
    /// The end of the transfer: what must have arrived by then.
    End = 4,
    /// Sequence numbers that the receiver has applied; an empty one says that the sender lives.
    Ack = 5,
    /// Why the sender gives the transfer up.
    Error = 6,
}

impl Kind {
    fn from_u16(value: u16) -> Option<Self> {
        use Kind::{Ack, DeviceState, End, Error, Pages, ZeroRuns};
        [Pages, ZeroRuns, DeviceState, End, Ack, Error]
            .into_iter()
            .find(|kind| *kind as u16 == value)
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not ours.
    #[error("The stream does not carry DWCP frames")]
    Foreign,
    /// Another version of the format.
    #[error("The peer sends frames of version {0}; this host reads {VERSION}")]
    Version(u16),
    /// A kind that this version does not have.
    #[error("A frame is of unknown kind {0}")]
    Kind(u16),
    /// The payload is too long.
    #[error("A frame of {0} bytes is over the limit of {PAYLOAD_BYTES_MAX}")]
    TooLong(u32),
    /// The checksum is wrong.
    #[error("A frame is damaged")]
    Damaged,
    /// The payload does not have the form of its kind.
    #[error("The payload of a {0:?} frame is malformed")]
    Payload(Kind),
}

/// A frame's header, checksum aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// The transfer's number.
    pub transfer: u64,
    /// Number of this frame in its transfer; 0 for one that is not acknowledged.
    pub sequence: u64,
    /// Byte offset that the payload begins at.
    pub offset: u64,
}

/// A frame that has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: &'a [u8],
}

/// A buffer with room for a header, to append a payload to and then [`seal`].
pub fn open(payload_bytes: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(HEADER_BYTES + payload_bytes);
    buffer.resize(HEADER_BYTES, 0);
    buffer
}

/// Writes the header over the first [`HEADER_BYTES`] of a buffer that [`open`] made.
///
/// # Panics
/// When the payload is longer than [`PAYLOAD_BYTES_MAX`], or the buffer has no room for a header: mistakes of the
/// caller's, which no peer can bring about.
pub fn seal(buffer: &mut [u8], header: &Header) {
    assert!(
        (HEADER_BYTES..=HEADER_BYTES + PAYLOAD_BYTES_MAX).contains(&buffer.len()),
        "a frame of {} bytes",
        buffer.len()
    );
    let length = (buffer.len() - HEADER_BYTES) as u32;
    buffer[..4].copy_from_slice(&MAGIC);
    buffer[4..6].copy_from_slice(&VERSION.to_le_bytes());
    buffer[6..8].copy_from_slice(&(header.kind as u16).to_le_bytes());
    buffer[8..16].copy_from_slice(&header.transfer.to_le_bytes());
    buffer[16..24].copy_from_slice(&header.sequence.to_le_bytes());
    buffer[24..32].copy_from_slice(&header.offset.to_le_bytes());
    buffer[32..36].copy_from_slice(&length.to_le_bytes());
    buffer[CRC_AT..HEADER_BYTES].fill(0);
    let crc = crc32c::crc32c(buffer);
    buffer[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// A whole frame from its parts.
///
/// # Panics
/// As [`seal`].
pub fn encode(header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut buffer = open(payload.len());
    buffer.extend_from_slice(payload);
    seal(&mut buffer, header);
    buffer
}

/// Reads the frame at the start of `bytes`: the frame and how many bytes it took, or `None` when more are needed.
///
/// # Errors
/// As soon as the header shows that this can never be a frame, or when the checksum does not fit.
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let (header, length) = decode_header(head)?;
    let end = HEADER_BYTES + length;
    let Some(payload) = bytes.get(HEADER_BYTES..end) else {
        return Ok(None);
    };
    let crc = crc32c::crc32c(&head[..CRC_AT]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    let crc = crc32c::crc32c_append(crc, payload);
    if head[CRC_AT..] != crc.to_le_bytes() {
        return Err(FrameError::Damaged);
    }
    Ok(Some((Frame { header, payload }, end)))
}

fn decode_header(head: &[u8; HEADER_BYTES]) -> Result<(Header, usize), FrameError> {
    let u64_at = |at: usize| {
        head[at..]
            .first_chunk()
            .map_or(0, |b| u64::from_le_bytes(*b))
    };
    let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if head[..4] != MAGIC {
        return Err(FrameError::Foreign);
    }
    if u16_at(4) != VERSION {
        return Err(FrameError::Version(u16_at(4)));
    }
    let kind = Kind::from_u16(u16_at(6)).ok_or(FrameError::Kind(u16_at(6)))?;
    let length = u64_at(32) as u32;
    if length as usize > PAYLOAD_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    let header = Header {
        kind,
        transfer: u64_at(8),
        sequence: u64_at(16),
        offset: u64_at(24),
    };
    Ok((header, length as usize))
}

/// What must have arrived when a transfer ends: the payload of [`Kind::End`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pages in all [`Kind::Pages`] frames; a page counts each time it was sent.
    pub data_pages: u64,
    /// Pages in all [`Kind::ZeroRuns`] frames.
    pub zero_pages: u64,
    /// Length of the device state, in bytes.
    pub state_bytes: u64,
}

impl Counts {
    /// The payload.
    pub fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.data_pages.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.zero_pages.to_le_bytes());
        bytes[16..].copy_from_slice(&self.state_bytes.to_le_bytes());
        bytes
    }

    /// Reads the payload of an end.
    ///
    /// # Errors
    /// When it has another length.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let bytes: &[u8; 24] = payload
            .try_into()
            .map_err(|_| FrameError::Payload(Kind::End))?;
        let u64_at = |at: usize| {
            bytes[at..]
                .first_chunk()
                .map_or(0, |b| u64::from_le_bytes(*b))
        };
        Ok(Self {
            data_pages: u64_at(0),
            zero_pages: u64_at(8),
            state_bytes: u64_at(16),
        })
    }
}

/// A frame that acknowledges `sequences`, of which [`ACKS_MAX`] at most are taken.
pub fn ack(transfer: u64, sequences: &[u64]) -> Vec<u8> {
    let taken = &sequences[..sequences.len().min(ACKS_MAX)];
    let payload: Vec<u8> = taken.iter().flat_map(|n| n.to_le_bytes()).collect();
    encode(&unnumbered(Kind::Ack, transfer), &payload)
}

/// The sequence numbers in an acknowledgement's payload.
///
/// # Errors
/// When it is no list of at most [`ACKS_MAX`] numbers.
pub fn decode_ack(payload: &[u8]) -> Result<impl Iterator<Item = u64> + '_, FrameError> {
    let (numbers, rest) = payload.as_chunks::<8>();
    if !rest.is_empty() || numbers.len() > ACKS_MAX {
        return Err(FrameError::Payload(Kind::Ack));
    }
    Ok(numbers.iter().map(|bytes| u64::from_le_bytes(*bytes)))
}

/// A frame that tells the peer why the transfer is given up.
pub fn error(transfer: u64, text: &str) -> Vec<u8> {
    let end = text.floor_char_boundary(ERROR_BYTES_MAX);
    encode(&unnumbered(Kind::Error, transfer), &text.as_bytes()[..end])
}

/// The text of an error's payload, fit to be shown: bounded, and without control characters.
pub fn decode_error(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(&payload[..payload.len().min(ERROR_BYTES_MAX)]);
    let shown = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(shown).collect()
}

fn unnumbered(kind: Kind, transfer: u64) -> Header {
    Header {
        kind,
        transfer,
        sequence: 0,
        offset: 0,
    }
}
