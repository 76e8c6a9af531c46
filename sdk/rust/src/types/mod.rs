//! The records of the API as a client sees them.
//!
//! They follow `host/api/openapi.json` (a test compares them) and tolerate what a newer host adds: unknown fields are
//! ignored, unknown words become `Unknown`. Times are ms since the Unix epoch (`_ms`), sizes bytes (`_bytes`).

mod audit;
mod host;
mod migration;
mod operation;
mod plugin;
mod policy;
mod problem;
mod running;
mod snapshot;
mod vm;

pub use audit::{AuditCheckpoint, AuditRecord, Proof};
pub use host::{
    Capacity, CpuBaseline, DiskFormat, DiskImage, Host, HostAdd, HostCpu, Image, OfferedBaseline,
};
pub use migration::{MigrateRequest, Migration, MigrationPhase, Progress, Resolve, Round, Side};
pub use operation::{Event, Operation, OperationState};
pub use plugin::{MarketplaceItem, Plugin, PluginInstall, Template};
pub use policy::{Binding, BindingMode, Decision, Policy};
pub use problem::Problem;
pub use running::{DeviceStats, DiskResize, MemoryTarget, VcpuStats, VmStats};
pub use snapshot::{Base, Origin, RestoreRequest, Snapshot, SnapshotCreate};
pub use vm::{
    CardInside, Desired, DiskSpec, ForkRequest, GuestSetup, NetworkSpec, Placement, RestartPolicy,
    Vm, VmCreate, VmCreated, VmForked, VmPhase, VmSpec,
};

/// A part of a list.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Page<T> {
    /// The objects.
    pub items: Vec<T>,
    /// Give this as `cursor` for the next part; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Writes a word as the API does.
macro_rules! words {
    ($name:ident { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $name {
            /// The word of the API.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                    Self::Unknown => "unknown",
                }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(crate) use words;
