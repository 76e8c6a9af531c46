//! Ethernet frames with ARP, or IPv4 with UDP or ICMP echo: written and read as bytes, nothing else.
//!
//! Whatever arrives is checked; a frame that does not fit its own lengths or sums is `Packet::Other`.

use crate::orders::Address;

/// A station's address on the link.
pub type Mac = [u8; 6];

/// All stations.
pub const BROADCAST: Mac = [0xff; 6];
/// All addresses.
pub const EVERYONE: Address = [255; 4];
/// Where the payload of a UDP datagram lies in its frame.
pub const UDP_PAYLOAD_AT: usize = IP_AT + IP_BYTES + UDP_BYTES;
/// Where its UDP header lies.
pub const UDP_AT: usize = IP_AT + IP_BYTES;
/// Where the sum lies in that header.
pub const UDP_SUM_AT: usize = 6;
/// Bytes of headers of a UDP datagram that count against the link's MTU.
pub const UDP_OVERHEAD: usize = IP_BYTES + UDP_BYTES;

const IP_AT: usize = 14;
const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const ARP_BYTES: usize = 28;
const ETHERTYPE_IP: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_UDP: u8 = 17;
const ECHO_REQUEST: u8 = 8;
const FRAGMENT: u16 = 0x3fff;

/// One end of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// On the link; of the router if the other end is elsewhere.
    pub mac: Mac,
    /// On the net.
    pub address: Address,
    /// Of UDP.
    pub port: u16,
}

/// Who fills in the sum of a UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// We do.
    Whole,
    /// The device does; it wants the sum of the pseudo header there.
    Begun,
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Somebody asks who has an address.
    ArpRequest {
        mac: Mac,
        from: Address,
        of: Address,
    },
    /// Somebody answers.
    ArpReply { mac: Mac, address: Address },
    /// A datagram.
    Udp {
        from: End,
        to: End,
        payload: &'a [u8],
    },
    /// An echo request: the whole ICMP message.
    Ping {
        from: End,
        to: End,
        message: &'a [u8],
    },
    /// Not for us to understand.
    Other,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    core::array::from_fn(|place| bytes[at + place])
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The sum of words that RFC 1071 wants complemented, over bytes and what was summed before.
fn add(sum: u32, bytes: &[u8]) -> u32 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u32::from(*byte) << 8);
    let sum = pairs
        .iter()
        .fold(u64::from(sum) + u64::from(last), |sum, pair| {
            sum + u64::from(u16::from_be_bytes(*pair))
        });
    fold(sum).into()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo_header(from: &Address, to: &Address, protocol: u8, bytes: usize) -> u32 {
    let sum = add(add(0, from), to);
    sum + u32::from(protocol) + bytes as u32
}

fn write_ethernet(frame: &mut [u8], from: &Mac, to: &Mac, ethertype: u16) {
    put(frame, 0, to);
    put(frame, 6, from);
    put(frame, 12, &ethertype.to_be_bytes());
}

fn write_ip(frame: &mut [u8], from: &End, to: &End, protocol: u8, bytes: usize) {
    write_ethernet(frame, &from.mac, &to.mac, ETHERTYPE_IP);
    let total = (IP_BYTES + bytes) as u16;
    let header = &mut frame[IP_AT..IP_AT + IP_BYTES];
    header.fill(0);
    header[0] = 0x45;
    put(header, 2, &total.to_be_bytes());
    header[6] = 0x40; // don't fragment
    header[8] = 64;
    header[9] = protocol;
    put(header, 12, &from.address);
    put(header, 16, &to.address);
    let sum = !(add(0, header) as u16);
    put(header, 10, &sum.to_be_bytes());
}

/// Writes the headers around a payload that lies at [`UDP_PAYLOAD_AT`] already; answers the frame's length.
pub fn write_udp(frame: &mut [u8], from: &End, to: &End, payload_bytes: usize, sum: Sum) -> usize {
    let bytes = UDP_BYTES + payload_bytes;
    write_ip(frame, from, to, PROTOCOL_UDP, bytes);
    let datagram = &mut frame[UDP_AT..UDP_AT + bytes];
    put(datagram, 0, &from.port.to_be_bytes());
    put(datagram, 2, &to.port.to_be_bytes());
    put(datagram, 4, &(bytes as u16).to_be_bytes());
    put(datagram, UDP_SUM_AT, &[0, 0]);
    let begun = pseudo_header(&from.address, &to.address, PROTOCOL_UDP, bytes);
    let written = match sum {
        Sum::Begun => fold(begun.into()),
        // 0 would mean that there is none.
        Sum::Whole => match !(add(begun, datagram) as u16) {
            0 => 0xffff,
            sum => sum,
        },
    };
    put(datagram, UDP_SUM_AT, &written.to_be_bytes());
    UDP_AT + bytes
}

