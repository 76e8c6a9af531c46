//! A launcher of this run's own, through which VMs are started as the daemon starts them: descriptors, jail, seccomp.
//!
//! What always holds: launcher and VMs end when the [`Launcher`] is dropped, and its directory goes with it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use dwcp_launch::Client;
use dwcp_launch::protocol::NetworkKind;

use crate::host::{COMES_UP, end};
use crate::programs::Programs;

/// What the names of this run's bridge and taps begin with, so that they are not a host's.
const PREFIX: &str = "dwbn";
/// The network of every card.
pub const NETWORK: &str = "bench";
const SUBNET: &str = "10.99.0.0/24";
/// Of the disk that every VM has.
pub const DISK_BYTES: u64 = 64 << 20;

/// A running launcher.
#[derive(Debug)]
struct Launcher {
    process: Child,
    dir: tempfile::TempDir,
}

impl Launcher {
    /// Starts one, and waits until it answers.
    fn start(programs: &Programs) -> anyhow::Result<Self> {
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
    fn bench(&self) -> Bench {
        Bench {
            dir: self.dir.path().to_owned(),
            launcher: self.process.id(),
        }
    }
}

/// Starts a launcher, and measures on a thread of its own. Whoever drops this ends the launcher, and with it what the
/// thread waits for.
pub async fn measure<T: Send + 'static>(
    what: impl FnOnce(&Bench, &Programs) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let programs = Programs::find()?;
    let launcher = Launcher::start(&programs)?;
    let bench = launcher.bench();
    tokio::task::spawn_blocking(move || what(&bench, &programs))
        .await
        .context("The measuring thread panicked")?
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
