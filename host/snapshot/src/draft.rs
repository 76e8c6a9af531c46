//! Files of a directory that are whole or not there.
//!
//! ```text
//! create        .NAME.N.draft, locked      a crash leaves a draft that nobody holds: sweep removes it, and while it
//!                                          looks at one, it alone has the lock
//! (write)                                  by whoever has the descriptor
//! publish       checked, renamed to NAME.snapshot, directory synced
//! ```
//! What always holds: under a published name lies the old snapshot, whole, or the new one, whole and on the disk; it
//! never changes, because at the moment of its publishing nobody has it open for writing, and its mode lets nobody
//! open it so.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::{ReadError, Snapshot};

/// How many drafts of one name there may be, under way or left behind.
const DRAFTS_MAX: u32 = 64;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 128;
const DRAFT_END: &str = ".draft";
/// How long a draft's writer may take to let go of it, and how often it is looked at.
const WRITER_TIMEOUT: Duration = Duration::from_secs(1);
const WRITER_PAUSE: Duration = Duration::from_millis(5);

/// A snapshot's name in its directory: 1 to 128 of `a-z`, `0-9`, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(String);

/// The text is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A snapshot's name has 1 to {NAME_BYTES_MAX} characters, each one of a-z, 0-9, - and _")]
pub struct BadName;

impl FromStr for SnapshotName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        if (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadName)
        }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SnapshotName {
    pub(crate) fn file_name(&self) -> String {
        format!("{}.snapshot", self.0)
    }

    pub(crate) fn seal_name(&self) -> String {
        format!("{}.seal", self.0)
    }

    fn draft_name(&self, number: u32) -> String {
        format!(".{}.{number}{DRAFT_END}", self.0)
    }
}

