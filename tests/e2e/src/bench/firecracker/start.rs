//! A guest that resets itself at its first instruction, from the start of the process to its end; and one at work.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::resource::{UsageWho, getrusage};

use super::{Firecracker, Process, Tap, config};
use crate::bench::launcher::Bench;
use crate::bench::machine::Shape;

/// A configuration that is run again and again.
#[derive(Debug)]
pub struct Configured {
    program: Firecracker,
    config: PathBuf,
    _tap: Option<Tap>,
}

/// What one run took, ms.
#[derive(Clone, Copy, Debug)]
pub struct OtherRun {
    /// From start to end.
    pub wall_ms: f64,
    /// Of processor time of all children of this process meanwhile.
    pub cpu_ms: f64,
}

impl Configured {
    /// Writes a configuration into the run's directory.
    pub fn new(
        program: &Firecracker,
        bench: &Bench,
        shape: Shape,
        cmdline: &str,
    ) -> anyhow::Result<Self> {
        let tap = shape.card.map(Tap::new).transpose()?;
        let name = tap.as_ref().map(Tap::name).unwrap_or_default();
        let path = bench.dir().join(format!("firecracker{name}.json"));
        fs::write(&path, config(bench, shape, cmdline, name)?.to_string())?;
        Ok(Self {
            program: program.clone(),
            config: path,
            _tap: tap,
        })
    }

    /// Runs it once, from start to end.
    pub fn run(&self) -> anyhow::Result<OtherRun> {
        let before = children_cpu()?;
        let began = Instant::now();
        let status = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        let wall = began.elapsed();
        ensure!(status.success(), "Firecracker ended with {status}");
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        Ok(OtherRun {
            wall_ms: ms(wall),
            cpu_ms: ms(children_cpu()?.saturating_sub(before)),
        })
    }

    /// Starts it, to be looked at while its guest runs.
    pub fn start(&self) -> anyhow::Result<Process> {
        Process::start(&mut self.command())
    }

    fn command(&self) -> std::process::Command {
        let mut command = self.program.command();
        command
            .args(["--no-api", "--config-file"])
            .arg(&self.config);
        command
    }
}

/// Processor time of all children of this process that have been waited for.
fn children_cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let all = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(u64::try_from(
        all.tv_sec() * 1_000_000 + all.tv_usec(),
    )?))
}
