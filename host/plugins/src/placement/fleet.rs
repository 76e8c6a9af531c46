//! What placement is told and what it answers, as rows with names: the shape in which the host thinks.
//!
//! Always: names only, no indices; the columns of `wit/placement` are made from this and nowhere else.
//! Never: where the facts come from, or whether a choice is carried out.
//!
//! Units: CPU in millicores, memory in MiB, storage in GiB, latency in microseconds (round trip), money in
//! millionths of the operator's currency per hour.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A region as seen by the host that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Unique name.
    pub name: String,
    /// The operator's wish to use it, 1 (last resort) to 100.
    pub priority: u8,
    /// Round trip to other regions by name; absent when not measured.
    #[serde(default)]
    pub latency_us: BTreeMap<String, u32>,
}

/// What a host has left, already without what is reserved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Free {
    /// CPU.
    pub cpu_millis: u32,
    /// Memory.
    pub memory_mib: u32,
    /// Storage.
    pub storage_gib: u32,
    /// GPUs of the host's model.
    pub gpus: u32,
    /// Network bandwidth, Mbit/s.
    pub bandwidth_mbps: u32,
}

/// One host. A host with an empty id is a free slot (only in a [`Fleet`], never in a [`Change`]).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Unique id.
    pub id: String,
    /// Name of its region.
    pub region: String,
    /// Zone inside the region.
    pub zone: Option<String>,
    /// Whether new VMs may come here.
    pub accepting: bool,
    /// 0 (down) to 100.
    pub health: u8,
    /// Round trip from the asking host; none when not measured.
    pub latency_us: Option<u32>,
    /// Price of one whole vCPU.
    pub cpu_price_micros: u32,
    /// Price of one GiB of memory.
    pub memory_price_micros: u32,
    /// All CPU that may be given to VMs.
    pub cpu_total_millis: u32,
    /// All memory.
    pub memory_total_mib: u32,
    /// All storage.
    pub storage_total_gib: u32,
    /// GPU model.
    pub gpu_model: Option<String>,
    /// `key=value`, at most 64; those of the region are repeated here.
    pub labels: BTreeSet<String>,
    /// What is left.
    pub free: Free,
    /// How many members of each group of VMs it holds.
    pub members: BTreeMap<String, u32>,
}

/// Everything. The order of `hosts` is the order of slots; a row with an empty id is a free slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// At most 1,024.
    pub regions: Vec<Region>,
    /// At most 1,048,576.
    pub hosts: Vec<Host>,
}

/// What differs from the state before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// The regions are now these.
    Regions(Vec<Region>),
    /// This host is new, or is now this.
    Host(Box<Host>),
    /// This host is no more.
    Gone {
        /// Its id.
        host: String,
    },
    /// This host has this left.
    Free {
        /// Its id.
        host: String,
        /// What is left.
        free: Free,
    },
    /// This host now holds so many members of a group; 0 for none.
    Members {
        /// Its id.
        host: String,
        /// The group.
        group: String,
        /// How many.
        count: u32,
    },
}

/// How a request stands to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// Hard. Of several hosts, zones or regions, one must match; of several labels or groups, all.
    Requires,
    /// Hard. None may match.
    Forbids,
    /// Soft, for.
    Prefers,
    /// Soft, against.
    Avoids,
}

/// What a term is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// A host's id.
    Host,
    /// A zone.
    Zone,
    /// A region.
    Region,
    /// A label, `key=value`.
    Label,
    /// A group with a member on the same host.
    GroupOnHost,
    /// A group with a member in the same zone.
    GroupInZone,
    /// A group with a member in the same region.
    GroupInRegion,
}

/// One wish or condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// For or against, hard or soft.
    pub relation: Relation,
    /// What kind of thing `subject` names.
    pub scope: Scope,
    /// Its name.
    pub subject: String,
    /// Of soft terms, 1 to 100; of hard ones 0.
    #[serde(default)]
    pub weight: u8,
}

/// One VM to place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// Names it in messages and records; unique in a batch.
    pub id: String,
    /// CPU.
    pub cpu_millis: u32,
    /// Memory.
    pub memory_mib: u32,
    /// Storage.
    pub storage_gib: u32,
    /// Bandwidth, Mbit/s.
    pub bandwidth_mbps: u32,
    /// GPUs.
    pub gpus: u32,
    /// Their model; none for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_model: Option<String>,
    /// Region whose users it serves; none: latency counts from the asking host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near: Option<String>,
    /// Hard limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_latency_us: Option<u32>,
    /// Hard limit on the estimated price of the VM an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_limit_micros: Option<u64>,
    /// Hard limit, 0 to 100.
    pub min_health: u8,
    /// Wishes and conditions, at most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<Term>,
    /// Groups that the VM will belong to, at most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// Requests decided together: in order, each as if the earlier ones already stood where they were put.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// 1 to 1,024.
    pub requests: Vec<Request>,
    /// How many alternatives a decision may name, 0 to 8.
    pub alternatives: u8,
    /// Whether reasons are wanted in words.
    pub explain: bool,
}

/// A part of the score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Factor {
    /// `latency`, `cost`, …
    pub name: String,
    /// Its share; all sum to 1.
    pub weight: f64,
}

/// A host and what it is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Id of the host.
    pub host: String,
    /// 0 to 100; higher is better.
    pub score: f64,
    /// One value from 0 to 1 for each factor of the answer, in its order.
    pub values: Vec<f64>,
    /// Estimated price of the VM here.
    pub cost_micros: u64,
    /// Latency counted for this request; none when not measured.
    pub latency_us: Option<u32>,
}

/// Hosts taken out before scoring, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// `too little memory`, …
    pub reason: String,
    /// How many hosts.
    pub hosts: u32,
}

/// What was decided for one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Id of the request.
    pub request: String,
    /// The best, or none when no host is left.
    pub chosen: Option<Candidate>,
    /// One sentence for each factor, about the chosen host; empty unless explained.
    pub reasons: Vec<String>,
    /// The next best, best first.
    pub alternatives: Vec<Candidate>,
    /// How many hosts were scored.
    pub considered: u32,
    /// Why the others were not, largest count first.
    pub rejected: Vec<Rejection>,
}

/// The answer to a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What the scores are made of.
    pub factors: Vec<Factor>,
    /// One for each request, in order.
    pub decisions: Vec<Decision>,
}

/// Why a fleet, a change or a batch cannot be taken. The state is what it was before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// Two rows have the same id or name.
    #[error("{0} is there twice. Ids of hosts and names of regions are unique.")]
    Twice(String),
    /// A host is in a region that is not there.
    #[error("Host {host} is in region {region}, which the fleet does not have.")]
    UnknownRegion {
        /// The host.
        host: String,
        /// The region.
        region: String,
    },
    /// A change names a host that is not there.
    #[error("The fleet has no host {0}.")]
    UnknownHost(String),
    /// A change would not move the revision forward.
    #[error("Revision {to} is not after {from}.")]
    Revision {
        /// The present revision.
        from: u64,
        /// The one given.
        to: u64,
    },
    /// Something is over its bound.
    #[error("{what}: {count} is more than the {max} allowed.")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// A value is out of its range.
    #[error("{0}")]
    Range(String),
}
