//! Work that goes on after its request was answered, and what happened.

use serde::{Deserialize, Serialize};

use super::migration::Migration;
use super::words;

/// An operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its identity.
    pub id: String,
    /// What it does, such as `vm.start`.
    pub action: String,
    /// What it does it to, such as `projects/default/vms/web`.
    pub object: String,
    /// How far it is.
    pub state: OperationState,
    /// What it does now, or why it failed.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// Under way.
    Running,
    /// It did what was asked.
    Done,
    /// It did not.
    Failed,
    /// Something that this client does not know.
    #[serde(other)]
    Unknown,
}

words!(OperationState { Running => "running", Done => "done", Failed => "failed" });

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number on the host, growing.
    pub sequence: u64,
    /// When, ms.
    pub time_ms: u64,
    /// What kind, such as `vm.started`.
    pub kind: String,
    /// What it is about.
    pub object: String,
    /// What happened, in a sentence.
    pub message: String,
}
