//! A confined child that makes a denied call dies, and its last words name the call; without the filter it lives.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use dwcp_jail::{DENIED_EXIT_CODE, Handover};

/// Generous: nothing here takes longer than a process's start.
const DEADLINE_MS: u16 = 30_000;

/// Runs the prisoner with these orders; answers how it ended and what it said.
fn run_with(orders: &str, descriptors: usize) -> (ExitStatus, Option<String>) {
    let descriptors = (0..descriptors)
        .map(|_| File::open("/dev/null").unwrap().into())
        .collect();
    let (handover, pipe) = Handover::new(orders.as_bytes(), descriptors).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp-jail-prisoner"));
    handover.prepare(&mut command);
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    let words = pipe.wait(DEADLINE_MS).map(|words| words.to_string());
    (child.wait().unwrap(), words)
}

fn run(orders: &str) -> (Option<i32>, Option<String>) {
    let (status, words) = run_with(orders, 0);
    (status.code(), words)
}

fn denied(name: &str) -> (Option<i32>, Option<String>) {
    (Some(DENIED_EXIT_CODE), Some(format!("seccomp: {name}")))
}

#[test]
fn a_denied_call_is_reported_by_name() {
    assert_eq!(run("confine open off"), denied("openat"));
}

#[test]
fn without_the_filter_the_same_child_lives() {
    assert_eq!(
        run("open off"),
        (Some(0), Some("guest: power-off".to_owned()))
    );
}

#[test]
fn the_filter_looks_at_arguments() {
    assert_eq!(
        run("confine ioctl-allowed off"),
        (Some(0), Some("guest: power-off".to_owned()))
    );
    assert_eq!(run("confine ioctl-denied off"), denied("ioctl"));
    assert_eq!(run("confine executable-memory off"), denied("mmap"));
}

#[test]
fn threads_can_be_started_but_processes_cannot() {
    assert_eq!(
        run("confine thread off"),
        (Some(0), Some("guest: power-off".to_owned()))
    );
    assert_eq!(run("confine thread fork off"), denied("clone"));
}

#[test]
fn a_thread_can_be_bound_alone() {
    assert_eq!(
        run("confine-thread open off"),
        (Some(0), Some("guest: power-off".to_owned()))
    );
    assert_eq!(run("confine-thread-and-open off"), denied("openat"));
    // Once confined, a process can neither add a filter nor replace the handler, unless a rule says so.
    assert_eq!(run("confine confine-thread off"), denied("prctl"));
    assert_eq!(run("confine handle-sigsys off"), denied("rt_sigaction"));
}

#[test]
fn a_call_without_a_name_is_reported_by_number() {
    assert_eq!(run("confine unheard-of"), denied("system call 9999"));
}

#[test]
fn a_blocked_signal_does_not_save_the_child() {
    let (status, _) = run_with("confine blocked open off", 0);
    assert_eq!(status.signal(), Some(libc::SIGSYS));
    assert_eq!(run("blocked confine open off"), denied("openat"));
}

#[test]
fn a_panic_is_reported() {
    let (code, words) = run("panic");
    assert_eq!(code, Some(101));
    assert!(words.unwrap().contains("on purpose"));
}

#[test]
fn exactly_the_announced_descriptors_arrive() {
    for count in [0, 1, 7, 16] {
        let (status, words) = run_with("count", count);
        assert_eq!(status.code(), Some(0));
        assert_eq!(words.unwrap(), format!("error: {count} descriptors"));
    }
}

#[test]
fn an_inheritance_is_taken_once() {
    assert_eq!(run("again").1.unwrap(), "error: Err(Twice)");
}

#[test]
fn a_flood_of_last_words_is_cut() {
    let (code, words) = run("flood");
    assert_eq!((code, words.unwrap().as_str()), (Some(0), "guest: flood"));
}

#[test]
fn a_program_started_by_hand_says_what_it_is() {
    for arguments in [&[][..], &["x"], &["17"], &["-1"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_dwcp-jail-prisoner"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("dwcp-launch"));
    }
}

#[test]
fn too_much_is_refused_before_a_process_is_made() {
    assert!(Handover::new(&vec![0; dwcp_jail::CONFIGURATION_BYTES_MAX + 1], Vec::new()).is_err());
    let descriptors = (0..=dwcp_jail::DESCRIPTORS_MAX)
        .map(|_| File::open("/dev/null").unwrap().into())
        .collect();
    assert!(Handover::new(b"", descriptors).is_err());
}
