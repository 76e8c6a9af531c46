//! A VMM that its guest has taken over takes more than its share, answers nonsense, and tries to stay: it spends its own,
//! and ends alone.
//!
//! As in `rogue.rs` it has given up nothing itself: only what the launcher does holds it.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::net::UnixStream;
use std::path::Path;

use common::rogue::{Rogue, expect, with_rogue};
use common::{Launcher, can_run, id, wait_for};
use dwcp_channel::Channel;
use dwcp_launch::protocol::ChildState;
use serde_json::Value;

#[test]
fn whoever_connects_is_not_in_its_hands() {
    if !can_run("whoever_connects_is_not_in_its_hands") {
        return;
    }
    with_rogue(Launcher::start(), |_, rogue, _| {
        let path = rogue.directory.path().join("control");
        let _peer = UnixStream::connect(path).unwrap();
        let report = rogue.report("listener handle");
        // Kernels before 6.5 do not give it.
        if report["have"] == "ENOPROTOOPT" {
            println!("no process descriptors of peers on this kernel");
            return;
        }
        expect(
            report,
            &[
                ("sent", "ok"),
                ("have", "ok"),
                ("signal", "EINVAL|EPERM"),
                ("take a descriptor", "EPERM"),
                ("enter", "EPERM"),
                ("reap its memory", "EINVAL|EPERM|ESRCH"),
            ],
        );
    });
}

#[test]
fn what_its_control_socket_answers_harms_nobody() {
    if !can_run("what_its_control_socket_answers_harms_nobody") {
        return;
    }
    with_rogue(Launcher::start(), |_, rogue, _| {
        let own = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        for what in ["garbage", "huge", "no-json", "deep", "descriptors"] {
            let before = own();
            rogue.connected(what, |peer| {
                let mut channel = Channel::new(peer);
                let received = channel.receive::<Value>();
                assert!(received.is_err(), "{what}: {received:?}");
            });
            // Other tests of this program open and close too.
            wait_for("descriptors to be closed", || own() < before + 100);
        }
        // One that begins and says no more is waited for as long as the reader likes.
        rogue.connected("half", |peer| {
            let timeout = std::time::Duration::from_millis(100);
            let mut channel = Channel::new(peer);
            channel.set_read_timeout(timeout).unwrap();
            assert!(channel.receive::<Value>().is_err());
        });
    });
}

#[test]
fn it_cannot_outlive_the_launcher() {
    if !can_run("it_cannot_outlive_the_launcher") {
        return;
    }
    let mut launcher = Launcher::start();
    let mut rogue = Rogue::start(&launcher, "vm-1");
    assert_eq!(rogue.report("privileges")["prctl outlive"], "EPERM");
    rogue.report("fork");
    launcher.signal(libc::SIGKILL);
    launcher.process.wait().unwrap();
    let process = format!("/proc/{}/root", rogue.vmm.pid);
    wait_for("the VMM to die", || !Path::new(&process).exists());
    // Where there are groups, its children have gone with it; what is empty can be removed.
    for group in &launcher.groups {
        wait_for("the group to be empty", || {
            let processes = std::fs::read_to_string(group.join("vm-1/cgroup.procs"));
            processes.is_ok_and(|text| text.is_empty())
        });
        std::fs::remove_dir(group.join("vm-1")).unwrap();
        std::fs::remove_dir(group).unwrap();
    }
}

#[test]
fn bombs_go_off_inside() {
    if !can_run("bombs_go_off_inside") {
        return;
    }
    with_rogue(Launcher::start(), |launcher, rogue, _| {
        let opened = rogue.report("open");
        expect(opened, &[("highest", "255"), ("end", "EMFILE")]);
        // The stand-in's own, once more, with room for descriptors.
        let mut rogue = Rogue::start(launcher, "vm-3");
        let full = (64u64 << 20).to_string();
        expect(
            rogue.report("fill 5"),
            &[
                ("position", &full),
                ("end", "EFBIG"),
                ("truncate", "EFBIG"),
                ("allocate", "EFBIG"),
                ("append", "EFBIG"),
            ],
        );
        assert_eq!(std::fs::metadata(rogue.log()).unwrap().len(), 64 << 20);
        // What was opened for reading stays as it is.
        expect(
            rogue.report("fill 6"),
            &[
                ("position", "0"),
                ("end", "EBADF"),
                ("truncate", "EINVAL|EBADF"),
                ("allocate", "EBADF"),
                ("append", "EBADF"),
            ],
        );
        expect(rogue.report("fork"), &[("made", "127"), ("end", "EAGAIN")]);
        launcher.client().kill(&id("vm-3")).unwrap();
        assert_eq!(signal_of(launcher, "vm-3"), Some(libc::SIGKILL));
        for group in &launcher.groups {
            wait_for("the group to go", || !group.join("vm-3").exists());
        }
    });
}

#[test]
fn who_takes_too_much_memory_dies_alone() {
    const TEST: &str = "who_takes_too_much_memory_dies_alone";
    if !can_run(TEST) {
        return;
    }
    let launcher = Launcher::start();
    let limited = ["memory.limit_in_bytes", "memory.max"];
    let parent = launcher
        .groups
        .iter()
        .find(|group| limited.iter().any(|file| group.join(file).exists()));
    let Some(parent) = parent.cloned() else {
        println!("SKIPPED {TEST}: no control groups with memory");
        return;
    };
    println!("{TEST}: in {}", parent.display());
    with_rogue(launcher, |launcher, _, _| {
        for kind in ["own", "file"] {
            let name = format!("bomb-{kind}");
            let mut bomb = Rogue::start(launcher, &name);
            bomb.vmm.ask_last(&format!("rogue take {kind}"));
            assert_eq!(signal_of(launcher, &name), Some(libc::SIGKILL), "{kind}");
            wait_for("its group to go", || !parent.join(&name).exists());
        }
    });
}

fn signal_of(launcher: &Launcher, name: &str) -> Option<i32> {
    match launcher.exit_of(name) {
        ChildState::Exited { signal, .. } => signal,
        ChildState::Running => None,
    }
}
