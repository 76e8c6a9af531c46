//! Networks as VMs and hosts find them: who reaches whom, and what reaches nobody.
//!
//! Each test's host is a network namespace, its guests are stand-ins. That a frame does not come is shown by one that
//! was sent after it and came; that the check can fail, by the same frame passing once the rules are taken away.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use common::frames::{self, Arp, BROADCAST, mac};
use common::guests::{Bed, Guest, HOST, OUTSIDE, nic, spawn};
use common::namespaces::can_run;
use common::wait_for;
use dwcp_launch::protocol::NetworkKind;
use serde_json::json;

#[test]
fn taps_are_handed_over_as_documented() {
    if !can_run("taps_are_handed_over_as_documented") {
        return;
    }
    let bed = Bed::new();
    let nat = bed.network("default", NetworkKind::Nat);
    let isolated = bed.network("inside", NetworkKind::Isolated);
    assert_eq!(nat.bridge, format!("{}0", bed.prefix));
    let nics = [
        nic("default", nat.subnet, 5),
        nic("inside", isolated.subnet, 6),
    ];
    let vmm = spawn(&bed.launcher, "vm-1", &nics);
    // Four of the launcher's, the socket, the taps in order.
    assert_eq!(vmm.report["argv"], json!(["dwcp-vmm", "7"]));
    assert_eq!(vmm.report["socket"], 9);
    assert_eq!(vmm.report["interfaces"], json!(["lo"]));
    let taps = vmm.report["taps"].as_array().unwrap();
    let links = bed.host.links();
    for (number, (tap, bridge)) in taps.iter().zip([&nat.bridge, &isolated.bridge]).enumerate() {
        let name = format!("{}-0-{number}", bed.prefix);
        assert_eq!(tap["name"], name);
        assert_eq!(tap["descriptor"], 10 + number);
        assert_eq!(tap["header_bytes"], 12);
        assert_eq!(tap["non_blocking"], true);
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let found = tap["flags"].as_i64().unwrap() as i32;
        assert_eq!(found & !libc::IFF_TUN_EXCL, flags, "{found:x}");
        let link = links.lines().find(|line| line.contains(&name)).unwrap();
        assert!(link.contains(&format!("master {bridge}")), "{link}");
        assert!(link.contains("UP,LOWER_UP"), "{link}");
        assert!(link.contains("learning off flood off"), "{link}");
        let separate = if number == 0 {
            "isolated on"
        } else {
            "isolated off"
        };
        assert!(link.contains(separate), "{link}");
        let features = bed.host.run("ip", &["-d", "link", "show", "dev", &name]);
        assert!(
            features.contains(&format!("interface {number} of vm-1")),
            "{features}"
        );
    }
    // A guest may want fewer offloads: that takes no right.
    assert_eq!({ vmm }.ask("lower 0"), true);
}

#[test]
fn guests_of_an_isolated_network_reach_each_other_and_nothing_else() {
    if !can_run("guests_of_an_isolated_network_reach_each_other_and_nothing_else") {
        return;
    }
    let bed = Bed::new();
    let subnet = bed.network("inside", NetworkKind::Isolated).subnet;
    let [one, two] = [5, 6].map(|last| bed.guest("inside", subnet, last));
    // Neither answers by itself: what comes is what the other sent.
    one.send(&one.question(two.address));
    two.answer_arp();
    wait_for("the answer", || {
        one.seen()
            .iter()
            .any(|frame| frames::arp_answer(frame, two.address) == Some(two.mac))
    });
    one.say(two.end(7), "hello two");
    two.hears("hello two");
    two.say(one.end(7), "hello one");
    one.hears("hello one");
    // The host has no address there, answers no question, and takes nothing that is addressed to its bridge.
    let bridge = bridge_mac(&bed, &format!("{}0", bed.prefix));
    let host: Ipv4Addr = HOST.parse().unwrap();
    let listener = bed.socket(&bed.host, "0.0.0.0:7");
    one.send(&one.question(host));
    one.say((bridge, host, 7), "hello host");
    one.say((bridge, OUTSIDE.parse().unwrap(), 7), "hello outside");
    one.say(two.end(7), "after");
    two.hears("after");
    assert!(
        !one.seen()
            .iter()
            .any(|frame| frames::arp_answer(frame, host).is_some())
    );
    nothing_has_come(&listener);
    // Without the rules the host would take it.
    bed.open_host();
    one.say((bridge, host, 7), "hello host");
    receives(&listener, "hello host");
}

