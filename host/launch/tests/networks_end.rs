//! Networks end on every path, and what makes no sense is refused.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::Stdio;

use common::guests::{Bed, OUTSIDE, locks, nic, spawn};
use common::namespaces::{Namespace, can_run, prefix};
use common::{Launcher, MEMORY_BYTES, id, wait_for};
use dwcp_launch::ClientError;
use dwcp_launch::address::Ipv4Prefix;
use dwcp_launch::protocol::{NETWORKS_MAX, Needs, NetworkKind};
use serde_json::json;

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Refused(reason)) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

/// How a guest ends.
type End = fn(&Bed, &common::guests::Guest);

/// Whether rules or links know this tap.
fn knows(bed: &Bed, tap: &str) -> bool {
    bed.leftovers().iter().any(|line| line.contains(tap))
}

#[test]
fn a_vms_taps_end_with_it() {
    if !can_run("a_vms_taps_end_with_it") {
        return;
    }
    let bed = Bed::new();
    let subnet = bed.network("default", NetworkKind::Nat).subnet;
    let ends: [(u8, &str, End); 3] = [
        (5, "it exits", |_, guest| guest.ask_last("exit 0")),
        (6, "it is killed", |bed, guest| {
            bed.launcher.client().kill(&id(&guest.name)).unwrap()
        }),
        // A tap that its VMM made lasting is removed all the same.
        (7, "it holds on to its tap", |_, guest| {
            assert_eq!(guest.ask("persist 0"), true);
            guest.ask_last("exit 0");
        }),
    ];
    for (last, why, end) in ends {
        let guest = bed.guest("default", subnet, last);
        let tap = guest.tap();
        assert!(knows(&bed, &tap), "{why}");
        end(&bed, &guest);
        bed.launcher.exit_of(&guest.name);
        wait_for(why, || !knows(&bed, &tap));
    }
    // Its addresses are free again.
    drop(bed.guest("default", subnet, 5));
}

#[test]
fn a_start_that_fails_half_way_leaves_nothing() {
    if !can_run("a_start_that_fails_half_way_leaves_nothing") {
        return;
    }
    let bed = Bed::new();
    let subnet = bed.network("default", NetworkKind::Nat).subnet;
    let mut client = bed.launcher.client();
    let before = (bed.leftovers(), bed.launcher.open_descriptors());
    let mut spawn = |nics: &[_], bytes, descriptors: usize| {
        let null = std::fs::File::open("/dev/null").unwrap();
        let given = vec![std::os::fd::AsFd::as_fd(&null); descriptors];
        refusal(client.spawn_vmm_with(
            &id("vm-1"),
            Needs::memory(bytes),
            None,
            json!({}),
            &given,
            nics,
        ))
    };
    let good = nic("default", subnet, 5);
    let other = nic("default", subnet, 6);
    let with = |change: fn(&mut dwcp_launch::protocol::NicSpec)| {
        let mut nic = other.clone();
        change(&mut nic);
        nic
    };
    let cases = [
        (
            with(|nic| nic.network = "nowhere".parse().unwrap()),
            "no network nowhere",
        ),
        (
            with(|nic| nic.address = "192.0.2.7/24".parse().unwrap()),
            "no address for a VM",
        ),
        (
            with(|nic| nic.address = "10.83.0.7/25".parse().unwrap()),
            "no address for a VM",
        ),
        (nic("default", subnet, 0), "no address for a VM"),
        (nic("default", subnet, 1), "no address for a VM"),
        (nic("default", subnet, 255), "no address for a VM"),
        (
            with(|nic| nic.mac = "02:00:00:00:00:05".parse().unwrap()),
            "02:00:00:00:00:05 is taken",
        ),
        (good.clone(), "is taken"),
    ];
    for (bad, reason) in cases {
        // The first interface is made before the second is refused.
        let found = spawn(&[good.clone(), bad.clone()], MEMORY_BYTES, 0);
        assert!(found.contains(reason), "{bad:?}: {found}");
    }
    let gateway_mac = with(|nic| nic.mac = "02:dc:0a:53:00:01".parse().unwrap());
    let found = spawn(&[gateway_mac], MEMORY_BYTES, 0);
    assert!(
        found.contains("is taken") || subnet.to_string() != "10.83.0.0/24",
        "{found}"
    );
    assert!(spawn(&vec![good.clone(); 5], MEMORY_BYTES, 0).contains("at most 4"));
    // The taps are there when the memory's size is refused, or the descriptors are too many.
    assert!(spawn(std::slice::from_ref(&good), 4097, 0).contains("4096"));
    drop(client);
    wait_for("taps to be gone", || bed.leftovers() == before.0);
    wait_for("descriptors to be closed", || {
        bed.launcher.open_descriptors() < before.1
    });
}

