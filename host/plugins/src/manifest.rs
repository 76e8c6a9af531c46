//! Who a plugin says it is, and what it asks for, checked against what it is.
//!
//! Always: a manifest that leaves this module keeps every bound that `wit/types` writes down. Never: whether the
//! manifest is signed or equals an artifact's; that is asked where artifacts are installed.

use crate::{bindings::described::exports::dwcp::types::plugin as wit, record::World};
use serde::{Deserialize, Serialize};

/// One import that a plugin asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// The imported interface: `dwcp:host/log@0.1.0`.
    pub name: String,
    /// Why, for the operator who decides.
    pub why: String,
    /// Whether the plugin is of no use without it.
    pub required: bool,
}

/// Who a plugin is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `placement-default`.
    pub name: String,
    /// `dwcp`.
    pub publisher: String,
    /// Semantic version.
    pub version: String,
    /// `dwcp:placement/placement@0.1.0`.
    pub world: String,
    /// What it wants to import.
    pub capabilities: Vec<Capability>,
    /// JSON Schema of its configuration, JSON text.
    pub configuration_schema: String,
}

impl Manifest {
    /// `publisher/name@version`.
    pub fn address(&self) -> String {
        format!("{}/{}@{}", self.publisher, self.name, self.version)
    }

    /// Which world of this host the plugin implements, if this host knows it.
    pub fn known_world(&self) -> Option<World> {
        match self.world.as_str() {
            "dwcp:placement/placement@0.1.0" => Some(World::Placement),
            "dwcp:policy/policy@0.1.0" => Some(World::Policy),
            "dwcp:template/template@0.1.0" => Some(World::Template),
            _ => None,
        }
    }

    /// Takes what the plugin says, or names the first thing that is out of bounds.
    pub(crate) fn checked(from: wit::Identity) -> Result<Manifest, String> {
        let manifest = Manifest {
            name: from.name,
            publisher: from.publisher,
            version: from.version,
            world: from.world,
            capabilities: from
                .capabilities
                .into_iter()
                .map(|c| Capability {
                    name: c.name,
                    why: c.why,
                    required: c.required,
                })
                .collect(),
            configuration_schema: from.configuration_schema,
        };
        for (what, value) in [("name", &manifest.name), ("publisher", &manifest.publisher)] {
            if !is_name(value) {
                return Err(format!(
                    "the {what} must be 1 to 64 lower-case letters, digits and hyphens, starting with a letter"
                ));
            }
        }
        if !is_version(&manifest.version) {
            return Err(
                "the version must be a semantic version without build metadata, such as 1.2.3"
                    .into(),
            );
        }
        if manifest.world.is_empty() || manifest.world.len() > 128 {
            return Err(
                "the world must be 1 to 128 bytes, such as dwcp:placement/placement@0.1.0".into(),
            );
        }
        if manifest.capabilities.len() > 16 {
            return Err("at most 16 capabilities may be asked for".into());
        }
        if manifest
            .capabilities
            .iter()
            .any(|c| c.name.is_empty() || c.name.len() > 128 || c.why.len() > 256)
        {
            return Err("a capability's name may have 128 bytes, its reason 256".into());
        }
        let schema = &manifest.configuration_schema;
        if schema.len() > 64 << 10
            || !matches!(
                serde_json::from_str(schema),
                Ok(serde_json::Value::Object(_))
            )
        {
            return Err("the configuration schema must be a JSON object of at most 64 KiB".into());
        }
        Ok(manifest)
    }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Semantic Versioning 2.0.0, section 2 and 9, without build metadata.
fn is_version(text: &str) -> bool {
    let (core, pre) = text
        .split_once('-')
        .map_or((text, None), |(core, pre)| (core, Some(pre)));
    let number = |part: &str| {
        (1..=9).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let identifier = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && (!part.bytes().all(|b| b.is_ascii_digit()) || part == "0" || !part.starts_with('0'))
    };
    text.len() <= 64
        && core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| pre.split('.').all(identifier))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for good in ["0.1.0", "1.22.333", "1.0.0-rc.1", "1.0.0-0", "1.0.0-x-y"] {
            assert!(is_version(good), "{good}");
        }
        for bad in [
            "",
            "1",
            "1.0",
            "01.0.0",
            "1.0.0-",
            "1.0.0-01",
            "1.0.0+build",
            "1.0.0.0",
            "a.b.c",
            "1..0",
        ] {
            assert!(!is_version(bad), "{bad}");
        }
    }

    #[test]
    fn names() {
        assert!(is_name("placement-default"));
        for bad in ["", "1a", "Upper", "a/b", "a_b", &"a".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
