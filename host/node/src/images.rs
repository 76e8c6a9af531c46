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
pub(crate) const IMAGE_BYTES_MAX: u64 = 64 << 30;

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

    /// The digests of all content that is here.
    pub(crate) fn all(&self) -> std::io::Result<Vec<String>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.dir.join("sha256"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if self.path(&name).is_ok() {
                all.push(name);
            }
        }
        Ok(all)
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
        let name = uuid::Uuid::now_v7().to_string();
        let temporary = Temporary(self.dir.join("incoming").join(name));
        let (digest, size_bytes) = self.take(&temporary, expected, &mut content).await?;
        Ok(Image {
            digest,
            size_bytes,
            label: label.chars().take(200).collect(),
            created_ms: now_ms(),
            disk: None,
        })
    }

    async fn take(
        &self,
        temporary: &Temporary,
        expected: Option<&str>,
        content: &mut ByteStream,
    ) -> Answer<(String, u64)> {
        // Not on another thread, where it might be made after its guard is gone.
        let file = std::fs::File::create_new(&temporary.0).map_err(internal)?;
        let mut file = tokio::fs::File::from_std(file);
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
        tokio::fs::rename(&temporary.0, &path)
            .await
            .map_err(internal)?;
        sync_dir(&self.dir.join("sha256")).await?;
        Ok((digest, size))
    }

    /// An empty file for something that is to be stored once it is whole.
    pub(crate) fn temporary(&self) -> std::io::Result<Found> {
        let name = uuid::Uuid::now_v7().to_string();
        let guard = Temporary(self.dir.join("incoming").join(name));
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&guard.0)?;
        Ok(Found { guard, file })
    }

    /// Stores a file that was made by [`Self::temporary`] and filled since.
    pub(crate) async fn adopt(&self, found: Found, label: &str) -> Answer<Image> {
        let to = self.dir.join("sha256");
        let label = label.chars().take(200).collect();
        let stored = tokio::task::spawn_blocking(move || -> std::io::Result<Image> {
            let Found { guard, mut file } = found;
            std::io::Seek::rewind(&mut file)?;
            let mut hash = Sha256::new();
            let size_bytes = std::io::copy(&mut file, &mut hash)?;
            let digest = hex::encode(hash.finalize());
            file.sync_all()?;
            std::fs::rename(&guard.0, to.join(&digest))?;
            std::fs::File::open(&to)?.sync_all()?;
            Ok(Image {
                digest,
                size_bytes,
                label,
                created_ms: now_ms(),
                disk: None,
            })
        });
        stored.await.map_err(internal)?.map_err(internal)
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

/// A file that is being filled.
pub(crate) struct Found {
    guard: Temporary,
    file: std::fs::File,
}

impl Found {
    /// The file.
    pub(crate) fn file(&self) -> &std::fs::File {
        &self.file
    }
}

/// A file that is removed when dropped, unless it has got its name by then: a client that leaves drops its upload
/// wherever that stands.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn sync_dir(dir: &Path) -> Answer<()> {
    let dir = tokio::fs::File::open(dir).await.map_err(internal)?;
    dir.sync_all().await.map_err(internal)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use futures::{FutureExt, stream};

    use super::*;

    fn left(dir: &Path) -> usize {
        std::fs::read_dir(dir.join("incoming")).unwrap().count()
    }

    #[tokio::test]
    async fn an_upload_leaves_an_image_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path().into()).unwrap();
        let whole = || Box::pin(stream::iter([Ok(Bytes::from_static(b"content"))]));
        let image = images.put("", None, whole()).await.unwrap();
        assert!(images.has(&image.digest));
        assert!(
            images
                .put("", Some(&"0".repeat(64)), whole())
                .await
                .is_err()
        );
        assert_eq!(left(dir.path()), 0);
        let mut waiting = Box::pin(images.put("", None, Box::pin(stream::pending())));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(left(dir.path()), 1);
        drop(waiting);
        assert_eq!(left(dir.path()), 0);
    }
}
