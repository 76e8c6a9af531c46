//! Policies, and what they are bound to.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Digest;
use crate::names::Name;

/// A policy: source text, kept until it is bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// Its name.
    pub name: Name,
    /// SHA-256 of the source.
    pub digest: Digest,
    /// The Rego source.
    pub source: String,
    /// Facts that it says it needs.
    pub facts: Vec<String>,
    /// When it was applied, ms.
    pub applied_ms: u64,
}

/// Where a policy acts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// The policy.
    pub policy: Name,
    /// The action that it decides about, such as `vm.create`.
    pub action: String,
    /// The project in which it acts; everywhere if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Name>,
    /// What its answer does.
    #[serde(default)]
    pub mode: BindingMode,
}

/// What a bound policy's answer does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BindingMode {
    /// A denial refuses the request.
    #[default]
    Enforce,
    /// A denial is told to the caller as a warning.
    Warn,
    /// A denial is only recorded.
    DryRun,
}
