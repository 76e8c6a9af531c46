//! The console: through pipes, and on a real terminal that is given back as it was.
#![allow(clippy::unwrap_used)]

mod rig;

use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use nix::pty::openpty;
use nix::sys::termios::tcgetattr;
use rig::{Rig, rig, type_in};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest that anything here may take; reached only when something hangs.
const DEADLINE: Duration = Duration::from_secs(60);

async fn with_machine() -> Rig {
    let rig = rig().await;
    rig.line("vm create web --template dwcp/worker")
        .await
        .good();
    rig
}

/// Reads until some text has come.
async fn until(stream: &mut (impl AsyncRead + Unpin), wanted: &str) -> String {
    let mut text = String::new();
    let come = async {
        let mut piece = [0; 1024];
        while !text.contains(wanted) {
            let read = stream.read(&mut piece).await.unwrap();
            assert!(read > 0, "it ended after {text:?}");
            text += &String::from_utf8_lossy(&piece[..read]);
        }
    };
    let come = tokio::time::timeout(DEADLINE, come).await;
    come.unwrap_or_else(|_| panic!("{wanted:?} does not come"));
    text
}

#[tokio::test]
async fn pipes_are_typed_in_and_output_goes_on() {
    let rig = with_machine().await;
    let mut child = rig
        .command(&["vm", "console", "web"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    until(&mut out, "booted").await;
    // Ctrl-] in a pipe is not a wish to detach.
    type_in(&mut child, "he\x1dllo\r").await;
    until(&mut out, "HELLO").await;
    type_in(&mut child, "exit\r").await;
    let ended = tokio::time::timeout(DEADLINE, child.wait()).await.unwrap();
    assert_eq!(ended.unwrap().code(), Some(0));
}

#[tokio::test]
async fn it_detaches_after_a_while_and_says_what_is_wrong() {
    let rig = with_machine().await;
    let out = rig.line("vm console web --for 300ms").await.good();
    assert_eq!(out, "booted\r\n");
    rig.line("vm stop web").await.good();
    let err = rig.line("vm console web").await.bad(1);
    assert_eq!(err, "error: The machine does not run; start it first\n");
}

#[tokio::test]
async fn a_log_is_followed_until_the_reader_leaves() {
    let rig = with_machine().await;
    let mut child = rig.command(&["vm", "log", "web", "-f"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    until(&mut out, "booted").await;
    child.kill().await.unwrap();
}

#[tokio::test]
async fn events_are_followed_one_a_line() {
    let rig = with_machine().await;
    let args = ["event", "list", "--follow", "-o", "json"];
    let mut child = rig.command(&args).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    until(&mut out, "vm.created").await;
    rig.served.fake.happened("t", "test.happened", "x", "later");
    let text = until(&mut out, "later").await;
    let event: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(event["kind"], "test.happened");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn a_terminal_is_raw_while_attached_and_given_back() {
    let rig = with_machine().await;
    let pty = openpty(None, None).unwrap();
    let before = tcgetattr(&pty.slave).unwrap();
    let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    let mut child = rig
        .command(&["vm", "console", "web"])
        .stdin(end(&pty.slave))
        .stdout(end(&pty.slave))
        .stderr(end(&pty.slave))
        .spawn()
        .unwrap();
    let master = std::fs::File::from(pty.master);
    let mut screen = tokio::fs::File::from_std(master.try_clone().unwrap());
    until(&mut screen, "booted").await;
    assert_ne!(
        tcgetattr(pty.slave.as_fd()).unwrap(),
        before,
        "it is not raw"
    );
    // In a terminal that is not raw, this would be an interrupt.
    nix::unistd::write(&master, b"\x03hi").unwrap();
    until(&mut screen, "HI").await;
    nix::unistd::write(&master, b"\x1d").unwrap();
    let said = until(&mut screen, "runs on").await;
    assert!(said.contains("Detached from web"), "{said}");
    let ended = tokio::time::timeout(DEADLINE, child.wait()).await.unwrap();
    assert_eq!(ended.unwrap().code(), Some(0));
    assert_eq!(tcgetattr(pty.slave.as_fd()).unwrap(), before);
}

#[tokio::test]
async fn a_plugin_is_installed_after_a_yes_on_a_terminal() {
    let rig = rig().await;
    for (answer, installed) in [("n\n", false), ("y\n", true)] {
        let pty = openpty(None, None).unwrap();
        let mut child = rig
            .command(&["plugin", "install", "dwcp/placement-default"])
            .stdin(Stdio::from(pty.slave))
            .spawn()
            .unwrap();
        let mut err = child.stderr.take().unwrap();
        let asked = until(&mut err, "[y/N]").await;
        for shown in ["sha256:", "good, by bundled", "log (new)"] {
            assert!(asked.contains(shown), "{asked}");
        }
        nix::unistd::write(&pty.master, answer.as_bytes()).unwrap();
        let ended = tokio::time::timeout(DEADLINE, child.wait()).await.unwrap();
        assert_eq!(ended.unwrap().success(), installed);
    }
}
