//! What is asked, and what all policies together say of it.

use crate::binding::Mode;
use dwcp_plugins::Reason;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A question to the policies: who wants to do what to what, knowing what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// `vm.create`, `vm.migrate`, …
    pub action: String,
    /// Who asks.
    pub principal: Value,
    /// In which project.
    pub project: String,
    /// The object as it would be.
    pub object: Value,
    /// What the host knows besides; a fact that it does not know is absent.
    #[serde(default)]
    pub facts: Value,
}

/// What one policy found, in the mode in which it is bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The policy's name.
    pub policy: String,
    /// Its binding's mode.
    pub mode: Mode,
    /// Why.
    pub reasons: Vec<Reason>,
    /// Whether it is a failure of the policy, not a judgement of the request.
    pub fault: bool,
}

/// A fact that a policy needed and was not told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MissingFact {
    /// The policy.
    pub policy: String,
    /// The fact, below `facts`.
    pub fact: String,
}

/// What all bound policies together say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether the request may go on: no enforced policy denies.
    pub allowed: bool,
    /// Enforced denials.
    pub denials: Vec<Finding>,
    /// Warnings, and denials of policies that are bound to warn.
    pub warnings: Vec<Finding>,
    /// What policies that are only tried would have denied. Not for the requester.
    pub dry_run: Vec<Finding>,
    /// Facts that were needed and missing.
    pub missing_facts: Vec<MissingFact>,
    /// The policies that were asked, by name.
    pub asked: Vec<String>,
    /// Whether this outcome came from the cache.
    pub cached: bool,
}

impl Outcome {
    /// The reasons of all denials, each with its policy, as lines for a person.
    pub fn denial_lines(&self) -> Vec<String> {
        lines(&self.denials)
    }

    /// The reasons of all warnings, in the same way.
    pub fn warning_lines(&self) -> Vec<String> {
        lines(&self.warnings)
    }

    /// Whether a policy failed, so that the outcome is not about the request alone.
    pub fn has_fault(&self) -> bool {
        [&self.denials, &self.warnings, &self.dry_run]
            .into_iter()
            .flatten()
            .any(|finding| finding.fault)
    }
}

fn lines(findings: &[Finding]) -> Vec<String> {
    let of_one = |finding: &Finding| {
        let policy = finding.policy.clone();
        let reasons = finding.reasons.clone().into_iter();
        reasons.map(move |reason| format!("{policy}: {}", reason.message))
    };
    findings.iter().flat_map(of_one).collect()
}