#[test]
fn a_program_that_cannot_start_leaves_no_tap() {
    if !can_run("a_program_that_cannot_start_leaves_no_tap") {
        return;
    }
    let prefix = prefix();
    let host = Namespace::new(&prefix, "host");
    let launcher = Launcher::start_in_with_vmm(&host, &prefix, &[], Some("/etc/passwd"));
    let mut client = launcher.client();
    let default = "default".parse().unwrap();
    let network = client
        .ensure_network(&default, NetworkKind::Nat, None)
        .unwrap();
    let nics = [nic("default", network.subnet, 5)];
    let reason = refusal(client.spawn_vmm_with(
        &id("vm-1"),
        Needs::memory(MEMORY_BYTES),
        None,
        json!({}),
        &[],
        &nics,
    ));
    assert!(reason.contains("execute its program"), "{reason}");
    let tap = format!("{prefix}-0-0");
    assert!(!host.links().contains(&tap) && !host.rules().contains(&format!("\"{tap}\"")));
}

#[test]
fn a_network_that_is_removed_leaves_nothing() {
    if !can_run("a_network_that_is_removed_leaves_nothing") {
        return;
    }
    let bed = Bed::new();
    assert!(!bed.forwards());
    let subnet = bed.network("default", NetworkKind::Nat).subnet;
    assert!(bed.forwards());
    bed.network("inside", NetworkKind::Isolated);
    let guest = bed.guest("default", subnet, 5);
    let mut client = bed.launcher.client();
    let [default, inside] = ["default", "inside"].map(|name| name.parse().unwrap());
    assert!(refusal(client.remove_network(&default)).contains("has VMs on it"));
    guest.ask_last("exit 0");
    bed.launcher.exit_of(&guest.name);
    client.remove_network(&default).unwrap();
    // The other one stays, under its own rules; the host forwards no more.
    assert!(!bed.forwards());
    let left = bed.leftovers();
    assert!(
        left.iter()
            .any(|line| line.contains(&format!("{}1", bed.prefix)))
    );
    assert!(
        !left
            .iter()
            .any(|line| line.contains(&format!("{}0", bed.prefix))),
        "{left:?}"
    );
    client.remove_network(&inside).unwrap();
    client.remove_network(&inside).unwrap();
    wait_for("the guest's tap to be gone", || bed.leftovers().is_empty());
    assert!(locks(&bed.prefix).is_empty());
}

#[test]
fn a_launcher_that_is_told_to_stop_leaves_nothing() {
    if !can_run("a_launcher_that_is_told_to_stop_leaves_nothing") {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut bed = Bed::new();
        let subnet = bed.network("default", NetworkKind::Nat).subnet;
        bed.network("inside", NetworkKind::Isolated);
        let guest = bed.guest("default", subnet, 5);
        assert_eq!(guest.ask("persist 0"), true);
        assert!(!bed.leftovers().is_empty() && bed.forwards());
        bed.launcher.signal(signal);
        assert_eq!(bed.launcher.process.wait().unwrap().code(), Some(0));
        assert_eq!(bed.leftovers(), [""; 0]);
        assert!(!bed.forwards());
        assert!(locks(&bed.prefix).is_empty());
    }
}

#[test]
fn what_a_killed_launcher_left_is_removed_by_the_next() {
    if !can_run("what_a_killed_launcher_left_is_removed_by_the_next") {
        return;
    }
    let mut bed = Bed::new();
    let subnet = bed.network("default", NetworkKind::Nat).subnet;
    bed.network("inside", NetworkKind::Isolated);
    let [lasting, other] = [5, 6].map(|last| bed.guest("default", subnet, last));
    assert_eq!(lasting.ask("persist 0"), true);
    let taps = [lasting.tap(), other.tap()];
    bed.launcher.signal(libc::SIGKILL);
    bed.launcher.process.wait().unwrap();
    // VMMs die with it, and their taps with them.
    wait_for("the tap to vanish", || !bed.host.links().contains(&taps[1]));
    assert!(bed.host.links().contains(&taps[0]));
    assert!(
        bed.leftovers()
            .iter()
            .any(|line| line.contains("masquerade") || line.contains("inet"))
    );
    // What is called alike and is none of ours stays.
    let stranger = format!("{}77", bed.prefix);
    let veth = [
        "link", "add", &stranger, "type", "veth", "peer", "name", "strange",
    ];
    bed.host.run("ip", &veth);
    bed.launcher = Launcher::start_in(&bed.host, &bed.prefix, &[]);
    // It serves when it has cleared away.
    let mut client = bed.launcher.client();
    let left = bed.leftovers();
    assert!(left.iter().all(|line| line.contains(&stranger)), "{left:?}");
    assert!(!left.is_empty() && !bed.forwards());
    // The next one serves the same names, and the subnet that a client kept.
    let name = "default".parse().unwrap();
    let network = client
        .ensure_network(&name, NetworkKind::Nat, Some(subnet))
        .unwrap();
    assert_eq!(network.subnet, subnet);
    drop(spawn(&bed.launcher, "vm-1", &[nic("default", subnet, 5)]));
}

