//! Names that people choose: of projects, virtual machines, hosts, policies.
//!
//! A name is safe in a path, a log line and a store key as it stands, so nothing ever needs to be escaped.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// A name: 1 to 63 lower-case letters, digits and hyphens, beginning with a letter, not ending with a hyphen
/// (an RFC 1035 label).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "web-1", pattern = "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name: use 1 to 63 lower-case letters, digits and hyphens, begin with a letter, and end with a letter or digit"
)]
pub struct NameError(String);

impl Name {
    /// Checks a text.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let bytes = text.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let good = bytes.len() <= NAME_BYTES_MAX
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.last().is_some_and(|b| *b != b'-')
            && bytes.iter().all(inner);
        if good {
            Ok(Self(text))
        } else {
            Err(NameError(text.chars().take(80).collect()))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labels_are_names() {
        for good in ["a", "web-1", "x9", &"a".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "1a",
            "a/b",
            "a.b",
            "ä",
            &"a".repeat(64),
            "a\n",
        ] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }
}
