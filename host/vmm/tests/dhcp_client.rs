//! A real DHCP client, busybox's udhcpc, in a namespace of its own, asks the responder over a tap.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dwcp_vmm::dhcp::Responder;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const DEADLINE: Duration = Duration::from_secs(60);
/// What the client runs with what it was told: `$interface` gets it, and all of it is kept.
const SCRIPT: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
if [ -n "$staticroutes" ]; then
  set -- $staticroutes
  while [ $# -ge 2 ]; do
    if [ "$2" = 0.0.0.0 ]; then ip route add "$1" dev "$interface"
    else ip route add "$1" via "$2" dev "$interface"; fi
    shift 2
  done
else
  for one in $router; do ip route add default via "$one" dev "$interface"; done
fi
set > "$0.told"
"#;

fn can_run(test: &str) -> bool {
    let lacks = |path: &str| !Path::new(path).exists();
    let reason = if !nix::unistd::geteuid().is_root() {
        "namespaces and taps need root"
    } else if lacks("/dev/net/tun") {
        "there is no /dev/net/tun"
    } else if !has("busybox", &["udhcpc", "--help"]) {
        "the client is in the package busybox-static"
    } else if !has("ip", &["-V"]) {
        "the package iproute2 is not here"
    } else {
        return true;
    };
    println!("SKIPPED {test}: {reason}");
    false
}

fn has(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.code() != Some(127))
}

/// A namespace without a name, which goes with its descriptors, and a tap in it.
fn namespace_with_tap() -> (File, File) {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .unwrap();
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"guest0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the request is a whole ifreq with name and flags.
        let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
        assert_eq!(made, 0);
        (File::open("/proc/thread-self/ns/net").unwrap(), device)
    })
    .join()
    .unwrap()
}

fn inside(namespace: &File, program: &str, arguments: &[&str]) -> Command {
    let fd: OwnedFd = namespace.try_clone().unwrap().into();
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: setns is one system call, which is async-signal-safe; the closure owns the descriptor.
    unsafe {
        command.pre_exec(move || Ok(setns(fd.as_fd(), CloneFlags::CLONE_NEWNET)?));
    }
    command
}

fn run(namespace: &File, arguments: &[&str]) -> String {
    let output = inside(namespace, "ip", arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the client against the responder; answers addresses, routes, and what it was told.
fn ask(responder: &Responder) -> (String, String, String) {
    let (namespace, mut tap) = namespace_with_tap();
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, SCRIPT).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).unwrap();
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    run(
        &namespace,
        &["link", "set", "guest0", "address", &mac, "up"],
    );
    let client = [
        "udhcpc", "-i", "guest0", "-f", "-q", "-n", "-t", "20", "-T", "1",
    ];
    let asked = [
        "-O",
        "mtu",
        "-O",
        "staticroutes",
        "-O",
        "search",
        "-s",
        script.to_str().unwrap(),
    ];
    let mut client = inside(&namespace, "busybox", &[&client[..], &asked].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = client.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > DEADLINE {
            client.kill().unwrap();
            client.wait().unwrap();
            panic!("the client waited in vain");
        }
        let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(50u8)).unwrap();
        let mut frame = [0; 2048];
        while let Ok(count) = tap.read(&mut frame) {
            if let Some(reply) = responder.answer(&frame[..count]) {
                tap.write_all(&reply).unwrap();
            }
        }
    };
    assert!(status.success(), "{status}");
    let told = std::fs::read_to_string(directory.path().join("script.told")).unwrap();
    let addresses = run(
        &namespace,
        &["-4", "-o", "address", "show", "dev", "guest0"],
    );
    (addresses, run(&namespace, &["-4", "route", "show"]), told)
}

#[test]
fn a_client_gets_its_address_and_all_else() {
    if !can_run("a_client_gets_its_address_and_all_else") {
        return;
    }
    let address = Ipv4Addr::new(10, 83, 0, 5);
    let router = Ipv4Addr::new(10, 83, 0, 1);
    let dns = [Ipv4Addr::new(192, 0, 2, 53), Ipv4Addr::new(192, 0, 2, 54)];
    let responder =
        Responder::new(MAC, address, 24, Some(router), &dns, "web.example", 1400).unwrap();
    let (addresses, routes, told) = ask(&responder);
    assert!(addresses.contains("inet 10.83.0.5/24"), "{addresses}");
    assert!(routes.contains("default via 10.83.0.1"), "{routes}");
    for line in [
        "dns='192.0.2.53 192.0.2.54'",
        "domain='example'",
        "hostname='web'",
        "lease='86400'",
        "mtu='1400'",
        "serverid='10.83.0.1'",
        "broadcast='10.83.0.255'",
    ] {
        assert!(told.lines().any(|found| found == line), "{line}: {told}");
    }
}

#[test]
fn a_client_reaches_a_router_that_is_not_on_its_link() {
    if !can_run("a_client_reaches_a_router_that_is_not_on_its_link") {
        return;
    }
    let address = Ipv4Addr::new(198, 51, 100, 7);
    let router = Ipv4Addr::new(169, 254, 1, 1);
    let responder = Responder::new(MAC, address, 32, Some(router), &[], "far", 1500).unwrap();
    let (addresses, routes, _) = ask(&responder);
    assert!(addresses.contains("inet 198.51.100.7"), "{addresses}");
    assert!(routes.contains("169.254.1.1 dev guest0"), "{routes}");
    assert!(routes.contains("default via 169.254.1.1"), "{routes}");
}

#[test]
fn a_client_on_a_network_without_a_router_gets_its_address() {
    if !can_run("a_client_on_a_network_without_a_router_gets_its_address") {
        return;
    }
    let responder = Responder::new(
        MAC,
        Ipv4Addr::new(10, 9, 0, 5),
        16,
        None,
        &[],
        "inside",
        1500,
    )
    .unwrap();
    let (addresses, routes, _) = ask(&responder);
    assert!(addresses.contains("inet 10.9.0.5/16"), "{addresses}");
    assert!(!routes.contains("default"), "{routes}");
}
