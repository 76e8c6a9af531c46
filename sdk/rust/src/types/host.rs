//! Hosts and the images that they hold.

use serde::{Deserialize, Serialize};

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its name here.
    pub name: String,
    /// Its region.
    pub region: String,
    /// `IP:PORT` of its DWCP port.
    pub address: String,
    /// SHA-256 of its identity certificate, hexadecimal.
    pub fingerprint: String,
    /// Whether it is the host that answered.
    pub this: bool,
    /// Whether it answered when last asked.
    pub reachable: bool,
    /// Why it did not, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Round trip to it when last measured, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// What it can hold and holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
}

/// What a host can hold and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// Logical processors.
    pub cpus: u32,
    /// Virtual CPUs promised to machines.
    pub vcpus_used: u32,
    /// Memory that machines may use, bytes.
    pub memory_bytes: u64,
    /// Memory promised to machines, bytes.
    pub memory_used_bytes: u64,
    /// Machines that are there.
    pub vms: u32,
}

/// Introduces another host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostAdd {
    /// What it is called here.
    pub name: String,
    /// `IP:PORT` of its DWCP port.
    pub address: String,
    /// SHA-256 of its identity certificate, hexadecimal.
    pub fingerprint: String,
}

/// Stored content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// SHA-256 of the content, hexadecimal.
    pub digest: String,
    /// Length, bytes.
    pub size_bytes: u64,
    /// What the uploader called it.
    #[serde(default)]
    pub label: String,
    /// When it was stored, ms.
    pub created_ms: u64,
}
