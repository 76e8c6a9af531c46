//! The marketplace, plugins and templates.

use serde::{Deserialize, Serialize};

/// An artifact as it would be installed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MarketplaceItem {
    /// `publisher/name@version`.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// `plugin` or `template`.
    pub kind: String,
    /// The world that a plugin implements.
    pub world: String,
    /// What it is for.
    pub description: String,
    /// The trusted key that signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// Why its signature is not good, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature_problem: Option<String>,
    /// Capabilities that it asks for.
    pub capabilities: Vec<String>,
    /// Of these, the ones that the installed version does not have.
    pub new_capabilities: Vec<String>,
    /// Whether this very digest is installed.
    pub installed: bool,
}

/// Asks to install an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PluginInstall {
    /// `publisher/name` or `publisher/name@version`.
    pub reference: String,
    /// The digest that was shown; another one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Capabilities that are granted.
    #[serde(default)]
    pub grant: Vec<String>,
}

/// An installed plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plugin {
    /// `publisher/name`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The world that it implements.
    pub world: String,
    /// SHA-256 of the component.
    pub digest: String,
    /// Who signed it.
    pub signed_by: String,
    /// Capabilities granted.
    pub capabilities: Vec<String>,
    /// Whether the host uses it for its world now.
    pub active: bool,
    /// When it was installed, ms.
    pub installed_ms: u64,
    /// Calls since the daemon started.
    pub calls: u64,
    /// Of these, calls that ended in a fault.
    pub faults: u64,
}

/// An installed template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// `publisher/name`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is for.
    pub description: String,
    /// The plugin that expands it.
    pub plugin: String,
    /// SHA-256 of the document.
    pub digest: String,
    /// Who signed it.
    pub signed_by: String,
    /// Kernel that it brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Initial RAM disk that it brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Media type of the document.
    #[serde(default)]
    pub media_type: String,
    /// The document itself.
    pub document: String,
    /// When it was installed, ms.
    pub installed_ms: u64,
}
