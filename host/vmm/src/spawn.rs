//! Starting a VMM without the launcher: the same descriptors in the same places, but none of the walls.
//!
//! For tests and benchmarks of the VMM alone. The process confines its own threads as always; what the launcher adds
//! (namespaces, a user of its own, an empty root) is missing.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dwcp_jail::{Handover, LastWordsPipe};
use dwcp_memory::{DirtyBitmap, MemorySize, create_memory};

use crate::client::{ClientError, VmmClient};
use crate::config::{Boot, VmConfig};

/// Memory and dirty bitmap of a guest, as the launcher would keep them: they outlive any one process.
#[derive(Debug)]
pub struct GuestFiles {
    /// Guest RAM.
    pub memory: OwnedFd,
    /// Dirty bitmap.
    pub bitmap: OwnedFd,
    /// How much RAM.
    pub size: MemorySize,
}

impl GuestFiles {
    /// Fresh memory and an empty bitmap.
    pub fn new(size: MemorySize) -> std::io::Result<Self> {
        Ok(Self {
            memory: create_memory(size).map_err(std::io::Error::other)?,
            bitmap: DirtyBitmap::create(size).map_err(std::io::Error::other)?,
            size,
        })
    }
}

/// What to start.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The `dwcp-vmm` program.
    pub program: &'a Path,
    /// A directory for the control socket and the serial log; both are named after the VM.
    pub directory: &'a Path,
    /// The VM.
    pub config: &'a VmConfig,
    /// Its memory.
    pub guest: &'a GuestFiles,
    /// Kernel and initrd for a fresh boot.
    pub kernel: Option<(File, Option<File>)>,
    /// What the devices of the VM need, in their order.
    pub devices: Vec<OwnedFd>,
}

/// A VMM that was started. Killed when dropped.
#[derive(Debug)]
pub struct Spawned {
    child: Child,
    words: Option<LastWordsPipe>,
    socket: PathBuf,
    log: PathBuf,
}

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code or signal.
    pub status: ExitStatus,
    /// What it said last, as `kind: text`.
    pub words: Option<String>,
}

/// Starts a VMM.
pub fn spawn(plan: Plan<'_>) -> std::io::Result<Spawned> {
    let socket = plan.directory.join(format!("{}.sock", plan.config.id));
    let log = plan.directory.join(format!("{}.log", plan.config.id));
    let _ = std::fs::remove_file(&socket);
    let userfaultfd = File::open("/dev/userfaultfd").or_else(|_| File::open("/dev/null"))?;
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let mut descriptors: Vec<OwnedFd> = vec![
        kvm.into(),
        userfaultfd.into(),
        plan.guest.memory.as_fd().try_clone_to_owned()?,
        plan.guest.bitmap.as_fd().try_clone_to_owned()?,
        UnixListener::bind(&socket)?.into(),
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&log)?
            .into(),
    ];
    if let (Boot::Fresh { .. }, Some((kernel, initrd))) = (&plan.config.boot, plan.kernel) {
        descriptors.push(kernel.into());
        descriptors.extend(initrd.map(OwnedFd::from));
    }
    descriptors.extend(plan.devices);
    let json = serde_json::to_vec(plan.config)?;
    let (handover, words) = Handover::new(&json, descriptors).map_err(std::io::Error::other)?;
    let mut command = Command::new(plan.program);
    handover.prepare(&mut command);
    let child = command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    Ok(Spawned {
        child,
        words: Some(words),
        socket,
        log,
    })
}

impl Spawned {
    /// A connection to it. The socket was bound before the process started, so this does not race.
    pub fn client(&self) -> Result<VmmClient, ClientError> {
        VmmClient::connect(&self.socket)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its serial log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until it has ended; kills it after `deadline`.
    pub fn wait(mut self, deadline: Duration) -> std::io::Result<Ended> {
        let until = Instant::now() + deadline;
        if let Some(words) = self.words.as_mut() {
            while words.drain() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let words = self.words.take().and_then(|pipe| pipe.spoken());
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Ended {
                    status,
                    words: words.map(|words| words.to_string()),
                });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "The VMM did not end in time",
        ))
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
