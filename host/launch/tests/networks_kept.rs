//! Rules that somebody else removes come back, and what they were for goes on; so does forwarding, where another
//! launcher turns it off.
//!
//! Where a test needs rules that are not back yet, it removes them in the pause that follows their return.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use common::frames::{self, mac};
use common::guests::{Bed, Guest, HOST, OUTSIDE};
use common::namespaces::{can_run, prefix};
use common::{Launcher, wait_for};
use dwcp_launch::protocol::NetworkKind;

const PUT_BACK: &str = "rules of networks; they were put back";

/// As the start of a firewall of the host's does.
fn flush(bed: &Bed) {
    bed.host.run("/usr/sbin/nft", &["flush", "ruleset"]);
}

/// Removes all rules and waits until they are back: then there is a pause.
fn flush_and_wait(bed: &Bed) {
    let before = bed.launcher.said(PUT_BACK);
    flush(bed);
    wait_for("the rules to be back", || {
        bed.launcher.said(PUT_BACK) > before
    });
}

/// Whether what a guest sends under another's address stays with it, while what is its own arrives.
fn is_confined(one: &Guest, two: &Guest, name: &str) -> bool {
    let (lie, after) = (format!("lie-{name}"), format!("after-{name}"));
    let spoofed = frames::udp((mac(66), one.address, 1), two.end(1), &lie);
    one.send(&spoofed);
    one.say(two.end(1), &after);
    two.hears(&after);
    !two.has_heard(&lie)
}

#[test]
fn rules_that_are_flushed_are_put_back() {
    if !can_run("rules_that_are_flushed_are_put_back") {
        return;
    }
    let bed = Bed::new();
    let network = bed.network("default", NetworkKind::Nat);
    let inside = bed.network("inside", NetworkKind::Isolated).subnet;
    let behind = bed.guest("default", network.subnet, 5);
    let [one, two] = [6, 7].map(|last| bed.guest("inside", inside, last));
    let router = behind.resolve(network.gateway.unwrap());
    let before = bed.host.rules();
    assert!(is_confined(&one, &two, "before"));
    for round in ["first", "second"] {
        flush(&bed);
        // Elements of a set come in any order, so what is compared is how much there is.
        wait_for("the rules to be back", || {
            bed.host.rules().len() == before.len()
        });
        assert!(is_confined(&one, &two, round));
        let server = bed.socket(&bed.outside, "0.0.0.0:7");
        behind.say((router, OUTSIDE.parse().unwrap(), 7), round);
        let mut buffer = [0; 16];
        let (count, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], round.as_bytes());
        assert_eq!(from.ip().to_string(), HOST);
    }
    assert!(bed.forwards() && bed.host.rules().contains("dwcp-forwarding"));
    wait_for("a line for each time", || bed.launcher.said(PUT_BACK) == 2);
    bed.open_bridges();
    assert!(!is_confined(&one, &two, "without rules"));
}

#[test]
fn rules_that_were_saved_earlier_do_not_stay() {
    if !can_run("rules_that_were_saved_earlier_do_not_stay") {
        return;
    }
    let bed = Bed::new();
    let subnet = bed.network("inside", NetworkKind::Isolated).subnet;
    let one = bed.guest("inside", subnet, 5);
    let saved = bed.launcher.directory.path().join("saved.nft");
    std::fs::write(&saved, format!("flush ruleset\n{}", bed.host.rules())).unwrap();
    let two = bed.guest("inside", subnet, 6);
    bed.host
        .run("/usr/sbin/nft", &["-f", saved.to_str().unwrap()]);
    wait_for("the rules to know the later tap", || {
        bed.host.rules().contains(&two.tap())
    });
    two.say(one.end(1), "from the later one");
    one.hears("from the later one");
}

#[test]
fn a_vm_starts_where_rules_were_flushed() {
    if !can_run("a_vm_starts_where_rules_were_flushed") {
        return;
    }
    let bed = Bed::new();
    let subnet = bed.network("inside", NetworkKind::Isolated).subnet;
    let one = bed.guest("inside", subnet, 5);
    flush_and_wait(&bed);
    flush(&bed);
    let two = bed.guest("inside", subnet, 6);
    // The rules for the VM before it are back too.
    assert!(is_confined(&one, &two, "one") && is_confined(&two, &one, "two"));
}

#[test]
fn forwarding_ends_although_its_guard_is_gone() {
    if !can_run("forwarding_ends_although_its_guard_is_gone") {
        return;
    }
    let bed = Bed::new();
    bed.network("default", NetworkKind::Nat);
    flush_and_wait(&bed);
    flush(&bed);
    let mut client = bed.launcher.client();
    client.remove_network(&"default".parse().unwrap()).unwrap();
    assert!(!bed.forwards());
    assert_eq!(bed.leftovers(), [""; 0]);
}

#[test]
fn somebody_who_flushes_all_the_time_is_not_followed_each_time() {
    if !can_run("somebody_who_flushes_all_the_time_is_not_followed_each_time") {
        return;
    }
    let bed = Bed::new();
    let subnet = bed.network("inside", NetworkKind::Isolated).subnet;
    let start = Instant::now();
    let mut flushes = 0;
    while start.elapsed() < Duration::from_secs(2) {
        flush(&bed);
        flushes += 1;
    }
    let put_back = bed.launcher.said(PUT_BACK);
    // One at once, then one a pause.
    let most = start.elapsed().as_millis() as usize / 250 + 1;
    println!("{flushes} flushes, {put_back} times put back");
    assert!((1..=most).contains(&put_back), "{put_back} of {most}");
    // It serves all the while, and the last flush is not forgotten.
    let [one, two] = [5, 6].map(|last| bed.guest("inside", subnet, last));
    wait_for("the rules to be back", || {
        bed.host
            .rules()
            .contains(&format!("table inet {}", bed.prefix))
    });
    assert!(is_confined(&one, &two, "at last"));
}

#[test]
fn a_launcher_turns_forwarding_on_when_another_has_turned_it_off() {
    if !can_run("a_launcher_turns_forwarding_on_when_another_has_turned_it_off") {
        return;
    }
    let bed = Bed::new();
    let directory = tempfile::tempdir().unwrap();
    let [nft, begun, done] = ["nft", "begun", "done"].map(|name| directory.path().join(name));
    // Takes its time to remove the guard, which is the last that is done about forwarding.
    let slow = format!(
        r#"#!/bin/sh
text=$(/bin/cat)
case "$text" in "table ip dwcp-forwarding
delete table ip dwcp-forwarding") : > {}; /bin/sleep 1; last={};; esac
printf '%s\n' "$text" | /usr/sbin/nft -f - || exit
test -z "$last" || : > "$last"
"#,
        begun.display(),
        done.display()
    );
    std::fs::write(&nft, slow).unwrap();
    std::fs::set_permissions(&nft, PermissionsExt::from_mode(0o755)).unwrap();
    let arguments = ["--nft", nft.to_str().unwrap()];
    let other = Launcher::start_in(&bed.host, &prefix(), &arguments);
    let name = "default".parse().unwrap();
    let mut client = other.client();
    client
        .ensure_network(&name, NetworkKind::Nat, None)
        .unwrap();
    assert!(bed.forwards());
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| client.remove_network(&name).unwrap());
        wait_for("the other one's end", || begun.exists());
        bed.network("default", NetworkKind::Nat);
        assert!(done.exists(), "both changed forwarding at once");
        removal.join().unwrap();
    });
    assert!(bed.forwards() && bed.host.rules().contains("dwcp-forwarding"));
}