/// A program that watches, ended with the test.
struct Monitor(std::process::Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_bridge_is_known_as_ours_from_the_first_moment() {
    if !can_run("a_bridge_is_known_as_ours_from_the_first_moment") {
        return;
    }
    let bed = Bed::new();
    // What the kernel tells about a bridge that is being made is what a launcher that dies then leaves.
    let mut monitor = Monitor(
        bed.host
            .command("ip")
            .args(["-o", "monitor", "link"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(monitor.0.stdout.take().unwrap()).lines();
    let (heard, hears) = std::sync::mpsc::sync_channel(64);
    std::thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            let _ = heard.send(line);
        }
    });
    let mut changes = 0;
    wait_for("the monitor to hear of links", || {
        changes += 1;
        let name = format!("mark{changes}");
        bed.host
            .run("ip", &["link", "add", &name, "type", "bridge"]);
        hears.try_recv().is_ok()
    });
    let bridge = bed.network("default", NetworkKind::Nat).bridge;
    let mut first = String::new();
    wait_for("news of the bridge", || {
        first = hears.try_recv().unwrap_or_default();
        first.contains(&bridge)
    });
    assert!(first.contains("group 25719"), "{first}");
}

#[test]
fn a_strangers_link_bars_no_network() {
    if !can_run("a_strangers_link_bars_no_network") {
        return;
    }
    let bed = Bed::new();
    let stranger = format!("{}0", bed.prefix);
    let bridge = ["link", "add", &stranger, "type", "bridge"];
    bed.host.run("ip", &bridge);
    let network = bed.network("default", NetworkKind::Nat);
    assert_eq!(network.bridge, format!("{}1", bed.prefix));
    drop(bed.guest("default", network.subnet, 5));
    let mut client = bed.launcher.client();
    bed.launcher.exit_of("vm-default-5");
    client.remove_network(&"default".parse().unwrap()).unwrap();
    assert!(bed.host.links().contains(&stranger));
}

#[test]
fn networks_are_ensured_again_and_again_but_not_changed() {
    if !can_run("networks_are_ensured_again_and_again_but_not_changed") {
        return;
    }
    let bed = Bed::with(|host| {
        host.run("ip", &["link", "add", "other", "type", "bridge"]);
        host.run("ip", &["address", "add", "10.83.0.9/24", "dev", "other"]);
        host.run(
            "ip",
            &["route", "add", "unreachable", "10.83.1.0/28", "table", "77"],
        );
    });
    // An address of a link that is down and a route of another table are in the way.
    let network = bed.network("default", NetworkKind::Nat);
    assert_eq!(network.subnet.to_string(), "10.83.2.0/24");
    assert_eq!(network.gateway, Some(Ipv4Addr::new(10, 83, 2, 1)));
    assert_eq!(bed.network("default", NetworkKind::Nat), network);
    let second = bed.network("second", NetworkKind::Isolated);
    assert_eq!(
        (second.subnet.to_string(), second.gateway),
        ("10.83.3.0/24".into(), None)
    );
    let mut client = bed.launcher.client();
    let mut ensure = |name: &str, kind, subnet: Option<&str>| {
        let subnet = subnet.map(|text| text.parse::<Ipv4Prefix>().unwrap());
        client.ensure_network(&name.parse().unwrap(), kind, subnet)
    };
    assert_eq!(
        ensure("default", NetworkKind::Nat, Some("10.83.2.0/24")).unwrap(),
        network
    );
    let different = ensure("default", NetworkKind::Isolated, None);
    assert!(refusal(different).contains("another kind or with the subnet 10.83.2.0/24"));
    let different = ensure("default", NetworkKind::Nat, Some("10.83.5.0/24"));
    assert!(refusal(different).contains("10.83.2.0/24"));
    for (subnet, reason) in [
        ("198.51.100.0/25", "in use on this host (198.51.100."),
        ("10.83.2.128/25", "in use on this host (10.83.2."),
        ("10.90.0.1/24", "no host bits"),
        ("127.0.0.0/24", "another meaning"),
    ] {
        let found = refusal(ensure("third", NetworkKind::Nat, Some(subnet)));
        assert!(found.contains(reason), "{subnet}: {found}");
    }
    // Networks that are joined to nothing may be alike.
    let before = bed.leftovers().len();
    ensure("fourth", NetworkKind::Isolated, Some("10.83.3.0/24")).unwrap();
    assert!(bed.leftovers().len() > before);
    for number in 3..NETWORKS_MAX {
        ensure(
            &format!("n-{number}"),
            NetworkKind::Isolated,
            Some("10.0.0.0/8"),
        )
        .unwrap();
    }
    let one_more = ensure("one-more", NetworkKind::Isolated, Some("10.0.0.0/8"));
    assert!(refusal(one_more).contains("64 networks already"));
}

#[test]
fn a_subnet_that_a_client_kept_outlives_a_wider_route() {
    if !can_run("a_subnet_that_a_client_kept_outlives_a_wider_route") {
        return;
    }
    // As a VPN has it.
    let bed = Bed::with(|host| {
        host.run("ip", &["route", "add", "10.0.0.0/8", "via", OUTSIDE]);
        host.run("ip", &["route", "add", "10.84.0.0/24", "via", OUTSIDE]);
    });
    let mut client = bed.launcher.client();
    let mut ensure = |name: &str, subnet: Option<&str>| {
        let subnet = subnet.map(|text| text.parse::<Ipv4Prefix>().unwrap());
        client.ensure_network(&name.parse().unwrap(), NetworkKind::Nat, subnet)
    };
    let chosen = ensure("chosen", None).unwrap();
    assert_eq!(chosen.subnet.to_string(), "172.16.0.0/24");
    let found = refusal(ensure("refused", Some("10.84.0.0/24")));
    assert!(found.contains("in use on this host (10.84.0.0/24)"));
    let kept = ensure("kept", Some("10.83.0.0/24")).unwrap();
    // A part of it is another network's, however wide that is.
    let found = refusal(ensure("refused", Some("10.83.0.64/26")));
    assert!(
        found.contains("in use on this host (10.83.0.0/24)"),
        "{found}"
    );
    // The host finds its guest, not the VPN.
    let guest = bed.guest("kept", kept.subnet, 5);
    let host = bed.socket(&bed.host, "0.0.0.0:9");
    host.send_to(b"from the host", (guest.address, 5000))
        .unwrap();
    guest.answer_arp();
    guest.hears("from the host");
}

#[test]
fn a_host_forwards_nothing_else_than_before() {
    if !can_run("a_host_forwards_nothing_else_than_before") {
        return;
    }
    let bed = Bed::new();
    // A third machine behind the host.
    let third = Namespace::new(&bed.prefix, "third");
    bed.host.join(
        &third,
        ["third0", "up0"],
        ["203.0.113.1/24", "203.0.113.2/24"],
    );
    third.run("ip", &["route", "add", "default", "via", "203.0.113.1"]);
    bed.outside.run(
        "ip",
        &["route", "add", "203.0.113.0/24", "via", "198.51.100.1"],
    );
    let subnet = bed.network("default", NetworkKind::Nat).subnet;
    let sender = bed.socket(&third, "0.0.0.0:0");
    let receiver = bed.socket(&bed.outside, "0.0.0.0:7");
    let marker = bed.socket(&bed.host, "0.0.0.0:8");
    let mut buffer = [0; 16];
    let mut outside_hears = |count: usize| {
        sender.send_to(b"through", (OUTSIDE, 7)).unwrap();
        sender.send_to(b"after", ("203.0.113.1", 8)).unwrap();
        marker.recv(&mut buffer).unwrap();
        if count == 0 {
            receiver.set_nonblocking(true).unwrap();
            assert!(receiver.recv(&mut buffer).is_err());
            receiver.set_nonblocking(false).unwrap();
        } else {
            assert_eq!(receiver.recv(&mut buffer).unwrap(), 7);
        }
    };
    outside_hears(0);
    // Taps make no difference to that, and without the guard it would pass.
    let _guest = bed.guest("default", subnet, 5);
    outside_hears(0);
    bed.host.run(
        "/usr/sbin/nft",
        &["flush", "table", "ip", "dwcp-forwarding"],
    );
    outside_hears(1);
}

#[test]
fn a_host_that_forwards_goes_on_to() {
    if !can_run("a_host_that_forwards_goes_on_to") {
        return;
    }
    let bed = Bed::with(|host| drop(host.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])));
    bed.network("default", NetworkKind::Nat);
    assert!(!bed.host.rules().contains("dwcp-forwarding"));
    let mut client = bed.launcher.client();
    client.remove_network(&"default".parse().unwrap()).unwrap();
    assert!(bed.forwards());
}

