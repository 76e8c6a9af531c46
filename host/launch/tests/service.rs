//! What clients can rely on: exits with their reasons, refusals, bounds, and an end that leaves nothing behind.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{DEADLINE, Launcher, MEMORY_BYTES, StandIn, can_run, id, wait_for};
use dwcp_channel::Channel;
use dwcp_launch::protocol::{
    CHILDREN_MAX, ChildState, REQUEST_BYTES_MAX, Reply, Request, Side, VERSION,
};
use dwcp_launch::{Client, ClientError};
use serde_json::json;

fn exited(code: Option<i32>, signal: Option<i32>, words: Option<&str>) -> ChildState {
    ChildState::Exited {
        code,
        signal,
        last_words: words.map(str::to_owned),
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Refused(reason)) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_exit_is_kept_with_its_reason_until_it_is_forgotten() {
    if !can_run("an_exit_is_kept_with_its_reason_until_it_is_forgotten") {
        return;
    }
    let launcher = Launcher::start();
    let cases: [(&str, &[&str], ChildState); 7] = [
        ("fine", &["exit 0"], exited(Some(0), None, None)),
        ("code", &["exit 7"], exited(Some(7), None, None)),
        (
            "off",
            &["say power-off", "exit 0"],
            exited(Some(0), None, Some("guest: power-off")),
        ),
        (
            "denied",
            &["confine", "open"],
            exited(Some(159), None, Some("seccomp: openat")),
        ),
        // Without its filter the same order does no harm.
        ("free", &["open", "exit 0"], exited(Some(0), None, None)),
        ("abort", &["abort"], exited(None, Some(libc::SIGABRT), None)),
        ("killed", &[], exited(None, Some(libc::SIGKILL), None)),
    ];
    for (name, orders, expected) in &cases {
        let mut vmm = launcher.vmm(name);
        if let Some((last, before)) = orders.split_last() {
            before.iter().for_each(|order| drop(vmm.ask(order)));
            vmm.ask_last(last);
        } else {
            launcher.client().kill(&id(name)).unwrap();
        }
        let mut found = launcher.exit_of(name);
        // As the first process of its namespace it cannot be ended by a signal of its own; abort() faults instead.
        if let ChildState::Exited {
            signal: Some(signal @ libc::SIGSEGV),
            ..
        } = &mut found
        {
            *signal = libc::SIGABRT;
        }
        assert_eq!(&found, expected, "{name}");
    }
    let mut client = launcher.client();
    assert_eq!(client.list().unwrap().len(), cases.len());
    for (name, _, _) in &cases {
        client.forget(&id(name)).unwrap();
    }
    assert_eq!(client.list().unwrap(), []);
}

#[test]
fn a_panic_and_a_flood_are_told_within_bounds() {
    if !can_run("a_panic_and_a_flood_are_told_within_bounds") {
        return;
    }
    let launcher = Launcher::start();
    launcher.vmm("panics").ask_last("panic");
    let ChildState::Exited {
        code, last_words, ..
    } = launcher.exit_of("panics")
    else {
        panic!("it runs");
    };
    assert_eq!(code, Some(101));
    assert!(last_words.unwrap().contains("on purpose"));
    let mut vmm = launcher.vmm("floods");
    vmm.ask("flood");
    vmm.ask_last("exit 3");
    let ChildState::Exited {
        code, last_words, ..
    } = launcher.exit_of("floods")
    else {
        panic!("it runs");
    };
    assert_eq!(code, Some(3));
    assert!(last_words.unwrap().len() < 600);
}

#[test]
fn watching_tells_old_exits_and_new_ones() {
    if !can_run("watching_tells_old_exits_and_new_ones") {
        return;
    }
    let launcher = Launcher::start();
    launcher.vmm("old").ask_last("exit 1");
    launcher.exit_of("old");
    let mut vmm = launcher.vmm("new");
    let mut exits = launcher.client().watch().unwrap();
    assert_eq!(exits.next().unwrap().unwrap().id, id("old"));
    vmm.ask_last("exit 2");
    let child = exits.next().unwrap().unwrap();
    assert_eq!(
        (child.id, child.state),
        (id("new"), exited(Some(2), None, None))
    );
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    if !can_run("what_makes_no_sense_is_refused_and_changes_nothing") {
        return;
    }
    let launcher = Launcher::start();
    let _vmm = launcher.vmm("vm-1");
    let mut client = launcher.client();
    let before = client.list().unwrap();
    let spawn = |client: &mut Client, name: &str, bytes| {
        refusal(client.spawn_vmm(&id(name), bytes, json!({}), &[]))
    };
    assert!(spawn(&mut client, "vm-1", MEMORY_BYTES).contains("running"));
    assert!(spawn(&mut client, "vm-2", 0).contains("4096"));
    assert!(spawn(&mut client, "vm-2", 4097).contains("4096"));
    assert!(spawn(&mut client, "vm-2", u64::MAX).contains("4096"));
    let mut mover = |name: &str, vm: &str| {
        refusal(client.spawn_mover(&id(name), &id(vm), Side::Source, json!({}), &[]))
    };
    assert!(mover("m", "vm-9").contains("vm-9"));
    assert!(mover("vm-1", "vm-1").contains("running"));
    assert!(refusal(client.forget(&id("vm-1"))).contains("running"));
    assert!(refusal(client.forget(&id("vm-9"))).contains("no vm-9"));
    assert!(refusal(client.kill(&id("vm-9"))).contains("no vm-9"));
    assert_eq!(client.list().unwrap(), before);
}

#[test]
fn an_exited_child_gives_its_name_and_memory_back() {
    if !can_run("an_exited_child_gives_its_name_and_memory_back") {
        return;
    }
    let launcher = Launcher::start();
    let mut vmm = launcher.vmm("vm-1");
    vmm.ask("poke 2 5");
    vmm.ask_last("exit 0");
    launcher.exit_of("vm-1");
    // Until it is forgotten, its memory can still be read: a mover outlives the VMM that it empties.
    let mut mover = launcher.mover("m", "vm-1", Side::Source);
    assert_eq!(mover.ask("peek 0"), 5);
    // A new VM of that name starts from zeros.
    let mut again = launcher.vmm("vm-1");
    assert_eq!(again.ask("peek 2"), 0);
    assert_eq!(mover.ask("peek 0"), 5);
}

#[test]
fn only_the_one_user_and_root_are_served() {
    if !can_run("only_the_one_user_and_root_are_served") {
        return;
    }
    let launcher = Launcher::start_with(&["--allow-uid", "65534"]);
    // Root is served: it could do all of this itself.
    assert!(Client::connect(&launcher.socket()).is_ok());
    let program = launcher.directory.path().join("stand-in");
    std::fs::copy(env!("CARGO_BIN_EXE_dwcp-launch-stand-in"), &program).unwrap();
    let connect = |uid: u32| {
        let output = Command::new(&program)
            .arg("connect")
            .arg(launcher.socket())
            .uid(uid)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(connect(65534), "0 children\n");
    assert!(connect(65533).contains("PermissionDenied"));
}

#[test]
fn malformed_requests_harm_only_their_sender() {
    if !can_run("malformed_requests_harm_only_their_sender") {
        return;
    }
    let launcher = Launcher::start();
    let connect = || {
        let socket = UnixStream::connect(launcher.socket()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    let answer = |channel: &mut Channel| match channel.receive::<Reply>().unwrap().0 {
        Reply::Refused { reason } => reason,
        other => panic!("{other:?}"),
    };
    // Requests before the greeting, and of another version.
    let mut channel = Channel::new(connect());
    channel.send(&Request::List, &[]).unwrap();
    assert!(answer(&mut channel).contains("Hello"));
    channel
        .send(
            &Request::Hello {
                version: VERSION + 1,
            },
            &[],
        )
        .unwrap();
    assert!(answer(&mut channel).contains("Version"));
    // What is no request; after it the connection is good for one that is.
    for bad in [
        json!(7),
        json!({"spawn-vmm": {"id": "UPPER"}}),
        json!({"reboot": {}}),
        json!(null),
    ] {
        channel.send(&bad, &[0, 1, 2]).unwrap();
        assert!(answer(&mut channel).contains("understood"));
    }
    channel
        .send(&Request::Hello { version: VERSION }, &[])
        .unwrap();
    assert!(matches!(
        channel.receive::<Reply>().unwrap().0,
        Reply::Hello { .. }
    ));
    // A length over the limit ends the connection.
    let mut socket = connect();
    let length = u32::try_from(REQUEST_BYTES_MAX + 1).unwrap();
    socket.write_all(&length.to_le_bytes()).unwrap();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    // Half a message: others are served meanwhile, and the sender is dropped in the end.
    let mut slow = connect();
    slow.write_all(&[9, 0]).unwrap();
    let start = Instant::now();
    assert_eq!(launcher.client().list().unwrap(), []);
    println!("served beside half a message after {:?}", start.elapsed());
    assert_eq!(slow.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_watcher_that_does_not_read_is_dropped_and_no_one_waits() {
    if !can_run("a_watcher_that_does_not_read_is_dropped_and_no_one_waits") {
        return;
    }
    let launcher = Launcher::start();
    // So many requests without reading an answer that the socket is full of answers.
    let socket = UnixStream::connect(launcher.socket()).unwrap();
    socket
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut channel = Channel::new(socket.try_clone().unwrap());
    channel
        .send(&Request::Hello { version: VERSION }, &[])
        .unwrap();
    while channel.send(&Request::List, &[]).is_ok() {}
    assert_eq!(launcher.client().list().unwrap(), []);
    wait_for("the launcher to drop it", || launcher.has_dropped(&socket));
}

#[test]
fn nothing_leaks_over_fifty_lives() {
    if !can_run("nothing_leaks_over_fifty_lives") {
        return;
    }
    let launcher = Launcher::start();
    let mut client = launcher.client();
    let before = launcher.open_descriptors();
    let mut times = Vec::new();
    for round in 0..50 {
        let name = id(&format!("vm-{round}"));
        let start = Instant::now();
        let mut vmm =
            StandIn::start(|ours| client.spawn_vmm(&name, 512 << 20, json!({}), &[ours])).unwrap();
        times.push(start.elapsed());
        vmm.ask_last("exit 0");
        launcher.exit_of(name.as_str());
        client.forget(&name).unwrap();
    }
    times.sort();
    println!(
        "request to the child's own report: median {:?}, worst {:?}",
        times[25], times[49]
    );
    wait_for("descriptors to be closed", || {
        launcher.open_descriptors() == before
    });
    for group in &launcher.groups {
        let left = std::fs::read_dir(group).unwrap();
        assert_eq!(
            left.filter(|entry| entry.as_ref().unwrap().path().is_dir())
                .count(),
            0
        );
    }
}

#[test]
fn there_is_a_limit_to_children() {
    if !can_run("there_is_a_limit_to_children") {
        return;
    }
    let launcher = Launcher::start();
    let mut client = launcher.client();
    let mut exits = launcher.client().watch().unwrap();
    for number in 0..CHILDREN_MAX {
        let name = id(&format!("vm-{number}"));
        client.spawn_vmm(&name, 1 << 20, json!({}), &[]).unwrap();
        client.kill(&name).unwrap();
        assert_eq!(exits.next().unwrap().unwrap().id, name);
    }
    let one_more = |client: &mut Client| client.spawn_vmm(&id("more"), 1 << 20, json!({}), &[]);
    assert!(refusal(one_more(&mut client)).contains("forget"));
    client.forget(&id("vm-0")).unwrap();
    one_more(&mut client).unwrap();
    assert_eq!(client.list().unwrap().len(), CHILDREN_MAX);
}

#[test]
fn a_program_that_cannot_start_is_refused_with_the_step() {
    if !can_run("a_program_that_cannot_start_is_refused_with_the_step") {
        return;
    }
    let launcher = Launcher::start_with_mover(&["--allow-uid", "0"], Some("/etc/passwd"));
    let _vmm = launcher.vmm("vm-1");
    let mut client = launcher.client();
    let before = (launcher.open_descriptors(), client.list().unwrap());
    let reason = refusal(client.spawn_mover(&id("m"), &id("vm-1"), Side::Source, json!({}), &[]));
    assert!(reason.contains("execute its program"), "{reason}");
    assert_eq!(
        (launcher.open_descriptors(), client.list().unwrap()),
        before
    );
}

#[test]
fn told_to_stop_it_leaves_nothing_behind() {
    if !can_run("told_to_stop_it_leaves_nothing_behind") {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut launcher = Launcher::start();
        let pids = [launcher.vmm("vm-1").pid, launcher.vmm("vm-2").pid];
        launcher.signal(signal);
        assert_eq!(launcher.process.wait().unwrap().code(), Some(0));
        for pid in pids {
            assert!(!Path::new("/proc").join(pid.to_string()).exists());
        }
        assert!(!launcher.socket().exists());
        for group in &launcher.groups {
            assert!(!group.exists(), "{}", group.display());
        }
    }
}

/// Another launcher at the same socket.
fn another(launcher: &Launcher) -> Command {
    const PROGRAM: &str = "/bin/sh";
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp-launch"));
    command
        .arg("--socket")
        .arg(launcher.socket())
        .args(["--allow-uid", "0", "--vmm", PROGRAM, "--mover", PROGRAM])
        .args(["--reader", PROGRAM]);
    command
}

#[test]
fn children_die_with_the_launcher_and_another_can_follow() {
    if !can_run("children_die_with_the_launcher_and_another_can_follow") {
        return;
    }
    let mut launcher = Launcher::start();
    let vmm = launcher.vmm("vm-1");
    launcher.signal(libc::SIGKILL);
    launcher.process.wait().unwrap();
    let process = format!("/proc/{}/root", vmm.pid);
    wait_for("the child to die", || !Path::new(&process).exists());
    assert!(launcher.socket().exists());
    // The next launcher takes the socket over and removes the groups.
    let mut next = another(&launcher).spawn().unwrap();
    wait_for("the next launcher", || {
        Client::connect(&launcher.socket()).is_ok()
    });
    for group in &launcher.groups {
        assert!(!group.exists());
    }
    // A third one finds it there.
    let third = another(&launcher).output().unwrap();
    assert!(String::from_utf8_lossy(&third.stderr).contains("Another launcher"));
    // SAFETY: our own child, which has not been waited for.
    unsafe { libc::kill(next.id() as i32, libc::SIGTERM) };
    assert_eq!(next.wait().unwrap().code(), Some(0));
}

#[test]
fn it_outlives_its_client() {
    if !can_run("it_outlives_its_client") {
        return;
    }
    let launcher = Launcher::start();
    // In a session of its own no terminal's end reaches it.
    // SAFETY: plain system call.
    let session = unsafe { libc::getsid(launcher.process.id() as i32) };
    assert_eq!(session, launcher.process.id() as i32);
    let mut vmm = launcher.vmm("vm-1");
    assert_eq!(vmm.ask("poke 2 1"), true);
    launcher.signal(libc::SIGHUP);
    assert_eq!(launcher.client().list().unwrap().len(), 1);
    assert_eq!(vmm.ask("peek 2"), 1);
}
