//! DHCP messages of a client (RFC 2131): what is asked, and what is read out of the answers.

use super::packet::Mac;
use crate::orders::Address;

/// Where servers listen.
pub const SERVER_PORT: u16 = 67;
/// Where clients listen.
pub const CLIENT_PORT: u16 = 68;
/// Length of every message written here.
pub const MESSAGE_BYTES: usize = 300;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const CHADDR_AT: usize = 28;
const COOKIE_AT: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const OPTIONS_AT: usize = 240;

const MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const REQUESTED: u8 = 50;
const LEASE: u8 = 51;
const KIND: u8 = 53;
const SERVER: u8 = 54;
const WANTED: u8 = 55;
const PAD: u8 = 0;
const END: u8 = 255;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The server has an address for us.
    Offer,
    /// It is ours.
    Acknowledged,
    /// It is not.
    Refused,
}

/// What a server gives; what it does not say is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// What the message is.
    pub kind: Kind,
    /// Our address.
    pub address: Address,
    /// Bits of it that name the network.
    pub prefix: u8,
    /// The way out.
    pub router: Address,
    /// The first name server.
    pub dns: Address,
    /// Who gives.
    pub server: Address,
    /// For how long, in seconds.
    pub lease_s: u32,
}

/// Writes a discovery, or, with an offer, the request for what it offers. Answers the length.
pub fn write(message: &mut [u8], mac: &Mac, transaction: u32, offer: Option<&Lease>) -> usize {
    let message = &mut message[..MESSAGE_BYTES];
    message.fill(0);
    message[..3].copy_from_slice(&[REQUEST, 1, 6]);
    message[4..8].copy_from_slice(&transaction.to_be_bytes());
    message[CHADDR_AT..CHADDR_AT + 6].copy_from_slice(mac);
    message[COOKIE_AT..OPTIONS_AT].copy_from_slice(&COOKIE);
    let mut at = OPTIONS_AT;
    let mut option = |number: u8, value: &[u8]| {
        message[at] = number;
        message[at + 1] = value.len() as u8;
        message[at + 2..at + 2 + value.len()].copy_from_slice(value);
        at += 2 + value.len();
    };
    option(KIND, &[if offer.is_some() { 3 } else { 1 }]);
    if let Some(offer) = offer {
        option(REQUESTED, &offer.address);
        option(SERVER, &offer.server);
    }
    option(WANTED, &[MASK, ROUTER, DNS, LEASE]);
    message[at] = END;
    MESSAGE_BYTES
}

/// Reads an answer to our transaction.
pub fn read(message: &[u8], mac: &Mac, transaction: u32) -> Option<Lease> {
    let is_ours = message.len() > OPTIONS_AT
        && message[0] == REPLY
        && message[4..8] == transaction.to_be_bytes()
        && message[CHADDR_AT..CHADDR_AT + 6] == *mac
        && message[COOKIE_AT..OPTIONS_AT] == COOKIE;
    if !is_ours {
        return None;
    }
    let options = &message[OPTIONS_AT..];
    let address = |number| four(options, number).unwrap_or_default();
    let kind = match *find(options, KIND)?.first()? {
        2 => Kind::Offer,
        5 => Kind::Acknowledged,
        6 => Kind::Refused,
        _ => return None,
    };
    Some(Lease {
        kind,
        address: core::array::from_fn(|place| message[16 + place]),
        prefix: u32::from_be_bytes(address(MASK)).leading_ones() as u8,
        router: address(ROUTER),
        dns: address(DNS),
        server: address(SERVER),
        lease_s: u32::from_be_bytes(address(LEASE)),
    })
}

/// The first four bytes of an option.
fn four(options: &[u8], number: u8) -> Option<[u8; 4]> {
    find(options, number)?.first_chunk().copied()
}

fn find(mut options: &[u8], number: u8) -> Option<&[u8]> {
    loop {
        match *options {
            [PAD, ref rest @ ..] => options = rest,
            [END, ..] | [] | [_] => return None,
            [found, length, ref rest @ ..] => {
                let value = rest.get(..usize::from(length))?;
                if found == number {
                    return Some(value);
                }
                options = &rest[usize::from(length)..];
            }
        }
    }
}
