//! Firecracker beside ours: the same guest, memory, processors, disk and tap, configured from a file, without its jailer.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

use super::launcher::Bench;

/// A Firecracker program, ready to be run again and again.
#[derive(Debug)]
pub struct Firecracker {
    program: PathBuf,
    config: PathBuf,
    version: String,
    _tap: Tap,
}

/// A tap that is there as long as this is held.
#[derive(Debug)]
struct Tap;

impl Tap {
    const NAME: &str = "dwbn-fc";

    fn new() -> anyhow::Result<Self> {
        // One that an earlier run left, if it was killed.
        let _ = ip(&["tuntap", "del", "dev", Self::NAME, "mode", "tap"]);
        ip(&["tuntap", "add", "dev", Self::NAME, "mode", "tap"])?;
        let tap = Self;
        ip(&["link", "set", Self::NAME, "up"])?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = ip(&["tuntap", "del", "dev", Self::NAME, "mode", "tap"]);
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.context("ip does not start (Debian's package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ip {}: {said}",
        arguments.join(" ")
    );
    Ok(())
}

/// What one run took, ms.
#[derive(Clone, Copy, Debug)]
pub struct OtherRun {
    /// From start to end.
    pub wall_ms: f64,
    /// Of processor time.
    pub cpu_ms: f64,
}

impl Firecracker {
    /// Asks the program for its version and writes its configuration into `dir`.
    pub fn new(program: PathBuf, bench: &Bench, cmdline: &str) -> anyhow::Result<Self> {
        let said = Command::new(&program)
            .arg("--version")
            .output()
            .with_context(|| format!("{} does not start", program.display()))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = said.lines().next().unwrap_or_default().trim().to_owned();
        ensure!(
            version.starts_with("Firecracker"),
            "{} is no Firecracker: its --version says {version:?}",
            program.display()
        );
        let tap = Tap::new()?;
        let config = bench.dir().join("firecracker.json");
        let text = json!({
            "boot-source": { "kernel_image_path": bench.kernel()?, "boot_args": cmdline },
            "drives": [{
                "drive_id": "disk", "path_on_host": bench.disk()?, "is_root_device": false, "is_read_only": false,
            }],
            "network-interfaces": [{ "iface_id": "net", "host_dev_name": Tap::NAME }],
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
        });
        fs::write(&config, text.to_string())?;
        Ok(Self {
            program,
            config,
            version,
            _tap: tap,
        })
    }

    /// Its name and version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Runs it once, from start to end.
    pub fn run(&self) -> anyhow::Result<OtherRun> {
        let before = children_cpu()?;
        let began = Instant::now();
        let status = Command::new(&self.program)
            .args(["--no-api", "--config-file"])
            .arg(&self.config)
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
}

/// Processor time of all children of this process that have been waited for.
fn children_cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let all = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(u64::try_from(
        all.tv_sec() * 1_000_000 + all.tv_usec(),
    )?))
}
