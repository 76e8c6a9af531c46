//! Boots one kernel to its end, without the launcher:
//! `boot-once KERNEL [--initrd FILE] [--cmdline TEXT] [--memory MIB] [--vcpus N] [--move-at TEXT] [--press-at TEXT]
//! [--kill-at TEXT] [--balloon PAGES] [--generation DIGITS] [--type-at TEXT] [--connect-at TEXT] [--disk FILE …]`.
//!
//! `--move-at` pauses the guest once it has printed TEXT, saves it, ends its process, and lets it go on in a second one
//! over the same memory. `--press-at` presses the power button (after the move, if there is one). `--kill-at` ends the
//! VMM once the guest has printed TEXT (after both), which is a good end for a guest that knows no other.
//! Each `--disk` is one more disk; entropy, a balloon, a second console and vsock are there always.
//! `--balloon` has the moved guest give up so many pages, and waits until it has; `--generation` is that of the moved
//! guest. `--type-at` types a line once the guest has printed TEXT. `--connect-at` connects to port 52 of the guest over
//! vsock, and has back what it sends; the guest may connect to any port of the host, and has back what it sends.
//!
//! The guest's serial output goes to standard output; afterwards one line on standard error says how long it took and
//! how the guest ended. Finds `dwcp-vmm` beside itself or one directory up. Needs `/dev/kvm` and a writable `/tmp`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dwcp_memory::MemorySize;
use dwcp_vmm::client::VmmClient;
use dwcp_vmm::config::{Boot, ConsoleSize, Device, DiskFormat, DiskLimits, Generation, VmConfig};
use dwcp_vmm::spawn::{GuestFiles, Plan, Spawned, spawn};
use dwcp_vmm::vsock::Asked;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

const GUEST_CID: u32 = 3;
/// Where the guest listens that is connected to.
const GUEST_PORT: u32 = 52;
/// How much is sent there.
const SENT_BYTES: usize = 1 << 20;
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
    balloon: Option<u32>,
    generation: Option<Generation>,
    type_at: Option<String>,
    connect_at: Option<String>,
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
        let mut devices: Vec<_> = std::iter::once(Device::Rng).chain(disks).collect();
        devices.push(Device::Balloon);
        devices.push(Device::Console(ConsoleSize::default()));
        devices.push(Device::Vsock { cid: GUEST_CID });
        devices
    }

    /// By what the balloon is known.
    fn balloon_name(&self) -> String {
        format!("balloon-{}", self.disks.len() + 2)
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
        firmware: false,
    };
    let kernel = Some((open(&arguments.kernel)?, initrd));
    let mut vmm = start(&arguments, &guest, "boot-once", first, kernel, None)?;
    let mut client = vmm.client()?;
    let mut console = client.console()?;
    client.run(1)?;
    if let Some(text) = &arguments.type_at
        && show_until(&mut console, Some(text))?
    {
        console.write_all(b"typed on the console\n")?;
    }
    if let Some(text) = &arguments.connect_at
        && show_until(&mut console, Some(text))?
    {
        let bytes = talk(&socket_path("boot-once"))?;
        eprintln!("boot-once: the guest sent back {bytes} bytes");
    }
    if let Some(text) = &arguments.move_at
        && show_until(&mut console, Some(text))?
    {
        client.pause()?;
        let (state, bytes) = client.save()?;
        drop(vmm);
        let generation = arguments.generation;
        vmm = start(
            &arguments,
            &guest,
            "moved",
            Boot::Incoming,
            None,
            generation,
        )?;
        client = vmm.client()?;
        client.load(state.as_fd())?;
        console = client.console()?;
        client.run(2)?;
        eprintln!("boot-once: moved, {bytes} bytes of state");
        if let Some(pages) = arguments.balloon {
            fill_balloon(&mut client, &arguments.balloon_name(), pages)?;
        }
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
    generation: Option<Generation>,
) -> Result<Spawned> {
    let config = VmConfig {
        id: id.to_owned(),
        vcpus: arguments.vcpus,
        memory_bytes: arguments.memory.bytes(),
        cpu: Default::default(),
        boot,
        generation,
        devices: arguments.devices(),
    };
    let mut descriptors = arguments.disks()?;
    descriptors.extend(host_of(id)?);
    spawn(Plan {
        program: &program()?,
        directory: &std::env::temp_dir(),
        config: &config,
        guest,
        kernel,
        devices: descriptors,
    })
    .context("The VMM could not be started")
}

fn socket_path(id: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{id}.vsock"))
}

/// The host's side of vsock: where programs connect, and a thread that lets the guest connect to anything.
fn host_of(id: &str) -> Result<[OwnedFd; 2]> {
    let path = socket_path(id);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    std::thread::spawn(move || -> std::io::Result<()> {
        while let Some(asked) = Asked::receive(&ours)? {
            let (mut stream, guest) = UnixStream::pair()?;
            asked.answer(&ours, Some(guest))?;
            let mut sink = stream.try_clone()?;
            std::thread::spawn(move || std::io::copy(&mut stream, &mut sink));
        }
        Ok(())
    });
    Ok([listener.into(), theirs])
}

/// Sends something to the guest and has it back; answers how much.
fn talk(path: &Path) -> Result<usize> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    writeln!(stream, "CONNECT {GUEST_PORT}")?;
    let mut byte = [0];
    let mut line = Vec::new();
    while byte != *b"\n" {
        stream.read_exact(&mut byte).context("The guest refused")?;
        line.extend(byte);
    }
    if !line.starts_with(b"OK ") {
        bail!("The VMM says {:?}", String::from_utf8_lossy(&line));
    }
    let sent: Vec<u8> = (0..SENT_BYTES).map(|at| (at ^ at >> 8) as u8).collect();
    let mut sender = stream.try_clone()?;
    let expected = sent.clone();
    let sending = std::thread::spawn(move || {
        sender.write_all(&sent)?;
        sender.shutdown(std::net::Shutdown::Write)
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    if back != expected || !sending.join().is_ok_and(|sent| sent.is_ok()) {
        bail!("The guest sent back {} other bytes", back.len());
    }
    Ok(back.len())
}

fn fill_balloon(client: &mut VmmClient, name: &str, pages: u32) -> Result<()> {
    client.balloon(name, pages)?;
    let until = Instant::now() + DEADLINE;
    loop {
        let devices = client.status()?.devices;
        let mut balloons = devices.iter().filter_map(|device| device.balloon);
        if balloons.any(|balloon| balloon.actual_pages == pages) {
            eprintln!("boot-once: the balloon has {pages} pages");
            return Ok(());
        }
        if Instant::now() > until {
            bail!("The balloon does not fill");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
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
         [--kill-at TEXT] [--balloon PAGES] [--generation DIGITS] [--type-at TEXT] [--connect-at TEXT] [--disk FILE …]",
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
        balloon: None,
        generation: None,
        type_at: None,
        connect_at: None,
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
            "--balloon" => arguments.balloon = Some(value.parse()?),
            "--generation" => arguments.generation = Some(value.try_into()?),
            "--type-at" => arguments.type_at = Some(value),
            "--connect-at" => arguments.connect_at = Some(value),
            "--disk" => arguments.disks.push(value.into()),
            "--vcpus" => arguments.vcpus = value.parse()?,
            _ => bail!("{word} is unknown"),
        }
    }
    Ok(arguments)
}
