//! What an artifact is, read from its manifest and configuration.
//!
//! What always holds: an [`Artifact`] was read from bytes whose digest is its own; its reference carries a
//! version; its layers' titles are unique; a plugin has one component, a template one document.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::{Digest, Reference};

/// Media types of configurations and layers.
pub mod media {
    /// Configuration of a plugin (CNCF Wasm OCI artifact layout).
    pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
    /// The component of a plugin.
    pub const WASM: &str = "application/wasm";
    /// Configuration of a template.
    pub const TEMPLATE_CONFIG: &str = "application/vnd.dwcp.template.config.v1+json";
    /// A template's document, in TOML.
    pub const TEMPLATE_TOML: &str = "application/vnd.dwcp.template.v1+toml";
    /// A template's document, in JSON.
    pub const TEMPLATE_JSON: &str = "application/vnd.dwcp.template.v1+json";
    /// A kernel image beside a template.
    pub const KERNEL: &str = "application/vnd.dwcp.kernel";
    /// An initial RAM disk beside a template.
    pub const INITRD: &str = "application/vnd.dwcp.initrd";
}

pub(crate) const TITLE: &str = "org.opencontainers.image.title";
pub(crate) const VENDOR: &str = "org.opencontainers.image.vendor";
pub(crate) const VERSION: &str = "org.opencontainers.image.version";
pub(crate) const DESCRIPTION: &str = "org.opencontainers.image.description";
pub(crate) const LICENSES: &str = "org.opencontainers.image.licenses";

/// Most layers of an artifact.
pub(crate) const MAX_LAYERS: usize = 32;

/// A plugin or a template of the marketplace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its name, with a version, as its own manifest says.
    pub reference: Reference,
    /// Digest of its manifest: what a signature covers and a host pins.
    pub digest: Digest,
    /// What it is.
    pub kind: Kind,
    /// What it is for, one sentence; empty when it does not say.
    pub summary: String,
    /// SPDX expression; empty when it does not say.
    pub license: String,
    /// Its files. At most 32.
    pub layers: Vec<Layer>,
}

/// The kinds of artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A component.
    Plugin {
        /// The world it implements: `dwcp:placement/placement@0.1.0`.
        world: String,
        /// Interfaces that it exports.
        exports: Vec<String>,
        /// Interfaces that it imports: the capabilities it asks for. Whoever links it checks this against
        /// the component itself.
        imports: Vec<String>,
    },
    /// A document with images.
    Template {
        /// The plugin of the `template` world that expands it.
        expander: Reference,
    },
}

/// A file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its name inside the artifact, unique.
    pub title: String,
    /// One of [`media`], or something else that is carried along.
    pub media_type: String,
    /// SHA-256 of its content.
    pub digest: Digest,
    /// Size of its content in bytes.
    pub size_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WasmConfig {
    pub architecture: String,
    pub os: String,
    pub layer_digests: Vec<Digest>,
    pub component: WasmComponent,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WasmComponent {
    pub exports: Vec<String>,
    pub imports: Vec<String>,
    pub target: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TemplateConfig {
    pub expander: Reference,
}

impl Artifact {
    /// The interfaces it asks to import; none for a template.
    pub fn capabilities(&self) -> &[String] {
        match &self.kind {
            Kind::Plugin { imports, .. } => imports,
            Kind::Template { .. } => &[],
        }
    }

    /// The world a plugin implements; none for a template.
    pub fn world(&self) -> Option<&str> {
        match &self.kind {
            Kind::Plugin { world, .. } => Some(world),
            Kind::Template { .. } => None,
        }
    }

    /// The layer with this title.
    pub fn layer(&self, title: &str) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.title == title)
    }

    /// The component of a plugin, or the document of a template.
    pub fn principal_layer(&self) -> Option<&Layer> {
        self.layers.iter().find(|layer| is_principal(layer))
    }

    /// Reads manifest and configuration, already checked against their digests.
    /// Errors: a sentence saying what is wrong.
    pub(crate) fn read(digest: Digest, manifest: &Manifest, config: &[u8]) -> Result<Self, String> {
        let annotation = |key: &str| manifest.annotations.get(key).map_or("", String::as_str);
        let reference = Reference::new(annotation(VENDOR), annotation(TITLE), annotation(VERSION))
            .map_err(|error| format!("Its annotations do not name it: {error}"))?;
        let layers: Vec<Layer> = manifest
            .layers
            .iter()
            .map(|layer| Layer {
                title: layer.annotations.get(TITLE).cloned().unwrap_or_default(),
                media_type: layer.media_type.clone(),
                digest: layer.digest,
                size_bytes: layer.size,
            })
            .collect();
        let titles: BTreeSet<&str> = layers.iter().map(|layer| layer.title.as_str()).collect();
        if layers.len() > MAX_LAYERS || titles.len() != layers.len() {
            return Err(format!(
                "Its layers must be at most {MAX_LAYERS}, each with a title of its own"
            ));
        }
        let kind = match manifest.config.media_type.as_str() {
            media::WASM_CONFIG => read_plugin(config, &layers)?,
            media::TEMPLATE_CONFIG => read_template(config)?,
            other => return Err(format!("Its configuration type `{other}` is not known")),
        };
        if layers.iter().filter(|layer| is_principal(layer)).count() != 1 {
            return Err("It must have exactly one component or template document".to_owned());
        }
        Ok(Self {
            reference,
            digest,
            kind,
            summary: annotation(DESCRIPTION).to_owned(),
            license: annotation(LICENSES).to_owned(),
            layers,
        })
    }
}

fn is_principal(layer: &Layer) -> bool {
    [media::WASM, media::TEMPLATE_TOML, media::TEMPLATE_JSON].contains(&layer.media_type.as_str())
}

fn read_plugin(config: &[u8], layers: &[Layer]) -> Result<Kind, String> {
    let config: WasmConfig = serde_json::from_slice(config)
        .map_err(|error| format!("Its Wasm configuration cannot be read: {error}"))?;
    let digests: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    if config.architecture != "wasm" || config.layer_digests != digests {
        return Err("Its Wasm configuration does not describe its layers".to_owned());
    }
    Ok(Kind::Plugin {
        world: config.component.target,
        exports: config.component.exports,
        imports: config.component.imports,
    })
}

fn read_template(config: &[u8]) -> Result<Kind, String> {
    let config: TemplateConfig = serde_json::from_slice(config)
        .map_err(|error| format!("Its template configuration cannot be read: {error}"))?;
    Ok(Kind::Template {
        expander: config.expander,
    })
}
