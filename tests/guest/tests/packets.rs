//! Packets of the guest's own networks: written, read back, damaged.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../guest/attacks.rs"]
mod attacks;
#[path = "../guest/net/dhcp.rs"]
mod dhcp;
#[path = "../guest/kind.rs"]
mod kind;
#[path = "../guest/orders.rs"]
mod orders;
#[path = "../guest/net/packet.rs"]
mod packet;
#[path = "../guest/vsock/packet.rs"]
mod vsock;

// What the modules above know as their neighbour.
use dhcp::Kind;
use packet::{End, Packet, Sum, UDP_AT, UDP_PAYLOAD_AT, UDP_SUM_AT};
use proptest::prelude::*;
use vsock::{Connection, Header, Operation};

const IP_AT: usize = 14;

fn end() -> impl Strategy<Value = End> {
    let parts = (any::<[u8; 6]>(), any::<[u8; 4]>(), any::<u16>());
    parts.prop_map(|(mac, address, port)| End { mac, address, port })
}

fn datagram(from: &End, to: &End, payload: &[u8], sum: Sum) -> Vec<u8> {
    let mut frame = vec![0xee; 1514];
    frame[UDP_PAYLOAD_AT..UDP_PAYLOAD_AT + payload.len()].copy_from_slice(payload);
    let bytes = packet::write_udp(&mut frame, from, to, payload.len(), sum);
    frame.truncate(bytes);
    frame
}

