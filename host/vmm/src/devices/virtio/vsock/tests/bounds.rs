//! What bounds a device: time, numbers, and packets that make no sense.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::super::*;
use super::bed::*;
use crate::devices::virtio::driver::{Driver, readable, writable};
use crate::vsock::Asked;

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
fn what_the_guest_never_heard_of_is_not_refused() {
    let mut bed = Bed::new();
    // It has no room for anything.
    bed.drivers[RECEIVE].put(bed.drivers[RECEIVE].state.driver + 2, 0);
    for _ in 0..2 * REFUSALS_MAX {
        let mut host = bed.host();
        host.write_all(b"CONNECT 3\n").unwrap();
        let is_offered = |connection: &Connection| connection.is_named();
        while !bed.device.backend.connections.iter().any(is_offered) {
            bed.look(10);
        }
        for connection in &mut bed.device.backend.connections {
            connection.expire();
        }
        bed.device.backend.wake(&mut bed.device.running).unwrap();
        assert!(bed.device.backend.connections.is_empty());
        assert_eq!(bed.device.backend.refusals.len(), 0);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }
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
    // The guest had another address there.
    assert!(bed.device.backend.registers.load(&[9; 8]));
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
