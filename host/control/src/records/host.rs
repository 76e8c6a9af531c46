//! Hosts: this one, and those that it was introduced to.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Digest, HostCpu};
use crate::names::Name;

/// A host that this one was introduced to, or this one itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// Its name here.
    pub name: Name,
    /// Its region.
    pub region: Name,
    /// `IP:PORT` of its DWCP port.
    pub address: String,
    /// SHA-256 of its identity certificate, 64 hexadecimal digits.
    pub fingerprint: Digest,
    /// Whether it is this host.
    pub this: bool,
    /// Whether it answered when last asked (always true of this host).
    pub reachable: bool,
    /// Why it did not, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Round trip to it when last measured, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// What it can hold and holds; of a peer, as last heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Its CPU as machines find it; told of this host, when it alone is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<HostCpu>,
}

/// What a host can hold and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    /// Logical processors.
    pub cpus: u32,
    /// Virtual CPUs promised to machines.
    pub vcpus_used: u32,
    /// Memory that machines may use, bytes.
    pub memory_bytes: u64,
    /// Memory promised to machines, bytes.
    pub memory_used_bytes: u64,
    /// Machines that are here.
    pub vms: u32,
}

/// Introduces another host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostAdd {
    /// What it is called here.
    pub name: Name,
    /// `IP:PORT` of its DWCP port.
    #[schema(example = "192.0.2.7:4600")]
    pub address: String,
    /// SHA-256 of its identity certificate (`dwcp host show` there prints it).
    pub fingerprint: Digest,
}
