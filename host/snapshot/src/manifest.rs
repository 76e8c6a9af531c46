//! What a snapshot is of, so that a host which cannot restore it says why before it tries.
//!
//! JSON, so that a person can read it. Every text and every list is bounded, because it may come from elsewhere.
//! Must not know KVM: CPU features are names, which the VMM chooses.

use std::collections::BTreeSet;

use dwcp_memory::MemorySize;
use serde::{Deserialize, Serialize};

use crate::SnapshotDigest;

/// Longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Most memory of a guest in a snapshot, in bytes (4 TiB): it bounds what a reader must keep.
pub const MEMORY_BYTES_MAX: u64 = 4 << 40;
/// Most disks.
pub const DISKS_MAX: usize = 64;
/// Most CPU features.
pub const FEATURES_MAX: usize = 2048;
/// Longest name or version, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Most vCPUs that the format can speak of; a VMM may have fewer.
const VCPUS_MAX: u32 = 4096;

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The VM's id, for messages only.
    pub vm: String,
    /// Version of the VMM that wrote the device state, for messages only.
    pub vmm_version: String,
    /// Version of the device state's format: a VMM reads its own and older ones.
    pub state_format: u32,
    /// When it was taken, in milliseconds since 1970.
    pub taken_at_ms: u64,
    /// How many vCPUs.
    pub vcpus: u32,
    /// Guest RAM, in bytes: a multiple of 4096, at most [`MEMORY_BYTES_MAX`].
    pub memory_bytes: u64,
    /// What the guest was told of its CPU.
    pub cpu: Cpu,
    /// Its disks, as they were at that moment. Their content is not in here.
    pub disks: Vec<Disk>,
    /// The snapshot that this one is a change of; `None` for a full one.
    pub base: Option<SnapshotDigest>,
}

/// A CPU as a guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Who made it, as CPUID says (`GenuineIntel`).
    pub vendor: String,
    /// Names of the features that the guest may use.
    pub features: BTreeSet<String>,
}

/// One disk of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Which device of the VM it is.
    pub device: String,
    /// The volume's id.
    pub volume: String,
    /// Which state of the volume: its generation.
    pub generation: u64,
    /// The digest of that state, where one is known.
    pub digest: Option<String>,
}

/// A manifest that says what cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadManifest {
    /// A text is empty or too long.
    #[error("{0} must have 1 to {NAME_BYTES_MAX} bytes")]
    Name(&'static str),
    /// Too many disks.
    #[error("A snapshot has at most {DISKS_MAX} disks")]
    Disks,
    /// Too many features.
    #[error("A snapshot has at most {FEATURES_MAX} CPU features")]
    Features,
    /// No vCPU, or absurdly many.
    #[error("A snapshot cannot have {0} vCPUs")]
    Vcpus(u32),
    /// No memory, too much, or a part of a page.
    #[error(
        "A snapshot cannot have {0} bytes of memory: it must be whole pages, at most {MEMORY_BYTES_MAX} bytes"
    )]
    Memory(u64),
}

/// What a host can give to a restored VM.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The newest device-state format that its VMM reads.
    pub state_format: u32,
    /// Most vCPUs.
    pub vcpus_max: u32,
    /// Most memory, in bytes.
    pub memory_bytes_max: u64,
    /// Its CPU.
    pub cpu: Cpu,
}

/// Why a snapshot cannot be restored on a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Written by a VMM that is newer.
    #[error(
        "The snapshot's device state is of format {found} (VMM {version}), newer than {known}: upgrade this host"
    )]
    Newer {
        /// The format in the snapshot.
        found: u32,
        /// The newest known here.
        known: u32,
        /// The VMM that wrote it.
        version: String,
    },
    /// Another maker's CPU.
    #[error(
        "The snapshot is of a guest on a CPU of {snapshot}, this host's is of {host}: restore it on a host like its own"
    )]
    Vendor {
        /// In the snapshot.
        snapshot: String,
        /// Here.
        host: String,
    },
    /// Features that the guest may be using.
    #[error("This host's CPU lacks what the guest may be using: {}", .0.join(", "))]
    Features(
        /// Their names.
        Vec<String>,
    ),
    /// Too many vCPUs.
    #[error("The snapshot has {found} vCPUs, a VM of this host at most {most}")]
    Vcpus {
        /// In the snapshot.
        found: u32,
        /// Most here.
        most: u32,
    },
    /// Too much memory.
    #[error("The snapshot has {found} bytes of memory, this host gives at most {most}")]
    Memory {
        /// In the snapshot.
        found: u64,
        /// Most here.
        most: u64,
    },
}

impl Manifest {
    /// Checks every range that the documentation of the fields states.
    pub fn check(&self) -> Result<(), BadManifest> {
        name("The VM's id", &self.vm)?;
        name("The VMM's version", &self.vmm_version)?;
        name("The CPU's vendor", &self.cpu.vendor)?;
        if self.disks.len() > DISKS_MAX {
            return Err(BadManifest::Disks);
        }
        for disk in &self.disks {
            name("A disk's device", &disk.device)?;
            name("A disk's volume", &disk.volume)?;
            disk.digest
                .as_ref()
                .map_or(Ok(()), |digest| name("A disk's digest", digest))?;
        }
        if self.cpu.features.len() > FEATURES_MAX {
            return Err(BadManifest::Features);
        }
        for feature in &self.cpu.features {
            name("A CPU feature", feature)?;
        }
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return Err(BadManifest::Vcpus(self.vcpus));
        }
        self.memory_size().map(drop)
    }

    /// The memory's size, checked.
    pub fn memory_size(&self) -> Result<MemorySize, BadManifest> {
        let size = MemorySize::new(self.memory_bytes).ok();
        size.filter(|size| size.bytes() <= MEMORY_BYTES_MAX)
            .ok_or(BadManifest::Memory(self.memory_bytes))
    }

    /// Refuses a host that cannot restore the snapshot, and says what it lacks.
    pub fn fits(&self, offer: &Offer) -> Result<(), Unfit> {
        if self.state_format > offer.state_format {
            return Err(Unfit::Newer {
                found: self.state_format,
                known: offer.state_format,
                version: self.vmm_version.clone(),
            });
        }
        if self.cpu.vendor != offer.cpu.vendor {
            return Err(Unfit::Vendor {
                snapshot: self.cpu.vendor.clone(),
                host: offer.cpu.vendor.clone(),
            });
        }
        let missing = self.cpu.features.difference(&offer.cpu.features);
        let missing: Vec<_> = missing.cloned().collect();
        if !missing.is_empty() {
            return Err(Unfit::Features(missing));
        }
        if self.vcpus > offer.vcpus_max {
            return Err(Unfit::Vcpus {
                found: self.vcpus,
                most: offer.vcpus_max,
            });
        }
        if self.memory_bytes > offer.memory_bytes_max {
            return Err(Unfit::Memory {
                found: self.memory_bytes,
                most: offer.memory_bytes_max,
            });
        }
        Ok(())
    }
}

fn name(what: &'static str, text: &str) -> Result<(), BadManifest> {
    if (1..=NAME_BYTES_MAX).contains(&text.len()) {
        Ok(())
    } else {
        Err(BadManifest::Name(what))
    }
}
