//! What is kept of every decision, and who keeps it.
//!
//! Always: a record holds enough to decide again (input or revision and batch, plugin digest, configuration digest)
//! and the answer as JSON text, byte for byte. Never: where records are stored, or a clock: time comes from the caller.

use crate::fault::Fault;
use serde::{Deserialize, Serialize};

/// Which decision, and when: given by the caller, for plugins and this crate have no clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Name of the decision, unique on this host; a version 7 UUID is customary.
    pub id: String,
    /// Milliseconds since 1970, by the caller's clock.
    pub at_ms: u64,
}

impl Stamp {
    /// A stamp.
    pub fn new(id: impl Into<String>, at_ms: u64) -> Stamp {
        Stamp {
            id: id.into(),
            at_ms,
        }
    }
}

/// The worlds that this version of the host calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum World {
    /// Chooses the host of a VM.
    Placement,
    /// Allows, denies, warns.
    Policy,
    /// Expands a template and its parameters to the VMs to make.
    Template,
}

impl World {
    /// The world's name in manifests and in WIT.
    pub fn name(self) -> &'static str {
        match self {
            World::Placement => "placement",
            World::Policy => "policy",
            World::Template => "template",
        }
    }
}

impl std::fmt::Display for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What came of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The answer, JSON text.
    Answer(String),
    /// There was none.
    Fault(Fault),
}

/// One decision, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// The caller's name for it.
    pub id: String,
    /// When it was asked, milliseconds since 1970.
    pub at_ms: u64,
    /// Which world decided.
    pub world: World,
    /// `name@version` of the plugin, from its manifest.
    pub plugin: String,
    /// SHA-256 of the component, hex.
    pub digest: String,
    /// SHA-256 of the configuration the instance had (a policy's sources), hex; empty where there is none.
    pub configuration: String,
    /// JSON text of what was asked; for placement the revision and the batch.
    pub input: String,
    /// What came of it.
    pub outcome: Outcome,
    /// Wall time of the call, in microseconds.
    pub duration_us: u64,
}

/// Who is told every decision. Called on the deciding thread: it must be quick and must not fail the caller.
pub trait Recorder: Send + Sync {
    /// Keeps one decision.
    fn record(&self, record: DecisionRecord);
}

/// Keeps nothing; for programs that only measure.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRecorder;

impl Recorder for NoRecorder {
    fn record(&self, _: DecisionRecord) {}
}

/// Why a record cannot be decided again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The record is another plugin's.
    #[error(
        "The record was made by component {recorded}, this is {ours}. Replay it with the plugin version that made it."
    )]
    OtherPlugin {
        /// Digest in the record.
        recorded: String,
        /// Digest of the handle.
        ours: String,
    },
    /// The record was made under another configuration.
    #[error(
        "The record was made under configuration {recorded}, this is {ours}. Configure the plugin as it was then."
    )]
    OtherConfiguration {
        /// Digest in the record.
        recorded: String,
        /// Digest of the handle.
        ours: String,
    },
    /// The fleet given is not of the record's revision.
    #[error(
        "The record was made at fleet revision {recorded}, the fleet given is of revision {ours}."
    )]
    OtherRevision {
        /// Revision in the record.
        recorded: u64,
        /// Revision of the fleet given.
        ours: u64,
    },
    /// The input of the record cannot be read.
    #[error("The record's input cannot be read: {0}.")]
    Damaged(String),
}

/// A decision made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// What came of it now.
    pub outcome: Outcome,
    /// Whether that is, byte for byte, what the record says.
    pub same: bool,
}
