//! The demonstration's own flow, end to end, on a smaller machine over a faster link, so that the main job cannot break
//! unseen; and that one that is interrupted, during its start or later, leaves nothing behind.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;
use dwcp_e2e::{Bed, Programs, Traces, demo, programs};
use dwcp_wan::RunId;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// The one deadline. Generous; nothing is measured with it.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long one that is left by a failed test may take to end.
const ENDING: Duration = Duration::from_secs(60);
/// Lines that wait to be looked at; the demonstration prints some hundred.
const LINES_MAX: usize = 4_096;
const SMALL: [&str; 7] = [
    "--rate-mbit=1000",
    "--rtt-ms=10",
    "--memory-mib=64",
    "--fill-mib=24",
    "--working-set-mib=4",
    "--dirty-pages=500",
    "--loss=0",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstration_happens() {
    let arguments = demo::Arguments::parse_from(["demo"].into_iter().chain(SMALL));
    let moved = demo::run(arguments).await.unwrap();
    assert!(moved.rounds >= 1);
    // Less than the fill cannot have carried it: half of it is text, a fifth is random.
    assert!(moved.wire_mb > 5.0, "{moved:?}");
    assert!(moved.guest_pause_ms > 0.0, "{moved:?}");
}

/// The demonstration as a program in a process group of its own, as a shell starts it.
struct Running {
    process: Child,
    lines: mpsc::Receiver<String>,
    run: RunId,
    traces: Traces,
}

impl Running {
    fn start(more: &[&str]) -> Self {
        Self::start_with(more, &programs::directory().unwrap())
    }

    /// With the programs of a directory.
    fn start_with(more: &[&str], folder: &Path) -> Self {
        let mut process = Command::new(Programs::find().unwrap().path("dwcp-demo"))
            .env("DWCP_BIN_DIR", folder)
            .args(SMALL)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::sync_channel(LINES_MAX);
        let out = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        // The first bed of a process.
        let run = RunId::new(&format!("{:x}-0", process.id())).unwrap();
        let traces = Traces::of(run.clone());
        Self {
            process,
            lines,
            run,
            traces,
        }
    }

    fn until(&mut self, what: &str, holds: impl Fn(&RunId, Option<&str>) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let line = self.lines.recv_timeout(Duration::from_millis(2)).ok();
            self.traces.note();
            if holds(&self.run, line.as_deref()) {
                return;
            }
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "it ended before {what}: {ended:?}");
            assert!(Instant::now() < deadline, "it never came to {what}");
        }
    }

    /// Ctrl-C, as a terminal sends it: to the whole group. Answers the exit code.
    fn interrupt(&mut self) -> Option<i32> {
        killpg(Pid::from_raw(self.process.id() as i32), Signal::SIGINT).unwrap();
        self.ends()
    }

    fn ends(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    /// One that a failed test leaves is asked to end, so that what it made goes with it; killed only if it does not.
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            let _ = kill(Pid::from_raw(self.process.id() as i32), Signal::SIGINT);
        }
        let deadline = Instant::now() + ENDING;
        while Instant::now() < deadline && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the demonstration is at when it is interrupted: a file that its start makes, or a step that it says.
#[derive(Debug)]
enum At {
    File(&'static str),
    Step(&'static str),
}

#[test]
fn an_interrupted_one_leaves_nothing_behind() {
    let moments = [
        At::File("left/launch.sock"),
        At::File("left/dwcpd.log"),
        At::File("right/launch.sock"),
        At::File("right/dwcpd.log"),
        At::Step("[2/7]"),
        At::Step("[5/7]"),
        At::Step("[6/7]"),
    ];
    for moment in moments {
        let mut demo = Running::start(&[]);
        demo.until(&format!("{moment:?}"), |run, line| match moment {
            At::File(name) => Bed::run_dir(run).join(name).exists(),
            At::Step(step) => line.is_some_and(|line| line.starts_with(step)),
        });
        demo.traces.note();
        let made = demo.traces.look();
        assert!(!made.is_empty(), "nothing was found at {moment:?}");
        let code = demo.interrupt();
        assert_eq!(code, Some(1), "at {moment:?}");
        if let Err(left) = demo.traces.gone() {
            panic!("interrupted at {moment:?}: {left}");
        }
        println!("interrupted at {moment:?}: {} traces, all gone", made.len());
    }
}

/// Ctrl-C reaches the daemon too, which then ends while it is waited for: as one that does not start at all.
#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let real = programs::directory().unwrap();
    for name in [
        "dwcp-launch",
        "dwcp-vmm",
        "dwcp-mover",
        "dwcp-image",
        "dwcp-wan",
        "dwcp",
    ] {
        symlink(real.join(name), folder.path().join(name)).unwrap();
    }
    // It comes after the launcher, says that it came, and fails once the launcher was seen, or after a minute.
    let [daemon, came, seen] = ["dwcpd", "came", "seen"].map(|name| folder.path().join(name));
    let script = format!(
        "#!/bin/sh\ntouch {}\nfor turn in $(seq 1200); do [ -e {} ] && exit 1; sleep 0.05; done\nexit 1\n",
        came.display(),
        seen.display()
    );
    fs::write(&daemon, script).unwrap();
    fs::set_permissions(&daemon, fs::Permissions::from_mode(0o755)).unwrap();
    let mut demo = Running::start_with(&[], folder.path());
    demo.until("its daemon", |_, _| came.exists());
    demo.traces.note();
    assert!(demo.traces.launchers() >= 1, "no launcher was started");
    fs::write(&seen, b"").unwrap();
    assert_eq!(demo.ends(), Some(1));
    demo.traces.gone().unwrap();
}

#[test]
fn ctrl_c_at_the_end_of_a_kept_one_is_no_failure() {
    let mut demo = Running::start(&["--keep"]);
    demo.until("its end", |_, line| {
        line.is_some_and(|line| line.contains(demo::KEPT))
    });
    assert_eq!(demo.interrupt(), Some(0));
    demo.traces.gone().unwrap();
}
