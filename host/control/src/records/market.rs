//! What is installed from a marketplace: plugins and templates.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Digest;

/// An artifact of the marketplace as it would be installed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MarketplaceItem {
    /// `publisher/name@version`.
    pub reference: String,
    /// Digest of its manifest; an install names it, so that what was shown is what is installed.
    pub digest: Digest,
    /// `plugin` or `template`.
    pub kind: String,
    /// The world that a plugin implements.
    pub world: String,
    /// What it is for.
    pub description: String,
    /// The trusted key that signed it, by name and SHA-256.
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PluginInstall {
    /// `publisher/name` or `publisher/name@version`.
    pub reference: String,
    /// The digest that was shown; the install is refused if it is another now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Capabilities that the operator grants; all that it asks for must be among them.
    #[serde(default)]
    pub grant: Vec<String>,
}

/// An installed plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plugin {
    /// `publisher/name`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The world that it implements.
    pub world: String,
    /// SHA-256 of the component.
    pub digest: Digest,
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Template {
    /// `publisher/name`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is for.
    pub description: String,
    /// The plugin of the `template` world that expands it.
    pub plugin: String,
    /// SHA-256 of the document.
    pub digest: Digest,
    /// Who signed it.
    pub signed_by: String,
    /// Kernel that it brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Digest>,
    /// Initial RAM disk that it brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Digest>,
    /// The document itself.
    pub document: String,
    /// Media type of the document.
    pub media_type: String,
    /// When it was installed, ms.
    pub installed_ms: u64,
}
