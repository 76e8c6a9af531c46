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
    CHUNK_BYTES, Chain, Content, Cpu, Encoding, Manifest, Offer, Snapshot, SnapshotDigest, write,
};

use super::filling::{Filling, FillingError};
use super::{Boot, Machine, Phase, RequestError};
use crate::config::{Generation, VCPUS_MAX};
use crate::protocol::SnapshotOrder;
use crate::state::FORMAT;

const CHUNK_MIB: u64 = (CHUNK_BYTES >> 20) as u64;

/// What a shell's memory was laid over with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// This snapshot.
    Snapshot(SnapshotDigest),
    /// A template, or it failed half-way: no snapshot can be a change of it.
    Unnamed,
}

impl Machine {
    /// Writes the paused machine into an empty file; when this returns it is on the disk. The machine can go on.
    pub fn write_snapshot(
        &mut self,
        file: &File,
        order: SnapshotOrder,
    ) -> Result<SnapshotDigest, RequestError> {
        self.refuse_while_filled()?;
        let state = self.save()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let manifest = Manifest {
            vm: self.config.id.clone(),
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            state_format: FORMAT,
            taken_at_ms: now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
            vcpus: self.config.vcpus.into(),
            memory_bytes: self.config.memory_bytes,
            cpu: self.cpu().0,
            disks: order.disks,
            base: order.base,
        };
        let memory = self.vm.memory();
        self.changes.harvest(&self.vm)?;
        let chosen = self.changes.kept();
        match order.base {
            Some(base) if self.changes_since() != Some(base) => {
                return Err(RequestError::OtherBase(base));
            }
            Some(_) if self.changes.since().is_some() => {}
            Some(_) => memory.mark_private(chosen)?,
            None => memory.mark_present(chosen)?,
        }
        let content = Content {
            manifest: &manifest,
            state: &state,
            memory: &**memory,
            pages: chosen,
            encoding: match order.compressed {
                true => Encoding::Zstd,
                false => Encoding::Raw,
            },
        };
        let digest = write(file, &content, &mut |_| ControlFlow::Continue(()))?;
        self.changes
            .keep_since(&self.vm, order.keep_changes.then_some(digest))?;
        Ok(digest)
    }

    /// The snapshot since which it is known what changed: the last one, if that was asked for, or the one that the VM
    /// was restored from, if the process can see which of its pages are its own.
    pub(super) fn changes_since(&self) -> Option<SnapshotDigest> {
        let restored = match self.origin {
            Some(Origin::Snapshot(digest)) if self.vm.memory().knows_private() => Some(digest),
            _ => None,
        };
        self.changes.since().or(restored)
    }

    /// Becomes what a snapshot holds: `layers` are its files, the newest first, down to a full one. They are mapped; if
    /// one of them is compressed, memory is brought from them while the guest runs.
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
        let is_packed = |layer: &Snapshot| layer.encoding() == Encoding::Zstd;
        if chain.layers().iter().any(is_packed) {
            let filling = self.filling.as_ref();
            filling.ok_or(FillingError::Silent)?.begin(chain)?;
            return self.take_state(&state, Some(self.new_generation()?));
        }
        self.filling = None;
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
        self.filling = None;
        self.vm.memory().lay(&pieces)?;
        self.take_state(state, Some(self.new_generation()?))
    }

    /// Chunks of memory that are still to come from a snapshot.
    pub(super) fn missing_chunks(&self) -> u64 {
        self.filling.as_ref().map_or(0, Filling::missing_chunks)
    }

    /// What has not come cannot be read from elsewhere, and would count as zeros.
    pub(super) fn refuse_while_filled(&self) -> Result<(), RequestError> {
        match self.missing_chunks() {
            0 => Ok(()),
            missing => Err(RequestError::StillComing(missing * CHUNK_MIB)),
        }
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
