//! Writing an OCI image layout directory.
//!
//! What always holds: a file appears whole under its name or not at all (written beside it, flushed, renamed,
//! directory flushed); a blob is there before anything names it; writers of one layout take turns.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::artifact::{self, Artifact, TemplateConfig, WasmComponent, WasmConfig, media};
use crate::layout::{Layout, LayoutError};
use crate::manifest::{Descriptor, Index, LayoutMarker, MANIFEST, Manifest, REF_NAME};
use crate::{Digest, Reference};

/// What shall become an artifact.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Its name; must carry a version.
    pub reference: Reference,
    /// What it is for, one sentence.
    pub summary: String,
    /// SPDX expression.
    pub license: String,
    /// What it is.
    pub kind: DraftKind,
    /// Its files, the component or document among them.
    pub layers: Vec<DraftLayer>,
}

/// The kinds of draft.
#[derive(Debug, Clone)]
pub enum DraftKind {
    /// A component.
    Plugin {
        /// The world it implements.
        world: String,
        /// Interfaces that the component exports.
        exports: Vec<String>,
        /// Interfaces that it imports.
        imports: Vec<String>,
    },
    /// A document with images.
    Template {
        /// The plugin that expands it.
        expander: Reference,
    },
}

/// A file of a draft.
#[derive(Debug, Clone)]
pub struct DraftLayer {
    /// Its name inside the artifact.
    pub title: String,
    /// One of [`media`](crate::media).
    pub media_type: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Layout {
    /// Opens the layout in `root`, making an empty one if there is none.
    ///
    /// # Errors
    /// When it cannot be written, or something else is there.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let root = root.into();
        if root.join("oci-layout").exists() {
            return Self::open(root);
        }
        let blobs = root.join("blobs").join("sha256");
        fs::create_dir_all(&blobs).map_err(|source| LayoutError::Io {
            path: blobs,
            source,
        })?;
        let layout = Self::unchecked(root);
        layout.write("index.json", &json(&Index::empty())?)?;
        // Last, because it is what makes the directory a layout.
        let marker = LayoutMarker {
            image_layout_version: "1.0.0".to_owned(),
        };
        layout.write("oci-layout", &json(&marker)?)?;
        Ok(layout)
    }

    /// Writes an artifact, in place of one with the same name and version.
    ///
    /// # Errors
    /// When the draft is not a valid artifact, or the layout cannot be written.
    pub fn publish(&self, draft: &Draft) -> Result<Artifact, LayoutError> {
        let mut layers = Vec::new();
        for layer in &draft.layers {
            let descriptor = self.put_blob(&layer.media_type, &layer.bytes)?;
            layers.push(descriptor.annotated(artifact::TITLE, &layer.title));
        }
        let (config_media, artifact_type, config_bytes) = config(draft, &layers)?;
        let config = self.put_blob(config_media, &config_bytes)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            artifact_type,
            config,
            layers,
            annotations: annotations(draft),
        };
        let bytes = json(&manifest)?;
        let bad = |why| LayoutError::BadArtifact {
            digest: Digest::of(&bytes),
            why,
        };
        // Read back as a host will, so that nothing is published that cannot be used.
        let artifact = Artifact::read(Digest::of(&bytes), &manifest, &config_bytes).map_err(bad)?;
        let tag = draft.reference.tag();
        let tag = tag.ok_or_else(|| bad("A draft needs a version".to_owned()))?;
        let descriptor = self.put_blob(MANIFEST, &bytes)?;
        self.name(descriptor, &tag)?;
        Ok(artifact)
    }

    pub(crate) fn put_blob(
        &self,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Descriptor, LayoutError> {
        let descriptor = Descriptor::of(media_type, bytes);
        let path = self.blob_path(descriptor.digest);
        if !path.exists() {
            write_whole(&path, |file| write_to(&path, file, bytes))?;
        }
        Ok(descriptor)
    }

    /// Lets the index name a manifest. Writers take turns by a lock on the directory.
    pub(crate) fn name(&self, descriptor: Descriptor, tag: &str) -> Result<(), LayoutError> {
        let failed = |source| LayoutError::Io {
            path: self.root().to_owned(),
            source,
        };
        let turn = File::open(self.root()).map_err(failed)?;
        turn.lock().map_err(failed)?;
        let mut index = self.index()?;
        index.put(descriptor.annotated(REF_NAME, tag));
        self.write("index.json", &json(&index)?)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), LayoutError> {
        let path = self.root().join(name);
        write_whole(&path, |file| write_to(&path, file, bytes))
    }
}

fn annotations(draft: &Draft) -> BTreeMap<String, String> {
    let version = draft.reference.version().map(ToString::to_string);
    [
        (artifact::TITLE, draft.reference.name().to_owned()),
        (artifact::VENDOR, draft.reference.publisher().to_owned()),
        (artifact::VERSION, version.unwrap_or_default()),
        (artifact::DESCRIPTION, draft.summary.clone()),
        (artifact::LICENSES, draft.license.clone()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

type Config = (&'static str, Option<String>, Vec<u8>);

fn config(draft: &Draft, layers: &[Descriptor]) -> Result<Config, LayoutError> {
    match &draft.kind {
        DraftKind::Plugin {
            world,
            exports,
            imports,
        } => {
            let config = WasmConfig {
                architecture: "wasm".to_owned(),
                os: "wasip2".to_owned(),
                layer_digests: layers.iter().map(|layer| layer.digest).collect(),
                component: WasmComponent {
                    exports: exports.clone(),
                    imports: imports.clone(),
                    target: world.clone(),
                },
            };
            Ok((media::WASM_CONFIG, None, json(&config)?))
        }
        DraftKind::Template { expander } => {
            let config = TemplateConfig {
                expander: expander.clone(),
            };
            let artifact_type = Some(media::TEMPLATE_CONFIG.to_owned());
            Ok((media::TEMPLATE_CONFIG, artifact_type, json(&config)?))
        }
    }
}

pub(crate) fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, LayoutError> {
    serde_json::to_vec(value).map_err(|source| LayoutError::BadJson {
        what: "What was to be written".to_owned(),
        source,
    })
}

fn write_to(path: &Path, file: &mut File, bytes: &[u8]) -> Result<(), LayoutError> {
    file.write_all(bytes).map_err(|source| LayoutError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file beside `path`, flushes it, and renames it there.
fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<(), LayoutError>,
) -> Result<(), LayoutError> {
    let failed = |source| LayoutError::Io {
        path: path.to_owned(),
        source,
    };
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(|error| failed(io::Error::other(error)))?;
    let beside = path.with_extension(format!("{}.tmp", hex::encode(suffix)));
    let mut file = File::create_new(&beside).map_err(failed)?;
    let written = fill(&mut file)
        .and_then(|()| file.sync_all().map_err(failed))
        .and_then(|()| fs::rename(&beside, path).map_err(failed));
    if written.is_err() {
        // Best effort: the error above is the one that matters.
        let _ = fs::remove_file(&beside);
        return written;
    }
    match path.parent() {
        Some(directory) => File::open(directory)
            .and_then(|handle| handle.sync_all())
            .map_err(failed),
        None => Ok(()),
    }
}
