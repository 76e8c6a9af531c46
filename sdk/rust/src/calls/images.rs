//! Images, and their upload from memory or from a file.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::error::{Error, Result};
use crate::pages::Listing;
use crate::transport::{Client, back_off, may_pass};
use crate::types::Image;

/// Bytes read from a file at a time.
const PIECE_BYTES: usize = 256 << 10;
/// Times that an upload is begun at most.
const ATTEMPTS: u32 = 3;

/// How far an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// Bytes handed to the network.
    pub sent: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Client {
    /// Stored images.
    pub fn image_list(&self) -> Listing<Image> {
        self.listing(&["v1", "images"], &[])
    }

    /// One, by digest.
    pub async fn image_get(&self, digest: &str) -> Result<Image> {
        self.get(&["v1", "images", digest], &[]).await
    }

    /// Deletes one that nothing uses.
    pub async fn image_delete(&self, digest: &str) -> Result<()> {
        self.delete(&["v1", "images", digest], &[]).await
    }

    /// Stores content that is in memory.
    pub async fn image_put(&self, label: &str, content: impl Into<Bytes>) -> Result<Image> {
        let content = content.into();
        let digest: [u8; 32] = Sha256::digest(&content).into();
        let upload = Upload {
            label,
            digest,
            length: content.len() as u64,
        };
        self.upload(&upload, || {
            let content = content.clone();
            async move { Ok(reqwest::Body::from(content)) }
        })
        .await
    }

    /// Stores a file. It is read twice: for its digest, then for the host unless the host has it already.
    pub async fn image_upload(
        &self,
        label: &str,
        file: &Path,
        progress: impl Fn(Uploaded) + Send + Sync + 'static,
    ) -> Result<Image> {
        let (digest, length) = digest_of(file).await?;
        let upload = Upload {
            label,
            digest,
            length,
        };
        let progress = Arc::new(progress);
        self.upload(&upload, || {
            let progress = Arc::clone(&progress);
            async move {
                let pieces = pieces(file, length, progress).await?;
                Ok(reqwest::Body::wrap_stream(pieces))
            }
        })
        .await
    }

    async fn upload<F: Future<Output = Result<reqwest::Body>>>(
        &self,
        upload: &Upload<'_>,
        content: impl Fn() -> F,
    ) -> Result<Image> {
        match self.image_get(&upload.hex()).await {
            Err(error) if error.is_not_found() => {}
            known => return known,
        }
        let mut attempt = 1;
        loop {
            let call = self
                .call(Method::POST, &["v1", "images"], &[("label", upload.label)])
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, &upload.length.to_string())
                .header(CONTENT_DIGEST, &upload.content_digest());
            let error = match self.open(&call, Some(content().await?)).await {
                Ok(response) => {
                    let image = response.json().await;
                    return image.map_err(|error| Error::Answer(error.to_string()));
                }
                Err(error) => error,
            };
            if attempt >= ATTEMPTS || !may_pass(&error) {
                return Err(error);
            }
            tokio::time::sleep(back_off(attempt)).await;
            attempt += 1;
        }
    }
}

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

struct Upload<'a> {
    label: &'a str,
    digest: [u8; 32],
    length: u64,
}

impl Upload<'_> {
    fn hex(&self) -> String {
        self.digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// RFC 9530.
    fn content_digest(&self) -> String {
        use base64::Engine as _;
        let base64 = base64::engine::general_purpose::STANDARD.encode(self.digest);
        format!("sha-256=:{base64}:")
    }
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::File {
        path: path.clone(),
        source,
    }
}

async fn digest_of(path: &Path) -> Result<([u8; 32], u64)> {
    let refused = unreadable(path);
    let mut file = tokio::fs::File::open(path).await.map_err(&refused)?;
    let mut hash = Sha256::new();
    let mut length = 0;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = file.read(&mut piece).await.map_err(&refused)?;
        if read == 0 {
            return Ok((hash.finalize().into(), length));
        }
        hash.update(&piece[..read]);
        length += read as u64;
    }
}

/// The file's bytes, exactly `total` of them; a file that changed meanwhile breaks the upload.
async fn pieces(
    path: &Path,
    total: u64,
    progress: Arc<impl Fn(Uploaded) + Send + Sync + 'static>,
) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static> {
    let file = tokio::fs::File::open(path)
        .await
        .map_err(unreadable(path))?;
    let state = (file.take(total), 0_u64);
    Ok(futures::stream::try_unfold(
        state,
        move |(mut file, before)| {
            let progress = Arc::clone(&progress);
            async move {
                let mut piece = Vec::with_capacity(PIECE_BYTES);
                let read = (&mut file)
                    .take(PIECE_BYTES as u64)
                    .read_to_end(&mut piece)
                    .await?;
                let sent = before + read as u64;
                if read == 0 {
                    return Ok(None);
                }
                progress(Uploaded { sent, total });
                Ok(Some((Bytes::from(piece), (file, sent))))
            }
        },
    ))
}
