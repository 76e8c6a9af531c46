//! A paused machine written as a snapshot; a shell that becomes what a snapshot or a template was.
//!
//! A shell has its slots and vCPUs already, over reserved memory. Laying pieces over that costs no reading of pages, so
//! the guest is ready within a millisecond or so, whatever its size. Pages that a guest writes are private to its
//! process from then on.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_memory::{MemorySize, Piece};
use dwcp_snapshot::{
    Chain, Content, Cpu, Disk, Encoding, Manifest, Offer, Snapshot, SnapshotDigest, write,
};

use super::{Boot, Machine, Phase, RequestError};
use crate::config::{Generation, VCPUS_MAX};
use crate::kvm::needed;
use crate::state::FORMAT;
use crate::vcpu::Vcpu;

/// What a shell's memory was laid over with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// This snapshot.
    Snapshot(SnapshotDigest),
    /// A template, or it failed half-way: no snapshot can be a change of it.
    Unnamed,
}

/// How to write a snapshot.
#[derive(Debug)]
pub struct SnapshotOrder {
    /// How memory is to lie in the file.
    pub encoding: Encoding,
    /// The snapshot to hold only the changes of: the one that the VM was restored from.
    pub base: Option<SnapshotDigest>,
    /// The VM's disks, for the manifest.
    pub disks: Vec<Disk>,
}

impl Machine {
    /// Writes the paused machine into an empty file; when this returns it is on the disk. The machine can go on.
    pub fn write_snapshot(
        &mut self,
        file: &File,
        order: SnapshotOrder,
    ) -> Result<SnapshotDigest, RequestError> {
        let state = self.save()?;
        // All were told the same features.
        let first = self.vcpus.first().map(Vcpu::save).transpose()?;
        let (vendor, features) = needed(first.as_ref().map_or(&[], |vcpu| vcpu.cpuid()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let manifest = Manifest {
            vm: self.config.id.clone(),
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            state_format: FORMAT,
            taken_at_ms: now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
            vcpus: self.config.vcpus.into(),
            memory_bytes: self.config.memory_bytes,
            cpu: Cpu { vendor, features },
            disks: order.disks,
            base: order.base,
        };
        let memory = self.vm.memory();
        let chosen = &self.snapshot_pages;
        chosen.clear_all();
        match order.base {
            Some(base) if self.origin == Some(Origin::Snapshot(base)) => {
                memory.mark_private(chosen)?;
            }
            Some(base) => return Err(RequestError::OtherBase(base)),
            None => memory.mark_present(chosen)?,
        }
        let content = Content {
            manifest: &manifest,
            state: &state,
            memory: &**memory,
            pages: chosen,
            encoding: order.encoding,
        };
        Ok(write(file, &content, &mut |_| ControlFlow::Continue(()))?)
    }

    /// Becomes what a snapshot holds: `layers` are its files, the newest first, down to a full one, raw.
    pub fn restore(&mut self, layers: Vec<OwnedFd>) -> Result<(), RequestError> {
        self.refuse_unless_empty("be restored")?;
        let layers = layers.into_iter().map(|fd| Snapshot::open(File::from(fd)));
        let chain = Chain::new(layers.collect::<Result<_, _>>()?)?;
        let (vendor, features) = self.vm.features().offered();
        chain.newest().manifest().fits(&Offer {
            state_format: FORMAT,
            vcpus_max: VCPUS_MAX.into(),
            memory_bytes_max: self.config.memory_bytes,
            cpu: Cpu { vendor, features },
        })?;
        let state = chain.newest().state()?;
        self.origin = Some(Origin::Unnamed);
        chain.map_into(self.vm.memory())?;
        self.take_state(&state, Some(self.new_generation()?))?;
        self.origin = Some(Origin::Snapshot(chain.newest().digest()));
        Ok(())
    }

    /// The device state of the paused machine, for forks of it.
    pub fn save_template(&mut self) -> Result<Vec<u8>, RequestError> {
        match self.config.boot {
            Boot::Shell => Err(RequestError::NotShared),
            Boot::Fresh { .. } | Boot::Incoming => self.save(),
        }
    }

    /// Becomes what the template was whose sealed memory it was given when it was started: `state` is its device state.
    pub fn fork(&mut self, state: &[u8]) -> Result<(), RequestError> {
        self.refuse_unless_empty("be forked")?;
        let size: MemorySize = self.vm.memory().size();
        let template = self.template.take().ok_or(RequestError::NotShared)?;
        let pieces = Piece::of_template(template.as_fd(), size)?;
        self.origin = Some(Origin::Unnamed);
        self.vm.memory().lay(&pieces)?;
        self.take_state(state, Some(self.new_generation()?))
    }

    /// Of a life that others may live as well, from the same moment on: never the one that was saved.
    fn new_generation(&self) -> Result<Generation, RequestError> {
        match self.config.generation {
            Some(generation) => Ok(generation),
            None => super::random().map_err(RequestError::Random),
        }
    }

    /// Only a shell over which nothing was laid, not even in part, may become something.
    fn refuse_unless_empty(&self, action: &'static str) -> Result<(), RequestError> {
        let is_shell = self.config.boot == Boot::Shell && self.phase == Phase::Idle;
        if !is_shell || self.origin.is_some() {
            return Err(self.refuse(action));
        }
        Ok(())
    }
}