/// Writes the answer to an echo request, which came in a frame no longer than this one; answers the frame's length.
pub fn write_pong(frame: &mut [u8], from: &End, to: &End, message: &[u8]) -> usize {
    let end = UDP_AT + message.len();
    put(frame, UDP_AT, message);
    put(frame, UDP_AT, &[0; 4]);
    let sum = !(add(0, &frame[UDP_AT..end]) as u16);
    put(frame, UDP_AT + 2, &sum.to_be_bytes());
    write_ip(frame, from, to, PROTOCOL_ICMP, message.len());
    end
}

/// Asks everybody who has an address, or (`to` given) tells somebody that we do; answers the frame's length.
pub fn write_arp(
    frame: &mut [u8],
    mac: &Mac,
    address: &Address,
    to: Option<&Mac>,
    of: &Address,
) -> usize {
    write_ethernet(frame, mac, to.unwrap_or(&BROADCAST), ETHERTYPE_ARP);
    put(frame, IP_AT, &ARP_HEAD);
    put(frame, IP_AT + 6, &[0, if to.is_some() { 2 } else { 1 }]);
    put(frame, IP_AT + 8, mac);
    put(frame, IP_AT + 14, address);
    put(frame, IP_AT + 18, to.unwrap_or(&[0; 6]));
    put(frame, IP_AT + 24, of);
    IP_AT + ARP_BYTES
}

/// Reads a frame. Without `check_sum` the sums of UDP and ICMP are believed.
pub fn read(frame: &[u8], check_sum: bool) -> Packet<'_> {
    if frame.len() < IP_AT {
        return Packet::Other;
    }
    let packet = match word(frame, 12) {
        ETHERTYPE_ARP => read_arp(&frame[IP_AT..]),
        ETHERTYPE_IP => read_ip(frame, check_sum),
        _ => None,
    };
    packet.unwrap_or(Packet::Other)
}

fn read_arp(bytes: &[u8]) -> Option<Packet<'_>> {
    if bytes.len() < ARP_BYTES || bytes[..6] != ARP_HEAD {
        return None;
    }
    let (mac, from, of) = (array(bytes, 8), array(bytes, 14), array(bytes, 24));
    match word(bytes, 6) {
        1 => Some(Packet::ArpRequest { mac, from, of }),
        2 => Some(Packet::ArpReply { mac, address: from }),
        _ => None,
    }
}

fn read_ip(frame: &[u8], check_sum: bool) -> Option<Packet<'_>> {
    let bytes = &frame[IP_AT..];
    let header_bytes = usize::from(*bytes.first()? & 0xf) * 4;
    if bytes.len() < IP_BYTES || bytes[0] >> 4 != 4 || header_bytes < IP_BYTES {
        return None;
    }
    let total = usize::from(word(bytes, 2));
    if total < header_bytes || total > bytes.len() || word(bytes, 6) & FRAGMENT != 0 {
        return None;
    }
    if add(0, &bytes[..header_bytes]) != 0xffff {
        return None;
    }
    let end = |mac_at, address_at| End {
        mac: array(frame, mac_at),
        address: array(bytes, address_at),
        port: 0,
    };
    let (from, to) = (end(6, 12), end(0, 16));
    let payload = &bytes[header_bytes..total];
    match bytes[9] {
        PROTOCOL_UDP => read_udp(from, to, payload, check_sum),
        PROTOCOL_ICMP => {
            let is_whole = !check_sum || add(0, payload) == 0xffff;
            let is_request = payload.len() >= 8 && payload[..2] == [ECHO_REQUEST, 0];
            (is_request && is_whole).then_some(Packet::Ping {
                from,
                to,
                message: payload,
            })
        }
        _ => None,
    }
}

fn read_udp(from: End, to: End, datagram: &[u8], check_sum: bool) -> Option<Packet<'_>> {
    if datagram.len() < UDP_BYTES {
        return None;
    }
    let bytes = usize::from(word(datagram, 4));
    if bytes < UDP_BYTES || bytes > datagram.len() {
        return None;
    }
    let datagram = &datagram[..bytes];
    let begun = pseudo_header(&from.address, &to.address, PROTOCOL_UDP, bytes);
    let has_sum = word(datagram, UDP_SUM_AT) != 0;
    if check_sum && has_sum && add(begun, datagram) != 0xffff {
        return None;
    }
    let port = |end: End, at| End {
        port: word(datagram, at),
        ..end
    };
    Some(Packet::Udp {
        from: port(from, 0),
        to: port(to, 2),
        payload: &datagram[UDP_BYTES..],
    })
}
