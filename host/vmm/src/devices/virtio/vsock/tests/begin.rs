//! How connections begin, whoever begins them, and what is refused.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::super::*;
use super::bed::*;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::devices::virtio::driver::readable;
use crate::vsock::Asked;

#[test]
fn the_host_connects_and_both_talk() {
    let mut bed = Bed::new();
    let (mut host, ports) = bed.began_by_host(52);
    assert!(HOST_PORTS.contains(&ports.host));
    bed.send(
        Header {
            bytes: 5,
            ..bed.header(ports, Operation::Data)
        },
        b"guest",
    );
    let mut seen = [0; 5];
    host.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"guest");
    host.write_all(b"host").unwrap();
    let (header, data) = bed.wait().remove(0);
    assert_eq!(
        (header.operation(), &data[..]),
        (Some(Operation::Data), &b"host"[..])
    );
    assert_eq!(header.forwarded, 5);
}

#[test]
fn what_follows_the_greeting_at_once_is_the_guests() {
    let mut bed = Bed::new();
    let mut host = bed.host();
    host.write_all(b"CONNECT 9\nhello").unwrap();
    let (request, _) = bed.wait()[0];
    let ports = Ports {
        host: request.source_port,
        guest: 9,
    };
    bed.send(bed.header(ports, Operation::Response), &[]);
    let (_, data) = bed.wait().remove(0);
    assert_eq!(data, b"hello");
}

#[test]
fn a_host_that_says_something_else_is_hung_up_on() {
    let mut bed = Bed::new();
    let long = format!("CONNECT {}\n", "1".repeat(40));
    for said in [
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT \n",
        "CONNECT -1\n",
        "CONNECT 4294967296\n",
        &long,
    ] {
        let mut host = bed.host();
        host.write_all(said.as_bytes()).unwrap();
        for _ in 0..20 {
            bed.look(5);
        }
        let mut rest = Vec::new();
        match host.read_to_end(&mut rest) {
            Ok(count) => assert_eq!(count, 0),
            // Something was left unread.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{said}"),
        }
        assert!(bed.received().is_empty() && bed.device.backend.connections.is_empty());
    }
}

#[test]
fn the_guest_connects_if_the_host_lets_it() {
    let mut bed = Bed::new();
    let mut host = bed.began_by_guest(PORTS);
    host.write_all(b"welcome").unwrap();
    assert_eq!(bed.wait()[0].1, b"welcome");
    // Another is refused, and when the host has gone everything is.
    let other = Ports {
        guest: 5001,
        ..PORTS
    };
    bed.send(bed.header(other, Operation::Request), &[]);
    let asked = Asked::receive(&bed.control).unwrap().unwrap();
    asked.answer(&bed.control, None::<&OwnedFd>).unwrap();
    let (refusal, _) = bed.wait()[0];
    assert_eq!(refusal.operation(), Some(Operation::Reset));
    assert_eq!(
        (refusal.source_port, refusal.destination_port),
        (1024, 5001)
    );
    // An answer to nothing that was asked changes nothing.
    let (unasked, mut theirs) = UnixStream::pair().unwrap();
    asked.answer(&bed.control, Some(&unasked)).unwrap();
    drop(unasked);
    bed.look(100);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    let (_, gone) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::empty(),
    )
    .unwrap();
    bed.control = gone;
    bed.look(100);
    bed.send(bed.header(other, Operation::Request), &[]);
    assert_eq!(bed.wait()[0].0.operation(), Some(Operation::Reset));
    host.write_all(b"still here").unwrap();
    assert_eq!(bed.wait()[0].1, b"still here");
    // Another host is asked from then on, and what is open goes on.
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::empty(),
    )
    .unwrap();
    bed.device.backend.hear(theirs).unwrap();
    bed.send(bed.header(other, Operation::Request), &[]);
    let asked = Asked::receive(&ours).unwrap().unwrap();
    assert_eq!(asked.port, 1024);
    let (socket, mut program) = UnixStream::pair().unwrap();
    asked.answer(&ours, Some(&socket)).unwrap();
    drop(socket);
    assert_eq!(bed.wait()[0].0.operation(), Some(Operation::Response));
    program.write_all(b"once more").unwrap();
    assert_eq!(bed.wait()[0].1, b"once more");
    host.write_all(b"and here").unwrap();
    assert_eq!(bed.wait()[0].1, b"and here");
}

#[test]
fn a_socket_that_the_host_kept_too_is_not_waited_for_after_its_end() {
    let mut bed = Bed::new();
    bed.send(bed.header(PORTS, Operation::Request), &[]);
    let asked = Asked::receive(&bed.control).unwrap().unwrap();
    let (mut ours, kept) = UnixStream::pair().unwrap();
    asked.answer(&bed.control, Some(&kept)).unwrap();
    bed.wait();
    bed.send(bed.header(PORTS, Operation::Reset), &[]);
    assert!(bed.device.backend.connections.is_empty());
    ours.write_all(b"x").unwrap();
    assert!(bed.device.backend.outside.happened().is_empty());
}

#[test]
fn what_is_unknown_is_refused() {
    let mut bed = Bed::new();
    let with = |bed: &Bed, change: fn(&mut Header)| {
        let mut header = bed.header(PORTS, Operation::Request);
        change(&mut header);
        header
    };
    for change in [
        |header: &mut Header| header.operation = Operation::Data as u16,
        |header: &mut Header| header.operation = Operation::Response as u16,
        |header: &mut Header| header.operation = Operation::Shutdown as u16,
        |header: &mut Header| header.operation = 99,
        |header: &mut Header| header.kind = 2,
    ] {
        let header = with(&bed, change);
        bed.send(header, &[]);
        assert_eq!(bed.received(), [(header.refusal(), vec![])]);
    }
    // A refusal is not refused, and one that is not the guest is not answered.
    for change in [
        |header: &mut Header| header.operation = Operation::Reset as u16,
        |header: &mut Header| header.source_cid = 8,
    ] {
        let header = with(&bed, change);
        bed.send(header, &[]);
        assert!(bed.received().is_empty());
    }
    // Nor is another guest reached.
    let driver = &mut bed.drivers[TRANSMIT];
    let header = Header {
        destination_cid: 8,
        source_cid: CID,
        kind: STREAM,
        operation: Operation::Request as u16,
        ..Header::default()
    };
    driver.write(OUT, &header.encode());
    driver.add(&[readable(OUT, 44)]);
    bed.device.serve(TRANSMIT).unwrap();
    let (head, written) = bed.drivers[RECEIVE].take().unwrap();
    let (_, at) = bed.posted.iter().find(|(other, _)| *other == head).unwrap();
    let bytes = bed.drivers[RECEIVE].read(*at, written as usize);
    assert_eq!(
        Header::decode(bytes.first_chunk().unwrap()),
        header.refusal()
    );
}