#[test]
fn launchers_of_one_host_do_not_touch_each_others_networks() {
    if !can_run("launchers_of_one_host_do_not_touch_each_others_networks") {
        return;
    }
    let mut bed = Bed::new();
    let subnet = bed.network("default", NetworkKind::Nat).subnet;
    let other_prefix = prefix();
    let mut other = Launcher::start_in(&bed.host, &other_prefix, &[]);
    let name = "default".parse().unwrap();
    let ensure = |launcher: &Launcher| {
        launcher
            .client()
            .ensure_network(&name, NetworkKind::Nat, None)
    };
    let network = ensure(&other).unwrap();
    assert_ne!(network.subnet, subnet);
    // One with the same names may run VMs, but has no networks while the first has them.
    let third = Launcher::start_in(&bed.host, &bed.prefix, &[]);
    assert!(refusal(ensure(&third)).contains("--network-prefix"));
    drop(third);
    let guest = bed.guest("default", subnet, 5);
    // When the first stops, the other's stay, and the host forwards for them; when the other does, it does not.
    drop(guest);
    bed.launcher.stop();
    assert_eq!(
        bed.leftovers()
            .iter()
            .filter(|line| line.contains(&bed.prefix))
            .count(),
        0
    );
    assert!(bed.forwards() && bed.host.links().contains(&network.bridge));
    other.stop();
    assert!(!bed.forwards());
    assert_eq!(bed.leftovers(), [""; 0]);
}

