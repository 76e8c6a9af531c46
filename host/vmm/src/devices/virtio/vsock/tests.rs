//! Connections both ways, by a driver that tests play and programs of the host.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proptest::prelude::*;

use super::packet::{NO_RECEIVE, NO_SEND};
use super::*;
use crate::devices::virtio::driver::{Driver, Started, memory, readable, start, writable};
use crate::vsock::Asked;

const CID: u64 = 7;
const MEMORY_BYTES: u64 = 2 << 20;
/// Where packets from the guest are made, and where those for it go.
const OUT: u64 = 0x2_0000;
const IN: u64 = 0x8_0000;
const IN_BYTES: u32 = 4096 + 44;
const IN_COUNT: u64 = 32;
const GUEST_BYTES: u32 = 50_000;

/// A guest, and the host around it.
struct Bed {
    device: Started<Vsock>,
    drivers: Vec<Driver>,
    directory: tempfile::TempDir,
    control: OwnedFd,
    /// Which buffer for packets each head is.
    posted: Vec<(u16, u64)>,
}

impl Bed {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, control) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let device = Vsock::new(CID as u32, listener.into(), ours).unwrap();
        let (device, drivers) = start(device, &memory(MEMORY_BYTES), u64::MAX);
        let mut bed = Self {
            device,
            drivers,
            directory,
            control,
            posted: Vec::new(),
        };
        for n in 0..IN_COUNT {
            bed.post(IN + n * u64::from(IN_BYTES));
        }
        bed
    }

    fn post(&mut self, at: u64) {
        let head = self.drivers[RECEIVE]
            .add(&[writable(at, IN_BYTES)])
            .unwrap();
        self.posted.push((head, at));
    }

    /// The guest sends.
    fn send(&mut self, header: Header, data: &[u8]) {
        self.try_send(header, data).unwrap();
    }

    fn try_send(&mut self, header: Header, data: &[u8]) -> Result<(), Broken> {
        let driver = &mut self.drivers[TRANSMIT];
        driver.write(OUT, &header.encode());
        driver.write(OUT + 44, data);
        driver.add(&[readable(OUT, 40), readable(OUT + 40, 4 + data.len() as u32)]);
        self.device.serve(TRANSMIT)?;
        self.drivers[TRANSMIT].take().unwrap();
        Ok(())
    }

    /// What the guest has received, its buffers given again.
    fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some((head, written)) = self.drivers[RECEIVE].take() {
            let at = self
                .posted
                .iter()
                .position(|(other, _)| *other == head)
                .unwrap();
            let (_, at) = self.posted.swap_remove(at);
            let bytes = self.drivers[RECEIVE].read(at, written as usize);
            let header = Header::decode(bytes.first_chunk().unwrap());
            assert_eq!((header.source_cid, header.destination_cid), (HOST_CID, CID));
            assert_eq!(header.bytes, written - 44);
            all.push((header, bytes[44..].to_vec()));
            self.post(at);
        }
        all
    }

    /// Looks until the guest receives something.
    fn wait(&mut self) -> Vec<(Header, Vec<u8>)> {
        for _ in 0..200 {
            let received = self.received();
            if !received.is_empty() {
                return received;
            }
            self.look(50);
        }
        panic!("nothing for the guest");
    }

    /// The device hears of what happens outside within some time.
    fn look(&mut self, ms: u16) {
        let (fd, events) = self.device.backend.watch().unwrap();
        poll(&mut [PollFd::new(fd, events)], PollTimeout::from(ms)).unwrap();
        self.device.look().unwrap();
        self.device.serve(RECEIVE).unwrap();
    }

    fn host(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("vsock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    fn header(&self, ports: Ports, operation: Operation) -> Header {
        Header {
            source_cid: CID,
            destination_cid: HOST_CID,
            source_port: ports.guest,
            destination_port: ports.host,
            kind: STREAM,
            operation: operation as u16,
            allocated: GUEST_BYTES,
            ..Header::default()
        }
    }

    /// A connection that the host began.
    fn began_by_host(&mut self, guest: u32) -> (UnixStream, Ports) {
        let mut host = self.host();
        writeln!(host, "CONNECT {guest}").unwrap();
        let (request, _) = self.wait()[0];
        assert_eq!(request.operation(), Some(Operation::Request));
        assert_eq!(
            (request.destination_port, request.allocated),
            (guest, BUFFER_BYTES)
        );
        let ports = Ports {
            host: request.source_port,
            guest,
        };
        self.send(self.header(ports, Operation::Response), &[]);
        let mut line = vec![0; format!("OK {}\n", ports.host).len()];
        host.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", ports.host).as_bytes());
        (host, ports)
    }

    /// A connection that the guest began.
    fn began_by_guest(&mut self, ports: Ports) -> UnixStream {
        self.send(self.header(ports, Operation::Request), &[]);
        let asked = Asked::receive(&self.control).unwrap().unwrap();
        assert_eq!(asked.port, ports.host);
        let (ours, theirs) = UnixStream::pair().unwrap();
        asked.answer(&self.control, Some(&theirs)).unwrap();
        let (response, _) = self.wait()[0];
        assert_eq!(response.operation(), Some(Operation::Response));
        assert_eq!(
            (response.source_port, response.destination_port),
            (ports.host, ports.guest)
        );
        ours.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        ours
    }
}

