//! When memory is checked, although a restore must not wait for it.
//!
//! A restore maps memory and lets the guest run before any page was read, so the digests of its chunks cannot be
//! checked first: for 1 GiB that takes half a second from memory, and as long as the disk needs otherwise. Nor can
//! they be checked as pages are touched, because the kernel brings in mapped pages by itself. So:
//!
//! - header, manifest, table and device state are checked at every opening;
//! - memory is checked **once**, when a file becomes known to this host (written here, imported, or found without a
//!   seal), and a *seal* beside it remembers that: the snapshot's digest, and the file's device, inode, length, and
//!   times of modification and change. [`ensure`] reads everything unless the seal still fits;
//! - [`Snapshot::verify`] reads everything whenever it is asked for;
//! - memory that comes chunk by chunk (compressed, or served to page faults) is checked before a page enters the guest.
//!
//! What a seal cannot see: bits that rot on the disk after the check, with no write through the file system; and an
//! owner who sets clocks and files back on purpose. The first is what `verify` and file systems with checksums are for.
//! The second owns the host. A seal proves nothing on another host or for a copy: both have another inode.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::fsync;
use serde::{Deserialize, Serialize};

use crate::{Progress, ReadError, Snapshot, SnapshotDigest, SnapshotName};

/// Longest seal, in bytes.
const SEAL_BYTES_MAX: u64 = 4096;
/// Two changes within one tick of the kernel's coarse clock have one time. A tick is at most 10 ms.
const TICK: Duration = Duration::from_millis(20);

/// How it is known that memory is as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It was checked earlier, and the file has not changed since.
    Sealed,
    /// It was checked now.
    Verified,
}

/// What a file was like when its memory had been checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    digest: SnapshotDigest,
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Seal {
    fn of(snapshot: &Snapshot) -> Result<Self, ReadError> {
        let stat = fstat(snapshot.file()).map_err(std::io::Error::from)?;
        let ns = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Self {
            digest: snapshot.digest(),
            device: stat.st_dev,
            inode: stat.st_ino,
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
        })
    }

    /// Waits until a change from now on would have another time than the last one.
    fn let_time_pass(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ns = now.map_or(0, |now| now.as_nanos() as i128);
        let age_ns = now_ns - self.changed_ns;
        if (0..TICK.as_nanos() as i128).contains(&age_ns) {
            std::thread::sleep(TICK);
        }
    }
}

/// Whether a published snapshot was checked earlier and has not changed since.
pub fn is_sealed(directory: BorrowedFd<'_>, name: &SnapshotName, snapshot: &Snapshot) -> bool {
    let seal = read_seal(directory, name);
    seal.is_some_and(|seal| Seal::of(snapshot).is_ok_and(|now| now == seal))
}

/// Makes sure that a published snapshot's memory was checked: by its seal, or else now, and then it is sealed.
/// `progress` is called after each chunk that is read, and may stop it.
pub fn ensure(
    directory: BorrowedFd<'_>,
    name: &SnapshotName,
    snapshot: &Snapshot,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Trust, ReadError> {
    if is_sealed(directory, name, snapshot) {
        return Ok(Trust::Sealed);
    }
    let before = Seal::of(snapshot)?;
    before.let_time_pass();
    snapshot.verify(progress)?;
    // Changed while it was read: then it is as unknown as before.
    if Seal::of(snapshot)? == before {
        write_seal(directory, name, &before)?;
    }
    Ok(Trust::Verified)
}

/// A seal that is damaged or missing is as good as none.
fn read_seal(directory: BorrowedFd<'_>, name: &SnapshotName) -> Option<Seal> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = openat(directory, name.seal_name().as_str(), flags, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    File::from(file)
        .take(SEAL_BYTES_MAX)
        .read_to_end(&mut bytes)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Written whole or not at all. Two at once write the same.
fn write_seal(
    directory: BorrowedFd<'_>,
    name: &SnapshotName,
    seal: &Seal,
) -> Result<(), std::io::Error> {
    let (draft, published) = (format!(".{name}.seal.draft"), name.seal_name());
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let file = openat(directory, draft.as_str(), flags | OFlag::O_NOFOLLOW, mode)?;
    let mut file = File::from(file);
    file.write_all(&serde_json::to_vec(seal)?)?;
    file.sync_all()?;
    let renamed = renameat(directory, draft.as_str(), directory, published.as_str());
    match renamed {
        // Another one was faster with the same.
        Err(Errno::ENOENT) => Ok(()),
        other => Ok(other.and_then(|()| fsync(directory))?),
    }
}
