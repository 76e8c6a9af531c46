//! Reading files out of a partition, whatever file system it holds.
//!
//! What always holds: nothing is written; paths, symbolic links, directories and files are bounded; a file system that
//! is not read is named, so that a person knows what to do. What it must not know: what the files are for.
//!
//! [`Volume`] follows links and walks directories; the file systems beneath (`ext`, `fat`) only look up plain paths.

mod ext;
mod fat;
mod identify;
mod resolve;

use std::fmt::Debug;
use std::io::{self, Write};
use std::rc::Rc;

use crate::disk::Disk;
use crate::limits::{CONFIG_BYTES_MAX, DIRECTORY_WORK_BYTES_MAX};
use crate::partitions::Partition;
use crate::shown::shown;
pub use identify::{FileSystem, identify};

/// Bytes that are read from a file at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A partition's bytes.
#[derive(Clone, Debug)]
pub struct Slice {
    disk: Rc<Disk>,
    start: u64,
    bytes: u64,
}

impl Slice {
    /// The bytes of a partition of this disk.
    pub fn new(disk: Rc<Disk>, partition: &Partition) -> Self {
        Self {
            disk,
            start: partition.start,
            bytes: partition.bytes,
        }
    }

    /// How many there are.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads exactly `buffer.len()` bytes at `offset` of the partition.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "The file system points beyond the end of its partition",
            ));
        }
        self.disk.read_at(self.start + offset, buffer)
    }
}

/// Why a file system or a file in it could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No such file.
    #[error("There is no file {0}")]
    NotFound(String),
    /// A directory, a device, a socket.
    #[error("{0} is not a regular file")]
    NotFile(String),
    /// A file where a directory should be.
    #[error("{0} is not a directory")]
    NotDirectory(String),
    /// Too many links or steps, or too long a path.
    #[error("The path {0} is too long, or its symbolic links lead in a circle")]
    Path(String),
    /// Larger than what it is for may be.
    #[error("{path} has {bytes} bytes; at most {bytes_max} are taken")]
    TooLarge {
        /// Which file.
        path: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A directory with too many entries.
    #[error("The directory {0} is too large")]
    Directory(String),
    /// Directories that are read again and again.
    #[error(
        "The file system makes too much work: the limit of {DIRECTORY_WORK_BYTES_MAX} bytes of directories is reached"
    )]
    DirectoryWork,
    /// Structures that contradict each other.
    #[error("The file system is damaged: {0}")]
    Damaged(String),
    /// A feature that the reader lacks.
    #[error("The file system uses features that are not read: {0}")]
    Features(String),
    /// The disk could not be read.
    #[error("The image could not be read")]
    Read(#[source] io::Error),
    /// The copy could not be written.
    #[error("The copy could not be written")]
    Write(#[source] io::Error),
}

/// What a path leads to, a link at its end not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File { bytes: u64 },
    Link(String),
    Other,
}

/// Receives a file piece by piece.
type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), FileError> + 'a;

/// A file system: plain absolute paths, in which no component is a link, `.`, `..` or empty.
trait Tree: Debug {
    /// What is at a path whose parent was found to be a directory.
    fn node(&self, path: &str) -> Result<Option<Node>, FileError>;
    /// The names in a directory, in no order, without `.` and `..` and those that are not UTF-8.
    fn names(&self, path: &str) -> Result<Vec<String>, FileError>;
    /// Hands all bytes of a file to `sink`, as many as [`Node::File`] says.
    fn read(&self, path: &str, sink: &mut Sink<'_>) -> Result<(), FileError>;
}

/// An opened file system.
#[derive(Debug)]
pub struct Volume {
    tree: Box<dyn Tree>,
    kind: FileSystem,
    uuid: String,
}

impl Volume {
    /// Opens what a partition holds; `None` when it is no file system that is read.
    pub fn open(slice: Slice, kind: FileSystem) -> Result<Option<Self>, FileError> {
        let (tree, uuid): (Box<dyn Tree>, String) = match kind {
            FileSystem::Ext => {
                let (tree, uuid) = ext::Ext::open(slice)?;
                (Box::new(tree), uuid)
            }
            FileSystem::Fat => {
                let (tree, uuid) = fat::Fat::open(slice)?;
                (Box::new(tree), uuid)
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { tree, kind, uuid }))
    }

    /// Which file system it is.
    pub fn kind(&self) -> FileSystem {
        self.kind
    }

    /// Its identifier as Linux and GRUB write it, in lower case.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The size of a regular file, links followed; `None` when there is nothing of that name.
    pub fn file_bytes(&self, path: &str) -> Result<Option<u64>, FileError> {
        match resolve::resolve(self.tree.as_ref(), path) {
            Ok((_, Node::File { bytes })) => Ok(Some(bytes)),
            Ok(_) => Err(FileError::NotFile(shown(path))),
            Err(FileError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether there is a regular file of this name; what cannot be read is not there.
    pub fn has_file(&self, path: &str) -> bool {
        self.file_bytes(path).is_ok_and(|bytes| bytes.is_some())
    }

    /// The names in a directory, sorted; none when there is no such directory.
    pub fn names(&self, path: &str) -> Result<Vec<String>, FileError> {
        match resolve::resolve(self.tree.as_ref(), path) {
            Ok((path, Node::Directory)) => {
                let mut names = self.tree.names(&path)?;
                names.sort_unstable();
                Ok(names)
            }
            Ok(_) | Err(FileError::NotFound(_)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// A small text file; `None` when there is none. Bytes that are no UTF-8 are replaced.
    pub fn text(&self, path: &str) -> Result<Option<String>, FileError> {
        let mut bytes = Vec::new();
        match self.copy(path, CONFIG_BYTES_MAX, &mut bytes) {
            Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(FileError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Copies a regular file, links followed, and answers its size.
    pub fn copy(&self, path: &str, bytes_max: u64, out: &mut dyn Write) -> Result<u64, FileError> {
        let (plain, bytes) = match resolve::resolve(self.tree.as_ref(), path)? {
            (plain, Node::File { bytes }) => (plain, bytes),
            _ => return Err(FileError::NotFile(shown(path))),
        };
        if bytes > bytes_max {
            return Err(FileError::TooLarge {
                path: shown(path),
                bytes,
                bytes_max,
            });
        }
        let mut copied = 0;
        self.tree.read(&plain, &mut |piece| {
            copied += piece.len() as u64;
            if copied > bytes {
                return Err(FileError::Damaged("a file grew while it was read".into()));
            }
            out.write_all(piece).map_err(FileError::Write)
        })?;
        match copied == bytes {
            true => Ok(bytes),
            false => Err(FileError::Damaged(format!(
                "{} ends after {copied} of {bytes} bytes",
                shown(path)
            ))),
        }
    }
}
