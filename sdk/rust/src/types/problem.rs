//! Why a request was not carried out (RFC 9457).

use serde::{Deserialize, Serialize};

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Kind of problem, a stable URI such as `urn:dwcp:problem:denied`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The kind in words.
    #[serde(default)]
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened and what to do about it.
    #[serde(default)]
    pub detail: String,
    /// Single reasons, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// The request that it answers, as in the host's log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

impl Problem {
    /// Whether it is of a kind, named by the last part of its type, such as `denied`.
    pub fn is(&self, kind: &str) -> bool {
        self.kind.strip_prefix("urn:dwcp:problem:") == Some(kind)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = if self.detail.is_empty() {
            &self.title
        } else {
            &self.detail
        };
        f.write_str(text)
    }
}
