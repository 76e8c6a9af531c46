//! An emulated AMD machine with virtualization of its own, and what it printed.
//!
//! What always holds: the emulator ends when the machine is dropped, and when the thread that started it is gone; it is
//! awaited for no longer than its deadline; of its output no more than a limit is kept.
//!
//! What it must not know: what runs in it.

use std::io::{BufRead, BufReader, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// Most that a machine may print.
const LINES_MAX: usize = 20_000;
const LINE_BYTES_MAX: u64 = 64 << 10;

/// How a machine is started.
#[derive(Debug)]
pub struct Settings<'a> {
    /// The emulator.
    pub qemu: &'a Path,
    /// Linux.
    pub kernel: &'a Path,
    /// Its initramfs.
    pub initrd: &'a Path,
    /// Its memory, in MiB.
    pub memory_mib: u32,
}

/// A line that it printed, and when: since it was started.
#[derive(Clone, Debug)]
pub struct Line {
    /// When.
    pub at: Duration,
    /// Without control characters.
    pub text: String,
}

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    emulator: Child,
    lines: Receiver<Line>,
    started: Instant,
}

impl Machine {
    /// Starts it.
    pub fn start(settings: &Settings<'_>) -> anyhow::Result<Self> {
        let (reader, writer) = std::io::pipe()?;
        let mut command = Command::new(settings.qemu);
        command
            // XSAVE is hidden because the emulator does not intercept XSETBV, which KVM for AMD relies on.
            .args(["-accel", "tcg", "-cpu", "max,+svm,+npt,-xsave", "-m"])
            .arg(settings.memory_mib.to_string())
            .args(["-no-user-config", "-display", "none", "-monitor", "none"])
            .args(["-serial", "stdio", "-nic", "none", "-no-reboot", "-kernel"])
            .arg(settings.kernel)
            .arg("-initrd")
            .arg(settings.initrd)
            .args(["-append", "console=ttyS0 reboot=t panic=-1 quiet"])
            .stdin(Stdio::null())
            .stderr(writer.try_clone()?)
            .stdout(writer);
        // SAFETY: between fork and exec, this makes one system call and touches no memory of ours.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let started = Instant::now();
        let emulator = command.spawn().context("The emulator does not start")?;
        drop(command); // our copies of the pipe's write end
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || read(reader, started, &sender));
        Ok(Self {
            emulator,
            lines,
            started,
        })
    }

    /// Everything that it printed until it ended, which it must by `deadline` from its start. Shows it as it comes.
    pub fn run_to_end(mut self, deadline: Duration) -> anyhow::Result<Vec<Line>> {
        let mut all = Vec::new();
        loop {
            let left = deadline.saturating_sub(self.started.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    println!("  {:6.1} s | {}", line.at.as_secs_f64(), line.text);
                    all.push(line);
                    ensure!(all.len() < LINES_MAX, "The machine prints without end");
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => bail!(
                    "The machine has not ended after {} s; the last it printed: {:?}",
                    deadline.as_secs(),
                    all.last().map(|line| line.text.as_str())
                ),
            }
        }
        // It has closed its output: it is ending.
        let status = loop {
            if let Some(status) = self.emulator.try_wait()? {
                break status;
            }
            ensure!(
                self.started.elapsed() < deadline,
                "The emulator has closed its output, but does not end"
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        ensure!(status.success(), "The emulator ended with {status}");
        Ok(all)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Neither does harm to one that has ended and was awaited.
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
    }
}

/// Hands on lines until the output is closed or nobody listens.
fn read(pipe: PipeReader, started: Instant, to: &SyncSender<Line>) {
    let mut pipe = BufReader::new(pipe);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let mut limited = (&mut pipe).take(LINE_BYTES_MAX);
        if !limited.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            return;
        }
        let text = String::from_utf8_lossy(&bytes);
        let line = Line {
            at: started.elapsed(),
            text: text.chars().filter(|c| !c.is_control()).collect(),
        };
        if to.send(line).is_err() {
            return;
        }
    }
}