#[test]
fn the_host_and_the_outside_are_reached_by_nat_and_guests_are_not() {
    if !can_run("the_host_and_the_outside_are_reached_by_nat_and_guests_are_not") {
        return;
    }
    let bed = Bed::new();
    let network = bed.network("default", NetworkKind::Nat);
    let gateway = network.gateway.unwrap();
    let [one, two] = [5, 6].map(|last| bed.guest("default", network.subnet, last));
    let router = one.resolve(gateway);
    let server = bed.socket(&bed.outside, "0.0.0.0:7");
    one.say((router, OUTSIDE.parse().unwrap(), 7), "to the outside");
    let from = receives(&server, "to the outside");
    assert_eq!(from.ip().to_string(), HOST);
    server.send_to(b"back from the outside", from).unwrap();
    one.answer_arp();
    one.hears("back from the outside");
    // The gateway's echo, and what the host began.
    one.send(&frames::echo_request(
        (one.mac, one.address),
        (router, gateway),
        77,
    ));
    wait_for("the echo", || {
        one.seen().iter().any(|frame| is_echo_reply(frame, 77))
    });
    let host = bed.socket(&bed.host, &format!("{gateway}:9"));
    host.send_to(b"from the host", (one.address, 5000)).unwrap();
    one.hears("from the host");
    one.say((router, gateway, 9), "answer");
    receives(&host, "answer");
    // What the host did not begin; another guest, directly and through the host; its other addresses; others' clouds.
    let other = bed.socket(&bed.host, "0.0.0.0:10");
    one.say((router, gateway, 10), "unasked");
    one.say((router, HOST.parse().unwrap(), 10), "unasked");
    one.say(two.end(7), "to a neighbour");
    one.say((router, two.address, 7), "to a neighbour");
    one.say((BROADCAST, Ipv4Addr::BROADCAST, 7), "to all");
    bed.outside
        .run("ip", &["address", "add", "169.254.169.254/32", "dev", "lo"]);
    bed.host.run(
        "ip",
        &["route", "add", "169.254.169.254/32", "via", OUTSIDE],
    );
    let metadata = bed.socket(&bed.outside, "169.254.169.254:80");
    one.say(
        (router, "169.254.169.254".parse().unwrap(), 80),
        "credentials",
    );
    one.say((router, OUTSIDE.parse().unwrap(), 7), "after");
    receives(&server, "after");
    host.send_to(b"after", (two.address, 5000)).unwrap();
    two.answer_arp();
    two.hears("after");
    nothing_has_come(&other);
    nothing_has_come(&metadata);
    assert!(!two.has_heard("to a neighbour") && !two.has_heard("to all"));
    // Without the rules all of that would come.
    bed.open_host();
    one.say((router, gateway, 10), "unasked");
    receives(&other, "unasked");
    one.say((router, two.address, 7), "to a neighbour");
    two.hears("to a neighbour");
    bed.outside.run(
        "ip",
        &["route", "add", &network.subnet.to_string(), "via", HOST],
    );
    one.say(
        (router, "169.254.169.254".parse().unwrap(), 80),
        "credentials",
    );
    receives(&metadata, "credentials");
}

#[test]
fn nothing_comes_in_unasked() {
    if !can_run("nothing_comes_in_unasked") {
        return;
    }
    let bed = Bed::new();
    let network = bed.network("default", NetworkKind::Nat);
    let one = bed.guest("default", network.subnet, 5);
    let host = bed.socket(&bed.host, &format!("{}:9", network.gateway.unwrap()));
    // A machine outside that knows the way.
    bed.outside.run(
        "ip",
        &["route", "add", &network.subnet.to_string(), "via", HOST],
    );
    let outside = bed.socket(&bed.outside, "0.0.0.0:7");
    host.send_to(b"first", (one.address, 5000)).unwrap();
    one.answer_arp();
    one.hears("first");
    outside.send_to(b"unasked", (one.address, 5000)).unwrap();
    // What comes after it on the same way, and to the host itself, has come.
    let listener = bed.socket(&bed.host, "0.0.0.0:11");
    outside.send_to(b"after", (HOST, 11)).unwrap();
    receives(&listener, "after");
    host.send_to(b"last", (one.address, 5000)).unwrap();
    one.hears("last");
    assert!(!one.has_heard("unasked"));
    bed.open_host();
    outside.send_to(b"unasked", (one.address, 5000)).unwrap();
    one.hears("unasked");
}

