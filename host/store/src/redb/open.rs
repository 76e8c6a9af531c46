//! Opening the file: making it, checking it, finding where it stands; and saying plainly what to do when it is not well.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ::redb::backends::FileBackend;
use ::redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageError};

use super::tables::{
    CURRENT, FORMAT, HISTORY, LOG, META, META_COMPACTED, META_FORMAT, META_PURGED, META_REVISION,
};
use super::writer::Position;
use crate::records::Revision;

/// Memory for pages of the file, in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be reached.
    #[error("The store {} cannot be opened: look at the file's owner, its permissions and the disk", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("The store {} is in use: stop the other dwcpd that has it open", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Its content is not what was written.
    #[error(
        "The store {} is damaged ({what}): move it aside and put a backup in its place",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// It has a layout that this program does not know.
    #[error("The store {} has format {format}, this dwcpd knows {FORMAT}: start a dwcpd of the version that wrote it", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The format it says it has.
        format: u64,
    },
}

/// Opens or makes the file and finds where it stands.
pub(super) fn open(path: &Path) -> Result<(Database, Position), OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    let db = FileBackend::new(file)
        .and_then(|file| {
            Builder::new()
                .set_cache_size(CACHE_BYTES)
                .set_check_integrity_on_open(true)
                .create_with_backend(file)
        })
        .map_err(|error| explain(path, error))?;
    let position = find_or_start(&db).map_err(|error| match error {
        Failure::Format(format) => OpenError::UnknownFormat {
            path: path.to_owned(),
            format,
        },
        Failure::Redb(::redb::Error::Io(source)) => io(source),
        Failure::Redb(error) => OpenError::Damaged {
            path: path.to_owned(),
            what: error.to_string(),
        },
    })?;
    // The file's name must outlive a crash as surely as its content.
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io)?;
    Ok((db, position))
}

fn explain(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenError::InUse { path }
        }
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() != std::io::ErrorKind::InvalidData =>
        {
            OpenError::Io { path, source }
        }
        error => OpenError::Damaged {
            path,
            what: error.to_string(),
        },
    }
}

enum Failure {
    Redb(::redb::Error),
    Format(u64),
}

impl<E: Into<::redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

/// A file without tables is new, or was left by a crash before its first commit.
fn find_or_start(db: &Database) -> Result<Position, Failure> {
    if db.begin_read()?.list_tables()?.next().is_none() {
        start(db)?;
    }
    find(db)
}

/// Makes the tables. The first change will have revision 2, as with etcd.
fn start(db: &Database) -> Result<(), Failure> {
    let txn = db.begin_write()?;
    {
        txn.open_table(CURRENT)?;
        txn.open_table(HISTORY)?;
        txn.open_table(LOG)?;
        let mut meta = txn.open_table(META)?;
        for (name, value) in [
            (META_FORMAT, FORMAT),
            (META_REVISION, 1),
            (META_COMPACTED, 0),
            (META_PURGED, 0),
        ] {
            meta.insert(name, value)?;
        }
    }
    txn.commit()?;
    Ok(())
}

/// Reads where the file stands and what its history costs.
fn find(db: &Database) -> Result<Position, Failure> {
    let txn = db.begin_read()?;
    let meta = txn.open_table(META)?;
    let number = |name| Ok::<_, Failure>(meta.get(name)?.map_or(0, |value| value.value()));
    let format = number(META_FORMAT)?;
    if format != FORMAT {
        return Err(Failure::Format(format));
    }
    let mut position = Position {
        latest: Revision(number(META_REVISION)?),
        compacted: Revision(number(META_COMPACTED)?),
        purged: Revision(number(META_PURGED)?),
        kept: VecDeque::new(),
        kept_bytes: 0,
    };
    let log = txn.open_table(LOG)?;
    for row in log.range((position.compacted.0.saturating_add(1), 0)..)? {
        let (at, change) = row?;
        let (revision, cost_bytes) = (Revision(at.value().0), u64::from(change.value().0));
        match position.kept.back_mut() {
            Some((last, cost)) if *last == revision => {
                *cost += cost_bytes;
                position.kept_bytes += cost_bytes;
            }
            _ => position.keep(revision, cost_bytes),
        }
    }
    Ok(position)
}
