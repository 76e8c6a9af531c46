//! DHCP for one guest: its VMM answers what it asks, so no server runs on any network (RFC 2131, 2132, 3442, 6842).
//!
//! What always holds: the one address that can be given is the guest's own, and only to its own MAC; any bytes may come
//! in, at most one frame of at most [`FRAME_BYTES_MAX`] bytes goes out, and nothing is remembered between two frames:
//! who asks again gets the same answer, on whatever host the guest runs by then.
//!
//! This module must not know where frames come from, nor who chose the addresses.

use std::net::Ipv4Addr;

/// Longest frame that is answered with: an Ethernet header and the 576 bytes that every client takes (RFC 2131, 2).
pub const FRAME_BYTES_MAX: usize = ETHERNET_BYTES + 576;
/// Most name servers.
pub const DNS_MAX: usize = 3;
/// Longest host name, with its domain, in bytes.
pub const HOSTNAME_BYTES_MAX: usize = 63;
/// How long an address is given for, in seconds. It is the guest's for good; asking again brings it news.
pub const LEASE_S: u32 = 24 * 60 * 60;

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// The fixed part of a message, up to and with the cookie.
const FIXED_BYTES: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Some relays and clients drop what is shorter (RFC 1542, 2.1).
const MESSAGE_BYTES_MIN: usize = 300;
const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX - ETHERNET_BYTES - IPV4_BYTES - UDP_BYTES;
const MTU_MIN: u16 = 576;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const BROADCAST_FLAG: u16 = 0x8000;
/// Who answers where there is no router: no guest can have it, and renewals that do not reach it are broadcast later.
const SERVER_WITHOUT_ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);

/// Codes of options (RFC 2132; 121: RFC 3442).
mod option {
    pub const PAD: u8 = 0;
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOSTNAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const REQUESTED: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const RENEW: u8 = 58;
    pub const REBIND: u8 = 59;
    pub const CLIENT: u8 = 61;
    pub const ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// Values of option 53.
mod kind {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const INFORM: u8 = 8;
}

/// What a guest cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DhcpError {
    /// The prefix is too long.
    #[error("A prefix has at most 32 bits, not {0}")]
    Prefix(u8),
    /// Too many name servers.
    #[error("A guest is told at most {DNS_MAX} name servers, not {0}")]
    Dns(usize),
    /// The host name is no name.
    #[error(
        "A host name has 1 to {HOSTNAME_BYTES_MAX} letters, digits, hyphens and dots, and neither begins nor ends with a dot"
    )]
    Hostname,
    /// The MTU is too small.
    #[error("An MTU is at least {MTU_MIN} bytes, not {0}")]
    Mtu(u16),
}

/// Answers one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Responder {
    mac: [u8; 6],
    address: Ipv4Addr,
    prefix: u8,
    router: Option<Ipv4Addr>,
    dns: Vec<Ipv4Addr>,
    hostname: String,
    mtu: u16,
}

