//! The hash file: the hash of every full subtree, in the order in which growing the tree completes them.
//!
//! It can always be made again from the entries and so is not synced with each group; it is written after a group is
//! durable and before the group is acknowledged. So its length also says how many entries were acknowledged at least,
//! which is how a cut segment is told from a torn one.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::tree::{Hash, Nodes};

const HASH_BYTES: u64 = 32;

/// How many hashes a tree of `size` leaves has stored.
pub(super) fn stored(size: u64) -> u64 {
    2 * size - u64::from(size.count_ones())
}

/// How many leaves the first `hashes` stored hashes are enough for.
fn leaves(hashes: u64) -> u64 {
    // stored(n) lies between n and 2n, so the answer lies between half and all.
    let (mut low, mut high) = (hashes / 2, hashes);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if stored(middle) <= hashes {
            low = middle
        } else {
            high = middle - 1
        }
    }
    low
}

/// The hash file, open.
#[derive(Debug)]
pub(super) struct HashFile {
    file: File,
}

impl HashFile {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("hashes");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        Ok(Self { file })
    }

    /// How many entries it has hashes for.
    pub(super) fn leaves(&self) -> io::Result<u64> {
        Ok(leaves(self.file.metadata()?.len() / HASH_BYTES))
    }

    /// Writes the hashes that completing the leaves after `size` gave.
    pub(super) fn append(&self, size: u64, hashes: &[Hash]) -> io::Result<()> {
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
        self.file.write_all_at(&bytes, stored(size) * HASH_BYTES)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Nodes for HashFile {
    type Error = io::Error;

    fn node(&self, level: u32, index: u64) -> io::Result<Hash> {
        let last_leaf = ((index + 1) << level) - 1;
        let position = stored(last_leaf) + u64::from(level);
        let mut hash = [0; 32];
        self.file.read_exact_at(&mut hash, position * HASH_BYTES)?;
        Ok(Hash(hash))
    }
}

/// Compares the hash file with the hashes that the entries give, and mends it once they are known to be true.
#[derive(Debug)]
pub(super) struct Mender {
    expected: BufReader<File>,
    /// How many hashes were compared and found right.
    right: u64,
    /// The hashes from the first wrong or missing one on, in a file of their own until they may replace it.
    mended: Option<(PathBuf, BufWriter<File>)>,
    directory: PathBuf,
    mended_count: u64,
}

impl Drop for Mender {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.mended {
            // The log was refused; what is left over is overwritten the next time.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Mender {
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let file = File::open(directory.join("hashes"))?;
        Ok(Self {
            expected: BufReader::with_capacity(1 << 20, file),
            right: 0,
            mended: None,
            directory: directory.to_owned(),
            mended_count: 0,
        })
    }

    pub(super) fn push(&mut self, hash: &Hash) -> io::Result<()> {
        if self.mended.is_none() {
            let mut found = [0; 32];
            match self.expected.read_exact(&mut found) {
                Ok(()) if found == hash.0 => {
                    self.right += 1;
                    return Ok(());
                }
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Err(error),
            }
            let path = self.directory.join("hashes.mending");
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            self.mended = Some((path, BufWriter::new(file)));
        }
        if let Some((_, file)) = &mut self.mended {
            file.write_all(&hash.0)?;
            self.mended_count += 1;
        }
        Ok(())
    }

    /// Makes the hash file what the entries gave. Answers how many hashes were wrong or missing.
    pub(super) fn finish(mut self, hashes: &HashFile) -> io::Result<u64> {
        hashes.file.set_len(self.right * HASH_BYTES)?;
        if let Some((path, mut file)) = self.mended.take() {
            file.flush()?;
            drop(file);
            let mut from = File::open(&path)?;
            let mut to = OpenOptions::new()
                .append(true)
                .open(self.directory.join("hashes"))?;
            io::copy(&mut from, &mut to)?;
            std::fs::remove_file(&path)?;
        }
        hashes.file.sync_all()?;
        Ok(self.mended_count)
    }
}