#[test]
fn without_nft_networks_are_refused_and_vms_run() {
    if !can_run("without_nft_networks_are_refused_and_vms_run") {
        return;
    }
    let prefix = prefix();
    let host = Namespace::new(&prefix, "host");
    let launcher = Launcher::start_in(&host, &prefix, &["--nft", "/nonexistent/nft"]);
    let mut client = launcher.client();
    let name = "default".parse().unwrap();
    let found = refusal(client.ensure_network(&name, NetworkKind::Nat, None));
    assert!(found.contains("install the package nftables"), "{found}");
    assert!(!host.links().contains(&prefix));
    assert!(locks(&prefix).is_empty());
    launcher.vmm("vm-1");
    // A program that does not do its work is told apart.
    let launcher = Launcher::start_in(&host, &prefix, &["--nft", "/bin/false"]);
    let found = refusal(
        launcher
            .client()
            .ensure_network(&name, NetworkKind::Nat, None),
    );
    assert!(found.contains("nf_tables"), "{found}");
    assert!(!host.links().contains(&prefix));
}

#[test]
fn a_network_costs_a_start_little() {
    if !can_run("a_network_costs_a_start_little") {
        return;
    }
    let bed = Bed::new();
    let subnet = bed.network("default", NetworkKind::Nat).subnet;
    let mut client = bed.launcher.client();
    let descriptors = bed.launcher.open_descriptors();
    for count in [0, 1, 4] {
        let mut times = Vec::new();
        for vm in 0..20u8 {
            let nics: Vec<_> = (0..count)
                .map(|number| nic("default", subnet, 10 + vm * 4 + number))
                .collect();
            let name = id(&format!("vm-{vm}"));
            let start = std::time::Instant::now();
            client
                .spawn_vmm_with(
                    &name,
                    Needs::memory(MEMORY_BYTES),
                    None,
                    json!({}),
                    &[],
                    &nics,
                )
                .unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!(
            "a start with {count} interfaces: median {:?}, worst {:?}",
            times[10], times[19]
        );
        for vm in 0..20 {
            client.kill(&id(&format!("vm-{vm}"))).unwrap();
            bed.launcher.exit_of(&format!("vm-{vm}"));
        }
    }
    for vm in 0..20 {
        client.forget(&id(&format!("vm-{vm}"))).unwrap();
    }
    wait_for("descriptors to be closed", || {
        // Fewer: a connection that was ending when they were counted.
        bed.launcher.open_descriptors() <= descriptors
    });
}

#[test]
fn nothing_is_done_where_no_network_is_asked_for() {
    if !can_run("nothing_is_done_where_no_network_is_asked_for") {
        return;
    }
    let bed = Bed::new();
    let _vmm = bed.launcher.vmm("vm-1");
    assert_eq!(bed.leftovers(), [""; 0]);
    assert!(locks(&bed.prefix).is_empty() && !bed.forwards());
}
