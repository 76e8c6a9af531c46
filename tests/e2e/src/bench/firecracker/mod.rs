//! Firecracker beside ours: the same guest, memory, processors, disk and card; without its jailer, with its seccomp.
//!
//! What always holds: a process that is started here has ended when its [`Process`] is dropped, and a tap is gone with
//! its [`Tap`].

pub mod snapshot;
pub mod start;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::launcher::Bench;
use super::machine::Shape;
use super::output::Output;

/// What this reference is called where it was not measured.
pub const NAME: &str = "Firecracker";

/// A program that says it is Firecracker.
#[derive(Clone, Debug)]
pub struct Firecracker {
    program: PathBuf,
    version: String,
}

impl Firecracker {
    /// Asks the program for its version.
    pub fn new(program: &Path) -> anyhow::Result<Self> {
        let said = Command::new(program)
            .arg("--version")
            .output()
            .with_context(|| format!("{} does not start", program.display()))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = said.lines().next().unwrap_or_default().trim().to_owned();
        ensure!(
            version.starts_with(NAME),
            "{} is no Firecracker: its --version says {version:?}",
            program.display()
        );
        Ok(Self {
            program: program.to_owned(),
            version,
        })
    }

    /// The program that was given; why it cannot be measured otherwise.
    pub fn given(program: Option<&Path>) -> Result<Self, String> {
        let program = program.ok_or("no --firecracker was given")?;
        Self::new(program).map_err(|error| format!("{error:#}"))
    }

    /// Its name and version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether it can give a guest its devices on a PCI bus.
    pub fn has_pci(&self) -> anyhow::Result<bool> {
        let said = Command::new(&self.program).arg("--help").output()?;
        Ok(String::from_utf8_lossy(&said.stdout).contains("--enable-pci"))
    }

    /// The program; it says nothing of its own but errors.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--level", "Error"]);
        command
    }
}

/// What a VM of this shape is, for its configuration file. `tap` is for the card, if the shape has one.
pub fn config(bench: &Bench, shape: Shape, cmdline: &str, tap: &str) -> anyhow::Result<Value> {
    let cards = match shape.card {
        Some(_) => json!([{ "iface_id": "net", "host_dev_name": tap }]),
        None => json!([]),
    };
    Ok(json!({
        "boot-source": { "kernel_image_path": bench.kernel()?, "boot_args": cmdline },
        "drives": [{
            "drive_id": "disk", "path_on_host": bench.disk()?, "is_root_device": false, "is_read_only": false,
        }],
        "network-interfaces": cards,
        "machine-config": { "vcpu_count": shape.vcpus, "mem_size_mib": shape.memory_mib },
    }))
}

/// A process of it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: Output,
}

impl Process {
    /// Starts it.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let (output, write): (Output, OwnedFd) = Output::pipe()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(write)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, output })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What its guest says.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A tap that is there as long as this is held.
#[derive(Debug)]
pub struct Tap {
    name: String,
}

impl Tap {
    /// Makes one for a card of this number, and sets it up.
    pub fn new(number: u8) -> anyhow::Result<Self> {
        let tap = Self {
            name: format!("dwbn-fc{number}"),
        };
        // One that an earlier run left, if it was killed.
        let _ = ip(&["tuntap", "del", "dev", &tap.name, "mode", "tap"]);
        ip(&["tuntap", "add", "dev", &tap.name, "mode", "tap"])?;
        ip(&["link", "set", &tap.name, "up"])?;
        Ok(tap)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = ip(&["tuntap", "del", "dev", &self.name, "mode", "tap"]);
    }
}

/// Runs `ip` in the network namespace of this thread.
pub fn ip(arguments: &[&str]) -> anyhow::Result<()> {
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
