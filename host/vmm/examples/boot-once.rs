//! Boots one kernel to its end, without the launcher:
//! `boot-once KERNEL [--initrd FILE] [--cmdline TEXT] [--memory MIB] [--vcpus N] [--move-at TEXT] [--press-at TEXT]
//! [--kill-at TEXT] [--disk FILE …]`.
//!
//! `--move-at` pauses the guest once it has printed TEXT, saves it, ends its process, and lets it go on in a second one
//! over the same memory. `--press-at` presses the power button (after the move, if there is one). `--kill-at` ends the
//! VMM once the guest has printed TEXT (after both), which is a good end for a guest that knows no other.
//! Each `--disk` is one more disk, and there is entropy always.
//!
//! The guest's serial output goes to standard output; afterwards one line on standard error says how long it took and
//! how the guest ended. Finds `dwcp-vmm` beside itself or one directory up. Needs `/dev/kvm` and a writable `/tmp`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dwcp_memory::MemorySize;
use dwcp_vmm::config::{Boot, Device, DiskFormat, DiskLimits, VmConfig};
use dwcp_vmm::spawn::{GuestFiles, Plan, Spawned, spawn};

/// A guest that has not ended by itself after this long is ended.
const DEADLINE: Duration = Duration::from_secs(600);

struct Arguments {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
    memory: MemorySize,
    vcpus: u8,
    move_at: Option<String>,
    press_at: Option<String>,
    kill_at: Option<String>,
    disks: Vec<PathBuf>,
}

impl Arguments {
    fn devices(&self) -> Vec<Device> {
        let disk = |number| Device::Block {
            id: format!("disk-{number}"),
            read_only: false,
            chain: vec![DiskFormat::Raw],
            queues: 1,
            limits: DiskLimits::default(),
        };
        let disks = (0..self.disks.len()).map(disk);
        std::iter::once(Device::Rng).chain(disks).collect()
    }

    fn disks(&self) -> Result<Vec<OwnedFd>> {
        let open = |path: &PathBuf| {
            let file = File::options().read(true).write(true).open(path);
            let file = file.with_context(|| path.display().to_string())?;
            Ok(OwnedFd::from(file))
        };
        self.disks.iter().map(open).collect()
    }
}

fn main() -> ExitCode {
    match boot() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Answers whether the guest ended in good order.
fn boot() -> Result<bool> {
    let arguments = parse()?;
    let started = Instant::now();
    let guest = GuestFiles::new(arguments.memory)?;
    let open = |path: &Path| File::open(path).with_context(|| path.display().to_string());
    let initrd = arguments.initrd.as_deref().map(open).transpose()?;
    let first = Boot::Fresh {
        cmdline: arguments.cmdline.clone(),
        initrd: initrd.is_some(),
    };
    let kernel = Some((open(&arguments.kernel)?, initrd));
    let mut vmm = start(&arguments, &guest, "boot-once", first, kernel)?;
    let mut client = vmm.client()?;
    let mut console = client.console()?;
    client.run(1)?;
    if let Some(text) = &arguments.move_at
        && show_until(&mut console, Some(text))?
    {
        client.pause()?;
        let (state, bytes) = client.save()?;
        drop(vmm);
        vmm = start(&arguments, &guest, "moved", Boot::Incoming, None)?;
        client = vmm.client()?;
        client.load(state.as_fd())?;
        console = client.console()?;
        client.run(2)?;
        eprintln!("boot-once: moved, {bytes} bytes of state");
    }
    if let Some(text) = &arguments.press_at
        && show_until(&mut console, Some(text))?
    {
        client.stop(false)?;
    }
    if let Some(text) = &arguments.kill_at {
        let seen = show_until(&mut console, Some(text))?;
        eprintln!("boot-once: {}", if seen { "killed" } else { "ended first" });
        return Ok(seen);
    }
    show_until(&mut console, None)?;
    let ended = vmm.wait(DEADLINE)?;
    let words = ended.words.unwrap_or_else(|| ended.status.to_string());
    eprintln!(
        "boot-once: {words} after {} ms",
        started.elapsed().as_millis()
    );
    Ok(words == "guest: power-off" || words == "guest: reset")
}

fn start(
    arguments: &Arguments,
    guest: &GuestFiles,
    id: &str,
    boot: Boot,
    kernel: Option<(File, Option<File>)>,
) -> Result<Spawned> {
    let config = VmConfig {
        id: id.to_owned(),
        vcpus: arguments.vcpus,
        memory_bytes: arguments.memory.bytes(),
        boot,
        devices: arguments.devices(),
    };
    spawn(Plan {
        program: &program()?,
        directory: &std::env::temp_dir(),
        config: &config,
        guest,
        kernel,
        devices: arguments.disks()?,
    })
    .context("The VMM could not be started")
}

/// Shows what the guest prints, to its end or until it has printed `text`; answers whether it has.
fn show_until(console: &mut UnixStream, text: Option<&str>) -> Result<bool> {
    let mut seen: Vec<u8> = Vec::new();
    let mut buffer = [0; 4096];
    let mut out = std::io::stdout().lock();
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        out.write_all(&buffer[..count])?;
        out.flush()?;
        if let Some(text) = text {
            // Only the tail can still become the text.
            seen.drain(..seen.len().saturating_sub(text.len()));
            seen.extend(&buffer[..count]);
            if seen
                .windows(text.len())
                .any(|window| window == text.as_bytes())
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn program() -> Result<PathBuf> {
    let here = std::env::current_exe().context("Where this program is")?;
    let candidates = here.ancestors().skip(1).take(2);
    let mut programs = candidates.map(|directory| directory.join("dwcp-vmm"));
    programs
        .find(|program| program.is_file())
        .context("dwcp-vmm is neither beside this program nor one directory up")
}

fn parse() -> Result<Arguments> {
    let mut words = std::env::args().skip(1);
    let kernel = words.next().context(
        "Usage: boot-once KERNEL [--initrd FILE] [--cmdline TEXT] [--memory MIB] [--vcpus N] [--move-at TEXT] [--press-at TEXT] \
         [--kill-at TEXT] [--disk FILE …]",
    )?;
    let mut arguments = Arguments {
        kernel: kernel.into(),
        initrd: None,
        cmdline: "console=ttyS0 reboot=t panic=-1".to_owned(),
        memory: MemorySize::mib(256)?,
        vcpus: 1,
        move_at: None,
        press_at: None,
        kill_at: None,
        disks: Vec::new(),
    };
    while let Some(word) = words.next() {
        let value = words
            .next()
            .with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--initrd" => arguments.initrd = Some(value.into()),
            "--cmdline" => arguments.cmdline = value,
            "--memory" => arguments.memory = MemorySize::mib(value.parse()?)?,
            "--move-at" if !value.is_empty() => arguments.move_at = Some(value),
            "--press-at" if !value.is_empty() => arguments.press_at = Some(value),
            "--kill-at" if !value.is_empty() => arguments.kill_at = Some(value),
            "--disk" => arguments.disks.push(value.into()),
            "--vcpus" => arguments.vcpus = value.parse()?,
            _ => bail!("{word} is unknown"),
        }
    }
    Ok(arguments)
}