impl Responder {
    /// For the guest with this MAC: what it is told. `prefix` in bits; `mtu` in bytes; a router that is not on the
    /// guest's link is told with routes of its own; `hostname` may carry a domain (`web.example`).
    pub fn new(
        mac: [u8; 6],
        address: Ipv4Addr,
        prefix: u8,
        router: Option<Ipv4Addr>,
        dns: &[Ipv4Addr],
        hostname: &str,
        mtu: u16,
    ) -> Result<Self, DhcpError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        let is_name = (1..=HOSTNAME_BYTES_MAX).contains(&hostname.len())
            && hostname.bytes().all(allowed)
            && !hostname.starts_with('.')
            && !hostname.ends_with('.');
        if prefix > 32 {
            return Err(DhcpError::Prefix(prefix));
        }
        if dns.len() > DNS_MAX {
            return Err(DhcpError::Dns(dns.len()));
        }
        if !is_name {
            return Err(DhcpError::Hostname);
        }
        if mtu < MTU_MIN {
            return Err(DhcpError::Mtu(mtu));
        }
        Ok(Self {
            mac,
            address,
            prefix,
            router,
            dns: dns.to_vec(),
            hostname: hostname.to_owned(),
            mtu,
        })
    }

    /// The whole Ethernet frame that answers `frame` of the guest's; nothing when it is none that is answered.
    pub fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let message = datagram(frame)?;
        let request = Request::read(message)?;
        // A relayed message is another's.
        if request.hardware != self.mac || request.relay != Ipv4Addr::UNSPECIFIED {
            return None;
        }
        let kind = self.decide(&request)?;
        let reply = self.reply(&request, kind, message);
        Some(self.frame(&request, kind, &reply))
    }

    /// The address that the answers come from: the router's, since the guest can reach it.
    fn server(&self) -> Ipv4Addr {
        self.router.unwrap_or(SERVER_WITHOUT_ROUTER)
    }

    /// RFC 2131, 4.3.
    fn decide(&self, request: &Request<'_>) -> Option<u8> {
        match request.kind {
            kind::DISCOVER => Some(kind::OFFER),
            kind::REQUEST => {
                // It may have chosen another server's offer.
                if request.server.is_some_and(|server| server != self.server()) {
                    return None;
                }
                // What it wants to have, else what it has and wants to keep.
                let wanted = request.requested.unwrap_or(request.client);
                let is_its_own = wanted == self.address;
                Some(if is_its_own { kind::ACK } else { kind::NAK })
            }
            kind::INFORM if request.client == self.address => Some(kind::ACK),
            _ => None,
        }
    }

    fn reply(&self, request: &Request<'_>, kind: u8, message: &[u8]) -> Vec<u8> {
        let mut reply = vec![0; FIXED_BYTES];
        reply[..4].copy_from_slice(&[2, 1, 6, 0]);
        // The transaction's number; the flags; whose it is.
        reply[4..8].copy_from_slice(&message[4..8]);
        reply[10..12].copy_from_slice(&request.flags.to_be_bytes());
        if kind == kind::ACK {
            reply[12..16].copy_from_slice(&request.client.octets());
        }
        let is_given = kind != kind::NAK && request.kind != kind::INFORM;
        if is_given {
            reply[16..20].copy_from_slice(&self.address.octets());
        }
        reply[28..34].copy_from_slice(&self.mac);
        reply[236..].copy_from_slice(&COOKIE);
        let mut options = Options(reply);
        options.add(option::KIND, &[kind]);
        options.add(option::SERVER, &self.server().octets());
        if is_given {
            options.add(option::LEASE, &LEASE_S.to_be_bytes());
            options.add(option::RENEW, &(LEASE_S / 2).to_be_bytes());
            options.add(option::REBIND, &(LEASE_S / 8 * 7).to_be_bytes());
        }
        if kind != kind::NAK {
            self.describe(&mut options);
        }
        // Last, because its length is the guest's choice: an absurd one is left out.
        if let Some(client) = request.client_id {
            options.add(option::CLIENT, client);
        }
        options.end()
    }

    /// What the guest is to know about its network.
    fn describe(&self, options: &mut Options) {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0);
        options.add(option::MASK, &mask.to_be_bytes());
        if self.prefix < 31 {
            options.add(
                option::BROADCAST,
                &(self.address.to_bits() | !mask).to_be_bytes(),
            );
        }
        if let Some(router) = self.router {
            options.add(option::ROUTER, &router.octets());
            if (router.to_bits() ^ self.address.to_bits()) & mask != 0 {
                // The router itself is on the link; everything else is behind it.
                let octets = router.octets();
                let routes = [&[32][..], &octets, &[0; 4], &[0], &octets].concat();
                options.add(option::ROUTES, &routes);
            }
        }
        let dns: Vec<u8> = self.dns.iter().flat_map(Ipv4Addr::octets).collect();
        options.add(option::DNS, &dns);
        options.add(option::MTU, &self.mtu.to_be_bytes());
        let (host, domain) = self
            .hostname
            .split_once('.')
            .unwrap_or((&self.hostname, ""));
        options.add(option::HOSTNAME, host.as_bytes());
        options.add(option::DOMAIN, domain.as_bytes());
    }

    /// Puts a reply on its way (RFC 2131, 4.1).
    fn frame(&self, request: &Request<'_>, kind: u8, reply: &[u8]) -> Vec<u8> {
        let is_broadcast = request.flags & BROADCAST_FLAG != 0;
        let to = match kind {
            kind::NAK => Ipv4Addr::BROADCAST,
            _ if request.client != Ipv4Addr::UNSPECIFIED => request.client,
            _ if is_broadcast => Ipv4Addr::BROADCAST,
            _ => self.address,
        };
        let from = self.server();
        let mut frame = Vec::with_capacity(FRAME_BYTES_MAX);
        let hardware = if to.is_broadcast() {
            [0xff; 6]
        } else {
            self.mac
        };
        frame.extend(hardware);
        // The router's MAC where the launcher made it; what a client needs is in the message.
        let [a, b, c, d] = from.octets();
        frame.extend([0x02, 0xdc, a, b, c, d]);
        frame.extend([0x08, 0x00]);
        let udp_bytes = (UDP_BYTES + reply.len()) as u16;
        let ipv4_bytes = IPV4_BYTES as u16 + udp_bytes;
        let [high, low] = ipv4_bytes.to_be_bytes();
        let mut header = [
            0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        header[12..16].copy_from_slice(&from.octets());
        header[16..].copy_from_slice(&to.octets());
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
        let mut udp = [0; UDP_BYTES];
        udp[..2].copy_from_slice(&SERVER_PORT.to_be_bytes());
        udp[2..4].copy_from_slice(&CLIENT_PORT.to_be_bytes());
        udp[4..6].copy_from_slice(&udp_bytes.to_be_bytes());
        let [high, low] = udp_bytes.to_be_bytes();
        let sum = match checksum(&[&header[12..], &[0, 17, high, low], &udp, reply]) {
            // Zero would say that there is none.
            0 => 0xffff,
            sum => sum,
        };
        udp[6..].copy_from_slice(&sum.to_be_bytes());
        frame.extend(udp);
        frame.extend(reply);
        frame
    }
}

