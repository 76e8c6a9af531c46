//! Network namespaces with names, as `ip netns` knows them: made, entered, and removed again.
//!
//! Every name is `dwcp-RUN-SIDE`, so that what a run leaves behind, if it is killed, can be found and removed by the
//! run's id ([`Namespace::remove_all`]) without touching anything else.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

const DIRECTORY: &str = "/run/netns";

/// Why a namespace could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The run id does not make a name.
    #[error("A run id has 1 to 32 characters, each one of a-z, 0-9 and -")]
    BadRunId,
    /// A step failed.
    #[error("Could not {action} the network namespace {name}: are you root?")]
    System {
        /// What was tried.
        action: &'static str,
        /// The namespace.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The work inside the namespace panicked.
    #[error("What ran inside the network namespace {0} panicked")]
    Panicked(String),
}

/// Names one run of a test or a demo; part of the name of everything that it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId(String);

impl RunId {
    /// Checks `text`: 1 to 32 of `a-z`, `0-9` and `-`.
    pub fn new(text: &str) -> Result<Self, NamespaceError> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if (1..=32).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NamespaceError::BadRunId)
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A network namespace of this run, with its loopback up. Removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    fd: OwnedFd,
}

impl Namespace {
    /// Makes `dwcp-RUN-SIDE`. Fails if it exists.
    pub fn create(run: &RunId, side: &str) -> Result<Self, NamespaceError> {
        let name = format!("dwcp-{}-{side}", run.as_str());
        let path = Path::new(DIRECTORY).join(&name);
        let failed = |action| {
            let name = name.clone();
            move |source: io::Error| NamespaceError::System {
                action,
                name,
                source,
            }
        };
        fs::create_dir_all(DIRECTORY)
            .and_then(|()| File::create_new(&path))
            .map_err(failed("name"))?;
        let made = in_thread(&name, || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            raise_loopback()?;
            let own = Some("/proc/thread-self/ns/net");
            mount(own, &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        })
        .and_then(|result: io::Result<()>| result.map_err(failed("make")))
        .and_then(|()| File::open(&path).map_err(failed("open")));
        match made {
            Ok(file) => Ok(Self {
                name,
                fd: file.into(),
            }),
            Err(error) => {
                remove(&path);
                Err(error)
            }
        }
    }

    /// Removes every namespace of a run, for one that was killed. Answers how many there were.
    pub fn remove_all(run: &RunId) -> usize {
        let prefix = format!("dwcp-{}-", run.as_str());
        let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| remove(&entry.path()))
            .count()
    }

    /// Its name, as `ip netns exec NAME` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs `work` in a thread inside the namespace. Sockets made there stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        let result = in_thread(&self.name, || {
            setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET).map(|()| work())
        })?;
        result.map_err(|errno| NamespaceError::System {
            action: "enter",
            name: self.name.clone(),
            source: errno.into(),
        })
    }

    /// A command that will run inside the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> io::Result<Command> {
        let fd = self.fd.try_clone()?;
        let mut command = Command::new(program);
        // SAFETY: setns is one system call, which is async-signal-safe; the closure owns the descriptor.
        unsafe {
            command.pre_exec(move || Ok(setns(fd.as_fd(), CloneFlags::CLONE_NEWNET)?));
        }
        Ok(command)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.path());
    }
}

fn remove(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

fn in_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    std::thread::scope(|scope| scope.spawn(work).join())
        .map_err(|_| NamespaceError::Panicked(name.to_owned()))
}

/// Sets `lo` up in the calling thread's namespace.
fn raise_loopback() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all-zero is a valid ifreq; the name is shorter than its field and ends with zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is a whole ifreq with its flags set.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    Errno::result(result)?;
    Ok(())
}
