//! What a host notes of what was done: decisions, events, and the audit log as a client sees it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Digest;

/// A recorded decision of a plugin or policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// Its identity.
    pub id: String,
    /// When it was asked, ms.
    pub time_ms: u64,
    /// The world that was asked: `placement`, `template`, `policy`.
    pub world: String,
    /// Who answered, `publisher/name@version`.
    pub plugin: String,
    /// SHA-256 of the component that answered.
    pub digest: Digest,
    /// SHA-256 of what the component was configured with (a policy's sources); empty where there is nothing.
    #[serde(default)]
    pub configuration: String,
    /// What it was about, such as `projects/default/vms/web`.
    pub subject: String,
    /// What it was asked. A part of a decision that was too large to keep is replaced by `left_out_bytes`.
    pub input: serde_json::Value,
    /// The fleet that placement saw, of the revision that the input names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<serde_json::Value>,
    /// What it answered, or the fault.
    pub answer: serde_json::Value,
    /// Whether the call ended in a fault.
    pub fault: bool,
    /// How long it took, µs.
    pub duration_us: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number on this host, growing.
    pub sequence: u64,
    /// When, ms.
    pub time_ms: u64,
    /// What kind, such as `vm.started`.
    pub kind: String,
    /// What it is about, such as `projects/default/vms/web`.
    pub object: String,
    /// What happened, in a sentence.
    pub message: String,
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Its index in the log, from 0.
    pub index: u64,
    /// The entry exactly as it was hashed: canonical JSON.
    pub entry: String,
}

/// What a client needs to check the audit log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditCheckpoint {
    /// The signed note (C2SP tlog-checkpoint).
    pub note: String,
    /// The verifier key (C2SP signed-note: name, key hash, key).
    pub key: String,
}