const PORTS: Ports = Ports {
    host: 1024,
    guest: 5000,
};

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
fn what_does_not_come_about_in_time_is_ended() {
    let mut bed = Bed::new();
    // One that says nothing, one that the guest does not accept, and one that the host does not.
    let mut silent = bed.host();
    let mut offered = bed.host();
    offered.write_all(b"CONNECT 3\n").unwrap();
    assert_eq!(bed.wait()[0].0.operation(), Some(Operation::Request));
    bed.send(bed.header(PORTS, Operation::Request), &[]);
    let asked = Asked::receive(&bed.control).unwrap().unwrap();
    while bed.device.backend.connections.len() < 3 {
        bed.look(10);
    }
    for connection in &mut bed.device.backend.connections {
        assert!(connection.deadline().is_some());
        connection.expire();
    }
    bed.device.backend.wake(&mut bed.device.running).unwrap();
    let ended: Vec<_> = bed
        .received()
        .iter()
        .map(|(h, _)| (h.operation, h.destination_port))
        .collect();
    let reset = Operation::Reset as u16;
    assert!(
        ended.contains(&(reset, 3)) && ended.contains(&(reset, PORTS.guest)) && ended.len() == 2
    );
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    assert_eq!(offered.read(&mut [0]).unwrap(), 0);
    // An answer comes too late. An open one has no deadline.
    asked.answer(&bed.control, Some(&offered)).unwrap();
    bed.began_by_guest(PORTS);
    assert_eq!(bed.device.backend.wakes_at(), None);
}

#[test]
fn there_is_a_limit_to_connections_and_to_refusals() {
    let mut bed = Bed::new();
    let hosts: Vec<_> = (0..CONNECTIONS_MAX).map(|_| bed.host()).collect();
    while bed.device.backend.connections.len() < CONNECTIONS_MAX {
        bed.look(10);
    }
    let mut one_more = bed.host();
    bed.look(100);
    assert_eq!(one_more.read(&mut [0]).unwrap(), 0);
    bed.send(bed.header(PORTS, Operation::Request), &[]);
    assert_eq!(bed.received()[0].0.operation(), Some(Operation::Reset));
    drop(hosts);
    // A guest that takes no refusals is not listened to, until it does.
    let taken = |bed: &Bed| {
        bed.device
            .backend
            .counters
            .operations
            .load(Ordering::Relaxed)
    };
    let header = bed.header(PORTS, Operation::Data);
    bed.drivers[TRANSMIT].write(OUT, &header.encode());
    let mut pending = 0;
    for _ in 0..1000 {
        if bed.drivers[TRANSMIT].add(&[readable(OUT, 44)]).is_some() {
            pending += 1;
        }
        bed.device.serve(TRANSMIT).unwrap();
        while bed.drivers[TRANSMIT].take().is_some() {
            pending -= 1;
        }
    }
    assert!(pending > 0 && bed.device.backend.refusals.len() <= REFUSALS_MAX);
    let before = taken(&bed);
    for _ in 0..20 {
        bed.received();
        bed.device.serve(RECEIVE).unwrap();
    }
    while bed.drivers[TRANSMIT].take().is_some() {
        pending -= 1;
    }
    assert!(pending == 0 && taken(&bed) > before);
}

