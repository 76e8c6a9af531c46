//! Virtual machines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::host::CpuBaseline;
use super::operation::Operation;
use super::snapshot::Origin;
use super::words;

/// What kind of machine it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Kernel image, by digest.
    pub kernel: String,
    /// Initial RAM disk, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// Guest memory, bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// What it is told of its CPU.
    #[serde(default)]
    pub cpu: CpuBaseline,
    /// Whether its memory is of huge pages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hugepages: bool,
    /// Whether `kernel` is a firmware.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub firmware: bool,
    /// Disks, in the order in which the machine finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// Network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkSpec>,
    /// What it is told when it starts for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<GuestSetup>,
    /// What happens when the guest crashes.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Free labels.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// What a machine is told when it starts for the first time, by cloud-init.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestSetup {
    /// SSH keys that may log in, as lines of `authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// User data: `#cloud-config` or a script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Unique in the machine.
    pub name: String,
    /// What it begins as: an image that is a disk, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Size, bytes.
    #[serde(default)]
    pub size_bytes: u64,
    /// Whether the machine may not change it.
    #[serde(default)]
    pub read_only: bool,
    /// Most requests a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<u64>,
    /// Most bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

impl DiskSpec {
    /// An empty disk that the machine may change, without limits.
    pub fn empty(name: &str, size_bytes: u64) -> Self {
        Self {
            name: name.into(),
            image: None,
            size_bytes,
            read_only: false,
            operations_per_second: None,
            bytes_per_second: None,
        }
    }
}

/// A network card of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The network it is on.
    pub network: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its IPv4 address with the length of the prefix.
    pub address: String,
    /// What the guest takes for these two, if it goes on from where another one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<CardInside>,
}

/// The addresses of a network card as its guest knows them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CardInside {
    /// Its Ethernet address.
    pub mac: String,
    /// Its IPv4 address with the length of the prefix.
    pub address: String,
}

/// What happens when a guest ends without its owner having asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It stays down and is reported.
    #[default]
    Never,
    /// It is started again.
    OnCrash,
    /// The same, and also when it powers off by itself.
    Always,
    /// Something that this client does not know.
    #[serde(other)]
    Unknown,
}

words!(RestartPolicy { Never => "never", OnCrash => "on-crash", Always => "always" });

/// A request to create a machine: from a kernel or from a template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmCreate {
    /// Its name, unique in the project.
    pub name: String,
    /// Template to expand, `publisher/name` or `publisher/name@version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Parameters of the template.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// Kernel image by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Initial RAM disk by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Guest memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// What it is told of its CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuBaseline>,
    /// Whether its memory is of huge pages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hugepages: bool,
    /// Firmware by digest, instead of a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// A snapshot to go on from instead of booting; only name, restart policy and labels can be the machine's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// A disk image to boot, by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Size of the disk `root`, bytes; the image's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_bytes: Option<u64>,
    /// More disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// Networks to be on; `default` for a machine from an image if absent, none for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// What it is told when it starts for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<GuestSetup>,
    /// Restart policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// Labels.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Whether it starts at once.
    pub start: bool,
}

impl VmCreate {
    /// A machine that starts at once and has nothing but a name yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            template: None,
            parameters: BTreeMap::new(),
            kernel: None,
            initrd: None,
            cmdline: None,
            memory_bytes: None,
            vcpus: None,
            cpu: None,
            hugepages: false,
            firmware: None,
            snapshot: None,
            image: None,
            root_bytes: None,
            disks: Vec::new(),
            networks: None,
            setup: None,
            restart: None,
            tags: BTreeMap::new(),
            start: true,
        }
    }
}

/// Makes forks of a template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForkRequest {
    /// What the fork is called; without it forks are called like the template, with numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many, 1 to 64; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Make the machine a template if it is none: it never runs again.
    #[serde(default)]
    pub seal: bool,
}

/// Forks that were made, and the operation that starts them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmForked {
    /// The forks.
    pub vms: Vec<Vm>,
    /// What goes on: their start.
    pub operation: Operation,
}

/// A machine that was created, and the operation that starts it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmCreated {
    /// The machine.
    pub vm: Vm,
    /// What goes on.
    pub operation: Operation,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vm {
    /// Its identity, for ever.
    pub id: String,
    /// The project that owns it.
    pub project: String,
    /// Its name in the project.
    pub name: String,
    /// What it is.
    pub spec: VmSpec,
    /// The template that it came from, with version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Whether its owner wants it to run.
    pub desired: Desired,
    /// What it does now.
    pub phase: VmPhase,
    /// Why it is in this phase, where there is something to say.
    #[serde(default)]
    pub reason: String,
    /// The host that has it, or that it went to.
    pub host: String,
    /// The number under which exactly one host owns it.
    pub epoch: u64,
    /// When it was asked for, ms.
    pub created_ms: u64,
    /// When it last began to run here, ms; 0 if never.
    pub started_ms: u64,
    /// Why its host was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Memory that its guest is asked to make do with, bytes; all of it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_target_bytes: Option<u64>,
    /// The snapshot that it went on from last, and that its disks stand on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// What the owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// It should run.
    Running,
    /// It should not run.
    Stopped,
    /// Something that this client does not know.
    #[serde(other)]
    Unknown,
}

words!(Desired { Running => "running", Stopped => "stopped" });

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// It was given to another host whose answer is not here yet.
    InDoubt,
    /// It ended by a fault.
    Crashed,
    /// It lives on another host.
    Moved,
    /// It stands still for ever: forks are made of it.
    Template,
    /// Something that this client does not know.
    #[serde(other)]
    Unknown,
}

words!(VmPhase {
    Stopped => "stopped",
    Starting => "starting",
    Running => "running",
    Paused => "paused",
    Migrating => "migrating",
    Incoming => "incoming",
    InDoubt => "in-doubt",
    Crashed => "crashed",
    Moved => "moved",
    Template => "template",
});

/// Why a host was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// The recorded decision.
    pub decision: String,
    /// The plugin that decided, or `built-in`.
    pub plugin: String,
    /// The host that was chosen.
    pub host: String,
    /// Its score, 0 to 100; higher is better.
    pub score: f64,
    /// Each factor and what it said.
    pub reasons: Vec<String>,
    /// The hosts that were not chosen, with the reason.
    pub alternatives: Vec<String>,
}
