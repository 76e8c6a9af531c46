//! The header before every packet (virtio 1.3, 5.10.6).

/// Its length.
pub const HEADER_BYTES: usize = 44;
/// The host's address.
pub const HOST_CID: u64 = 2;
/// The only kind of connection here: a stream of bytes.
pub const STREAM: u16 = 1;

/// What a packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Operation {
    /// Asks for a connection.
    Request = 1,
    /// Accepts it.
    Response = 2,
    /// There is no such connection, or no longer.
    Reset = 3,
    /// The sender will not send, or not receive, any more.
    Shutdown = 4,
    /// Data.
    Data = 5,
    /// How much the sender takes.
    CreditUpdate = 6,
    /// Asks how much the receiver takes.
    CreditRequest = 7,
}

/// Of a shutdown: the sender receives no more.
pub const NO_RECEIVE: u32 = 1;
/// Of a shutdown: the sender sends no more.
pub const NO_SEND: u32 = 2;

/// A header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Who sends.
    pub source_cid: u64,
    /// To whom.
    pub destination_cid: u64,
    /// The sender's port.
    pub source_port: u32,
    /// The receiver's port.
    pub destination_port: u32,
    /// How much data follows.
    pub bytes: u32,
    /// [`STREAM`], or nothing that is known here.
    pub kind: u16,
    /// An [`Operation`], if it is known.
    pub operation: u16,
    /// Of a shutdown.
    pub flags: u32,
    /// The sender's buffer for this connection.
    pub allocated: u32,
    /// How much of what it received it has handed on, counted from the beginning.
    pub forwarded: u32,
}

impl Header {
    /// As it is in memory.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.source_cid.to_le_bytes());
        put(8, &self.destination_cid.to_le_bytes());
        put(16, &self.source_port.to_le_bytes());
        put(20, &self.destination_port.to_le_bytes());
        put(24, &self.bytes.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.operation.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.allocated.to_le_bytes());
        put(40, &self.forwarded.to_le_bytes());
        bytes
    }

    /// Takes it apart; any bytes are a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        fn number<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
            std::array::from_fn(|n| bytes[at + n])
        }
        Self {
            source_cid: u64::from_le_bytes(number(bytes, 0)),
            destination_cid: u64::from_le_bytes(number(bytes, 8)),
            source_port: u32::from_le_bytes(number(bytes, 16)),
            destination_port: u32::from_le_bytes(number(bytes, 20)),
            bytes: u32::from_le_bytes(number(bytes, 24)),
            kind: u16::from_le_bytes(number(bytes, 28)),
            operation: u16::from_le_bytes(number(bytes, 30)),
            flags: u32::from_le_bytes(number(bytes, 32)),
            allocated: u32::from_le_bytes(number(bytes, 36)),
            forwarded: u32::from_le_bytes(number(bytes, 40)),
        }
    }

    /// What it says, if that is known.
    pub fn operation(&self) -> Option<Operation> {
        Some(match self.operation {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::Data,
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            _ => return None,
        })
    }

    /// The refusal of what this one says.
    pub fn refusal(&self) -> Self {
        Self {
            source_cid: self.destination_cid,
            destination_cid: self.source_cid,
            source_port: self.destination_port,
            destination_port: self.source_port,
            kind: self.kind,
            operation: Operation::Reset as u16,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_header_and_the_header_is_those_bytes(bytes in prop::array::uniform32(any::<u8>()), more in prop::array::uniform12(any::<u8>())) {
            let mut all = [0; HEADER_BYTES];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&more);
            let header = Header::decode(&all);
            prop_assert_eq!(header.encode(), all);
            let known = header.operation().map(|operation| operation as u16);
            prop_assert_eq!(known, Some(header.operation).filter(|number| (1..8).contains(number)));
        }
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let header = Header {
            source_cid: 3,
            destination_cid: HOST_CID,
            source_port: 0x0403_0201,
            destination_port: 5,
            bytes: 6,
            kind: STREAM,
            operation: Operation::Data as u16,
            flags: 7,
            allocated: 8,
            forwarded: 9,
        };
        let bytes = header.encode();
        assert_eq!(
            (bytes[0], bytes[8], &bytes[16..21]),
            (3, 2, &[1, 2, 3, 4, 5][..])
        );
        assert_eq!((bytes[24], bytes[28], bytes[30]), (6, 1, 5));
        assert_eq!((bytes[32], bytes[36], bytes[40]), (7, 8, 9));
        let refusal = header.refusal();
        assert_eq!(
            (refusal.source_port, refusal.destination_port),
            (5, 0x0403_0201)
        );
        assert_eq!(refusal.operation(), Some(Operation::Reset));
    }
}
