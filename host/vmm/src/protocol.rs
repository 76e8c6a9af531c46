//! What the VMM is told and what it answers, as `channel` messages over its listening socket.
//!
//! ```text
//! client                                   VMM
//!   | Hello{versions: [1]}                  |   first on every connection
//!   |-------------------------------------->|
//!   |                  Hello{version: 1}    |
//!   |<--------------------------------------|
//!   | Run / Pause / Save / …                |   one request, one reply, in order
//!   |-------------------------------------->|
//!   |        Done / State{…} + fd / Refused |
//!   |<--------------------------------------|
//!
//!            Load            Run
//!   idle ---------> loaded ------> running <------+
//!    |  (incoming)                  |  ^          |
//!    |        Restore, Fork         |  |          |
//!    |        (shell)               |  |          |
//!    | Run (fresh)                  |  |          |
//!    +------------------------------+  |          |
//!                                Pause |          | Resume
//!                                   v  |          |
//!                                  paused --------+
//! ```
//!
//! Several connections may be open; each request is served whole before the next. A request that the phase does not
//! allow is refused with the reason and changes nothing.

use dwcp_snapshot::{Cpu, Disk, SnapshotDigest};
use serde::{Deserialize, Serialize};

/// The versions this program speaks, best first.
pub const VERSIONS: [u32; 1] = [1];

/// A request to the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Which versions the client speaks.
    Hello {
        /// Any order.
        versions: Vec<u32>,
    },
    /// Lets the vCPUs run for the first time, under an ownership epoch.
    Run {
        /// Not less than any epoch seen before.
        epoch: u64,
    },
    /// Makes durable what the guest wrote to its disks, and stops all vCPUs; answered when none runs. The guest goes on
    /// if that cannot be done.
    Pause,
    /// Lets paused vCPUs go on.
    Resume {
        /// Not less than any epoch seen before.
        epoch: u64,
    },
    /// Ends the VM.
    Stop {
        /// False presses the ACPI power button; true ends the process.
        force: bool,
    },
    /// Attaches to the guest's console; the reply carries one end of a socket pair of raw bytes, scrollback first.
    ///
    /// What the guest says on its serial port and on its virtio console comes in one stream. What is typed goes to the
    /// virtio console while its driver is ready and has given room for input, and to the serial port otherwise.
    Console,
    /// Makes a disk longer, and tells the guest. Refused if it would become shorter, or than the process may write.
    Resize {
        /// Its name in the status.
        device: String,
        /// Its size in bytes, whole sectors of 512.
        bytes: u64,
    },
    /// Whoever has the other end of a socket (one descriptor, `SOCK_SEQPACKET`) is asked from now on when the guest
    /// connects to the host, as [`crate::vsock`] says.
    Host,
    /// The guest shall give up memory, or have it back: the balloon's target. How far it is, its status says.
    Balloon {
        /// Its name in the status.
        device: String,
        /// Pages of 4096 bytes, less than the guest has.
        pages: u32,
    },
    /// Begins to log which pages change, and marks every page that is there: its consumer has none of them.
    DirtyStart,
    /// Adds what changed since the last harvest to the shared bitmap.
    DirtyHarvest,
    /// Ends the log.
    DirtyStop,
    /// Writes the device state of a paused VM; the reply carries it as a sealed memfd.
    Save,
    /// The same, for forks of this VM. Refused if its memory is private to this process.
    SaveTemplate,
    /// Takes a device state (one descriptor: a memfd) into a VM that was started as incoming.
    Load,
    /// Writes the paused VM as a snapshot into an empty file (one descriptor), and syncs it. Takes as long as that
    /// takes; nothing else is served meanwhile.
    Snapshot(SnapshotOrder),
    /// Makes a shell what a snapshot holds: its files, the newest first, each followed by its base; they must never
    /// change. If all are raw they are mapped copy-on-write, and the caller has had their memory checked. If not, memory
    /// comes from them while the guest runs, each chunk checked; the process ends when one is damaged.
    Restore,
    /// Makes a shell what a template was: its device state (one descriptor). The template's memory, sealed, is what the
    /// shell was given for memory when it was started.
    Fork,
    /// How the VM is.
    Status,
    /// What the guest was told of its CPU, and what this host offers.
    Cpu,
}

