//! A launcher of this run's own, and VMs started through it as the daemon starts them: descriptors, jail, seccomp.
//!
//! What always holds: launcher and VMs end when the [`Launcher`] is dropped, and its directory goes with it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use dwcp_launch::Client;
use dwcp_launch::protocol::{ChildId, ChildState, NetworkKind, NicSpec};
use dwcp_vmm::client::VmmClient;
use dwcp_vmm::config::{Boot, Device, DiskFormat, DiskLimits, NetLimits, VmConfig};

use crate::host::{COMES_UP, end};
use crate::programs::Programs;

/// What the names of this run's bridge and taps begin with, so that they are not a host's.
const PREFIX: &str = "dwbn";
const NETWORK: &str = "bench";
const SUBNET: &str = "10.99.0.0/24";
const ADDRESS: &str = "10.99.0.2/24";
const MAC: &str = "02:00:00:00:00:02";
/// Of the disk that every VM has.
const DISK_BYTES: u64 = 64 << 20;

/// A running launcher.
#[derive(Debug)]
pub struct Launcher {
    process: Child,
    dir: tempfile::TempDir,
}

impl Launcher {
    /// Starts one, and waits until it answers.
    pub fn start(programs: &Programs) -> anyhow::Result<Self> {
        let user = nix::unistd::geteuid();
        ensure!(user.is_root(), "The launcher needs root: run this as root");
        let dir = tempfile::Builder::new().prefix("dwcp-bench-").tempdir()?;
        let process = Command::new(programs.path("dwcp-launch"))
            .arg("--socket")
            .arg(dir.path().join("launch.sock"))
            .args(["--allow-uid", "0", "--network-prefix", PREFIX])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("launcher.log"))?)
            .spawn()
            .context("The launcher does not start")?;
        let launcher = Self { process, dir };
        let deadline = Instant::now() + COMES_UP;
        let mut client = loop {
            match launcher.bench().client() {
                Ok(client) => break client,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        };
        client.ensure_network(
            &NETWORK.parse()?,
            NetworkKind::Isolated,
            Some(SUBNET.parse()?),
        )?;
        Ok(launcher)
    }

    /// What a thread that measures takes with it.
    pub fn bench(&self) -> Bench {
        Bench {
            dir: self.dir.path().to_owned(),
            launcher: self.process.id(),
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// Where the launcher is reached.
#[derive(Clone, Debug)]
pub struct Bench {
    dir: PathBuf,
    launcher: u32,
}

/// A VM that is to be started: everything that the daemon prepares before it asks the launcher.
#[derive(Debug)]
pub struct Prepared {
    id: ChildId,
    config: VmConfig,
    socket: PathBuf,
    log: PathBuf,
    listener: UnixListener,
    log_file: File,
    kernel: File,
    disk: File,
}

impl Bench {
    /// A new connection.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.dir.join("launch.sock"))?)
    }

    /// The directory of this run.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Processor time of the launcher and of all its children that have ended, ms. Counted in the kernel's clock ticks.
    pub fn cpu_ms(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.launcher))?;
        let ticks = cpu_ticks(&stat).context("The launcher's times cannot be understood")?;
        let per_s = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
        Ok(ticks as f64 * 1000.0 / per_s as f64)
    }

    /// Our guest, as a file: what the daemon hands over is one from its image store.
    pub fn kernel(&self) -> anyhow::Result<PathBuf> {
        let path = self.dir.join("guest.elf");
        if !path.exists() {
            fs::write(&path, dwcp_guest::elf())?;
        }
        Ok(path)
    }

    /// A disk, empty and sparse.
    pub fn disk(&self) -> anyhow::Result<PathBuf> {
        let path = self.dir.join("disk.raw");
        if !path.exists() {
            File::create(&path)?.set_len(DISK_BYTES)?;
        }
        Ok(path)
    }

    /// Prepares one vCPU and 128 MiB with our guest, a disk and a network card.
    pub fn prepare(&self, id: &str, cmdline: &str) -> anyhow::Result<Prepared> {
        let socket = self.dir.join(format!("{id}.sock"));
        let log = self.dir.join(format!("{id}.log"));
        Ok(Prepared {
            id: id.parse()?,
            config: VmConfig {
                devices: vec![Device::Rng, Device::Balloon, disk(), card()?],
                ..config(id, cmdline)
            },
            disk: open_disk(&self.disk()?)?,
            listener: UnixListener::bind(&socket)?,
            log_file: File::options().create(true).append(true).open(&log)?,
            kernel: File::open(self.kernel()?)?,
            socket,
            log,
        })
    }
}

/// The disk of every VM.
pub fn disk() -> Device {
    Device::Block {
        id: "disk".into(),
        read_only: false,
        chain: vec![DiskFormat::Raw],
        queues: 1,
        limits: DiskLimits::default(),
    }
}

/// Opens the disk's file as a VM needs it.
pub fn open_disk(path: &Path) -> anyhow::Result<File> {
    Ok(File::options().read(true).write(true).open(path)?)
}

fn card() -> anyhow::Result<Device> {
    Ok(Device::Net {
        mac: MAC.parse()?,
        mtu: 1500,
        told: None,
        limits: NetLimits::default(),
    })
}

/// One vCPU and 128 MiB, no devices.
pub fn config(id: &str, cmdline: &str) -> VmConfig {
    VmConfig {
        id: id.to_owned(),
        vcpus: 1,
        memory_bytes: 128 << 20,
        boot: Boot::Fresh {
            cmdline: cmdline.to_owned(),
            initrd: false,
        },
        generation: None,
        devices: Vec::new(),
    }
}

impl Prepared {
    /// Its name with the launcher.
    pub fn id(&self) -> &ChildId {
        &self.id
    }

    /// Its serial log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Starts the process; answers its id.
    pub fn spawn(&self, client: &mut Client) -> anyhow::Result<u32> {
        let descriptors = [
            self.listener.as_fd(),
            self.log_file.as_fd(),
            self.kernel.as_fd(),
            self.disk.as_fd(),
        ];
        let config = serde_json::to_value(&self.config)?;
        let nic = NicSpec {
            mac: MAC.parse()?,
            address: ADDRESS.parse()?,
            network: NETWORK.parse()?,
        };
        let memory_bytes = self.config.memory_bytes;
        Ok(client.spawn_vmm_with(
            &self.id,
            memory_bytes,
            DISK_BYTES,
            config,
            &descriptors,
            &[nic],
        )?)
    }

    /// Connects to the process. Nothing races: the socket was bound before it started.
    pub fn connect(&self) -> anyhow::Result<VmmClient> {
        Ok(VmmClient::connect(&self.socket)?)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.log);
    }
}

/// Fails unless this is how a guest ends by its own reset.
pub fn check_reset(state: &ChildState) -> anyhow::Result<()> {
    let by_reset = matches!(state, ChildState::Exited { code: Some(0), last_words: Some(words), .. } if words == "guest: reset");
    ensure!(by_reset, "The guest did not end by its reset: {state:?}");
    Ok(())
}

/// utime, stime, cutime and cstime of `/proc/PID/stat`, fields 14 to 17.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let fields: Vec<u64> = after_name
        .split(' ')
        .skip(11)
        .take(4)
        .map(|word| word.parse().ok())
        .collect::<Option<_>>()?;
    (fields.len() == 4).then(|| fields.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 9 9 9 9 1 2 30 400 20 0 1 0 5 6 7";
        assert_eq!(cpu_ticks(stat), Some(433));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
    }
}
