//! Seeds of guests that drive a virtio device, or ask for their address. Numbers have their highest byte first.

use crate::Seed;

/// Every queue comes up, with all features.
const COME_UP: [u8; 10] = [3, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
const WRITABLE: u8 = 2;
const NEXT: u8 = 1;

/// All of them.
pub fn seeds() -> Vec<Seed> {
    let up = || COME_UP.to_vec();
    let fill = [buffer(0, 0, 0x8000, 512, WRITABLE, 0), ask(0, 0)].concat();
    // A read of sector 1: what is asked, where it goes, how it ended.
    let read = [
        memory(0x9000, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
        buffer(0, 0, 0x9000, 16, NEXT, 1),
        buffer(0, 1, 0xa000, 512, NEXT | WRITABLE, 2),
        buffer(0, 2, 0xb000, 1, WRITABLE, 0),
        ask(0, 0),
    ]
    .concat();
    let pages = [
        memory(0x9000, &[1, 0, 0, 0]),
        buffer(0, 0, 0x9000, 4, 0, 0),
        ask(0, 0),
    ]
    .concat();
    let say = [buffer(1, 0, 0x8000, 64, 0, 0), ask(1, 0)].concat();
    // A request to connect to port 1024 of the host.
    let mut packet = [0; 44];
    (packet[0], packet[8], packet[17], packet[21]) = (3, 2, 4, 4);
    (packet[28], packet[30], packet[38]) = (1, 1, 1);
    let connect = [
        memory(0x9000, &packet),
        buffer(1, 0, 0x9000, 44, 0, 0),
        ask(1, 0),
    ]
    .concat();
    let outside = [7, 2, b'x', b'x', 8].to_vec();
    vec![
        ("dhcp", "discover", discover()),
        ("virtio-rng", "fill", [up(), fill.clone()].concat()),
        (
            "virtio-block",
            "read",
            [vec![1], up(), read.clone()].concat(),
        ),
        ("virtio-block", "read-only", [vec![0], up(), read].concat()),
        ("virtio-balloon", "inflate", [up(), pages].concat()),
        (
            "virtio-console",
            "both-ways",
            [up(), fill.clone(), say.clone(), outside.clone()].concat(),
        ),
        (
            "virtio-net",
            "both-ways",
            [up(), fill, say, outside.clone()].concat(),
        ),
        ("virtio-vsock", "connect", [up(), connect, outside].concat()),
    ]
}

/// Puts bytes into the guest's memory.
fn memory(at: u32, bytes: &[u8]) -> Vec<u8> {
    let mut step = vec![2];
    step.extend(&at.to_be_bytes()[1..]);
    step.push(bytes.len() as u8);
    step.extend(bytes);
    step
}

/// Writes a descriptor.
fn buffer(queue: u8, slot: u8, start: u32, bytes: u16, flags: u8, next: u8) -> Vec<u8> {
    let mut step = vec![4, queue, slot];
    step.extend(&start.to_be_bytes()[1..]);
    step.extend(bytes.to_be_bytes());
    step.extend([flags, next]);
    step
}

/// Makes a chain available and kicks.
fn ask(queue: u8, head: u8) -> Vec<u8> {
    vec![5, queue, head, 6, queue]
}

/// A guest's first question (RFC 2131), from Ethernet on.
fn discover() -> Vec<u8> {
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    let mut message = vec![0; 236];
    message[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
    message[28..34].copy_from_slice(&MAC);
    message.extend([99, 130, 83, 99]);
    message.extend([53, 1, 1]); // a discovery
    message.extend([50, 4, 10, 83, 0, 5]); // of this address, if that is free
    message.extend([61, 7, 1, 2, 0, 0, 0, 0, 1, 255]); // from this client
    let udp_bytes = 8 + message.len() as u16;
    let mut frame = [&[0xff; 6][..], &MAC, &[8, 0]].concat();
    frame.extend([0x45, 0]);
    frame.extend((20 + udp_bytes).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    frame.extend([0, 68, 0, 67]);
    frame.extend(udp_bytes.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}
