//! Content by its digest: kernels, initial RAM disks. A file is believed only under the name of its hash, and gets that
//! name only when it is whole and on disk.

use std::path::{Path, PathBuf};

use dwcp_api::service::{Answer, ByteStream};
use dwcp_api::{Fault, FaultKind};
use dwcp_control::records::Image;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::errors::{internal, invalid};
use crate::state::now_ms;

/// Longest image, bytes.
pub(crate) const IMAGE_BYTES_MAX: u64 = 4 << 30;

/// The images of a host.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    dir: PathBuf,
}

impl Images {
    /// Opens the directory, dropping what an earlier run left half-written.
    pub(crate) fn open(dir: PathBuf) -> std::io::Result<Self> {
        let incoming = dir.join("incoming");
        if incoming.exists() {
            std::fs::remove_dir_all(&incoming)?;
        }
        std::fs::create_dir_all(&incoming)?;
        std::fs::create_dir_all(dir.join("sha256"))?;
        Ok(Self { dir })
    }

    /// Where an image lies, if the digest is one.
    pub(crate) fn path(&self, digest: &str) -> Answer<PathBuf> {
        let good = digest.len() == 64
            && digest
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if good {
            Ok(self.dir.join("sha256").join(digest))
        } else {
            Err(invalid(
                "A digest is 64 lower-case hexadecimal digits (SHA-256)",
            ))
        }
    }

    /// Opens an image for a machine.
    pub(crate) fn open_image(&self, digest: &str) -> Answer<std::fs::File> {
        let path = self.path(digest)?;
        std::fs::File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Fault::not_found(format!("image {digest}: upload it with `dwcp image add`"))
            }
            _ => internal(error),
        })
    }

    /// Whether an image is here.
    pub(crate) fn has(&self, digest: &str) -> bool {
        self.path(digest).is_ok_and(|path| path.exists())
    }

    /// Takes content in, checks it against `expected` if given, and makes it durable.
    pub(crate) async fn put(
        &self,
        label: &str,
        expected: Option<&str>,
        mut content: ByteStream,
    ) -> Answer<Image> {
        let temporary = self
            .dir
            .join("incoming")
            .join(uuid::Uuid::now_v7().to_string());
        let taken = self.take(&temporary, expected, &mut content).await;
        if taken.is_err() {
            let _ = tokio::fs::remove_file(&temporary).await;
        }
        let (digest, size_bytes) = taken?;
        Ok(Image {
            digest,
            size_bytes,
            label: label.chars().take(200).collect(),
            created_ms: now_ms(),
        })
    }

    async fn take(
        &self,
        temporary: &Path,
        expected: Option<&str>,
        content: &mut ByteStream,
    ) -> Answer<(String, u64)> {
        let mut file = tokio::fs::File::create(temporary).await.map_err(internal)?;
        let mut hash = Sha256::new();
        let mut size = 0u64;
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|e| invalid(format!("The content ended early: {e}")))?;
            size += piece.len() as u64;
            if size > IMAGE_BYTES_MAX {
                return Err(Fault::new(
                    FaultKind::TooLarge,
                    format!("An image may have {IMAGE_BYTES_MAX} bytes at most"),
                ));
            }
            hash.update(&piece);
            file.write_all(&piece).await.map_err(internal)?;
        }
        if size == 0 {
            return Err(invalid("The image is empty"));
        }
        file.sync_all().await.map_err(internal)?;
        let digest = hex::encode(hash.finalize());
        if let Some(expected) = expected.filter(|e| **e != digest) {
            return Err(invalid(format!(
                "The content has the digest {digest}, not {expected}: it was damaged on its way, or is another file"
            )));
        }
        let path = self.path(&digest)?;
        tokio::fs::rename(temporary, &path)
            .await
            .map_err(internal)?;
        sync_dir(&self.dir.join("sha256")).await?;
        Ok((digest, size))
    }

    /// Deletes an image.
    pub(crate) async fn delete(&self, digest: &str) -> Answer<()> {
        let path = self.path(digest)?;
        match tokio::fs::remove_file(path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(internal(error)),
            _ => Ok(()),
        }
    }
}

async fn sync_dir(dir: &Path) -> Answer<()> {
    let dir = tokio::fs::File::open(dir).await.map_err(internal)?;
    dir.sync_all().await.map_err(internal)
}
