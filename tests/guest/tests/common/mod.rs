//! The guest in QEMU: an independent implementation of the devices that it drives.
//!
//! Emulated CPUs (TCG): what is tested is how guest and devices talk, and that needs no KVM.
#![allow(clippy::unwrap_used, dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

const PROGRAM: &str = "qemu-system-x86_64";
const DEADLINE: Duration = Duration::from_secs(120);
/// Lines that wait to be looked at.
const LINES_MAX: usize = 4096;

/// Whether QEMU is there; says so if not.
pub fn has_qemu(test: &str) -> bool {
    let asked = Command::new(PROGRAM)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match &asked {
        Ok(status) if status.success() => true,
        Ok(status) => {
            println!("SKIPPED {test}: {PROGRAM} ended with {status}");
            false
        }
        Err(error) => {
            println!("SKIPPED {test}: {PROGRAM} cannot be started: {error}");
            false
        }
    }
}

/// A machine that runs our guest. It ends with this.
pub struct Machine {
    child: Child,
    lines: Receiver<String>,
    console: ChildStdin,
    /// Everything that was said and looked at.
    pub said: Vec<String>,
    _directory: tempfile::TempDir,
}

impl Machine {
    /// Starts the guest with a command line and devices, in QEMU's words.
    pub fn start(cmdline: &str, devices: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("guest.elf");
        fs::write(&kernel, dwcp_guest::elf()).unwrap();
        let mut child = Command::new(PROGRAM)
            .args(["-accel", "tcg", "-cpu", "max", "-m", "128", "-nodefaults"])
            .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
            .args(["-append", cmdline, "-kernel"])
            .arg(&kernel)
            .args(devices)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It complains of every misuse.
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let console = child.stdin.take().unwrap();
        let (sender, lines) = sync_channel(LINES_MAX);
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            console,
            said: Vec::new(),
            _directory: directory,
        }
    }

    /// Waits for a line in which `found` finds something.
    pub fn wait<T>(&mut self, what: &str, found: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.said.push(line);
                    if let Some(found) = self.said.last().and_then(|line| found(line)) {
                        return found;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {what} in time:\n{}", self.text()),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("it ended before {what}:\n{}", self.text())
                }
            }
        }
    }

    /// Waits for a line that contains a text.
    pub fn wait_for_text(&mut self, text: &str) {
        self.wait(text, |line| line.contains(text).then_some(()));
    }

    /// Waits until the machine has ended, and reads all that it said.
    pub fn wait_for_end(&mut self) {
        let until = Instant::now() + DEADLINE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end:\n{}", self.text()),
            }
        }
        assert!(self.child.wait().unwrap().success(), "{}", self.text());
    }

    /// Types on the guest's console.
    pub fn command(&mut self, command: u8) {
        self.console.write_all(&[command]).unwrap();
        self.console.flush().unwrap();
    }

    /// What some lines said, in order.
    pub fn all<T>(&self, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
        self.said.iter().filter_map(|line| parse(line)).collect()
    }

    /// Everything that was said and looked at.
    pub fn text(&self) -> String {
        self.said.join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
