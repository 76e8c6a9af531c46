//! What a confined process does first: it takes the descriptors that the launcher gave it, and checks them.
//!
//! After [`inherit`] every descriptor is close-on-exec and owned, nothing beyond the announced ones is open, and a
//! panic anywhere in the process is reported as last words. Must run before the process opens a file or starts a
//! thread.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use crate::words::{Kind, LastWords};
use crate::{
    CONFIGURATION_BYTES_MAX, CONFIGURATION_FD, DESCRIPTORS_FD, DESCRIPTORS_MAX, LAST_WORDS_FD,
};

/// What the launcher gave to this process.
#[derive(Debug)]
pub struct Inheritance {
    /// Where to say why the process ends.
    pub last_words: LastWords,
    /// The configuration, verbatim as the requester wrote it; at most [`CONFIGURATION_BYTES_MAX`] bytes.
    pub configuration: Vec<u8>,
    /// The numbered descriptors in order; the first is the one that was at [`DESCRIPTORS_FD`].
    pub descriptors: Vec<OwnedFd>,
}

/// Why the inheritance could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// `argv[1]` is not a number of descriptors.
    #[error(
        "The first argument must be the number of descriptors (at most {DESCRIPTORS_MAX}); this program is started \
         by dwcp-launch, not by hand"
    )]
    Argument,
    /// A descriptor that was announced is not open.
    #[error("Descriptor {0} is not open; this program is started by dwcp-launch, not by hand")]
    NotOpen(i32),
    /// The configuration is longer than [`CONFIGURATION_BYTES_MAX`].
    #[error("The configuration has {0} bytes, more than {CONFIGURATION_BYTES_MAX}")]
    ConfigurationTooLong(u64),
    /// The configuration could not be read.
    #[error("The configuration could not be read")]
    Configuration(#[source] std::io::Error),
    /// The inheritance has been taken before.
    #[error("The inheritance can be taken only once")]
    Twice,
    /// The kernel refused to close what was not announced.
    #[error("Descriptors that were not announced could not be closed")]
    Close(#[source] Errno),
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes what the launcher gave: the first thing in `main`, before any file is opened and any thread started.
///
/// Closes every descriptor beyond those announced in `argv[1]`, and makes panics say their last words.
pub fn inherit() -> Result<Inheritance, InheritError> {
    let count = announced().ok_or(InheritError::Argument)?;
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(InheritError::Twice);
    }
    // A heap of a thread's own is shrunk after a look at `/proc/sys/vm/overcommit_memory`, and their number follows
    // from `/sys`: calls that no filter here allows. The one heap that all share needs neither.
    // SAFETY: changes a setting of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    take(LAST_WORDS_FD)?;
    let configuration_fd = take(CONFIGURATION_FD)?;
    let mut raw = Vec::with_capacity(count);
    let end = DESCRIPTORS_FD + count as i32;
    for fd in DESCRIPTORS_FD..end {
        raw.push(take(fd)?);
    }
    // SAFETY: plain system call; nothing in this process has opened a descriptor yet, so none of ours is closed.
    if unsafe { libc::close_range(end as u32, u32::MAX, 0) } != 0 {
        return Err(InheritError::Close(Errno::last()));
    }
    // SAFETY: the launcher put this descriptor here for us, it is open, and `TAKEN` guards against a second owner.
    let configuration = read_configuration(unsafe { File::from_raw_fd(configuration_fd) })?;
    let descriptors = raw
        .into_iter()
        // SAFETY: as above.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect();
    let last_words = LastWords::new();
    report_panics(last_words);
    Ok(Inheritance {
        last_words,
        configuration,
        descriptors,
    })
}

/// The number in `argv[1]`, if it is one and within bounds.
fn announced() -> Option<usize> {
    let argument = std::env::args_os().nth(1)?;
    let count: usize = argument.to_str()?.parse().ok()?;
    (count <= DESCRIPTORS_MAX).then_some(count)
}

/// Checks that `fd` is open and makes it close-on-exec.
fn take(fd: i32) -> Result<i32, InheritError> {
    // SAFETY: plain system call on a number; it fails when nothing is open there.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } {
        0 => Ok(fd),
        _ => Err(InheritError::NotOpen(fd)),
    }
}

fn read_configuration(file: File) -> Result<Vec<u8>, InheritError> {
    let length = file.metadata().map_err(InheritError::Configuration)?.len();
    let mut bytes = match usize::try_from(length) {
        Ok(length) if length <= CONFIGURATION_BYTES_MAX => vec![0; length],
        _ => return Err(InheritError::ConfigurationTooLong(length)),
    };
    file.read_exact_at(&mut bytes, 0)
        .map_err(InheritError::Configuration)?;
    Ok(bytes)
}

/// A panic is a bug, but the launcher shall still learn where it was.
fn report_panics(last_words: LastWords) {
    let inner = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        last_words.say(Kind::Error, &info.to_string());
        inner(info);
    }));
}