/// Options of a reply, after its fixed part. What does not fit any more is left out.
struct Options(Vec<u8>);

impl Options {
    fn add(&mut self, code: u8, value: &[u8]) {
        let fits = self.0.len() + 2 + value.len() < MESSAGE_BYTES_MAX;
        if let (Ok(length), true, false) = (u8::try_from(value.len()), fits, value.is_empty()) {
            self.0.extend([code, length]);
            self.0.extend(value);
        }
    }

    fn end(mut self) -> Vec<u8> {
        self.0.push(option::END);
        let padded = self.0.len().max(MESSAGE_BYTES_MIN);
        self.0.resize(padded, option::PAD);
        self.0
    }
}

/// What matters of a client's message.
#[derive(Debug)]
struct Request<'a> {
    kind: u8,
    flags: u16,
    client: Ipv4Addr,
    relay: Ipv4Addr,
    hardware: [u8; 6],
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        let (fixed, options) = message.split_at_checked(FIXED_BYTES)?;
        // A request, over Ethernet.
        if fixed[..3] != [1, 1, 6] || fixed[236..] != COOKIE {
            return None;
        }
        let mut request = Self {
            kind: 0,
            flags: u16::from_be_bytes([fixed[10], fixed[11]]),
            client: address(&fixed[12..])?,
            relay: address(&fixed[24..])?,
            hardware: *fixed[28..].first_chunk()?,
            requested: None,
            server: None,
            client_id: None,
        };
        for (code, value) in options_of(options) {
            match code {
                option::KIND => request.kind = *value.first()?,
                option::REQUESTED => request.requested = Some(address(value)?),
                option::SERVER => request.server = Some(address(value)?),
                option::CLIENT => request.client_id = Some(value),
                _ => {}
            }
        }
        Some(request)
    }
}

/// The options of a message, until one makes no sense.
fn options_of(mut rest: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let (&code, after) = rest.split_first()?;
            match code {
                option::PAD => rest = after,
                option::END => return None,
                _ => {
                    let (&length, after) = after.split_first()?;
                    let (value, after) = after.split_at_checked(length.into())?;
                    rest = after;
                    return Some((code, value));
                }
            }
        }
    })
}

/// The message in a frame, if it is one to a DHCP server: Ethernet, whole IPv4, UDP to port 67.
///
/// Checksums are not looked at: the frame comes out of memory, and the guest may have left them to the device.
fn datagram(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(ETHERNET_BYTES..)?;
    let header = packet.get(..IPV4_BYTES)?;
    let header_bytes = usize::from(header[0] & 0xf) * 4;
    let whole = u16::from_be_bytes([header[2], header[3]]);
    // More fragments, or not the first.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    let is_plain = frame[12..14] == [0x08, 0x00] && header[0] >> 4 == 4 && fragment == 0;
    if !is_plain || header_bytes < IPV4_BYTES || header[9] != 17 {
        return None;
    }
    let udp = packet.get(header_bytes..whole.into())?;
    let (head, _) = udp.split_at_checked(UDP_BYTES)?;
    let to = u16::from_be_bytes([head[2], head[3]]);
    let length = u16::from_be_bytes([head[4], head[5]]);
    (to == SERVER_PORT).then(|| udp.get(UDP_BYTES..length.into()))?
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes
        .first_chunk::<4>()
        .map(|octets| Ipv4Addr::from(*octets))
}

/// The Internet checksum (RFC 1071) of parts, all but the last of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests;
