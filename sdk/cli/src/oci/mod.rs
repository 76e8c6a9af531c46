//! Disk images from registries: `oci:REGISTRY/NAME:TAG`, and `oci-layout:DIRECTORY:TAG` for what a tool has put into a
//! directory. They are fetched here and uploaded like any file, so that a host connects to nobody.
//!
//! What always holds:
//! - Every byte that is looked at was counted, and checked against the digest that named it: layers by the manifest, the
//!   manifest by an index or by the digest that was asked for. What has a tag is what the registry says, over TLS.
//! - What is fetched has no name on this machine, so nothing of it is left, however the command ends.
//!
//! What it must not know: hosts and their images.

mod challenge;
mod checked;
mod credentials;
mod disk;
mod layout;
mod manifest;
mod reference;
mod registry;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::progress;
use checked::Checked;
use layout::Layout;
use manifest::{Descriptor, Digest, Document};
use reference::Reference;
use registry::Registry;

/// Most indexes that lead to each other.
const INDEXES_MAX: usize = 3;

/// A disk that was fetched.
#[derive(Debug)]
pub struct Pulled {
    /// What was asked for, as a person would call it.
    pub name: String,
    /// Its manifest's digest: the same name with it is the same for ever.
    pub manifest: String,
    file: File,
}

impl Pulled {
    /// A path under which it can be read as long as this lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

/// Where something is fetched from.
enum Source {
    Registry(Box<Registry>),
    Layout(Layout),
}

/// Fetches what `text` names; nothing if it names a file.
pub async fn pull(text: &Path) -> Result<Option<Pulled>> {
    let text = text.to_str().unwrap_or_default();
    let (name, mut source) = if let Some(name) = text.strip_prefix("oci:") {
        let reference: Reference = name.trim_start_matches("//").parse()?;
        let registry = Registry::new(reference.clone()).await?;
        (reference.to_string(), Source::Registry(Box::new(registry)))
    } else if let Some(name) = text.strip_prefix("oci-layout:") {
        (name.to_owned(), Source::Layout(Layout::open(name)?))
    } else {
        return Ok(None);
    };
    let refused = || format!("{name} cannot be fetched");
    let (manifest, file) = source.disk(&name).await.with_context(refused)?;
    Ok(Some(Pulled {
        manifest: manifest.to_string(),
        name,
        file,
    }))
}

impl Source {
    /// The disk in the image, and the digest of the image's manifest.
    async fn disk(&mut self, name: &str) -> Result<(Digest, File)> {
        let (digest, layers) = self.image().await?;
        for layer in manifest::candidates(&layers)? {
            let bar = progress::transfer(name);
            bar.set_length(layer.size);
            let fetched = self.blob(layer, &bar).await;
            bar.finish_and_clear();
            let is_file = layer.title().is_some();
            if let Some(disk) = disk::find(fetched?, is_file)? {
                return Ok((digest, disk));
            }
        }
        bail!(
            "It holds no disk: none of its {} layers is one or has a file in disk/, where a container disk has it",
            layers.len()
        )
    }

    /// The layers of the image for this platform, and its manifest's digest.
    async fn image(&mut self) -> Result<(Digest, Vec<Descriptor>)> {
        let (mut digest, mut bytes) = match self {
            Self::Registry(registry) => registry.named().await?,
            Self::Layout(layout) => layout.named()?,
        };
        for _ in 0..INDEXES_MAX {
            let entries = match Document::read(&bytes)? {
                Document::Image(layers) => return Ok((digest, layers)),
                Document::Index(entries) => entries,
            };
            digest = manifest::for_this_platform(&entries)?.digest()?;
            bytes = match self {
                Self::Registry(registry) => registry.manifest(digest).await?,
                Self::Layout(layout) => layout.manifest(digest)?,
            };
        }
        bail!("Its indexes lead to each other {INDEXES_MAX} times, which is as far as is looked")
    }

    async fn blob(&mut self, layer: &Descriptor, bar: &indicatif::ProgressBar) -> Result<File> {
        let mut into = Checked::new(layer.digest()?, layer.size, temporary()?)?;
        match self {
            Self::Registry(registry) => registry.blob(&mut into, bar).await?,
            Self::Layout(layout) => layout.blob(&mut into, bar)?,
        }
        into.finish()
    }
}

/// A file without a name. Disks are large, and `/tmp` is memory on many machines.
fn temporary() -> Result<File> {
    let chosen = std::env::var_os("TMPDIR").map(PathBuf::from);
    let folder = chosen.unwrap_or_else(|| "/var/tmp".into());
    tempfile::tempfile_in(&folder).with_context(|| {
        format!(
            "There can be no temporary file in {}; TMPDIR names another folder",
            folder.display()
        )
    })
}
