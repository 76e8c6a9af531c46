//! Policies, where they act, and decisions.

use serde::{Deserialize, Serialize};

use super::words;

/// A policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// SHA-256 of the source.
    pub digest: String,
    /// The Rego source.
    pub source: String,
    /// Facts that it says it needs.
    pub facts: Vec<String>,
    /// When it was applied, ms.
    pub applied_ms: u64,
}

/// Where a policy acts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// The policy.
    pub policy: String,
    /// The action that it decides about, such as `vm.create`.
    pub action: String,
    /// The project in which it acts; everywhere if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// What its answer does.
    #[serde(default)]
    pub mode: BindingMode,
}

/// What a bound policy's answer does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindingMode {
    /// A denial refuses the request.
    #[default]
    Enforce,
    /// A denial is told to the caller as a warning.
    Warn,
    /// A denial is only recorded.
    DryRun,
    /// Something that this client does not know.
    #[serde(other)]
    Unknown,
}

words!(BindingMode { Enforce => "enforce", Warn => "warn", DryRun => "dry-run" });

/// A recorded decision of a plugin or policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Its identity.
    pub id: String,
    /// When it was asked, ms.
    pub time_ms: u64,
    /// The world that was asked.
    pub world: String,
    /// Who answered.
    pub plugin: String,
    /// SHA-256 of the component that answered.
    pub digest: String,
    /// SHA-256 of what the component was configured with; empty where there is nothing.
    #[serde(default)]
    pub configuration: String,
    /// What it was about.
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
