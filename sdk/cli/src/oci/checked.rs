//! A blob on its way into a file, counted and hashed as it comes.
//!
//! What always holds: no more than its size is ever written, and only what has its digest is handed out.

use std::fs::File;
use std::io::{Seek, Write};

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::disk::DISK_BYTES_MAX;
use super::manifest::Digest;

/// A blob on its way.
#[derive(Debug)]
pub struct Checked {
    digest: Digest,
    size: u64,
    file: File,
    hash: Sha256,
    length: u64,
}

impl Checked {
    /// Nothing of the blob with this digest and size, yet.
    pub fn new(digest: Digest, size: u64, file: File) -> Result<Self> {
        ensure!(
            size <= DISK_BYTES_MAX,
            "A layer of it has {size} bytes; at most {} GiB are taken",
            DISK_BYTES_MAX >> 30
        );
        Ok(Self {
            digest,
            size,
            file,
            hash: Sha256::new(),
            length: 0,
        })
    }

    /// Which blob it is.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// How much of it is here, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// True if nothing is missing.
    pub fn is_whole(&self) -> bool {
        self.length == self.size
    }

    /// Takes the next bytes.
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        let length = self.length.saturating_add(piece.len() as u64);
        ensure!(
            length <= self.size,
            "Its layer {} is longer than the {} bytes that its manifest says: it was altered",
            self.digest,
            self.size
        );
        self.file
            .write_all(piece)
            .context("A layer cannot be written to a temporary file")?;
        self.hash.update(piece);
        self.length = length;
        Ok(())
    }

    /// Begins anew.
    pub fn restart(&mut self) -> Result<()> {
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.hash = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// The file, if it is what it must be.
    pub fn finish(self) -> Result<File> {
        let found = Digest(self.hash.finalize().into());
        ensure!(
            self.length == self.size,
            "Its layer {} has {} bytes, not the {} that its manifest says: it was altered",
            self.digest,
            self.length,
            self.size
        );
        ensure!(
            found == self.digest,
            "Its layer {} was altered: what came has the digest {found}",
            self.digest
        );
        Ok(self.file)
    }
}
