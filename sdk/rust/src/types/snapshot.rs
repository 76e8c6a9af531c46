//! Snapshots of machines.

use serde::{Deserialize, Serialize};

use super::vm::VmSpec;

/// A machine at one moment: its memory, its devices and its disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its identity.
    pub id: String,
    /// The project that owns it.
    pub project: String,
    /// Its name in the project.
    pub name: String,
    /// The machine that it is of, which may be gone since.
    pub vm: String,
    /// That machine's identity.
    pub vm_id: String,
    /// What that machine was.
    pub spec: VmSpec,
    /// The snapshot that the machine's disks stood on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The snapshot since which it holds what changed of the memory. One without holds all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// Whether its memory is compressed.
    #[serde(default)]
    pub compressed: bool,
    /// BLAKE3 digest of memory, devices and manifest.
    pub digest: String,
    /// Room that its files take on the host, bytes.
    pub stored_bytes: u64,
    /// How long the machine stood still for it, ms.
    pub pause_ms: f64,
    /// When it was taken, ms.
    pub created_ms: u64,
}

/// The snapshot below an incremental one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// Its name, in the same project.
    pub snapshot: String,
    /// Its identity.
    pub snapshot_id: String,
}

/// The snapshot or the template that a machine went on from last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Its name.
    pub snapshot: String,
    /// Its identity.
    pub snapshot_id: String,
    /// Identity of the restore.
    pub restore: String,
    /// Whether it is no snapshot but a template, of which the machine is a fork.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub template: bool,
}

/// Takes a snapshot of a running machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotCreate {
    /// What the snapshot is called, unique in the project.
    pub name: String,
    /// The machine.
    pub vm: String,
    /// Write only what changed of its memory since its last snapshot, if that was taken so too; this one is full
    /// otherwise. From then on the host logs which pages change, until the machine stops or a snapshot is taken without
    /// this.
    #[serde(default)]
    pub incremental: bool,
    /// Compress its memory when the machine has gone on.
    #[serde(default)]
    pub compressed: bool,
}

impl SnapshotCreate {
    /// A full one of a machine, not compressed.
    pub fn new(name: impl Into<String>, vm: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            vm: vm.into(),
            incremental: false,
            compressed: false,
        }
    }
}

/// Lets a machine go on from a snapshot of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The snapshot.
    pub snapshot: String,
}
