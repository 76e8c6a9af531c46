//! ext2, ext3 and ext4, by the crate `ext4-view`.
//!
//! What always holds: the numbers in the superblock from which that crate makes its tables are checked first; every
//! directory on the way to a file is checked for its size before it is searched; links are not followed by the crate,
//! which would read a target of any length.

use std::fmt;

use ext4_view::{Ext4, Ext4Error, Ext4Read};
use uuid::Uuid;

use super::{FileError, Node, PIECE_BYTES, Sink, Slice, Tree};
use crate::bytes::{array, le32};
use crate::limits::{DIRECTORY_BYTES_MAX, DIRECTORY_ENTRIES_MAX, EXT_GROUPS_MAX, PATH_BYTES_MAX};
use crate::shown::shown;

const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
/// Blocks of 64 KiB are the largest that ext4 has.
const BLOCK_SHIFT_MAX: u32 = 6;
const INCOMPATIBLE_64BIT: u32 = 0x80;

/// An opened file system.
pub(super) struct Ext {
    inner: Ext4,
}

impl fmt::Debug for Ext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ext").finish_non_exhaustive()
    }
}

impl Ext {
    /// Opens it, and answers its UUID.
    pub(super) fn open(slice: Slice) -> Result<(Self, String), FileError> {
        let mut superblock = [0; SUPERBLOCK_BYTES];
        slice
            .read_at(SUPERBLOCK_AT, &mut superblock)
            .map_err(FileError::Read)?;
        check(&superblock, slice.bytes())
            .ok_or_else(|| FileError::Damaged("the numbers in its superblock are wrong".into()))?;
        let uuid = Uuid::from_bytes(array(&superblock, 0x68).unwrap_or_default());
        let inner = Ext4::load(Box::new(Reader(slice))).map_err(failure)?;
        let tree = Self { inner };
        tree.node("/")?;
        Ok((tree, uuid.hyphenated().to_string()))
    }
}

/// Whether the tables that follow from a superblock are within bounds.
fn check(superblock: &[u8], partition_bytes: u64) -> Option<()> {
    let shift = le32(superblock, 0x18).filter(|shift| *shift <= BLOCK_SHIFT_MAX)?;
    let high = match le32(superblock, 0x60)? & INCOMPATIBLE_64BIT {
        0 => 0,
        _ => le32(superblock, 0x150)?,
    };
    // The crate believes the upper half whatever the feature says.
    if high != le32(superblock, 0x150)? {
        return None;
    }
    let blocks = u64::from(high) << 32 | u64::from(le32(superblock, 4)?);
    let bytes = blocks.checked_mul(1024 << shift)?;
    let per_group = u64::from(le32(superblock, 0x20).filter(|count| *count > 0)?);
    (bytes <= partition_bytes && blocks.div_ceil(per_group) <= EXT_GROUPS_MAX).then_some(())
}

impl Tree for Ext {
    fn node(&self, path: &str) -> Result<Option<Node>, FileError> {
        let metadata = match self.inner.symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(Ext4Error::NotFound) => return Ok(None),
            Err(error) => return Err(failure(error)),
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            if metadata.len() > DIRECTORY_BYTES_MAX {
                return Err(FileError::Directory(shown(path)));
            }
            return Ok(Some(Node::Directory));
        }
        if kind.is_symlink() {
            if metadata.len() > PATH_BYTES_MAX as u64 {
                return Err(FileError::Path(shown(path)));
            }
            let target = self.inner.read_link(path).map_err(failure)?;
            let target = target
                .to_str()
                .map_err(|_| FileError::NotFound(shown(path)))?;
            return Ok(Some(Node::Link(target.to_owned())));
        }
        Ok(Some(if kind.is_regular_file() {
            Node::File {
                bytes: metadata.len(),
            }
        } else {
            Node::Other
        }))
    }

    fn names(&self, path: &str) -> Result<Vec<String>, FileError> {
        let mut names = Vec::new();
        let entries = self.inner.read_dir(path).map_err(failure)?;
        for (count, entry) in entries.enumerate() {
            if count == DIRECTORY_ENTRIES_MAX {
                return Err(FileError::Directory(shown(path)));
            }
            let entry = entry.map_err(failure)?;
            if let Ok(name) = entry.file_name().as_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn read(&self, path: &str, sink: &mut Sink<'_>) -> Result<(), FileError> {
        let mut file = self.inner.open(path).map_err(failure)?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let mut length = 0;
            while length < piece.len() {
                match file.read_bytes(&mut piece[length..]).map_err(failure)? {
                    0 => break,
                    count => length += count,
                }
            }
            if length == 0 {
                return Ok(());
            }
            sink(&piece[..length])?;
        }
    }
}

/// The crate's way to the partition's bytes.
struct Reader(Slice);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read_at(start_byte, dst)?)
    }
}

fn failure(error: Ext4Error) -> FileError {
    match error {
        Ext4Error::Io(error) => FileError::Read(std::io::Error::other(error)),
        Ext4Error::Incompatible(features) => FileError::Features(features.to_string()),
        Ext4Error::Encrypted => FileError::Features("encryption".into()),
        other => FileError::Damaged(other.to_string()),
    }
}
