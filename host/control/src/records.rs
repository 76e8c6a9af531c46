//! The records: what is kept in the store and shown by the API, in one shape.
//!
//! Times are milliseconds since the Unix epoch (`_ms`), sizes are bytes (`_bytes`). Maps are ordered, so that the same
//! record always has the same text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::names::Name;

mod cpu;
mod fork;
mod hardware;
mod host;
mod journal;
mod market;
mod migration;
mod policy;
mod running;
mod snapshot;

pub use cpu::{CpuBaseline, HostCpu, OfferedBaseline};
pub use fork::ForkRequest;
pub use hardware::{CardInside, DiskFormat, DiskImage, DiskSpec, GuestSetup, NetworkSpec};
pub use host::{Capacity, Host, HostAdd};
pub use journal::{AuditCheckpoint, AuditRecord, Decision, Event};
pub use market::{MarketplaceItem, Plugin, PluginInstall, Template};
pub use migration::{MigrateRequest, Migration, MigrationPhase, Progress, Round, Side};
pub use policy::{Binding, BindingMode, Policy};
pub use running::{DeviceStats, DiskResize, MemoryTarget, VcpuStats, VmStats};
pub use snapshot::{Base, Origin, RestoreRequest, Snapshot, SnapshotCreate};

/// Identifies a virtual machine for ever, wherever it runs and whatever it is called: a UUID, version 7.
pub type VmId = String;
/// SHA-256 of content, as 64 hexadecimal digits.
pub type Digest = String;

/// What kind of machine is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Kernel image (bzImage, vmlinux or PVH ELF), by the digest under which it was uploaded.
    pub kernel: Digest,
    /// Initial RAM disk, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Digest>,
    /// Kernel command line, at most 1,536 bytes.
    #[serde(default)]
    pub cmdline: String,
    /// Guest memory in bytes: a multiple of 2 MiB, from 16 MiB to 1 TiB.
    #[schema(example = 536870912)]
    pub memory_bytes: u64,
    /// Virtual CPUs, 1 to 32.
    #[schema(minimum = 1, maximum = 32)]
    pub vcpus: u8,
    /// What it is told of its CPU.
    #[serde(default, skip_serializing_if = "CpuBaseline::is_host")]
    pub cpu: CpuBaseline,
    /// Whether its memory is of huge pages (2 MiB), of which the host must have as many free.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hugepages: bool,
    /// Whether `kernel` is a firmware (PVH ELF), which finds on the disks what it boots: it gets no initial RAM disk and
    /// no command line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub firmware: bool,
    /// Disks, in the order in which the machine finds them; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// Network cards; at most 4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkSpec>,
    /// What it is told when it starts for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<GuestSetup>,
    /// What happens when the guest ends without its owner having asked for it.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Free labels, which policies and placement see; at most 64.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// What happens when a guest ends without its owner having asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It stays down and is reported.
    #[default]
    Never,
    /// It is started again: at once, then later and later, until it has crashed too often in a row.
    OnCrash,
    /// The same, and also when its guest powers off by itself.
    Always,
}

/// A request to create a virtual machine: from a kernel or from a template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreate {
    /// Its name, unique in the project.
    pub name: Name,
    /// Template to expand (`publisher/name` or `publisher/name@version`); without it `kernel` and `memory_bytes` are needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Parameters of the template, checked by the template's plugin.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Kernel image by digest; overrides a template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Digest>,
    /// Initial RAM disk by digest; overrides a template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Digest>,
    /// Kernel command line; overrides a template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Guest memory in bytes; overrides a template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Virtual CPUs; overrides a template's (default 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// What it is told of its CPU (default `host`). Refused if the host lacks a feature of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuBaseline>,
    /// Whether its memory is of huge pages (2 MiB), which the host's administrator has to reserve.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hugepages: bool,
    /// Firmware (PVH ELF) by digest, instead of a kernel: it finds on the disks what it boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Digest>,
    /// A snapshot to go on from instead of booting: the machine is what that one's was, with memory and disks of its own
    /// that begin as they are in the snapshot. Only name, restart policy and labels can be its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Name>,
    /// A disk image to boot, by digest: it becomes the disk `root`, and kernel, initial RAM disk and command line are the
    /// ones found in it unless others are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// Size of the disk `root` in bytes; the image's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_bytes: Option<u64>,
    /// More disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// Networks to be on. If absent, a machine from an image is on `default`, and others are on none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<Name>>,
    /// What it is told when it starts for the first time. A machine from an image is told its name at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<GuestSetup>,
    /// Restart policy; overrides a template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// Labels, added to a template's.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Whether it starts at once.
    #[serde(default = "yes")]
    pub start: bool,
}

fn yes() -> bool {
    true
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its identity.
    pub id: VmId,
    /// The project that owns it.
    pub project: Name,
    /// Its name in the project.
    pub name: Name,
    /// What it is.
    pub spec: VmSpec,
    /// The template that it came from, with version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Whether its owner wants it to run.
    pub desired: Desired,
    /// What it does now.
    pub phase: VmPhase,
    /// Why it is in this phase, in a sentence, where there is something to say.
    #[serde(default)]
    pub reason: String,
    /// The host that has it (or, of one that moved away, the host it went to).
    pub host: Name,
    /// The number under which exactly one host owns it; it only grows.
    pub epoch: u64,
    /// When it was asked for, ms.
    pub created_ms: u64,
    /// When it last began to run here, ms; 0 if never.
    pub started_ms: u64,
    /// The placement decision that chose the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Memory that its guest is asked to make do with, bytes; all of it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_target_bytes: Option<u64>,
    /// The snapshot or the template that it went on from last, and that its disks stand on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// What the owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// It should run.
    Running,
    /// It should not run.
    Stopped,
}

/// What a virtual machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmPhase {
    /// It exists and does not run.
    Stopped,
    /// Its process is being made.
    Starting,
    /// It runs.
    Running,
    /// It stands still until it is resumed.
    Paused,
    /// It runs here and is being sent to another host.
    Migrating,
    /// It is being received and has not run here.
    Incoming,
    /// It was given to another host whose answer is not here yet: it runs nowhere, or there.
    InDoubt,
    /// It ended by a fault of the guest or of its process.
    Crashed,
    /// It lives on another host; this record forwards.
    Moved,
    /// It stands still for ever: forks are made of it.
    Template,
}

/// Why a host was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    /// The recorded decision.
    pub decision: String,
    /// The plugin that decided, `publisher/name@version`.
    pub plugin: String,
    /// The host that was chosen.
    pub host: Name,
    /// Its score, 0 to 100; higher is better.
    pub score: f64,
    /// Each factor and what it said, in the plugin's words.
    pub reasons: Vec<String>,
    /// The hosts that were not chosen, with the reason.
    pub alternatives: Vec<String>,
}

/// A kernel, initial RAM disk or other content, addressed by its digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// SHA-256 of the content.
    pub digest: Digest,
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

/// An operation: work that goes on after the request was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its identity.
    pub id: String,
    /// What it does, such as `vm.start`.
    pub action: String,
    /// What it does it to, such as `projects/default/vms/web`.
    pub object: String,
    /// How far it is.
    pub state: OperationState,
    /// What it does now, or why it failed, in a sentence.
    #[serde(default)]
    pub message: String,
    /// What policies warned of when it was asked for, each with the policy's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// When it began, ms.
    pub started_ms: u64,
    /// When it ended, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// The migration that it is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Box<Migration>>,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// Under way.
    Running,
    /// It did what was asked.
    Done,
    /// It did not.
    Failed,
}
