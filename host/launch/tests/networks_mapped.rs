//! Guests that go on with the addresses of another one: each is known by addresses of its own, and by no others.
//!
//! Each test's host is a network namespace, its guests are stand-ins, as in `networks.rs`.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use common::frames::{self, mac};
use common::guests::{Bed, Guest, OUTSIDE};
use common::namespaces::can_run;
use common::wait_for;
use dwcp_launch::address::Ipv4Prefix;
use dwcp_launch::protocol::{Needs, NetworkKind};

/// What all of them take for the end of their addresses.
const INSIDE: u8 = 5;

fn address(subnet: Ipv4Prefix, last: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.address().to_bits() + u32::from(last))
}

#[test]
fn guests_with_one_address_are_told_apart() {
    if !can_run("guests_with_one_address_are_told_apart") {
        return;
    }
    let bed = Bed::new();
    let network = bed.network("default", NetworkKind::Nat);
    let (subnet, gateway) = (network.subnet, network.gateway.unwrap());
    let forks = [9, 10].map(|last| bed.mapped("default", subnet, last, INSIDE));
    assert_eq!(forks[0].address, forks[1].address);
    let host = bed.socket(&bed.host, &format!("{gateway}:9"));
    let server = bed.socket(&bed.outside, "0.0.0.0:7");
    for (fork, last) in forks.iter().zip([9, 10]) {
        // The router that they remember is there, without being asked.
        let router = fork.resolve(gateway);
        let bridge = bed
            .host
            .run("ip", &["-o", "link", "show", "dev", &network.bridge]);
        assert!(bridge.contains(&frames::text(router)), "{bridge}");
        // They reach the outside, and what it answers reaches the one that asked.
        let outside: Ipv4Addr = OUTSIDE.parse().unwrap();
        let asks = format!("{last} asks");
        fork.say((router, outside, 7), &asks);
        let from = receives(&server, &asks);
        server
            .send_to(format!("for {last}").as_bytes(), from)
            .unwrap();
        fork.hears(&format!("for {last}"));
        // The host reaches each by its own address, and knows it by that.
        let own = address(subnet, last);
        host.send_to(format!("host to {last}").as_bytes(), (own, 5000))
            .unwrap();
        fork.hears(&format!("host to {last}"));
        fork.say((router, gateway, 9), &asks);
        assert_eq!(receives(&host, &asks), SocketAddr::from((own, 5000)));
    }
    assert!(!forks[0].has_heard("for 10") && !forks[0].has_heard("host to 10"));
    assert!(!forks[1].has_heard("for 9") && !forks[1].has_heard("host to 9"));
    // The router's echo comes from the host itself.
    let router = forks[0].resolve(gateway);
    let from = (forks[0].mac, forks[0].address);
    forks[0].send(&frames::echo_request(from, (router, gateway), 77));
    let is_reply = |frame: &Vec<u8>| {
        frame.get(23) == Some(&1) && frame.get(34) == Some(&0) && frame.get(39) == Some(&77)
    };
    wait_for("the echo", || forks[0].seen().iter().any(is_reply));
}

