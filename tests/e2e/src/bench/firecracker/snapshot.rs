//! A snapshot that Firecracker took of the same guest, and restoring it: by a new process, or by one that waits.
//!
//! Its memory file is mapped copy-on-write, as it does it by default. It is asked through its socket as a person would
//! ask it; the sign that the guest runs is the first byte that the guest says, not the answer.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{Firecracker, Process, Tap, config};
use crate::bench::launcher::Bench;
use crate::bench::machine::Shape;
use crate::bench::template::QUIET;

/// How long writing a snapshot may take, and any answer.
const ANSWER: Duration = Duration::from_secs(60);
/// How often it is looked whether a process listens.
const LOOK: Duration = Duration::from_micros(50);

/// A snapshot.
#[derive(Debug)]
pub struct Kept {
    program: Firecracker,
    state: PathBuf,
    memory: PathBuf,
    sockets: PathBuf,
    _tap: Option<Tap>,
}

/// A process that waits for orders.
#[derive(Debug)]
pub struct Waiting {
    process: Process,
    socket: PathBuf,
    connection: UnixStream,
}

impl Kept {
    /// Has the guest run until it works, and takes a full snapshot.
    pub fn take(
        program: &Firecracker,
        bench: &Bench,
        shape: Shape,
        cmdline: &str,
    ) -> anyhow::Result<Self> {
        let tap = shape.card.map(Tap::new).transpose()?;
        let name = tap.as_ref().map(Tap::name).unwrap_or_default();
        let config = config(bench, shape, cmdline, name)?;
        let file = |name: &str| bench.dir().join(name);
        let kept = Self {
            program: program.clone(),
            state: file("firecracker.state"),
            memory: file("firecracker.memory"),
            sockets: bench.dir().to_owned(),
            _tap: tap,
        };
        let path = file("firecracker-template.json");
        fs::write(&path, config.to_string())?;
        let mut running = kept.start_with(&["--config-file", &path.to_string_lossy()], 0)?;
        running.process.output().wait_for_tick()?;
        running.ask("PATCH", "/vm", &json!({ "state": "Paused" }))?;
        let order = json!({
            "snapshot_type": "Full", "snapshot_path": kept.state, "mem_file_path": kept.memory,
        });
        running
            .ask("PUT", "/snapshot/create", &order)
            .context("Firecracker cannot take a snapshot here")?;
        drop(running);
        std::thread::sleep(QUIET);
        // Whether it can be restored is better known before it is measured.
        kept.check()
            .context("Firecracker cannot restore its snapshot here")?;
        Ok(kept)
    }

    /// Restores it once, and hears what Firecracker says to that.
    fn check(&self) -> anyhow::Result<()> {
        let mut waiting = self.start(0)?;
        waiting.ask("PUT", "/snapshot/load", &self.order())?;
        waiting.process.output().wait_for_tick()
    }

    /// From the start of a process to the guest's first sign, ms.
    pub fn cold(&self) -> anyhow::Result<f64> {
        let began = Instant::now();
        let mut waiting = self.start(0)?;
        self.restore(&mut waiting)?;
        let ms = began.elapsed().as_secs_f64() * 1000.0;
        waiting.process.output().wait_for_tick()?;
        Ok(ms)
    }

    /// From the order to a process that waits to the guest's first sign, ms.
    pub fn warm(&self) -> anyhow::Result<f64> {
        let mut waiting = self.start(0)?;
        let began = Instant::now();
        self.restore(&mut waiting)?;
        let ms = began.elapsed().as_secs_f64() * 1000.0;
        waiting.process.output().wait_for_tick()?;
        Ok(ms)
    }

    /// A guest that went on and then stood still.
    pub fn idle(&self, number: usize) -> anyhow::Result<Waiting> {
        let mut waiting = self.start(number)?;
        self.restore(&mut waiting)?;
        waiting.answered()?;
        waiting.ask("PATCH", "/vm", &json!({ "state": "Paused" }))?;
        Ok(waiting)
    }

    fn start(&self, number: usize) -> anyhow::Result<Waiting> {
        self.start_with(&[], number)
    }

    fn start_with(&self, arguments: &[&str], number: usize) -> anyhow::Result<Waiting> {
        let socket = self.sockets.join(format!("firecracker-{number}.sock"));
        let _ = fs::remove_file(&socket);
        let mut command = self.program.command();
        command.arg("--api-sock").arg(&socket).args(arguments);
        let process = Process::start(&mut command)?;
        let until = Instant::now() + ANSWER;
        let connection = loop {
            match UnixStream::connect(&socket) {
                Ok(connection) => break connection,
                Err(error) if Instant::now() > until => {
                    return Err(error).context("Firecracker does not listen");
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        };
        connection.set_read_timeout(Some(ANSWER))?;
        Ok(Waiting {
            process,
            socket,
            connection,
        })
    }

    /// Lets a process become what the snapshot holds, and waits for the guest's first sign.
    fn restore(&self, waiting: &mut Waiting) -> anyhow::Result<()> {
        waiting.send("PUT", "/snapshot/load", &self.order())?;
        waiting.process.output().wait()
    }

    fn order(&self) -> Value {
        json!({
            "snapshot_path": self.state,
            "mem_backend": { "backend_type": "File", "backend_path": self.memory },
            "resume_vm": true,
        })
    }
}

impl Waiting {
    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn ask(&mut self, method: &str, path: &str, body: &Value) -> anyhow::Result<()> {
        self.send(method, path, body)?;
        self.answered()
    }

    fn send(&mut self, method: &str, path: &str, body: &Value) -> anyhow::Result<()> {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(self.connection.write_all(request.as_bytes())?)
    }

    /// Reads an answer, which fits into one read, and fails unless it is that something was done.
    fn answered(&mut self) -> anyhow::Result<()> {
        let mut bytes = [0; 4096];
        let count = self.connection.read(&mut bytes)?;
        let answer = String::from_utf8_lossy(&bytes[..count]);
        ensure!(
            answer.starts_with("HTTP/1.1 2"),
            "Firecracker answered: {answer}"
        );
        Ok(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}