#[test]
fn after_a_move_the_driver_is_told_once() {
    let mut bed = Bed::new();
    let mut host = bed.began_by_guest(PORTS);
    // A pause alone changes nothing.
    bed.device.backend.rest(&mut bed.device.running);
    assert_eq!(bed.device.backend.save(), Vec::<u8>::new());
    bed.device.backend.begin(&mut bed.device.running).unwrap();
    host.write_all(b"on").unwrap();
    assert_eq!(bed.wait()[0].1, b"on");
    bed.device.backend.registers.load(&[9; 8]);
    bed.device.backend.load(&[]).unwrap();
    assert_eq!(bed.device.backend.load(&[1]), Err(Unfit));
    assert_eq!(bed.device.backend.registers.all(), CID.to_le_bytes());
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    // There is no room for the event yet.
    bed.device.backend.begin(&mut bed.device.running).unwrap();
    bed.device.told.take();
    bed.drivers[EVENT].write(OUT, &[0xff; 8]);
    bed.drivers[EVENT].add(&[writable(OUT, 8)]);
    bed.drivers[EVENT].add(&[writable(OUT, 8)]);
    bed.device.serve(EVENT).unwrap();
    assert_eq!(
        bed.drivers[EVENT].take().map(|(_, written)| written),
        Some(4)
    );
    assert_eq!(bed.drivers[EVENT].read(OUT, 5), [0, 0, 0, 0, 0xff]);
    assert_eq!(
        (bed.drivers[EVENT].take(), bed.device.told.take()),
        (None, 1)
    );
    bed.device.serve(EVENT).unwrap();
    assert_eq!(bed.drivers[EVENT].take(), None);
    // What the guest says of its old connection is refused.
    bed.send(bed.header(PORTS, Operation::CreditUpdate), &[]);
    assert_eq!(bed.received()[0].0.operation(), Some(Operation::Reset));
}

#[test]
fn a_packet_without_its_data_and_a_buffer_without_room_break_the_device() {
    let mut bed = Bed::new();
    let data = Header {
        bytes: 10,
        ..bed.header(PORTS, Operation::Data)
    };
    assert_eq!(bed.try_send(data, b"123456789"), Err(Broken::Short));
    let mut bed = Bed::new();
    bed.drivers[TRANSMIT].add(&[readable(OUT, 43)]);
    assert_eq!(bed.device.serve(TRANSMIT), Err(Broken::Short));
    let mut bed = Bed::new();
    bed.drivers[RECEIVE] = Driver::new(&bed.drivers[EVENT].memory, 0, 64, 0);
    bed.drivers[RECEIVE].add(&[writable(IN, 44)]);
    assert_eq!(
        bed.try_send(Header { bytes: 0, ..data }, b""),
        Err(Broken::Short)
    );
}

proptest! {
    /// Any packets, most of them for connections that there are: never a panic, and never more than is allowed.
    #[test]
    fn no_packets_get_the_better_of_it(
        packets in prop::collection::vec((0..9u16, 0..4u32, 0..3u32, 0..5u32, any::<u32>(), any::<u32>(), 0..3000usize), 1..60),
    ) {
        let mut bed = Bed::new();
        let mut hosts = vec![bed.began_by_guest(PORTS), bed.began_by_host(5001).0];
        for (operation, host, guest, flags, allocated, forwarded, length) in packets {
            let host = if host == 3 { HOST_PORTS.start } else { 1022 + host };
            let ports = Ports { host, guest: 4999 + guest };
            let header = Header {
                operation, flags, allocated, forwarded, bytes: length as u32,
                ..bed.header(ports, Operation::Data)
            };
            bed.send(header, &vec![1; length]);
            bed.look(0);
            for (header, _) in bed.received() {
                prop_assert!(header.operation().is_some());
            }
            prop_assert!(bed.device.backend.connections.len() <= CONNECTIONS_MAX);
            hosts.retain_mut(|host| host.write(&[2; 100]).is_ok());
        }
    }
}
