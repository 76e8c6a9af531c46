//! A network card whose tap is a pair of sockets: what the guest learns by DHCP, and what reaches the tap.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use common::{Bed, Serial, has_kvm};
use dwcp_guest::said::{NetFound, NetLease};
use dwcp_vmm::config::{CardAddress, Device, NetLimits};

const MAC: &str = "02:00:00:0a:0b:0c";

/// A bed whose guests have a network card, and the other end of its tap.
fn bed() -> (Bed, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut bed = Bed::new(48);
    bed.devices = vec![Device::Net {
        mac: MAC.parse().unwrap(),
        mtu: 1400,
        told: Some(CardAddress {
            address: Ipv4Addr::new(10, 83, 0, 5),
            prefix: 24,
            router: Some(Ipv4Addr::new(10, 83, 0, 1)),
            dns: vec![Ipv4Addr::new(9, 9, 9, 9)],
            hostname: "web".into(),
        }),
        limits: NetLimits::default(),
    }];
    bed.disks = vec![File::from(OwnedFd::from(theirs))];
    (bed, ours)
}

/// The next frame at the tap, behind the header that it must have.
fn frame(tap: &UnixDatagram) -> Vec<u8> {
    let mut bytes = [0; 70_000];
    let count = tap.recv(&mut bytes).unwrap();
    assert!(count > 12, "{count} bytes");
    bytes[12..count].to_vec()
}

/// The Ethernet addresses and the payload's type.
fn ethernet(frame: &[u8]) -> ([u8; 6], [u8; 6], u16) {
    let address = |at: usize| frame[at..at + 6].try_into().unwrap();
    (
        address(0),
        address(6),
        u16::from_be_bytes([frame[12], frame[13]]),
    )
}

#[test]
fn a_guest_learns_its_address_and_nobody_else_is_asked() {
    if !has_kvm("a_guest_learns_its_address_and_nobody_else_is_asked") {
        return;
    }
    let (bed, tap) = bed();
    // The peer is asked for by ARP, which is the first that the network hears.
    let vmm = bed.fresh("fill_mib=4 net=dhcp net=send:3 peer=10.83.0.1:7");
    vmm.client().unwrap().run(1).unwrap();
    let serial = Serial::of(&vmm);
    let lease = serial.wait("lease", |serial| {
        serial.text().lines().find_map(NetLease::parse)
    });
    assert_eq!(lease.address, "10.83.0.5/24");
    assert_eq!(lease.router, Ipv4Addr::new(10, 83, 0, 1));
    assert_eq!(lease.dns, Ipv4Addr::new(9, 9, 9, 9));
    let text = serial.text();
    let found = text.lines().find_map(NetFound::parse).unwrap();
    assert_eq!((&*found.mac, found.mtu, found.link), (MAC, 1400, true));
    let (to, from, kind) = ethernet(&frame(&tap));
    assert_eq!(
        (to, from, kind),
        ([0xff; 6], [2, 0, 0, 0xa, 0xb, 0xc], 0x0806)
    );
    let status = vmm.client().unwrap().status().unwrap();
    assert!(!status.devices[0].needs_reset);
}
