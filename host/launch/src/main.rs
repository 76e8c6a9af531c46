//! `dwcp-launch`: becomes the launcher, and undoes what it did when it is told to stop.
//!
//! Everything that it does for a client is in the modules; here are the arguments, the socket and the signals.

mod cgroup;
mod children;
mod closer;
mod network;
mod sandbox;
mod server;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use dwcp_launch::protocol::{CHILDREN_MAX, NICS_MAX};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};

use crate::cgroup::Groups;
use crate::children::{Children, Programs};
use crate::closer::Closer;
use crate::network::{Networks, Nft, Prefix};
use crate::sandbox::{Sandbox, open_program};
use crate::server::Server;

/// Starts VMMs and movers, each inside walls of its own, for one user. Must run as root.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The Unix socket to listen on.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The only user who is served beside root: the one that dwcpd runs as.
    #[arg(long, value_name = "UID")]
    allow_uid: u32,
    /// First of the 256 user ids that children run as. Nothing else may use them.
    #[arg(long, value_name = "N", default_value_t = 1_879_048_192, value_parser = clap::value_parser!(u32).range(1000..=4_294_966_000))]
    uid_base: u32,
    /// The VMM's program [default: dwcp-vmm beside this program].
    #[arg(long, value_name = "PATH")]
    vmm: Option<PathBuf>,
    /// The mover's program [default: dwcp-mover beside this program].
    #[arg(long, value_name = "PATH")]
    mover: Option<PathBuf>,
    /// The image reader's program [default: dwcp-image beside this program].
    #[arg(long, value_name = "PATH")]
    reader: Option<PathBuf>,
    /// What the names of bridges and taps begin with; launchers of one network namespace differ in it.
    #[arg(long, value_name = "NAME", default_value = "dwcp")]
    network_prefix: Prefix,
    /// The program that sets the packet filter's rules, of the package nftables.
    #[arg(long, value_name = "PATH", default_value = "/usr/sbin/nft")]
    nft: PathBuf,
    /// Let children write to this program's standard error.
    #[arg(long)]
    verbose: bool,
}

/// Descriptors of the launcher itself: five a child and one a card, eight in each connection's unfinished message, and
/// some.
const DESCRIPTORS_OPEN_MAX: u64 = CHILDREN_MAX as u64 * (9 + NICS_MAX as u64) + 1024;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "The launcher makes namespaces and control groups: run it as root"
    );
    // In a session of its own it outlives whoever started it. It fails where that is so already.
    let _ = nix::unistd::setsid();
    let closer = Closer::start().context("A process cannot be started")?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let open_max = DESCRIPTORS_OPEN_MAX.max(hard);
    setrlimit(Resource::RLIMIT_NOFILE, open_max, open_max)
        .context("The limit of open descriptors cannot be raised")?;
    let signals = take_signals()?;
    let programs = Programs {
        vmm: open(arguments.vmm, "dwcp-vmm")?,
        mover: open(arguments.mover, "dwcp-mover")?,
        reader: open(arguments.reader, "dwcp-image")?,
    };
    let sandbox = Sandbox::new(arguments.verbose).context("/dev/null cannot be opened")?;
    let groups = Groups::find();
    let (listener, socket) = listen(&arguments.socket, arguments.allow_uid)?;
    eprintln!(
        "dwcp-launch: Serving user {} at {}; {}; {} user namespaces",
        arguments.allow_uid,
        arguments.socket.display(),
        groups.describe(),
        if sandbox.has_user_namespaces() {
            "with"
        } else {
            "without"
        },
    );
    let networks = Networks::new(arguments.network_prefix, Nft::new(arguments.nft), closer);
    let children = Children::new(sandbox, programs, groups, networks, arguments.uid_base);
    let result = Server::new(listener, signals, arguments.allow_uid, children).run();
    drop(socket);
    result.context("The launcher cannot wait for events any more")
}

/// SIGTERM and SIGINT become readable; a terminal that closes is nothing to us.
fn take_signals() -> anyhow::Result<SignalFd> {
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.add(Signal::SIGINT);
    stop.thread_block()?;
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&stop, flags)?)
}

fn open(given: Option<PathBuf>, name: &str) -> anyhow::Result<std::os::fd::OwnedFd> {
    let path = match given {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name(name),
    };
    open_program(&path).with_context(|| format!("The program {} cannot be opened", path.display()))
}

/// The socket's file, removed when dropped, if it is still ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on a socket that only `uid` (and root) can connect to.
fn listen(path: &Path, uid: u32) -> anyhow::Result<(UnixListener, SocketFile)> {
    remove_stale(path)?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener.with_context(|| format!("{} cannot be made", path.display()))?;
    listener.set_nonblocking(true)?;
    // The directory may belong to that user, who could put something else there meanwhile: so look, then change
    // exactly what was looked at.
    let file = fs::File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    let found = file.metadata()?;
    let is_ours = found.file_type().is_socket() && found.uid() == 0 && found.nlink() == 1;
    ensure!(is_ours, "{} was replaced", path.display());
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: plain system call on an open descriptor and an empty name.
    let changed = unsafe { libc::fchownat(file.as_raw_fd(), c"".as_ptr(), uid, u32::MAX, flags) };
    nix::errno::Errno::result(changed)?;
    let socket = SocketFile {
        path: path.to_owned(),
        identity: (found.dev(), found.ino()),
    };
    Ok((listener, socket))
}

/// Removes the socket of a launcher that is gone.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{} exists and is no socket", path.display())
        }
        Ok(_) => {}
    }
    if UnixStream::connect(path).is_ok() {
        bail!("Another launcher serves {}", path.display());
    }
    fs::remove_file(path).with_context(|| format!("{} cannot be removed", path.display()))
}