#[test]
fn a_mapped_guest_speaks_for_nobody_else() {
    if !can_run("a_mapped_guest_speaks_for_nobody_else") {
        return;
    }
    let bed = Bed::new();
    let network = bed.network("default", NetworkKind::Nat);
    let (subnet, gateway) = (network.subnet, network.gateway.unwrap());
    let fork = bed.mapped("default", subnet, 9, INSIDE);
    let other = bed.mapped("default", subnet, 10, INSIDE);
    let plain = bed.guest("default", subnet, 11);
    let router = fork.resolve(gateway);
    let server = bed.socket(&bed.outside, "0.0.0.0:7");
    let listener = bed.socket(&bed.host, "0.0.0.0:10");
    let outside = (router, OUTSIDE.parse().unwrap(), 7);
    for from in [
        (fork.mac, address(subnet, 9), 1),
        (fork.mac, address(subnet, 10), 1),
        (fork.mac, address(subnet, 77), 1),
        (fork.mac, gateway, 1),
        (mac(9), fork.address, 1),
        (mac(66), fork.address, 1),
    ] {
        fork.send(&frames::udp(from, outside, "a lie"));
    }
    // Neighbours, by whatever address, and what the host did not begin.
    for (to, port) in [
        (address(subnet, 10), 7),
        (plain.address, 7),
        (gateway, 10),
        (address(subnet, 9), 7),
    ] {
        fork.say((router, to, port), "unasked");
    }
    fork.say(outside, "after");
    receives(&server, "after");
    let host = bed.socket(&bed.host, &format!("{gateway}:9"));
    plain.resolve(gateway);
    host.send_to(b"after", (plain.address, 5000)).unwrap();
    plain.answer_arp();
    plain.hears("after");
    host.send_to(b"after", (address(subnet, 10), 5000)).unwrap();
    other.hears("after");
    assert!(!plain.has_heard("unasked") && !other.has_heard("unasked"));
    nothing_has_come(&listener);
    nothing_has_come(&server);
    // Without the rules the unasked would come.
    bed.open_host();
    fork.say((router, gateway, 10), "unasked");
    receives(&listener, "unasked");
}

#[test]
fn nothing_of_a_mapping_outlives_its_guest() {
    if !can_run("nothing_of_a_mapping_outlives_its_guest") {
        return;
    }
    let mut bed = Bed::new();
    let network = bed.network("default", NetworkKind::Nat);
    let make = || bed.mapped("default", network.subnet, 9, INSIDE);
    let known = |bed: &Bed| bed.host.rules().contains(&format!("\"{}-", bed.prefix));
    for how in ["kill", "exit"] {
        let fork = make();
        assert!(pairs(&bed) == 1 && known(&bed));
        match how {
            "kill" => bed.launcher.client().kill(&common::id(&fork.name)).unwrap(),
            _ => fork.ask_last("exit 0"),
        }
        wait_for("the end of the pair", || pairs(&bed) == 0);
    }
    // A guest that cannot be had leaves nothing; a launcher that is killed takes everything with it.
    let of = common::guests::nic("default", network.subnet, 9);
    let inside = dwcp_launch::protocol::Inside {
        mac: of.mac,
        address: of.address,
    };
    let itself = dwcp_launch::protocol::NicSpec {
        inside: Some(inside),
        ..of
    };
    let spawned = common::StandIn::start(|ours| {
        let mut client = bed.launcher.client();
        let config = serde_json::json!({"taps": 1});
        let name = common::id("vm-itself");
        client.spawn_vmm_with(
            &name,
            Needs::memory(common::MEMORY_BYTES),
            None,
            config,
            &[ours],
            &[itself],
        )
    });
    let refused = spawned.err().unwrap().to_string();
    assert!(refused.contains("cannot be mapped to itself"), "{refused}");
    assert_eq!(pairs(&bed), 0);
    let fork: Guest = make();
    bed.launcher.signal(libc::SIGKILL);
    bed.launcher.process.wait().unwrap();
    wait_for("the end of the pair", || pairs(&bed) == 0);
    drop(fork);
}

fn pairs(bed: &Bed) -> usize {
    let links = bed.host.links();
    let own = |line: &&str| line.contains(&format!(" {}-", bed.prefix)) && line.contains("veth");
    links.lines().filter(own).count()
}

/// Waits for a datagram that says this, and answers who sent it.
fn receives(socket: &UdpSocket, text: &str) -> SocketAddr {
    let mut buffer = [0; 2048];
    let (count, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer[..count]), text);
    from
}

fn nothing_has_come(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    let came = socket.recv_from(&mut [0; 2048]);
    assert_eq!(came.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    socket.set_nonblocking(false).unwrap();
}
