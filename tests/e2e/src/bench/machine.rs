//! What the VMs of the benchmarks are made of, and one that is to be started through the launcher.
//!
//! What always holds: VMs of one [`Shape`] have the same devices in the same order, so that what one of them was can be
//! laid over another.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use dwcp_launch::protocol::{ChildId, ChildState, Needs, NicSpec};
use dwcp_launch::{Client, Exits};
use dwcp_vmm::client::VmmClient;
use dwcp_vmm::config::{Boot, Device, DiskFormat, DiskLimits, NetLimits, VmConfig};

use super::launcher::{Bench, DISK_BYTES, NETWORK};
use super::output::Output;
use super::template::Template;

/// Longest payload of a frame.
const MTU: u16 = 1500;

/// What a VM is made of: entropy, a balloon and a disk, and what is said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many processors.
    pub vcpus: u8,
    /// How much memory.
    pub memory_mib: u64,
    /// Whether it has a network card too, and which of the addresses: no two VMs at a time have the same.
    pub card: Option<u8>,
}

/// The smallest: one processor, 128 MiB, a disk and a card.
pub const SMALL: Shape = Shape {
    vcpus: 1,
    memory_mib: 128,
    card: Some(0),
};

impl Shape {
    /// Guest memory.
    pub fn memory_bytes(self) -> u64 {
        self.memory_mib << 20
    }

    /// Its configuration.
    pub fn config(self, id: &str, boot: Boot) -> anyhow::Result<VmConfig> {
        let mut devices = vec![Device::Rng, Device::Balloon, disk()];
        if let Some(number) = self.card {
            devices.push(card(&mac(number))?);
        }
        Ok(VmConfig {
            id: id.to_owned(),
            vcpus: self.vcpus,
            memory_bytes: self.memory_bytes(),
            cpu: Default::default(),
            boot,
            generation: None,
            devices,
        })
    }
}

/// Booting our guest.
pub fn fresh(cmdline: &str) -> Boot {
    Boot::Fresh {
        cmdline: cmdline.to_owned(),
        initrd: false,
        firmware: false,
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

/// A card.
pub fn card(mac: &str) -> anyhow::Result<Device> {
    Ok(Device::Net {
        mac: mac.parse()?,
        mtu: MTU,
        told: None,
        limits: NetLimits::default(),
    })
}

fn mac(number: u8) -> String {
    format!("02:00:00:00:00:{:02x}", number.saturating_add(2))
}

fn nic(number: u8) -> anyhow::Result<NicSpec> {
    Ok(NicSpec {
        mac: mac(number).parse()?,
        address: format!("10.99.0.{}/24", number.saturating_add(2)).parse()?,
        network: NETWORK.parse()?,
        inside: None,
    })
}

/// A VM that is to be started: everything that the daemon prepares before it asks the launcher.
#[derive(Debug)]
pub struct Prepared {
    id: ChildId,
    /// Whose memory it is to be a fork of.
    template: Option<ChildId>,
    config: VmConfig,
    nics: Vec<NicSpec>,
    socket: PathBuf,
    /// The serial log, if it is a file.
    log: Option<PathBuf>,
    listener: UnixListener,
    output: OwnedFd,
    kernel: Option<File>,
    disk: File,
}

impl Bench {
    /// Prepares a VM that boots our guest; what the guest says goes into a file, as it does under the daemon.
    pub fn prepare(&self, id: &str, shape: Shape, cmdline: &str) -> anyhow::Result<Prepared> {
        let log = self.dir().join(format!("{id}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let mut prepared = self.prepare_with(id, shape, fresh(cmdline), output.into())?;
        prepared.log = Some(log);
        prepared.kernel = Some(File::open(self.kernel()?)?);
        Ok(prepared)
    }

    /// Prepares a VM that is nothing yet, and gives what its guest will say.
    pub fn prepare_shell(&self, id: &str, shape: Shape) -> anyhow::Result<(Prepared, Output)> {
        let (output, write) = Output::pipe()?;
        Ok((self.prepare_with(id, shape, Boot::Shell, write)?, output))
    }

    /// The same for one that is to become a fork.
    pub fn prepare_fork(
        &self,
        id: &str,
        shape: Shape,
        template: &Template,
    ) -> anyhow::Result<(Prepared, Output)> {
        let (mut prepared, output) = self.prepare_shell(id, shape)?;
        prepared.template = Some(template.id().clone());
        Ok((prepared, output))
    }

    fn prepare_with(
        &self,
        id: &str,
        shape: Shape,
        boot: Boot,
        output: OwnedFd,
    ) -> anyhow::Result<Prepared> {
        let socket = self.dir().join(format!("{id}.sock"));
        Ok(Prepared {
            id: id.parse()?,
            template: None,
            config: shape.config(id, boot)?,
            nics: shape.card.into_iter().map(nic).collect::<Result<_, _>>()?,
            listener: UnixListener::bind(&socket)?,
            socket,
            log: None,
            output,
            kernel: None,
            disk: open_disk(&self.disk()?)?,
        })
    }
}

impl Prepared {
    /// Its name with the launcher.
    pub fn id(&self) -> &ChildId {
        &self.id
    }

    /// What its guest has said, if that goes into a file.
    pub fn said(&self) -> anyhow::Result<String> {
        let log = self.log.as_ref().context("This VM has no serial log")?;
        Ok(fs::read_to_string(log)?)
    }

    /// Starts the process; answers its id.
    pub fn spawn(&self, client: &mut Client) -> anyhow::Result<u32> {
        let mut descriptors = vec![self.listener.as_fd(), self.output.as_fd()];
        descriptors.extend(self.kernel.as_ref().map(AsFd::as_fd));
        descriptors.push(self.disk.as_fd());
        let config = serde_json::to_value(&self.config)?;
        let memory_bytes = self.config.memory_bytes;
        Ok(client.spawn_vmm_with(
            &self.id,
            Needs {
                memory_bytes,
                huge_pages: false,
                vcpus: self.config.vcpus.into(),
                file_bytes: DISK_BYTES,
            },
            self.template.as_ref(),
            config,
            &descriptors,
            &self.nics,
        )?)
    }

    /// Connects to the process. Nothing races: the socket was bound before it started.
    pub fn connect(&self) -> anyhow::Result<VmmClient> {
        Ok(VmmClient::connect(&self.socket)?)
    }

    /// Waits until it has ended, and has it forgotten; answers how it ended. What other VMs do meanwhile is passed over.
    pub fn wait(&self, client: &mut Client, exits: &mut Exits) -> anyhow::Result<ChildState> {
        let child = loop {
            let child = exits.next().context("The launcher tells no exits")??;
            if child.id == self.id {
                break child;
            }
        };
        client.forget(&self.id)?;
        Ok(child.state)
    }

    /// Ends it, and has it forgotten.
    pub fn end(&self, client: &mut Client, exits: &mut Exits) -> anyhow::Result<()> {
        client.kill(&self.id)?;
        self.wait(client, exits)?;
        Ok(())
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
        if let Some(log) = &self.log {
            let _ = fs::remove_file(log);
        }
    }
}

/// Fails unless this is how a guest ends by its own reset.
pub fn check_reset(state: &ChildState) -> anyhow::Result<()> {
    let by_reset = matches!(state, ChildState::Exited { code: Some(0), last_words: Some(words), .. } if words == "guest: reset");
    ensure!(by_reset, "The guest did not end by its reset: {state:?}");
    Ok(())
}
