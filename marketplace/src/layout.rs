//! Reading an OCI image layout directory.
//!
//! What always holds: every byte read is counted against a bound and hashed against the digest that named it.
//! A directory that changes meanwhile is an error, never a wrong answer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::artifact::{Artifact, Layer};
use crate::manifest::{Descriptor, Index, LayoutMarker, MANIFEST, Manifest};
use crate::{Digest, Reference};

/// Largest `index.json`, in bytes.
const MAX_INDEX_BYTES: u64 = 16 << 20;
/// Largest manifest, configuration or signature payload, in bytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Largest layer that [`Layout::read`] takes into memory, in bytes.
const MAX_READ_BYTES: u64 = 256 << 20;
/// Largest layer at all, in bytes.
const MAX_LAYER_BYTES: u64 = 1 << 40;

/// An OCI image layout directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

/// Why a layout could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// There is no layout in that directory.
    #[error(
        "{} is not an OCI image layout; its file `oci-layout` must name version 1.0.0",
        .0.display()
    )]
    NotALayout(PathBuf),
    /// A file could not be read or written.
    #[error("{} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Larger than its kind may be.
    #[error("{what} has more than {limit_bytes} bytes, which is the most that is read")]
    TooLarge {
        /// A file name or digest.
        what: String,
        /// The bound, in bytes.
        limit_bytes: u64,
    },
    /// No JSON, or not of the expected form.
    #[error("{what} is damaged or not of the expected form; fetch the layout again")]
    BadJson {
        /// A file name or digest.
        what: String,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A blob is not what its digest says.
    #[error(
        "Blob {expected} was altered: its content has the digest {found} and {size_bytes} bytes"
    )]
    Altered {
        /// The digest that names it.
        expected: Digest,
        /// The digest of what is there.
        found: Digest,
        /// How many bytes are there (counted up to one more than expected).
        size_bytes: u64,
    },
    /// Nothing of this name.
    #[error("{0} is not in this marketplace; `dwcp marketplace list` shows what is")]
    NotFound(Reference),
    /// Only pre-releases of this name.
    #[error("{reference} has no release, only {versions}; name the version to take one of these")]
    NoRelease {
        /// What was asked for.
        reference: Reference,
        /// The versions there are.
        versions: String,
    },
    /// The index leads to an artifact that calls itself otherwise.
    #[error(
        "The index leads from {asked} to an artifact that calls itself {found}; do not trust this layout"
    )]
    Misnamed {
        /// The name in the index.
        asked: Box<Reference>,
        /// The name in the manifest.
        found: Box<Reference>,
    },
    /// The manifest is none of ours.
    #[error("Artifact {digest} cannot be used: {why}")]
    BadArtifact {
        /// Its manifest.
        digest: Digest,
        /// A sentence.
        why: String,
    },
}

