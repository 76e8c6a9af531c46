//! Headers of vsock packets (virtio 1.3, 5.10.6), and the credit of one connection (5.10.6.3).
//!
//! Counters wrap; neither side ever has more bytes under way than the other has room for.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 44;
/// The host's context number.
pub const HOST: u64 = 2;
const STREAM: u16 = 1;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Connect.
    Request = 1,
    /// Yes.
    Response = 2,
    /// No, or no longer.
    Reset = 3,
    /// No more will be sent, or taken.
    Shutdown = 4,
    /// Bytes.
    Data = 5,
    /// How much room there is.
    CreditUpdate = 6,
    /// How much room is there?
    CreditRequest = 7,
}

impl Operation {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Sender: context and port.
    pub from: (u64, u32),
    /// Receiver: context and port.
    pub to: (u64, u32),
    /// Bytes that follow.
    pub bytes: u32,
    /// What it is for.
    pub operation: Operation,
    /// Of a shutdown: 1 takes no more, 2 sends no more.
    pub flags: u32,
    /// Room that the sender has in all.
    pub room: u32,
    /// Bytes that the sender has taken out of it so far.
    pub taken: u32,
}

impl Header {
    /// As it lies in memory.
    pub fn write(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.from.0.to_le_bytes());
        put(8, &self.to.0.to_le_bytes());
        put(16, &self.from.1.to_le_bytes());
        put(20, &self.to.1.to_le_bytes());
        put(24, &self.bytes.to_le_bytes());
        put(28, &STREAM.to_le_bytes());
        put(30, &(self.operation as u16).to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.room.to_le_bytes());
        put(40, &self.taken.to_le_bytes());
        bytes
    }

    /// Reads one of a stream; `None` for anything else.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let two = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let four = |at: usize| u32::from(two(at)) | u32::from(two(at + 2)) << 16;
        let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
        let known = Operation::ALL.into_iter();
        let operation = known.into_iter().find(|own| *own as u16 == two(30))?;
        (two(28) == STREAM).then(|| Self {
            from: (eight(0), four(16)),
            to: (eight(8), four(20)),
            bytes: four(24),
            operation,
            flags: four(32),
            room: four(36),
            taken: four(40),
        })
    }

    /// The refusal of a packet that nobody expects.
    pub fn refusal(&self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            bytes: 0,
            operation: Operation::Reset,
            flags: 0,
            room: 0,
            taken: 0,
        }
    }
}

/// One connection's ends and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    own: (u64, u32),
    peer: (u64, u32),
    peer_room: u32,
    peer_taken: u32,
    sent: u32,
    room: u32,
    received: u32,
    taken: u32,
    /// What the peer knows of `taken`.
    told: u32,
}

impl Connection {
    /// Between two ends; `room` is what we have for what we have not taken.
    pub fn new(own: (u64, u32), peer: (u64, u32), room: u32) -> Self {
        Self {
            own,
            peer,
            peer_room: 0,
            peer_taken: 0,
            sent: 0,
            room,
            received: 0,
            taken: 0,
            told: 0,
        }
    }

    /// Whether a packet belongs to it.
    pub fn owns(&self, header: &Header) -> bool {
        header.from == self.peer && header.to == self.own
    }

    /// Learns from a packet of the peer; answers whether it kept within our room.
    pub fn take(&mut self, header: &Header) -> bool {
        self.peer_room = header.room;
        self.peer_taken = header.taken;
        if header.operation != Operation::Data {
            return true;
        }
        self.received = self.received.wrapping_add(header.bytes);
        self.received.wrapping_sub(self.taken) <= self.room
    }

    /// Bytes that the peer has room for.
    pub fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_taken);
        self.peer_room.saturating_sub(under_way)
    }

    /// We have taken bytes out of our room.
    pub fn consume(&mut self, bytes: u32) {
        self.taken = self.taken.wrapping_add(bytes);
    }

    /// Whether the peer should be told of what we took, lest it stand still.
    pub fn owes_update(&self) -> bool {
        self.taken.wrapping_sub(self.told) >= self.room / 2
    }

    /// The header of our next packet, which carries `bytes` bytes.
    pub fn header(&mut self, operation: Operation, bytes: u32) -> Header {
        self.sent = self.sent.wrapping_add(bytes);
        self.told = self.taken;
        Header {
            from: self.own,
            to: self.peer,
            bytes,
            operation,
            flags: if operation == Operation::Shutdown {
                3
            } else {
                0
            },
            room: self.room,
            taken: self.taken,
        }
    }
}
