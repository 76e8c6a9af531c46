//! A client's messages and what is answered, field by field; and hostile bytes.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 5);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 1);
const DNS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 53), Ipv4Addr::new(192, 0, 2, 54)];

fn responder() -> Responder {
    Responder::new(MAC, ADDRESS, 24, Some(ROUTER), &DNS, "web.example", 1500).unwrap()
}

/// A client's message in its frame.
#[derive(Clone)]
struct Sent {
    flags: u16,
    client: Ipv4Addr,
    relay: Ipv4Addr,
    hardware: [u8; 6],
    options: Vec<(u8, Vec<u8>)>,
    header_words: u8,
    fragment: u16,
}

fn sent(kind: u8) -> Sent {
    Sent {
        flags: 0,
        client: Ipv4Addr::UNSPECIFIED,
        relay: Ipv4Addr::UNSPECIFIED,
        hardware: MAC,
        options: vec![(option::KIND, vec![kind])],
        header_words: 5,
        fragment: 0,
    }
}

impl Sent {
    fn with(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    fn frame(&self) -> Vec<u8> {
        let mut message = vec![0; FIXED_BYTES];
        message[..8].copy_from_slice(&[1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
        message[10..12].copy_from_slice(&self.flags.to_be_bytes());
        message[12..16].copy_from_slice(&self.client.octets());
        message[24..28].copy_from_slice(&self.relay.octets());
        message[28..34].copy_from_slice(&self.hardware);
        message[236..].copy_from_slice(&COOKIE);
        for (code, value) in &self.options {
            message.extend([option::PAD, *code, value.len() as u8]);
            message.extend(value);
        }
        message.push(option::END);
        let udp = (UDP_BYTES + message.len()) as u16;
        let whole = u16::from(self.header_words) * 4 + udp;
        let mut frame = [&[0xff; 6][..], &MAC, &[8, 0]].concat();
        let mut header = vec![0x40 | self.header_words, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        header[2..4].copy_from_slice(&whole.to_be_bytes());
        header[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        header.extend([0, 0, 0, 0, 255, 255, 255, 255]);
        header.resize(usize::from(self.header_words) * 4, 1);
        frame.extend(header);
        frame.extend([0, 68, 0, 67]);
        frame.extend(udp.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(message);
        // What Ethernet pads with is no part of it.
        frame.extend([0xee; 4]);
        frame
    }
}

/// A reply, taken apart; its lengths and checksums are right.
#[derive(Debug)]
struct Got {
    to_mac: [u8; 6],
    to: Ipv4Addr,
    given: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
}

impl Got {
    fn read(frame: &[u8]) -> Self {
        assert!(frame.len() <= FRAME_BYTES_MAX);
        let (ethernet, packet) = frame.split_at(ETHERNET_BYTES);
        let (header, udp) = packet.split_at(IPV4_BYTES);
        assert_eq!(ethernet[12..], [8, 0]);
        assert_eq!(
            usize::from(u16::from_be_bytes([header[2], header[3]])),
            packet.len()
        );
        assert_eq!(checksum(&[header]), 0);
        let (head, message) = udp.split_at(UDP_BYTES);
        assert_eq!(head[..4], [0, 67, 0, 68]);
        assert_eq!(
            usize::from(u16::from_be_bytes([head[4], head[5]])),
            udp.len()
        );
        assert_eq!(checksum(&[&header[12..], &[0, 17], &head[4..6], udp]), 0);
        assert!(message.len() >= MESSAGE_BYTES_MIN);
        assert_eq!(message[..8], [2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
        assert_eq!(message[28..34], MAC);
        assert_eq!(message[236..240], COOKIE);
        assert!(message[240..].contains(&option::END));
        Self {
            to_mac: *ethernet.first_chunk().unwrap(),
            to: address(&header[16..]).unwrap(),
            given: address(&message[16..]).unwrap(),
            options: options_of(&message[240..])
                .map(|(code, value)| (code, value.to_vec()))
                .collect(),
        }
    }

    fn option(&self, code: u8) -> Option<&[u8]> {
        let mut found = self.options.iter().filter(|(found, _)| *found == code);
        let value = found.next().map(|(_, value)| value.as_slice());
        assert!(found.next().is_none(), "option {code} is there twice");
        value
    }

    fn kind(&self) -> u8 {
        self.option(option::KIND).unwrap()[0]
    }
}

fn answered(responder: &Responder, sent: &Sent) -> Got {
    Got::read(&responder.answer(&sent.frame()).unwrap())
}

#[test]
fn an_offer_tells_everything() {
    let offer = answered(
        &responder(),
        &sent(kind::DISCOVER).with(option::CLIENT, &[1, 2, 3]),
    );
    assert_eq!(
        (offer.to_mac, offer.to, offer.given),
        (MAC, ADDRESS, ADDRESS)
    );
    let expected: [(u8, &[u8]); 14] = [
        (option::KIND, &[kind::OFFER]),
        (option::SERVER, &[10, 83, 0, 1]),
        (option::LEASE, &86_400u32.to_be_bytes()),
        (option::RENEW, &43_200u32.to_be_bytes()),
        (option::REBIND, &75_600u32.to_be_bytes()),
        (option::MASK, &[255, 255, 255, 0]),
        (option::BROADCAST, &[10, 83, 0, 255]),
        (option::ROUTER, &[10, 83, 0, 1]),
        (option::DNS, &[192, 0, 2, 53, 192, 0, 2, 54]),
        (option::MTU, &[5, 220]),
        (option::HOSTNAME, b"web"),
        (option::DOMAIN, b"example"),
        (option::CLIENT, &[1, 2, 3]),
        (option::ROUTES, &[]),
    ];
    for (code, value) in expected {
        assert_eq!(
            offer.option(code).unwrap_or_default(),
            value,
            "option {code}"
        );
    }
}

#[test]
fn requests_are_answered_as_the_rfc_says() {
    let [address, router] = [ADDRESS.octets(), ROUTER.octets()];
    let other = [10, 83, 0, 6];
    let request = || sent(kind::REQUEST);
    let keeping = |client: [u8; 4]| Sent {
        client: client.into(),
        ..request()
    };
    let cases = [
        // Selecting.
        (
            request()
                .with(option::REQUESTED, &address)
                .with(option::SERVER, &router),
            Some(kind::ACK),
        ),
        (
            request()
                .with(option::REQUESTED, &other)
                .with(option::SERVER, &router),
            Some(kind::NAK),
        ),
        (
            request()
                .with(option::REQUESTED, &address)
                .with(option::SERVER, &other),
            None,
        ),
        // Starting again.
        (request().with(option::REQUESTED, &address), Some(kind::ACK)),
        (request().with(option::REQUESTED, &other), Some(kind::NAK)),
        // Renewing and rebinding.
        (keeping(address), Some(kind::ACK)),
        (keeping(other), Some(kind::NAK)),
        // Nothing that was wanted.
        (request(), Some(kind::NAK)),
        // Decline, release; what servers say; nonsense.
        (sent(4), None),
        (sent(7), None),
        (sent(kind::OFFER), None),
        (sent(0), None),
        (sent(99), None),
    ];
    for (number, (sent, expected)) in cases.iter().enumerate() {
        let found = responder()
            .answer(&sent.frame())
            .map(|frame| Got::read(&frame));
        assert_eq!(found.as_ref().map(Got::kind), *expected, "case {number}");
        let Some(found) = found else { continue };
        let is_nak = found.kind() == kind::NAK;
        assert_eq!(found.given == ADDRESS, !is_nak, "case {number}");
        assert_eq!(found.option(option::LEASE).is_none(), is_nak);
        assert_eq!(found.option(option::MASK).is_none(), is_nak);
        assert_eq!(found.to.is_broadcast(), is_nak);
    }
}

#[test]
fn a_reply_goes_where_the_client_can_hear_it() {
    let asked_for_broadcast = Sent {
        flags: BROADCAST_FLAG,
        ..sent(kind::DISCOVER)
    };
    let offer = answered(&responder(), &asked_for_broadcast);
    assert_eq!((offer.to_mac, offer.to), ([0xff; 6], Ipv4Addr::BROADCAST));
    let informing = Sent {
        client: ADDRESS,
        flags: BROADCAST_FLAG,
        ..sent(kind::INFORM)
    };
    let told = answered(&responder(), &informing);
    assert_eq!(
        (told.to_mac, told.to, told.given),
        (MAC, ADDRESS, Ipv4Addr::UNSPECIFIED)
    );
    assert_eq!((told.kind(), told.option(option::LEASE)), (kind::ACK, None));
    assert!(told.option(option::DNS).is_some());
    let as_another = Sent {
        client: ROUTER,
        ..informing
    };
    assert_eq!(responder().answer(&as_another.frame()), None);
}

#[test]
fn networks_of_other_shapes() {
    let make =
        |prefix, router| Responder::new(MAC, ADDRESS, prefix, router, &[], "a", 9000).unwrap();
    // A router that is not on the link is reached by routes of its own.
    let far = Ipv4Addr::new(169, 254, 1, 1);
    let offer = answered(&make(32, Some(far)), &sent(kind::DISCOVER));
    assert_eq!(offer.option(option::MASK), Some(&[255; 4][..]));
    assert_eq!(offer.option(option::BROADCAST), None);
    let routes = [32, 169, 254, 1, 1, 0, 0, 0, 0, 0, 169, 254, 1, 1];
    assert_eq!(offer.option(option::ROUTES), Some(&routes[..]));
    // Without a router, and with the widest prefix.
    let offer = answered(&make(0, None), &sent(kind::DISCOVER));
    assert_eq!(
        (offer.option(option::ROUTER), offer.option(option::ROUTES)),
        (None, None)
    );
    assert_eq!(offer.option(option::MASK), Some(&[0; 4][..]));
    assert_eq!(
        (offer.option(option::DNS), offer.option(option::DOMAIN)),
        (None, None)
    );
    assert_eq!(offer.option(option::SERVER), Some(&[169, 254, 0, 1][..]));
}

#[test]
fn what_is_none_of_ours_is_not_answered() {
    let good = sent(kind::DISCOVER);
    assert!(responder().answer(&good.frame()).is_some());
    let with_options = Sent {
        header_words: 15,
        ..good.clone()
    };
    assert!(responder().answer(&with_options.frame()).is_some());
    let others = [
        Sent {
            hardware: [2, 0, 0, 0, 0, 6],
            ..good.clone()
        },
        Sent {
            relay: ROUTER,
            ..good.clone()
        },
        Sent {
            fragment: 0x2000,
            ..good.clone()
        },
        Sent {
            fragment: 1,
            ..good.clone()
        },
        good.clone().with(option::SERVER, &[1, 2]),
        good.clone().with(option::KIND, &[]),
    ];
    for (number, other) in others.iter().enumerate() {
        assert_eq!(responder().answer(&other.frame()), None, "case {number}");
    }
    // One byte otherwise in what is looked at, and it is another protocol.
    for at in [12, 13, 14, 23, 36, 37, 42, 43, 44, 278, 281] {
        let mut frame = good.frame();
        frame[at] ^= 0x41;
        assert_eq!(responder().answer(&frame), None, "byte {at}");
    }
}

#[test]
fn no_guest_makes_an_answer_longer_than_every_client_takes() {
    let longest = "a".repeat(HOSTNAME_BYTES_MAX);
    let dns = [DNS[0]; DNS_MAX];
    let far = Some(Ipv4Addr::new(169, 254, 1, 1));
    let responder = Responder::new(MAC, ADDRESS, 30, far, &dns, &longest, 1500).unwrap();
    for length in 0..=255 {
        let sent = sent(kind::DISCOVER).with(option::CLIENT, &vec![7; length]);
        let offer = answered(&responder, &sent);
        // Everything of ours is there, and so is a client's own name of any length that is met.
        assert!(offer.option(option::HOSTNAME).is_some());
        let is_there = offer.option(option::CLIENT).is_some();
        assert!(is_there || !(1..=130).contains(&length), "{length}");
    }
}

#[test]
fn what_a_guest_cannot_be_told_is_refused() {
    let make = |prefix, dns: &[Ipv4Addr], name: &str, mtu| {
        Responder::new(MAC, ADDRESS, prefix, None, dns, name, mtu).map(drop)
    };
    assert_eq!(make(33, &[], "a", 1500), Err(DhcpError::Prefix(33)));
    assert_eq!(make(24, &[ROUTER; 4], "a", 1500), Err(DhcpError::Dns(4)));
    assert_eq!(make(24, &[], "a", 575), Err(DhcpError::Mtu(575)));
    let too_long = "a".repeat(HOSTNAME_BYTES_MAX + 1);
    for name in ["", ".a", "a.", "a b", "a\0", "ä", too_long.as_str()] {
        assert_eq!(
            make(24, &[], name, 1500),
            Err(DhcpError::Hostname),
            "{name}"
        );
    }
}

/// Real messages with some bytes changed, and cut off somewhere.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12);
    (0u8..12, changes, any::<prop::sample::Index>()).prop_map(|(kind, changes, end)| {
        let mut frame = sent(kind)
            .with(option::REQUESTED, &ADDRESS.octets())
            .frame();
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        let end = frame.len() - end.index(frame.len()) * usize::from(kind % 2);
        frame.truncate(end);
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn hostile_bytes_harm_nobody(frame in proptest::collection::vec(any::<u8>(), 0..700)) {
        prop_assert!(responder().answer(&frame).is_none_or(|reply| reply.len() <= FRAME_BYTES_MAX));
    }

    #[test]
    fn damaged_messages_harm_nobody(frame in damaged()) {
        if let Some(reply) = responder().answer(&frame) {
            prop_assert!(reply.len() <= FRAME_BYTES_MAX);
            // Whatever was asked, no other address is given, and nobody else is spoken to.
            let given = &reply[58..62];
            prop_assert!(given == ADDRESS.octets() || given == [0; 4]);
            prop_assert!(reply[..6] == MAC || reply[..6] == [0xff; 6]);
        }
    }

    #[test]
    fn options_of_any_length_are_read(lengths in proptest::collection::vec(0usize..=255, 0..4)) {
        let mut sent = sent(kind::DISCOVER);
        for (number, length) in lengths.iter().enumerate() {
            sent = sent.with(200 + number as u8, &vec![1; *length]);
        }
        prop_assert_eq!(answered(&responder(), &sent).kind(), kind::OFFER);
    }
}