impl Layout {
    /// Opens the layout in `root`.
    ///
    /// # Errors
    /// When the directory holds no layout of version 1.0.0.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let layout = Self { root: root.into() };
        let marker_path = layout.root.join("oci-layout");
        let not_a_layout = || LayoutError::NotALayout(layout.root.clone());
        let bytes = read_bounded(&marker_path, 4096).map_err(|_| not_a_layout())?;
        let marker: LayoutMarker = serde_json::from_slice(&bytes).map_err(|_| not_a_layout())?;
        if marker.image_layout_version != "1.0.0" {
            return Err(not_a_layout());
        }
        Ok(layout)
    }

    pub(crate) fn unchecked(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything the index names that is ours, by name and version. Nothing is read but the index.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn list(&self) -> Result<Vec<Reference>, LayoutError> {
        let index = self.index()?;
        let tags = index.manifests.iter().filter_map(Descriptor::ref_name);
        let mut references: Vec<Reference> = tags.filter_map(Reference::from_tag).collect();
        references.sort();
        Ok(references)
    }

    /// Finds an artifact: the version asked for, or else the newest release.
    ///
    /// # Errors
    /// When it is not there, or its manifest or configuration is damaged or calls itself otherwise.
    pub fn resolve(&self, asked: &Reference) -> Result<Artifact, LayoutError> {
        let index = self.index()?;
        let named = |descriptor: &Descriptor| {
            let found = Reference::from_tag(descriptor.ref_name()?)?;
            asked.accepts(&found).then(|| (found, descriptor.clone()))
        };
        let mut found: Vec<(Reference, Descriptor)> =
            index.manifests.iter().filter_map(named).collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let is_release = |reference: &Reference| {
            asked.version().is_some() || reference.version().is_some_and(|v| v.pre.is_empty())
        };
        match found.iter().rfind(|(reference, _)| is_release(reference)) {
            Some((reference, descriptor)) => self.artifact(reference, descriptor),
            None if found.is_empty() => Err(LayoutError::NotFound(asked.clone())),
            None => Err(LayoutError::NoRelease {
                reference: asked.clone(),
                versions: versions(&found),
            }),
        }
    }

    fn artifact(&self, named: &Reference, at: &Descriptor) -> Result<Artifact, LayoutError> {
        let bad = |why: String| LayoutError::BadArtifact {
            digest: at.digest,
            why,
        };
        if at.media_type != MANIFEST {
            return Err(bad(format!("Its type is `{}`", at.media_type)));
        }
        let manifest = self.manifest(at)?;
        let config = self.blob(&manifest.config, MAX_MANIFEST_BYTES)?;
        let artifact = Artifact::read(at.digest, &manifest, &config).map_err(bad)?;
        if artifact.reference != *named {
            return Err(LayoutError::Misnamed {
                asked: Box::new(named.clone()),
                found: Box::new(artifact.reference),
            });
        }
        Ok(artifact)
    }

    /// The content of a layer of at most 256 MiB, checked.
    ///
    /// # Errors
    /// When it is larger, missing or altered.
    pub fn read(&self, layer: &Layer) -> Result<Vec<u8>, LayoutError> {
        let mut bytes = Vec::new();
        self.transfer(layer.digest, layer.size_bytes, MAX_READ_BYTES, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes the content of a layer of any size to `into`, checking as it goes.
    ///
    /// # Errors
    /// When it is missing or altered, or `into` fails. What was written by then must be thrown away.
    pub fn copy(&self, layer: &Layer, into: &mut dyn Write) -> Result<(), LayoutError> {
        self.transfer(layer.digest, layer.size_bytes, MAX_LAYER_BYTES, into)
    }

    pub(crate) fn index(&self) -> Result<Index, LayoutError> {
        let path = self.root.join("index.json");
        let bytes = read_bounded(&path, MAX_INDEX_BYTES)?;
        parse("index.json", &bytes)
    }

    pub(crate) fn manifest(&self, at: &Descriptor) -> Result<Manifest, LayoutError> {
        let bytes = self.blob(at, MAX_MANIFEST_BYTES)?;
        let manifest: Manifest = parse(&at.digest.to_string(), &bytes)?;
        if manifest.schema_version != 2 {
            return Err(LayoutError::BadArtifact {
                digest: at.digest,
                why: format!("Its schema version is {}, not 2", manifest.schema_version),
            });
        }
        Ok(manifest)
    }

    pub(crate) fn blob(&self, at: &Descriptor, limit_bytes: u64) -> Result<Vec<u8>, LayoutError> {
        let mut bytes = Vec::new();
        self.transfer(at.digest, at.size, limit_bytes, &mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs").join("sha256").join(digest.to_hex())
    }

    /// Copies a blob out, checking size and digest.
    fn transfer(
        &self,
        digest: Digest,
        size_bytes: u64,
        limit_bytes: u64,
        into: &mut dyn Write,
    ) -> Result<(), LayoutError> {
        if size_bytes > limit_bytes {
            return Err(LayoutError::TooLarge {
                what: digest.to_string(),
                limit_bytes,
            });
        }
        let path = self.blob_path(digest);
        let failed = |source| LayoutError::Io {
            path: path.clone(),
            source,
        };
        let mut file = File::open(&path).map_err(failed)?.take(size_bytes + 1);
        let mut hasher = Sha256::new();
        let mut found_bytes = 0;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = file.read(&mut buffer).map_err(failed)?;
            if n == 0 {
                break;
            }
            found_bytes += n as u64;
            hasher.update(&buffer[..n]);
            into.write_all(&buffer[..n]).map_err(failed)?;
        }
        let found = Digest::finish(hasher);
        if found != digest || found_bytes != size_bytes {
            return Err(LayoutError::Altered {
                expected: digest,
                found,
                size_bytes: found_bytes,
            });
        }
        Ok(())
    }
}

fn versions(found: &[(Reference, Descriptor)]) -> String {
    let versions = found.iter().filter_map(|(r, _)| r.version());
    let texts: Vec<String> = versions.take(16).map(ToString::to_string).collect();
    texts.join(", ")
}

fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, LayoutError> {
    serde_json::from_slice(bytes).map_err(|source| LayoutError::BadJson {
        what: what.to_owned(),
        source,
    })
}

fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, LayoutError> {
    let failed = |source| LayoutError::Io {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(limit_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(LayoutError::TooLarge {
            what: path.display().to_string(),
            limit_bytes,
        });
    }
    Ok(bytes)
}
