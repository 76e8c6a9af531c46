//! Who has something in one network namespace that is one launcher's at a time: the networks of one prefix, or the
//! decision whether the host forwards.
//!
//! A file in `/run` named after both, locked as long as its owner lives. The owner removes it; one that was killed
//! leaves it unlocked. This module must not know what the owner does.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How long between two looks at a lock that somebody has.
const PAUSE: Duration = Duration::from_millis(10);

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock on `what`; nothing if somebody has it for longer than `patience`.
    pub fn take(what: &str, patience: Duration) -> io::Result<Option<Self>> {
        let namespace = fs::metadata("/proc/self/ns/net")?.ino();
        let path = PathBuf::from(format!("/run/dwcp-launch.{namespace}.{what}.lock"));
        let deadline = Instant::now() + patience;
        loop {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(errno.into()),
            };
            // Its owner may have removed it before we had the lock; then another may be made and locked.
            let ours = nix::sys::stat::fstat(file.as_fd())?.st_ino;
            if fs::symlink_metadata(&path).is_ok_and(|found| found.ino() == ours) {
                return Ok(Some(Self { path, _file: file }));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
