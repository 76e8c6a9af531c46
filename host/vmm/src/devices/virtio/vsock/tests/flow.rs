//! What flows over a connection: as much as the other side takes, until each side has ended it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

use super::super::packet::{NO_RECEIVE, NO_SEND};
use super::super::*;
use super::bed::*;

#[test]
fn a_guest_that_sends_more_than_it_may_is_reset() {
    let mut bed = Bed::new();
    let mut host = bed.began_by_guest(PORTS);
    // The host reads nothing: its socket takes some, the buffer takes 64 KiB, and that is all.
    let (mut sent, mut known) = (0u32, 0u32);
    let piece = vec![1; 4096];
    let data = Header {
        bytes: 4096,
        ..bed.header(PORTS, Operation::Data)
    };
    let refused = loop {
        let is_over = sent - known + 4096 > BUFFER_BYTES;
        bed.send(data, &piece);
        sent += 4096;
        let received = bed.received();
        if let Some((reset, _)) = received
            .iter()
            .find(|(h, _)| h.operation() == Some(Operation::Reset))
        {
            assert!(is_over);
            break *reset;
        }
        assert!(sent < 10 << 20);
        for (header, _) in received {
            assert_eq!(header.operation(), Some(Operation::CreditUpdate));
            known = header.forwarded;
        }
    };
    assert_eq!(refused.destination_port, PORTS.guest);
    assert!(bed.device.backend.connections.is_empty());
    let mut all = Vec::new();
    let _ = host.read_to_end(&mut all);
    assert!(all.len() as u32 >= known);
}

#[test]
fn a_guest_is_sent_what_it_takes_and_asked_for_more() {
    let mut bed = Bed::new();
    let mut host = bed.began_by_guest(PORTS);
    let sender = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        host.write_all(&bytes).unwrap();
        bytes
    });
    let (mut seen, mut taken) = (Vec::new(), 0u32);
    while seen.len() < 300_000 {
        for (header, data) in bed.wait() {
            match header.operation() {
                Some(Operation::Data) => seen.extend(data),
                Some(Operation::CreditRequest) => {
                    assert_eq!(seen.len() as u32 - taken, GUEST_BYTES);
                    // Nothing more comes before the guest has said that it has room.
                    bed.look(1);
                    assert!(bed.received().is_empty());
                    taken = seen.len() as u32;
                    let update = Header {
                        forwarded: taken,
                        ..bed.header(PORTS, Operation::CreditUpdate)
                    };
                    bed.send(update, &[]);
                }
                other => panic!("{other:?}"),
            }
            assert!(seen.len() as u32 - taken <= GUEST_BYTES);
        }
    }
    let sent = sender.join().unwrap();
    assert!(seen == sent);
    // Its thread has ended, and so has its socket: both directions.
    let (header, _) = bed.wait()[0];
    assert_eq!(header.operation(), Some(Operation::Shutdown));
    assert_eq!(header.flags, NO_SEND | NO_RECEIVE);
    bed.send(bed.header(PORTS, Operation::Reset), &[]);
    assert!(bed.received().is_empty() && bed.device.backend.connections.is_empty());
}

#[test]
fn each_direction_ends_by_itself() {
    let mut bed = Bed::new();
    let (mut host, ports) = bed.began_by_host(4);
    host.shutdown(std::net::Shutdown::Write).unwrap();
    let (header, _) = bed.wait()[0];
    assert_eq!(
        (header.operation(), header.flags),
        (Some(Operation::Shutdown), NO_SEND)
    );
    // The guest may still send.
    let data = Header {
        bytes: 3,
        ..bed.header(ports, Operation::Data)
    };
    bed.send(data, b"end");
    let half = Header {
        flags: NO_SEND,
        ..bed.header(ports, Operation::Shutdown)
    };
    bed.send(half, &[]);
    let mut rest = String::new();
    host.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "end");
    // After which it may not.
    bed.received();
    bed.send(data, b"too");
    let resets = bed.wait();
    assert_eq!(resets[0].0.operation(), Some(Operation::Reset));
}