/// Frames that a guest may not send, by name; each carries its name where something can be carried.
fn lies(one: &Guest, two: &Guest) -> Vec<(&'static str, Vec<u8>)> {
    let stranger = Ipv4Addr::from_bits(one.address.to_bits() + 40);
    let claim = |from, sender| {
        frames::arp(Arp {
            is_reply: true,
            from,
            sender,
            target: two.address,
        })
    };
    let spoken = |name, from, to| (name, frames::udp(from, to, name));
    let dhcp_answer = |name, port| {
        spoken(
            name,
            (one.mac, one.address, port),
            (two.mac, two.address, 68),
        )
    };
    vec![
        spoken("spoofed-mac", (mac(66), one.address, 1), two.end(1)),
        spoken("stolen-mac", (two.mac, one.address, 1), two.end(1)),
        spoken("spoofed-ipv4", (one.mac, stranger, 1), two.end(1)),
        spoken("no-ipv4", (one.mac, Ipv4Addr::UNSPECIFIED, 1), two.end(1)),
        ("spoofed-arp-mac", claim(one.mac, (mac(66), one.address))),
        ("spoofed-arp-ipv4", claim(one.mac, (one.mac, stranger))),
        ("spoofed-arp-frame", claim(mac(66), (one.mac, one.address))),
        (
            "unnumbered-arp-answer",
            claim(one.mac, (one.mac, Ipv4Addr::UNSPECIFIED)),
        ),
        dhcp_answer("rogue-dhcp", 67),
        dhcp_answer("rogue-dhcp-other-port", 1067),
        ("rogue-router", frames::router_advertisement(one.mac)),
        (
            "vlan",
            frames::tagged(&frames::udp(one.end(1), two.end(1), "vlan"), 7),
        ),
        (
            "priority-tag",
            frames::tagged(&frames::udp(one.end(1), two.end(1), "priority-tag"), 0),
        ),
        (
            "spanning-tree",
            frames::ethernet([1, 0x80, 0xc2, 0, 0, 0], one.mac, [0, 38], b"spanning-tree"),
        ),
        (
            "unknown-type",
            frames::ethernet(two.mac, one.mac, [0x88, 0xb5], b"unknown-type"),
        ),
    ]
}

#[test]
fn lies_reach_nobody() {
    if !can_run("lies_reach_nobody") {
        return;
    }
    let bed = Bed::new();
    let subnet = bed.network("inside", NetworkKind::Isolated).subnet;
    let [one, two] = [5, 6].map(|last| bed.guest("inside", subnet, last));
    let lies = lies(&one, &two);
    for (name, lie) in &lies {
        one.send(lie);
        let after = format!("after-{name}");
        one.say(two.end(1), &after);
        two.hears(&after);
    }
    let seen = two.seen();
    let came = lies
        .iter()
        .filter(|(_, lie)| seen.iter().any(|frame| same(frame, lie)));
    assert_eq!(came.map(|(name, _)| *name).collect::<Vec<_>>(), [""; 0]);
    bed.open_bridges();
    for (name, lie) in &lies {
        one.send(lie);
        wait_for(name, || two.seen().iter().any(|frame| same(frame, lie)));
    }
}

/// Whether a frame that came is the one that was sent. The kernel may trim padding, and give a tag beside the frame.
fn same(frame: &[u8], sent: &[u8]) -> bool {
    let trimmed = |bytes: &[u8]| {
        let end = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        bytes[..end].to_vec()
    };
    let untagged = [&sent[..12], &sent[16..]].concat();
    let is_tagged = sent[12..14] == [0x81, 0];
    trimmed(frame) == trimmed(sent) || (is_tagged && trimmed(frame) == trimmed(&untagged))
}

