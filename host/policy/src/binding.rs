//! Where a policy acts, and how hard.

use serde::{Deserialize, Serialize};

/// What becomes of a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The request is refused.
    Enforce,
    /// The request goes on, its author is warned.
    Warn,
    /// The request goes on, the denial is only recorded.
    DryRun,
}

/// Which actions a binding covers: one (`vm.create`), a family (`vm.*`), or all (`*`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Action(String);

impl Action {
    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it covers `action`.
    pub fn covers(&self, action: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(family) => action.starts_with(family),
            None => action == self.0,
        }
    }
}

impl TryFrom<String> for Action {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let stem = match text.strip_suffix('*') {
            Some("") => return Ok(Action(text)),
            Some(family) => family.strip_suffix('.'),
            None => Some(text.as_str()),
        };
        let word =
            |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        if text.len() <= 64 && stem.is_some_and(|stem| stem.split('.').all(word)) {
            return Ok(Action(text));
        }
        Err(format!(
            "'{text}' is no action. Write vm.create for one, vm.* for a family, * for all."
        ))
    }
}

impl From<Action> for String {
    fn from(action: Action) -> String {
        action.0
    }
}

impl std::str::FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Action::try_from(text.to_owned())
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One policy, acting somewhere. Policy, action and project together name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The policy's name.
    pub policy: String,
    /// The actions.
    pub action: Action,
    /// The project; all when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// How hard.
    pub mode: Mode,
}

impl Binding {
    /// Whether it acts on this question.
    pub fn covers(&self, action: &str, project: &str) -> bool {
        self.action.covers(action) && self.project.as_deref().is_none_or(|p| p == project)
    }

    /// Whether both are the same place, whatever the mode.
    pub fn same_place(&self, other: &Binding) -> bool {
        self.policy == other.policy && self.action == other.action && self.project == other.project
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn patterns() {
        let covers =
            |pattern: &str, action: &str| pattern.parse::<Action>().unwrap().covers(action);
        assert!(covers("vm.create", "vm.create"));
        assert!(!covers("vm.create", "vm.create-all"));
        assert!(covers("vm.*", "vm.create"));
        assert!(!covers("vm.*", "vmm.create"));
        assert!(covers("*", "anything"));
        for bad in [
            "",
            "vm*",
            ".",
            "vm.",
            "VM.create",
            "*.create",
            "vm..x",
            &"a".repeat(65),
        ] {
            assert!(bad.parse::<Action>().is_err(), "{bad}");
        }
    }
}
