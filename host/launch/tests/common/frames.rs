//! Ethernet frames as guests send them, built and recognised.
#![allow(dead_code)]

use std::net::Ipv4Addr;

pub type Mac = [u8; 6];
pub const BROADCAST: Mac = [0xff; 6];
const IPV4: [u8; 2] = [8, 0];
const ARP: [u8; 2] = [8, 6];

/// The `last` guest's MAC.
pub fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

pub fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

pub fn ethernet(to: Mac, from: Mac, kind: [u8; 2], body: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind, body].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The frame with a VLAN's tag in it.
pub fn tagged(frame: &[u8], vlan: u8) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat()
}

/// Who claims what in an ARP message.
#[derive(Clone, Copy)]
pub struct Arp {
    pub is_reply: bool,
    pub from: Mac,
    pub sender: (Mac, Ipv4Addr),
    pub target: Ipv4Addr,
}

pub fn arp(message: Arp) -> Vec<u8> {
    let Arp {
        is_reply,
        from,
        sender,
        target,
    } = message;
    let body = [
        &[0, 1, 8, 0, 6, 4, 0, 1 + u8::from(is_reply)][..],
        &sender.0,
        &sender.1.octets(),
        &[0; 6],
        &target.octets(),
    ]
    .concat();
    ethernet(BROADCAST, from, ARP, &body)
}

/// Two ends of a datagram: MAC, address, port.
pub type End = (Mac, Ipv4Addr, u16);

pub fn udp(from: End, to: End, text: &str) -> Vec<u8> {
    let length = 8 + text.len() as u16;
    // A checksum of zero is none.
    let datagram = [
        &from.2.to_be_bytes()[..],
        &to.2.to_be_bytes(),
        &length.to_be_bytes(),
        &[0, 0],
        text.as_bytes(),
    ]
    .concat();
    ethernet(to.0, from.0, IPV4, &ipv4(from.1, to.1, 17, &datagram))
}

pub fn echo_request(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), number: u8) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0, number, 0, 1];
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    ethernet(to.0, from.0, IPV4, &ipv4(from.1, to.1, 1, &message))
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = (20 + body.len() as u16).to_be_bytes();
    let mut header = [
        &[0x45, 0][..],
        &length,
        &[0, 0, 0, 0, 64, protocol, 0, 0],
        &from.octets(),
        &to.octets(),
    ]
    .concat();
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    [&header[..], body].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// An IPv6 router advertisement to all nodes.
pub fn router_advertisement(from: Mac) -> Vec<u8> {
    let mut body = vec![0x60, 0, 0, 0, 0, 16, 58, 255];
    body.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    body.extend([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    body.extend([134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    ethernet([0x33, 0x33, 0, 0, 0, 1], from, [0x86, 0xdd], &body)
}

/// An ARP answer to us: who has the address.
pub fn arp_answer(frame: &[u8], about: Ipv4Addr) -> Option<Mac> {
    let is_answer = frame.get(12..14)? == ARP && frame.get(20..22)? == [0, 2];
    let is_it = frame.get(28..32)? == about.octets();
    (is_answer && is_it).then(|| frame[22..28].try_into().ok())?
}

/// Whether the frame carries this text.
pub fn carries(frame: &[u8], text: &str) -> bool {
    frame
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}
