//! An OCI image layout directory as a source: `skopeo copy docker://… oci:DIRECTORY:TAG` makes one.
//!
//! What always holds: of the names in it, only checked digests become paths.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;

use super::checked::Checked;
use super::manifest::{Descriptor, Digest, Document, REF_NAME};
use super::registry::MANIFEST_BYTES_MAX;

/// Bytes copied at a time.
const PIECE_BYTES: usize = 256 << 10;

/// A layout, and which of its images is meant.
#[derive(Debug)]
pub struct Layout {
    root: PathBuf,
    tag: Option<String>,
}

impl Layout {
    /// The one in `DIRECTORY` or `DIRECTORY:TAG`.
    pub fn open(text: &str) -> Result<Self> {
        let (root, tag) = match text.rsplit_once(':') {
            Some((root, tag)) if !Path::new(text).exists() => (root, Some(tag.to_owned())),
            _ => (text, None),
        };
        let layout = Self {
            root: root.into(),
            tag,
        };
        ensure!(
            layout.root.join("oci-layout").is_file(),
            "{root} is no OCI image layout: it has no file `oci-layout`"
        );
        Ok(layout)
    }

    /// The manifest that is meant, or an index, with its digest.
    pub fn named(&self) -> Result<(Digest, Vec<u8>)> {
        let path = self.root.join("index.json");
        let Document::Index(entries) = Document::read(&bounded(&path)?)? else {
            bail!("{} is no index", path.display());
        };
        let is_meant = |entry: &&Descriptor| match &self.tag {
            Some(tag) => entry.annotation(REF_NAME) == Some(tag),
            None => true,
        };
        let meant: Vec<_> = entries.iter().filter(is_meant).collect();
        let digest = match (&meant[..], &self.tag) {
            ([one], _) => one.digest()?,
            ([], Some(tag)) => bail!("Nothing in it is called {tag}: {}", tags(&entries)),
            ([], None) => bail!("There is nothing in it"),
            _ => bail!(
                "Say which is meant, as in DIRECTORY:TAG: {}",
                tags(&entries)
            ),
        };
        Ok((digest, self.manifest(digest)?))
    }

    /// The manifest or index with this digest.
    pub fn manifest(&self, digest: Digest) -> Result<Vec<u8>> {
        let bytes = bounded(&self.path(digest))?;
        let found = Digest::of(&bytes);
        ensure!(
            found == digest,
            "Its manifest {digest} was altered: its digest is {found}"
        );
        Ok(bytes)
    }

    /// Copies a blob out.
    pub fn blob(&self, into: &mut Checked, bar: &ProgressBar) -> Result<()> {
        let path = self.path(into.digest());
        let mut file = File::open(&path).with_context(|| path.display().to_string())?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let count = file
                .read(&mut piece)
                .with_context(|| path.display().to_string())?;
            if count == 0 {
                return Ok(());
            }
            into.write(piece.get(..count).unwrap_or_default())?;
            bar.set_position(into.length());
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }
}

/// What a person can choose from.
fn tags(entries: &[Descriptor]) -> String {
    let tags = entries
        .iter()
        .filter_map(|entry| entry.annotation(REF_NAME));
    let tags: Vec<_> = tags.take(16).collect();
    match tags.is_empty() {
        true => "nothing in it has a name".into(),
        false => format!("there is {}", tags.join(", ")),
    }
}

/// A small file, whole.
fn bounded(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| path.display().to_string())?;
    file.take(MANIFEST_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(|| path.display().to_string())?;
    ensure!(
        bytes.len() <= MANIFEST_BYTES_MAX,
        "{} has more than {MANIFEST_BYTES_MAX} bytes, which is the most that is read",
        path.display()
    );
    Ok(bytes)
}
