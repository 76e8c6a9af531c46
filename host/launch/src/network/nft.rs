//! The program `nft`, run with a ruleset on its standard input: one transaction, all of it or nothing.
//!
//! What always holds: its arguments are fixed, its environment is empty, it is given [`TIMEOUT`] and no more. This
//! module must not know what the rules say.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// It answers within tens of milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// So much of its complaints is kept, in bytes.
const COMPLAINT_BYTES_MAX: usize = 512;

/// Why rules could not be set.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is not there.
    #[error(
        "{program} is not there, and networks need it: install the package nftables, or name the program with --nft"
    )]
    Missing {
        /// Where it was looked for.
        program: PathBuf,
    },
    /// It could not be run.
    #[error("{program} could not be run")]
    Run {
        /// Which program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It did not end.
    #[error("nft did not end within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The kernel did not take the rules.
    #[error(
        "The packet filter's rules were refused; the kernel needs nf_tables with bridge, inet and nat ({0})"
    )]
    Refused(String),
}

/// Sets rules.
#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
}

impl Nft {
    /// With this program.
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// Whether the program is there.
    pub fn is_there(&self) -> bool {
        self.program.exists()
    }

    /// Carries out a ruleset, as one transaction.
    pub fn apply(&self, ruleset: &str) -> Result<(), NftError> {
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => NftError::Missing {
                program: self.program.clone(),
            },
            _ => NftError::Run {
                program: self.program.clone(),
                source,
            },
        };
        let mut process = Command::new(&self.program)
            .args(["-f", "-"])
            .env_clear()
            .current_dir("/")
            .stdin(in_memory(ruleset).map_err(failed)?)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let complaint = match listen(&mut process) {
            Ok(Some(complaint)) => complaint,
            Ok(None) => {
                let _ = process.kill();
                let _ = process.wait();
                return Err(NftError::Timeout);
            }
            Err(error) => error.to_string(),
        };
        let status = process.wait().map_err(failed)?;
        if status.success() {
            Ok(())
        } else {
            Err(NftError::Refused(complaint))
        }
    }
}

/// A file that nobody has to write to while the other reads: no program can make the launcher wait for it.
fn in_memory(text: &str) -> std::io::Result<File> {
    let mut file = File::from(memfd_create(c"dwcp-rules", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// What it says until it ends; nothing if it does not end in time.
fn listen(process: &mut Child) -> Result<Option<String>, Errno> {
    let Some(mut pipe) = process.stderr.take() else {
        return Ok(Some(String::new()));
    };
    let deadline = Instant::now() + TIMEOUT;
    let mut said = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
            Ok(_) => {}
        }
        match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                let room = COMPLAINT_BYTES_MAX - said.len();
                said.extend_from_slice(&buffer[..count.min(room)]);
            }
        }
    }
    let words: Vec<_> = String::from_utf8_lossy(&said)
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    Ok(Some(words.join(" ")))
}
