//! The launcher's half: the pipe for last words, the sealed configuration, and descriptors put in their places.
//!
//! [`Handover::place`] runs in the new process between its making and its exec, where only async-signal-safe calls
//! are allowed; everything that allocates happens before. [`Handover::prepare`] does the same for a
//! [`Command`], so that a program's own tests can start it as the launcher does, without the walls.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::words::{LAST_WORDS_BYTES_MAX, SpokenWords, parse_last_words};
use crate::{CONFIGURATION_BYTES_MAX, DESCRIPTORS_MAX, LAST_WORDS_FD};

/// Why a hand-over could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// More than [`DESCRIPTORS_MAX`] descriptors.
    #[error("A process takes at most {DESCRIPTORS_MAX} descriptors, not {0}")]
    TooManyDescriptors(usize),
    /// The configuration is longer than [`CONFIGURATION_BYTES_MAX`].
    #[error("A configuration has at most {CONFIGURATION_BYTES_MAX} bytes, not {0}")]
    ConfigurationTooLong(usize),
    /// A pipe or a memfd could not be made.
    #[error("The descriptors for a new process could not be made")]
    Io(#[from] std::io::Error),
}

/// Everything one new process is given, ready to be put in place.
#[derive(Debug)]
pub struct Handover {
    /// In the order of their numbers, from [`LAST_WORDS_FD`] on.
    ordered: Vec<OwnedFd>,
}

impl Handover {
    /// Makes the pipe and the sealed configuration, and takes the descriptors that follow.
    pub fn new(
        configuration: &[u8],
        descriptors: Vec<OwnedFd>,
    ) -> Result<(Self, LastWordsPipe), HandoverError> {
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(HandoverError::TooManyDescriptors(descriptors.len()));
        }
        if configuration.len() > CONFIGURATION_BYTES_MAX {
            return Err(HandoverError::ConfigurationTooLong(configuration.len()));
        }
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(std::io::Error::from)?;
        let mut ordered = vec![writer, sealed(configuration)?];
        ordered.extend(descriptors);
        let pipe = LastWordsPipe {
            reader: File::from(reader),
            words: Vec::new(),
        };
        Ok((Self { ordered }, pipe))
    }

    /// What `argv[1]` has to be: the number of descriptors after the configuration.
    pub fn argument(&self) -> String {
        (self.ordered.len() - 2).to_string()
    }

    /// Puts every descriptor in its place and makes all higher ones close-on-exec. For the new process only.
    ///
    /// Async-signal-safe. On an error the process must end: its descriptors are in no order.
    pub fn place(&self) -> Result<(), Errno> {
        let end = LAST_WORDS_FD + self.ordered.len() as RawFd;
        // Sources that lie where targets will be are moved out of the way first.
        let mut moved = [-1 as RawFd; DESCRIPTORS_MAX + 2];
        for (source, moved) in self.ordered.iter().zip(&mut moved) {
            let source = source.as_raw_fd();
            let duplicate = if source < end {
                // SAFETY: plain system call on an open descriptor.
                unsafe { libc::fcntl(source, libc::F_DUPFD_CLOEXEC, end) }
            } else {
                source
            };
            *moved = Errno::result(duplicate)?;
        }
        for (target, source) in (LAST_WORDS_FD..end).zip(moved) {
            // SAFETY: plain system call; what was at the target belongs to the process that is about to be replaced.
            Errno::result(unsafe { libc::dup2(source, target) })?;
        }
        // SAFETY: plain system call; it closes nothing now.
        let result = unsafe {
            libc::close_range(
                end as u32,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC as libc::c_int,
            )
        };
        Errno::result(result).map(drop)
    }

    /// Gives `command` its first argument and these descriptors. Nothing else about it is confined.
    pub fn prepare(self, command: &mut Command) {
        command.arg(self.argument());
        // SAFETY: `place` is async-signal-safe, and the descriptors live as long as the closure that owns them.
        unsafe {
            command.pre_exec(move || self.place().map_err(std::io::Error::from));
        }
    }
}

/// Bytes in a memfd that nobody can change any more.
fn sealed(bytes: &[u8]) -> Result<OwnedFd, std::io::Error> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"dwcp-configuration", flags)?);
    file.write_all(bytes)?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// The launcher's end of a last-words pipe. Never blocks; keeps no more than is believed.
#[derive(Debug)]
pub struct LastWordsPipe {
    reader: File,
    words: Vec<u8>,
}

impl LastWordsPipe {
    /// The descriptor to wait on; it becomes readable when something was said or the process is gone.
    pub fn as_raw_fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }

    /// Reads what is there now. Answers `false` once nothing more can come.
    pub fn drain(&mut self) -> bool {
        let mut buffer = [0u8; LAST_WORDS_BYTES_MAX];
        // A process that keeps writing must not keep us here: one pipe's worth a call.
        for _ in 0..16 {
            match self.reader.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    let room = LAST_WORDS_BYTES_MAX - self.words.len();
                    self.words.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    /// What has been said so far.
    pub fn spoken(&self) -> Option<SpokenWords> {
        parse_last_words(&self.words)
    }

    /// Waits, at most `timeout_ms`, until the process has closed its end; answers what it said.
    pub fn wait(mut self, timeout_ms: u16) -> Option<SpokenWords> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let deadline =
            std::time::Instant::now() + std::time::Duration::from_millis(timeout_ms.into());
        while self.drain() {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                break;
            }
            let mut fds = [PollFd::new(self.reader.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(&mut fds, timeout).is_err_and(|error| error != Errno::EINTR) {
                break;
            }
        }
        self.spoken()
    }
}
