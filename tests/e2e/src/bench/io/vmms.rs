//! The same guest, disk and tap on dwcp-vmm, on QEMU and on Firecracker.
//!
//! QEMU: its defaults for the cache (`writeback`) and for reading (a pool of threads), the disk served by a thread of its
//! own, virtio 1 only. Firecracker: its defaults, with PCI, as our guest has no driver for MMIO. Neither has vhost, as
//! ours has not.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dwcp_guest::said::Bench as Told;
use dwcp_memory::MemorySize;
use dwcp_vmm::spawn::{GuestFiles, Plan, spawn};
use serde_json::json;

use super::yard::{MAC, TAP, Yard};
use crate::bench::firecracker::Firecracker;
use crate::bench::machine::{SMALL, card, disk, fresh, open_disk};
use crate::programs::Programs;

/// A guest that has not ended by then never will.
const DEADLINE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(20);
/// What the guest measures.
const MEASUREMENTS: usize = 5;
const QEMU: &str = "qemu-system-x86_64";

/// Runs the guest to its end on our VMM, which alone tells it how fast its clock is.
pub fn ours(
    programs: &Programs,
    yard: &Yard,
    is_given_up: &AtomicBool,
) -> anyhow::Result<Vec<Told>> {
    let mut config = SMALL.config("io", fresh(yard.cmdline()))?;
    config.devices = vec![disk(), card(MAC)?];
    let guest = GuestFiles::new(MemorySize::new(config.memory_bytes)?)?;
    let vmm = spawn(Plan {
        program: &programs.path("dwcp-vmm"),
        directory: yard.dir(),
        config: &config,
        guest: &guest,
        kernel: Some((File::open(yard.kernel())?, None)),
        devices: vec![open_disk(&yard.disk())?.into(), yard.tap()?],
    })?;
    let log = vmm.log().to_owned();
    vmm.client()?.run(1)?;
    let until = Instant::now() + DEADLINE;
    // The guest says so when it has done everything.
    let text = loop {
        let text = std::fs::read_to_string(&log)?;
        if text.contains("guest: stopping") {
            break text;
        }
        let is_late = Instant::now() > until || is_given_up.load(Ordering::Relaxed);
        ensure!(!is_late, "The guest on dwcp-vmm does not end: {text}");
        std::thread::sleep(LOOK);
    };
    drop(vmm);
    std::fs::remove_file(&log)?;
    yard.learn_clock(&text)?;
    read(&text)
}

/// Another VMM.
#[derive(Debug)]
pub struct Rival {
    version: String,
    program: Program,
}

#[derive(Debug)]
enum Program {
    Qemu,
    Firecracker(Firecracker),
}

/// QEMU, if it is there; why it cannot be measured otherwise.
pub fn qemu() -> Result<Rival, String> {
    let said = Command::new(QEMU).arg("--version").output();
    let said = said.map_err(|_| format!("{QEMU} is not installed: package qemu-system-x86"))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.lines().next().unwrap_or_default();
    let version = version.split(" (").next().unwrap_or_default();
    Ok(Rival {
        version: version.replace(" emulator version", ""),
        program: Program::Qemu,
    })
}

/// Firecracker, if it can give our guest its devices; why not otherwise.
pub fn firecracker(program: Result<Firecracker, String>) -> Result<Rival, String> {
    let program = program?;
    match program.has_pci() {
        Ok(true) => Ok(Rival {
            version: program.version().to_owned(),
            program: Program::Firecracker(program),
        }),
        Ok(false) => Err("it has no PCI, and our guest no driver for virtio by MMIO".into()),
        Err(error) => Err(format!("{error:#}")),
    }
}

impl Rival {
    /// Its name and version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Runs the guest to its end.
    pub fn run(&self, yard: &Yard, is_given_up: &AtomicBool) -> anyhow::Result<Vec<Told>> {
        let mut command = match &self.program {
            Program::Qemu => qemu_command(yard),
            Program::Firecracker(program) => firecracker_command(program, yard)?,
        };
        let log = yard.dir().join("rival.log");
        let errors = yard.dir().join("rival.errors");
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::create(&errors)?)
            .spawn()
            .with_context(|| format!("{} does not start", self.version))?;
        let mut running = Running(child);
        let until = Instant::now() + DEADLINE;
        while running.0.try_wait()?.is_none() {
            let is_late = Instant::now() > until || is_given_up.load(Ordering::Relaxed);
            ensure!(!is_late, "The guest on {} does not end", self.version);
            std::thread::sleep(LOOK);
        }
        read(&std::fs::read_to_string(&log)?).with_context(|| {
            let errors = std::fs::read_to_string(&errors).unwrap_or_default();
            format!("{}: {errors}", self.version)
        })
    }
}

/// Ends with whoever holds it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu_command(yard: &Yard) -> Command {
    let mut command = Command::new(QEMU);
    command
        // A KVM without hardware support cannot set the register behind that feature.
        .args(["-accel", "kvm", "-cpu", "host,-arch-capabilities"])
        .args(["-m", &SMALL.memory_mib.to_string(), "-smp", "1"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(yard.kernel())
        .args(["-append", &yard.cmdline_with_clock()])
        .args(["-object", "iothread,id=io"])
        .arg("-drive")
        .arg(format!(
            "file={},if=none,id=disk,format=raw",
            yard.disk().display()
        ))
        .args([
            "-device",
            "virtio-blk-pci,drive=disk,iothread=io,disable-legacy=on",
        ])
        .arg("-netdev")
        .arg(format!(
            "tap,id=net,ifname={TAP},script=no,downscript=no,vhost=off"
        ))
        .arg("-device")
        .arg(format!(
            "virtio-net-pci,netdev=net,mac={MAC},disable-legacy=on"
        ));
    command
}

fn firecracker_command(program: &Firecracker, yard: &Yard) -> anyhow::Result<Command> {
    let config = yard.dir().join("firecracker.json");
    let text = json!({
        "boot-source": { "kernel_image_path": yard.kernel(), "boot_args": yard.cmdline_with_clock() },
        "drives": [{
            "drive_id": "disk", "path_on_host": yard.disk(), "is_root_device": false, "is_read_only": false,
        }],
        "network-interfaces": [{ "iface_id": "net", "host_dev_name": TAP, "guest_mac": MAC }],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": SMALL.memory_mib },
    });
    std::fs::write(&config, text.to_string())?;
    let mut command = program.command();
    command
        .args(["--no-api", "--enable-pci", "--config-file"])
        .arg(&config);
    Ok(command)
}

/// All that the guest measured.
fn read(text: &str) -> anyhow::Result<Vec<Told>> {
    let told: Vec<Told> = text.lines().filter_map(Told::parse).collect();
    ensure!(
        told.len() == MEASUREMENTS && told.iter().all(|told| told.operations > 0),
        "The guest did not measure everything: {text}"
    );
    Ok(told)
}
