//! Hosts and the images that they hold.

use serde::{Deserialize, Serialize};

use super::words;

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
    /// Its CPU as machines find it; told of the host that answered, when it alone is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<HostCpu>,
}

/// What a machine is told of its CPU: a baseline hides what not every host of a fleet has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuBaseline {
    /// Whatever the host offers.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// The x86-64 psABI's baseline.
    #[serde(rename = "x86-64")]
    V1,
    /// Its second level.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// Its third level.
    #[serde(rename = "x86-64-v3")]
    V3,
    /// Its fourth level.
    #[serde(rename = "x86-64-v4")]
    V4,
    /// Something that this client does not know.
    #[serde(other)]
    Unknown,
}

words!(CpuBaseline {
    Host => "host",
    V1 => "x86-64",
    V2 => "x86-64-v2",
    V3 => "x86-64-v3",
    V4 => "x86-64-v4",
});

impl CpuBaseline {
    /// All that this client knows.
    pub const ALL: [Self; 5] = [Self::Host, Self::V1, Self::V2, Self::V3, Self::V4];
}

/// A host's CPU as its machines find it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostCpu {
    /// Who made it, as CPUID says.
    pub vendor: String,
    /// The baseline beyond which the host offers nothing; `host` if there is none.
    pub limit: CpuBaseline,
    /// The baselines, the widest first.
    pub baselines: Vec<OfferedBaseline>,
}

/// A baseline, seen from one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfferedBaseline {
    /// Which one.
    pub name: CpuBaseline,
    /// What it contains.
    pub features: Vec<String>,
    /// Of these, the ones that the host lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<String>,
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
    /// What is known of it, if it is a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskImage>,
}

/// What is known of an image that is a disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskImage {
    /// How the file holds it.
    pub format: DiskFormat,
    /// Size of the disk that a machine sees, bytes.
    pub size_bytes: u64,
    /// The kernel that was found in it, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The initial RAM disk that was found in it, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// Why no kernel was found, or what else there is to know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// How a file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
    /// Something that this client does not know.
    #[serde(other)]
    Unknown,
}

words!(DiskFormat { Raw => "raw", Qcow2 => "qcow2" });