#[test]
fn what_an_honest_guest_sends_before_it_has_an_address_passes() {
    if !can_run("what_an_honest_guest_sends_before_it_has_an_address_passes") {
        return;
    }
    let bed = Bed::new();
    let subnet = bed.network("inside", NetworkKind::Isolated).subnet;
    let [one, two] = [5, 6].map(|last| bed.guest("inside", subnet, last));
    let from = (one.mac, Ipv4Addr::UNSPECIFIED, 68);
    one.send(&frames::udp(
        from,
        (BROADCAST, Ipv4Addr::BROADCAST, 67),
        "discover",
    ));
    two.hears("discover");
    let probe = frames::arp(Arp {
        is_reply: false,
        from: one.mac,
        sender: (one.mac, Ipv4Addr::UNSPECIFIED),
        target: one.address,
    });
    one.send(&probe);
    wait_for("the probe", || two.seen().contains(&probe));
}

#[test]
fn a_guest_takes_no_other_guests_frames() {
    if !can_run("a_guest_takes_no_other_guests_frames") {
        return;
    }
    let bed = Bed::new();
    let subnet = bed.network("inside", NetworkKind::Isolated).subnet;
    let [one, two, three] = [5, 6, 7].map(|last| bed.guest("inside", subnet, last));
    // Even where nothing looks at frames, a bridge does not learn; LLDP's address goes round what looks at them.
    bed.open_bridges();
    let lldp = [1, 0x80, 0xc2, 0, 0, 0x0e];
    three.send(&frames::ethernet(lldp, two.mac, [0x88, 0xcc], b"I am two"));
    three.send(&frames::udp(
        (two.mac, two.address, 1),
        one.end(1),
        "I am two",
    ));
    one.hears("I am two");
    one.say(two.end(1), "for two");
    two.hears("for two");
    one.say((mac(99), three.address, 1), "for nobody known");
    one.say(three.end(1), "after");
    three.hears("after");
    assert!(!three.has_heard("for two") && !three.has_heard("for nobody known"));
}

#[test]
fn frames_that_go_round_the_bridge_reach_no_service_of_the_host() {
    if !can_run("frames_that_go_round_the_bridge_reach_no_service_of_the_host") {
        return;
    }
    let bed = Bed::new();
    let network = bed.network("default", NetworkKind::Nat);
    let one = bed.guest("default", network.subnet, 5);
    let listener = bed.socket(&bed.host, "0.0.0.0:7");
    let gateway = network.gateway.unwrap();
    let router = one.resolve(gateway);
    let outside = bed.socket(&bed.outside, "0.0.0.0:7");
    let (host, stranger) = (HOST.parse().unwrap(), "10.83.0.77".parse().unwrap());
    for last in [0x00, 0x02, 0x0e, 0x10] {
        let reserved = [1, 0x80, 0xc2, 0, 0, last];
        one.say((reserved, host, 7), "round the bridge");
        let lie = (one.mac, stranger, 1);
        one.send(&frames::udp(
            lie,
            (reserved, OUTSIDE.parse().unwrap(), 7),
            "round the bridge",
        ));
    }
    one.say((router, OUTSIDE.parse().unwrap(), 7), "after");
    receives(&outside, "after");
    nothing_has_come(&listener);
    bed.open_host();
    one.say(([1, 0x80, 0xc2, 0, 0, 0x0e], host, 7), "round the bridge");
    receives(&listener, "round the bridge");
}

fn bridge_mac(bed: &Bed, bridge: &str) -> frames::Mac {
    let shown = bed.host.run("ip", &["-o", "link", "show", "dev", bridge]);
    let text = shown.split("link/ether ").nth(1).unwrap();
    let mut bytes = text[..17]
        .split(':')
        .map(|pair| u8::from_str_radix(pair, 16).unwrap());
    std::array::from_fn(|_| bytes.next().unwrap())
}

fn is_echo_reply(frame: &[u8], number: u8) -> bool {
    frame.get(23) == Some(&1) && frame.get(34) == Some(&0) && frame.get(39) == Some(&number)
}

/// Waits for a datagram that says this, and answers who sent it.
fn receives(socket: &std::net::UdpSocket, text: &str) -> std::net::SocketAddr {
    let mut buffer = [0; 2048];
    let (count, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer[..count]), text);
    from
}

fn nothing_has_come(socket: &std::net::UdpSocket) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(0));
}