/// What a device makes of a sum that was begun: RFC 1071 over all from the start of the datagram.
fn complete(frame: &mut [u8]) {
    let words = frame[UDP_AT..].chunks(2);
    let mut sum: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let at = UDP_AT + UDP_SUM_AT;
    frame[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

proptest! {
    #[test]
    fn datagrams_are_read_as_they_are_written(from in end(), to in end(), payload in prop::collection::vec(any::<u8>(), 0..1472)) {
        let frame = datagram(&from, &to, &payload, Sum::Whole);
        prop_assert_eq!(packet::read(&frame, true), Packet::Udp { from, to, payload: &payload });
        let mut begun = datagram(&from, &to, &payload, Sum::Begun);
        prop_assert_eq!(packet::read(&begun, false), Packet::Udp { from, to, payload: &payload });
        complete(&mut begun);
        prop_assert_eq!(packet::read(&begun, true), Packet::Udp { from, to, payload: &payload });
    }

    #[test]
    fn a_changed_bit_is_noticed(from in end(), to in end(), payload in prop::collection::vec(any::<u8>(), 0..200), place in any::<prop::sample::Index>(), bit in 0..8) {
        let mut frame = datagram(&from, &to, &payload, Sum::Whole);
        let at = IP_AT + place.index(frame.len() - IP_AT);
        frame[at] ^= 1_u8 << bit;
        // A sum of zero means that there is none.
        prop_assume!(frame[UDP_AT + UDP_SUM_AT..][..2] != [0, 0]);
        prop_assert_eq!(packet::read(&frame, true), Packet::Other);
    }

    #[test]
    fn any_frame_is_read(frame in prop::collection::vec(any::<u8>(), 0..200), kind in 0..3, version in any::<bool>()) {
        let mut frame = frame;
        if frame.len() > 24 {
            frame[12..14].copy_from_slice(&[[8, 0], [8, 6], [1, 1]][kind as usize]);
            if version {
                frame[14] = 0x45;
                frame[23] = 17;
            }
        }
        packet::read(&frame, false);
        packet::read(&frame, true);
    }

    #[test]
    fn questions_for_addresses_are_answered(asker in end(), own in end()) {
        let mut frame = [0; 60];
        let bytes = packet::write_arp(&mut frame, &asker.mac, &asker.address, None, &own.address);
        let asked = Packet::ArpRequest { mac: asker.mac, from: asker.address, of: own.address };
        prop_assert_eq!(packet::read(&frame[..bytes], true), asked);
        let bytes = packet::write_arp(&mut frame, &own.mac, &own.address, Some(&asker.mac), &asker.address);
        prop_assert_eq!(packet::read(&frame[..bytes], true), Packet::ArpReply { mac: own.mac, address: own.address });
    }

    #[test]
    fn any_dhcp_message_is_read(message in prop::collection::vec(any::<u8>(), 0..400), options in prop::collection::vec(any::<u8>(), 0..60)) {
        dhcp::read(&message, &[0; 6], 0);
        let mut answer = dhcp_answer(&[1, 2, 3, 4, 5, 6], 9, &[]);
        answer.extend(options);
        dhcp::read(&answer, &[1, 2, 3, 4, 5, 6], 9);
    }

    #[test]
    fn vsock_headers_are_read_as_they_are_written(from in any::<(u64, u32)>(), to in any::<(u64, u32)>(), rest in any::<[u32; 4]>(), operation in 1..8_u16) {
        let [bytes, flags, room, taken] = rest;
        let mut written = Header { from, to, bytes, operation: Operation::Data, flags, room, taken }.write();
        written[30..32].copy_from_slice(&operation.to_le_bytes());
        let read = Header::read(&written).unwrap();
        prop_assert_eq!((read.from, read.to, read.bytes, read.flags), (from, to, bytes, flags));
        prop_assert_eq!((read.room, read.taken, read.operation as u16), (room, taken, operation));
        prop_assert_eq!(read.write(), written);
        prop_assert_eq!(Header::read(&written[..43]), None);
    }

    #[test]
    fn credit_is_kept_and_nobody_stands_still(rooms in (1..1_u32 << 30, 1..1_u32 << 30), steps in prop::collection::vec((any::<bool>(), any::<u32>(), any::<u32>()), 1..200)) {
        let ends = ((3, 10), (2, 20));
        let mut a = Connection::new(ends.0, ends.1, rooms.0);
        let mut b = Connection::new(ends.1, ends.0, rooms.1);
        b.take(&a.header(Operation::Request, 0));
        a.take(&b.header(Operation::Response, 0));
        // What each end has received and not consumed.
        let (mut at_a, mut at_b) = (0_u32, 0_u32);
        for (is_a, send, consume) in steps {
            let (from, to, held, at_from) = if is_a {
                (&mut a, &mut b, &mut at_b, &mut at_a)
            } else {
                (&mut b, &mut a, &mut at_a, &mut at_b)
            };
            let eaten = consume.min(*at_from);
            from.consume(eaten);
            *at_from -= eaten;
            let bytes = send.min(from.credit());
            let header = from.header(Operation::Data, bytes);
            prop_assert!(to.owns(&header) && to.take(&header));
            *held += bytes;
        }
        // One byte more than there is room for is noticed.
        a.consume(at_a);
        b.take(&a.header(Operation::CreditUpdate, 0));
        prop_assert_eq!(b.credit(), rooms.0);
        let too_much = b.header(Operation::Data, rooms.0 + 1);
        prop_assert!(!a.take(&too_much));
        prop_assert_eq!(b.credit(), 0);
    }
}

#[test]
fn pings_are_answered() {
    let asker = End {
        mac: [2; 6],
        address: [10, 0, 0, 1],
        port: 0,
    };
    let own = End {
        mac: [4; 6],
        address: [10, 0, 0, 2],
        port: 0,
    };
    // Echo request 0x1234, number 1, "abc"; its sum was computed by hand.
    let message = [8, 0, 0x21, 0x68, 0x12, 0x34, 0, 1, b'a', b'b', b'c'];
    let mut frame = [0; 100];
    let bytes = packet::write_pong(&mut frame, &own, &asker, &message);
    assert_eq!(frame[UDP_AT..][..2], [0, 0]);
    assert_eq!(frame[UDP_AT + 4..bytes], message[4..]);
    // The same as a request, so that it is read.
    frame[UDP_AT] = 8;
    frame[UDP_AT + 2..UDP_AT + 4].copy_from_slice(&message[2..4]);
    let read = packet::read(&frame[..bytes], true);
    assert_eq!(
        read,
        Packet::Ping {
            from: own,
            to: asker,
            message: &message
        }
    );
    frame[UDP_AT + 9] ^= 1;
    assert_eq!(packet::read(&frame[..bytes], true), Packet::Other);
}

fn dhcp_answer(mac: &[u8; 6], transaction: u32, options: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 240];
    answer[..3].copy_from_slice(&[2, 1, 6]);
    answer[4..8].copy_from_slice(&transaction.to_be_bytes());
    answer[16..20].copy_from_slice(&[10, 1, 2, 3]);
    answer[28..34].copy_from_slice(mac);
    answer[236..240].copy_from_slice(&[99, 130, 83, 99]);
    answer.extend(options);
    answer
}

#[test]
fn dhcp_answers_are_understood() {
    let mac = [1, 2, 3, 4, 5, 6];
    let options = [
        0, 53, 1, 5, 1, 4, 255, 255, 240, 0, 3, 4, 10, 1, 0, 1, 6, 8, 9, 9, 9, 9, 8, 8, 8, 8, 51,
        4, 0, 0, 14, 16, 54, 4, 10, 1, 0, 2, 255,
    ];
    let lease = dhcp::read(&dhcp_answer(&mac, 7, &options), &mac, 7).unwrap();
    assert_eq!(
        (lease.kind, lease.address),
        (Kind::Acknowledged, [10, 1, 2, 3])
    );
    assert_eq!((lease.prefix, lease.lease_s), (20, 3600));
    assert_eq!(
        (lease.router, lease.dns, lease.server),
        ([10, 1, 0, 1], [9; 4], [10, 1, 0, 2])
    );
    assert_eq!(dhcp::read(&dhcp_answer(&mac, 8, &options), &mac, 7), None);
    assert_eq!(
        dhcp::read(&dhcp_answer(&[9; 6], 7, &options), &mac, 7),
        None
    );
    assert_eq!(
        dhcp::read(&dhcp_answer(&mac, 7, &options[4..]), &mac, 7),
        None
    );
    assert_eq!(
        dhcp::read(&dhcp_answer(&mac, 7, &[53, 200, 5]), &mac, 7),
        None
    );
}

#[test]
fn dhcp_questions_are_what_servers_expect() {
    let mac = [1, 2, 3, 4, 5, 6];
    let mut message = [0xff; 400];
    let bytes = dhcp::write(&mut message, &mac, 0x0102_0304, None);
    assert_eq!(bytes, 300);
    assert_eq!(message[..8], [1, 1, 6, 0, 1, 2, 3, 4]);
    assert_eq!(message[28..34], mac);
    assert_eq!(message[236..243], [99, 130, 83, 99, 53, 1, 1]);
    let offer = dhcp::read(
        &dhcp_answer(&mac, 7, &[53, 1, 2, 54, 4, 10, 1, 0, 2, 255]),
        &mac,
        7,
    )
    .unwrap();
    assert_eq!(offer.kind, Kind::Offer);
    dhcp::write(&mut message, &mac, 7, Some(&offer));
    let asked = [53, 1, 3, 50, 4, 10, 1, 2, 3, 54, 4, 10, 1, 0, 2];
    assert_eq!(message[240..255], asked);
}
