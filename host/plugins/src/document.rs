//! Texts that people write and install, and what plugins find wrong with them.
//!
//! Never: where they are stored.

use serde::{Deserialize, Serialize};

/// A text that somebody wrote: a template, a policy, data for one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Document {
    /// Name with slashes, unique among the documents given together: `tags.rego`.
    pub path: String,
    /// IANA media type.
    pub media: String,
    /// The whole text, at most 1 MiB.
    pub text: String,
}

/// One thing that is wrong with what was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// JSON Pointer into the parameters, or dotted path into the document; empty for the whole.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// Whether the plugin kept the bounds of `wit/types`.
    pub(crate) fn is_bounded(&self) -> bool {
        self.path.len() <= 256 && self.message.len() <= 1_024
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}