#[test]
fn a_guest_that_closes_is_answered_when_all_has_arrived() {
    let mut bed = Bed::new();
    let mut host = bed.began_by_guest(PORTS);
    let bytes = vec![3; 4096];
    let data = Header {
        bytes: 4096,
        ..bed.header(PORTS, Operation::Data)
    };
    let mut sent = 0;
    // Until something waits for the host.
    while bed.device.backend.connections[0].has_all_arrived() {
        bed.send(data, &bytes);
        sent += bytes.len();
    }
    let close = Header {
        flags: NO_SEND | NO_RECEIVE,
        ..bed.header(PORTS, Operation::Shutdown)
    };
    bed.received();
    bed.send(close, &[]);
    let resets = |received: Vec<(Header, Vec<u8>)>| {
        received
            .iter()
            .any(|(header, _)| header.operation() == Some(Operation::Reset))
    };
    assert!(!resets(bed.received()));
    assert!(bed.device.backend.wakes_at().is_some());
    let mut seen = vec![0; sent];
    let reader = std::thread::spawn(move || {
        host.read_exact(&mut seen).unwrap();
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
        seen
    });
    assert!((0..200).any(|_| {
        bed.look(50);
        resets(bed.received())
    }));
    assert!(reader.join().unwrap().iter().all(|byte| *byte == 3));
}

#[test]
fn a_host_that_closes_with_data_under_way_is_a_reset() {
    let mut bed = Bed::new();
    let host = bed.began_by_guest(PORTS);
    drop(host);
    let data = Header {
        bytes: 1,
        ..bed.header(PORTS, Operation::Data)
    };
    bed.send(data, b"x");
    let received = bed.wait();
    assert_eq!(
        received.last().unwrap().0.operation(),
        Some(Operation::Reset)
    );
    assert!(bed.device.backend.connections.is_empty());
}

#[test]
fn the_end_of_a_stream_is_waited_for_as_long_as_some_of_it_arrives() {
    let mut bed = Bed::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    // So little that what waits for it comes in several parts.
    setsockopt(&theirs, SndBuf, &8192).unwrap();
    bed.began_by_guest_over(PORTS, &theirs);
    drop(theirs);
    let piece = vec![1; 4096];
    let data = Header {
        bytes: 4096,
        ..bed.header(PORTS, Operation::Data)
    };
    // More than the socket takes, then nothing more in either direction.
    let mut sent = 0;
    while bed.device.backend.connections[0].has_all_arrived() {
        bed.send(data, &piece);
        bed.received();
        sent += piece.len();
    }
    for _ in 0..10 {
        bed.send(data, &piece);
        sent += piece.len();
    }
    let both = Header {
        flags: NO_SEND | NO_RECEIVE,
        ..bed.header(PORTS, Operation::Shutdown)
    };
    bed.send(both, &[]);
    let deadline = |bed: &Bed| bed.device.backend.connections[0].deadline().unwrap();
    let first = deadline(&bed);
    // One that takes nothing gets no more time.
    bed.look(0);
    assert_eq!(deadline(&bed), first);
    // A pause is no fault of anybody's.
    bed.device.backend.connections[0].expire();
    bed.device.backend.begin(&mut bed.device.running).unwrap();
    let renewed = deadline(&bed);
    assert!(renewed > first);
    // Nor is a host that is slow: the socket takes more when enough was read.
    let (mut read, mut later) = (0, renewed);
    let mut buffer = vec![0; 4096];
    while later == renewed {
        read += host.read(&mut buffer).unwrap();
        bed.look(1);
        later = deadline(&bed);
    }
    assert!(later > renewed);
    while read < sent {
        read += host.read(&mut buffer).unwrap();
        bed.look(0);
    }
    assert_eq!(host.read(&mut buffer).unwrap(), 0);
    assert!(bed.device.backend.connections.is_empty());
}