/// How to write a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotOrder {
    /// Whether memory is compressed; if not, the file can be mapped.
    pub compressed: bool,
    /// The snapshot to hold only the changes of: the one that the status names.
    pub base: Option<SnapshotDigest>,
    /// Whether changes are logged from now on, so that the next one can be a change of this one. If not, a log that is
    /// kept for that ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_changes: bool,
    /// The VM's disks as they are now, for the manifest.
    pub disks: Vec<Disk>,
}

/// An answer of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// The version both speak.
    Hello {
        /// One of [`VERSIONS`].
        version: u32,
    },
    /// It was done.
    Done,
    /// The console; one descriptor.
    Console,
    /// The bitmap after a harvest.
    Dirty {
        /// Bits set in it now.
        pages: u64,
    },
    /// A device state; one descriptor.
    State {
        /// Its length.
        bytes: u64,
    },
    /// A snapshot was written.
    Snapshot {
        /// Its digest.
        digest: SnapshotDigest,
    },
    /// How the VM is.
    Status(Status),
    /// Its CPU.
    Cpu(CpuStatus),
    /// It was not done, and nothing changed.
    Refused {
        /// Why, as a sentence.
        reason: String,
    },
}

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Built; no vCPU has run.
    Idle,
    /// A device state was loaded; no vCPU has run here.
    Loaded,
    /// vCPUs run.
    Running,
    /// vCPUs ran and stand still.
    Paused,
}

/// How a VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Where it is in its life.
    pub phase: Phase,
    /// The highest epoch seen; 0 before the first.
    pub epoch: u64,
    /// How many vCPUs it has.
    pub vcpus: u8,
    /// Guest RAM.
    pub memory_bytes: u64,
    /// Exits to this process so far, per vCPU.
    pub exits: Vec<u64>,
    /// Time that each vCPU had a CPU so far, in the guest and outside, in nanoseconds.
    #[serde(default)]
    pub cpu_ns: Vec<u64>,
    /// Bytes that the guest wrote to its serial port and its virtio console so far.
    pub serial_bytes: u64,
    /// If guest RAM is private to the process, as that of a restored or forked VM is: the address of each of its regions
    /// there, for whoever reads the process's memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private_at: Vec<u64>,
    /// Chunks of 2 MiB of memory that are still to come from a compressed snapshot.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_chunks: u64,
    /// The snapshot since which it is known what changed, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes_since: Option<SnapshotDigest>,
    /// Its virtio devices, in the order of the configuration.
    #[serde(default)]
    pub devices: Vec<DeviceStatus>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A guest's CPU, and its host's. Features have the names that manifests of snapshots have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuStatus {
    /// What the guest was told; before that, what it could be told.
    pub told: Cpu,
    /// All that a guest could be told here, within the VM's baseline.
    pub offered: Cpu,
}

/// What a device did so far, and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceStatus {
    /// What it is, and its slot on the bus: `block-2`.
    pub name: String,
    /// Requests that it served.
    pub operations: u64,
    /// Bytes that it took from the guest.
    pub read_bytes: u64,
    /// Bytes that it gave to the guest.
    pub written_bytes: u64,
    /// Requests that failed, and breaks of the specification by the guest's driver.
    pub errors: u64,
    /// Whether it waits for its driver to reset it, because the driver broke the specification.
    pub needs_reset: bool,
    /// How full it is, if it is a balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonStatus>,
}

/// How full a balloon is, in pages of 4096 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatus {
    /// What the guest was asked to give up.
    pub target_pages: u32,
    /// What it says that it has given up; whatever it says, memory that it gave up is the host's again.
    pub actual_pages: u32,
}
