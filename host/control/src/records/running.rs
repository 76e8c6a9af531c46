//! Machines while they run: what they have done, and what can be changed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a running machine has done since its process was started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmStats {
    /// Its virtual CPUs.
    pub vcpus: Vec<VcpuStats>,
    /// Its memory, bytes.
    pub memory_bytes: u64,
    /// Memory that its guest was asked to give up, bytes.
    pub balloon_target_bytes: u64,
    /// Memory that its guest says that it has given up, bytes.
    pub balloon_bytes: u64,
    /// Bytes that its guest wrote to its consoles.
    pub console_bytes: u64,
    /// Its virtio devices, in the order in which the guest finds them.
    pub devices: Vec<DeviceStats>,
}

/// What a virtual CPU has done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VcpuStats {
    /// How often the guest was left for the machine's process.
    pub exits: u64,
    /// Time that it had a processor, in the guest and outside, ns.
    pub cpu_ns: u64,
}

/// What a virtio device has done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceStats {
    /// What it is: a disk's name, `net-0`, `rng`, `balloon`, `console`, `vsock`.
    pub name: String,
    /// Requests that it served.
    pub operations: u64,
    /// Bytes that it took from the guest: written to a disk, sent by a card.
    pub from_guest_bytes: u64,
    /// Bytes that it gave to the guest: read from a disk, received by a card.
    pub to_guest_bytes: u64,
    /// Requests that failed, and breaks of the specification by the guest's driver.
    pub errors: u64,
    /// Whether it waits for its driver to reset it, because that broke the specification.
    pub needs_reset: bool,
}

/// How much memory a machine's guest is to use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryTarget {
    /// Memory that it keeps, bytes: a multiple of 4096. Its whole memory gives it back what it gave up.
    pub target_bytes: u64,
}

/// How long a disk is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskResize {
    /// Its size, bytes: a multiple of 512, and not less than now.
    pub size_bytes: u64,
}