/// Why a draft could not be made or published.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// All numbers are taken.
    #[error("There are {DRAFTS_MAX} drafts of snapshot {0} already: sweep the directory")]
    TooMany(SnapshotName),
    /// What was written is no whole snapshot.
    #[error("The snapshot was not written whole")]
    NotWhole(#[from] ReadError),
    /// Somebody could still change it.
    #[error("The snapshot's file is still open for writing: end its writer first")]
    StillOpen,
    /// The file system failed.
    #[error("The snapshot's directory refused to {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

fn system(action: &'static str) -> impl FnOnce(Errno) -> DraftError {
    move |errno| failed(action)(errno.into())
}

fn failed(action: &'static str) -> impl FnOnce(std::io::Error) -> DraftError {
    move |source| DraftError::System { action, source }
}

/// A file that is being written, and is removed unless it is published.
#[derive(Debug)]
pub struct Draft {
    /// Gone before the file, and so removed under its lock: another draft may have the name as soon as it is free.
    entry: Entry,
    file: File,
}

/// The draft's name in its directory; removed when dropped.
#[derive(Debug)]
struct Entry {
    directory: OwnedFd,
    name: SnapshotName,
    /// Empty once it is published.
    draft_name: String,
}

impl Draft {
    /// Makes an empty file in a directory.
    pub fn create(directory: BorrowedFd<'_>, name: &SnapshotName) -> Result<Self, DraftError> {
        let kept = directory.try_clone_to_owned();
        let kept = kept.map_err(failed("be kept open"))?;
        for number in 0..DRAFTS_MAX {
            let draft_name = name.draft_name(number);
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            let file = match openat(directory, draft_name.as_str(), flags | SAFELY, mode) {
                Err(Errno::EEXIST) => continue,
                other => File::from(other.map_err(system("make a file"))?),
            };
            // A sweeper may have come between the two; then the file has no name any more.
            if file.try_lock_shared().is_err()
                || fstat(&file).map_err(system("show a file"))?.st_nlink == 0
            {
                continue;
            }
            return Ok(Self {
                entry: Entry {
                    directory: kept,
                    name: name.clone(),
                    draft_name,
                },
                file,
            });
        }
        Err(DraftError::TooMany(name.clone()))
    }

    /// The file, to write to or to hand to a writer. A copy of the descriptor keeps the draft from being swept.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Checks that a whole snapshot was written and gives it its name, in place of what had it before.
    pub fn publish(self) -> Result<Snapshot, DraftError> {
        let Self { file, entry } = self;
        let flags = OFlag::O_RDONLY | SAFELY;
        let draft_name = entry.draft_name.as_str();
        let reading = openat(&entry.directory, draft_name, flags, Mode::empty());
        let reading = File::from(reading.map_err(system("open a draft"))?);
        // Before the writer's lock goes, and until the draft has another name or none.
        let locked = reading.try_clone().map_err(failed("open a draft"))?;
        let shared = locked.try_lock_shared().map_err(std::io::Error::from);
        shared.map_err(failed("lock a draft"))?;
        let mut entry = entry;
        let (directory, draft_name) = (&entry.directory, entry.draft_name.as_str());
        fchmod(&reading, Mode::S_IRUSR).map_err(system("protect a file"))?;
        // The last descriptor that could write, unless somebody was given a copy.
        drop(file);
        refuse_writers(&reading)?;
        let snapshot = Snapshot::open(reading)?;
        // The writer has synced its data; what the file system says of them is to be kept as well.
        fsync(snapshot.file()).map_err(system("store a file"))?;
        let published = entry.name.file_name();
        renameat(directory, draft_name, directory, published.as_str())
            .map_err(system("name a file"))?;
        fsync(directory).map_err(system("be stored"))?;
        entry.draft_name.clear();
        locked.unlock().map_err(failed("unlock a draft"))?;
        Ok(snapshot)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.draft_name.is_empty() {
            let name = self.draft_name.as_str();
            let _ = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Opens a published snapshot; everything but memory is checked.
pub fn open(directory: BorrowedFd<'_>, name: &SnapshotName) -> Result<Snapshot, ReadError> {
    let flags = OFlag::O_RDONLY | SAFELY;
    let file = openat(directory, name.file_name().as_str(), flags, Mode::empty());
    Snapshot::open(File::from(file.map_err(std::io::Error::from)?))
}

/// Removes drafts whose writers are gone; answers how many. At most as many as the directory has when it begins.
pub fn sweep(directory: BorrowedFd<'_>) -> Result<u64, DraftError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing =
        Dir::openat(directory, ".", flags, Mode::empty()).map_err(system("be listed"))?;
    let mut removed = 0;
    for entry in listing.iter() {
        let entry = entry.map_err(system("be listed"))?;
        let name = entry.file_name();
        let is_draft =
            name.to_bytes().starts_with(b".") && name.to_bytes().ends_with(DRAFT_END.as_bytes());
        if !is_draft {
            continue;
        }
        let Ok(file) = openat(directory, name, OFlag::O_RDONLY | SAFELY, Mode::empty()) else {
            continue;
        };
        let file = File::from(file);
        if file.try_lock().is_err() || !is_named(&file, directory, name) {
            continue;
        }
        match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => {}
            result => {
                result.map_err(system("remove a draft"))?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// No link is followed, nothing is inherited, and a pipe under a file's name does not block.
const SAFELY: OFlag = OFlag::O_CLOEXEC
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK);

/// Whether a file still has its name; it may have been published meanwhile, and another draft begun.
fn is_named(file: &File, directory: BorrowedFd<'_>, name: &CStr) -> bool {
    let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    let (Ok(open), Ok(found)) = (fstat(file), found) else {
        return false;
    };
    (open.st_dev, open.st_ino) == (found.st_dev, found.st_ino)
}

/// A read lease is granted only while nobody has the file open for writing, in any process.
fn refuse_writers(file: &File) -> Result<(), DraftError> {
    let set = |kind: libc::c_int| {
        // SAFETY: plain system call on an open descriptor.
        Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) })
    };
    let until = Instant::now() + WRITER_TIMEOUT;
    loop {
        return match set(libc::F_RDLCK) {
            Ok(_) => set(libc::F_UNLCK).map(drop).map_err(system("end a lease")),
            // A process that is being started has copies of all descriptors, until it executes its program.
            Err(Errno::EAGAIN) if Instant::now() < until => {
                std::thread::sleep(WRITER_PAUSE);
                continue;
            }
            Err(Errno::EAGAIN) => Err(DraftError::StillOpen),
            // A file system without leases: then the directory's owner is trusted.
            Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(system("say who has a file open")(errno)),
        };
    }
}
