//! A blocking client of a VMM's control socket.
//!
//! One request at a time; a reply of the wrong kind, or none within [`REPLY_TIMEOUT`], is an error, after which the
//! connection is of no more use.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use dwcp_channel::{Channel, ChannelError};

use dwcp_snapshot::SnapshotDigest;

use crate::devices::{ANSWER_TIMEOUT, SYNC_TIMEOUT};
use crate::protocol::{CpuStatus, Reply, Request, SnapshotOrder, Status, VERSIONS};
use crate::vcpu::STAND_TIMEOUT;

/// How long a reply may take: longer than the VMM itself waits for vCPUs and devices.
pub const REPLY_TIMEOUT: Duration = STAND_TIMEOUT.saturating_add(Duration::from_secs(20));
/// How long a pause may take, which makes durable what the guest wrote.
pub const PAUSE_TIMEOUT: Duration = SYNC_TIMEOUT
    .saturating_add(ANSWER_TIMEOUT)
    .saturating_add(REPLY_TIMEOUT);
/// How long writing a snapshot may take.
pub const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Why a request got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket could not be reached.
    #[error("The VMM cannot be reached")]
    Connect(#[source] std::io::Error),
    /// The connection broke, or the reply took longer than [`REPLY_TIMEOUT`].
    #[error("The VMM did not answer")]
    Channel(#[from] ChannelError),
    /// The VMM said no; nothing changed.
    #[error("The VMM refused: {0}")]
    Refused(String),
    /// Another kind of reply than the request asks for.
    #[error("The VMM answered {0:?}, which is no answer to the request: are both of one version?")]
    Unexpected(Reply),
    /// The reply lacks the descriptor that belongs to it.
    #[error("The VMM answered without the descriptor that belongs to the answer")]
    NoDescriptor,
}

/// A connection to one VMM, its version agreed.
#[derive(Debug)]
pub struct VmmClient {
    channel: Channel,
}

/// Connects at once or not at all: a process that takes no connections is not waited for.
pub fn connect(path: &Path) -> std::io::Result<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(made.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(made);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

impl VmmClient {
    /// Connects to the socket at `path`.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        Self::new(connect(path.as_ref()).map_err(ClientError::Connect)?)
    }

    /// Takes a connected socket and agrees on a version.
    pub fn new(socket: UnixStream) -> Result<Self, ClientError> {
        socket
            .set_write_timeout(Some(REPLY_TIMEOUT))
            .map_err(ClientError::Connect)?;
        let mut client = Self {
            channel: Channel::new(socket),
        };
        client.channel.set_read_timeout(REPLY_TIMEOUT)?;
        let hello = Request::Hello {
            versions: VERSIONS.to_vec(),
        };
        match client.ask(&hello, None)? {
            (Reply::Hello { version }, _) if VERSIONS.contains(&version) => Ok(client),
            (other, _) => Err(ClientError::Unexpected(other)),
        }
    }

    /// Lets the VM run for the first time, under `epoch`.
    pub fn run(&mut self, epoch: u64) -> Result<(), ClientError> {
        self.done(&Request::Run { epoch }, None)
    }

    /// Stops all vCPUs; what the guest wrote to its disks is durable afterwards. It goes on if that cannot be done.
    pub fn pause(&mut self) -> Result<(), ClientError> {
        match self.ask_slowly(&Request::Pause, None, PAUSE_TIMEOUT)? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(ClientError::Unexpected(other)),
        }
    }

    /// Lets a paused VM go on, under `epoch`.
    pub fn resume(&mut self, epoch: u64) -> Result<(), ClientError> {
        self.done(&Request::Resume { epoch }, None)
    }

    /// Presses the power button (`force` false), or ends the process.
    pub fn stop(&mut self, force: bool) -> Result<(), ClientError> {
        self.done(&Request::Stop { force }, None)
    }

    /// Attaches to the serial console: raw bytes both ways, scrollback first.
    pub fn console(&mut self) -> Result<UnixStream, ClientError> {
        match self.ask(&Request::Console, None)? {
            (Reply::Console, Some(fd)) => Ok(UnixStream::from(fd)),
            (Reply::Console, None) => Err(ClientError::NoDescriptor),
            (other, _) => Err(ClientError::Unexpected(other)),
        }
    }

    /// Begins to log which pages change; sets no bit.
    pub fn dirty_start(&mut self) -> Result<(), ClientError> {
        self.done(&Request::DirtyStart, None)
    }

    /// Adds what changed to the shared bitmap; answers how many bits are set in it now.
    pub fn dirty_harvest(&mut self) -> Result<u64, ClientError> {
        match self.ask(&Request::DirtyHarvest, None)? {
            (Reply::Dirty { pages }, _) => Ok(pages),
            (other, _) => Err(ClientError::Unexpected(other)),
        }
    }

    /// Ends the log.
    pub fn dirty_stop(&mut self) -> Result<(), ClientError> {
        self.done(&Request::DirtyStop, None)
    }

    /// Makes a disk longer.
    pub fn resize(&mut self, device: &str, bytes: u64) -> Result<(), ClientError> {
        let device = device.to_owned();
        self.done(&Request::Resize { device, bytes }, None)
    }

    /// Whoever has the other end of `host` is asked when the guest connects to the host.
    pub fn host(&mut self, host: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.done(&Request::Host, Some(host))
    }

    /// Has the guest give up so many pages in all by a balloon.
    pub fn balloon(&mut self, device: &str, pages: u32) -> Result<(), ClientError> {
        let device = device.to_owned();
        self.done(&Request::Balloon { device, pages }, None)
    }

    /// The device state of the paused VM: a sealed memfd and its length in bytes.
    pub fn save(&mut self) -> Result<(OwnedFd, u64), ClientError> {
        self.state(&Request::Save)
    }

    /// The same, of a VM that forks are to be made of.
    pub fn save_template(&mut self) -> Result<(OwnedFd, u64), ClientError> {
        self.state(&Request::SaveTemplate)
    }

    fn state(&mut self, request: &Request) -> Result<(OwnedFd, u64), ClientError> {
        match self.ask(request, None)? {
            (Reply::State { bytes }, Some(fd)) => Ok((fd, bytes)),
            (Reply::State { .. }, None) => Err(ClientError::NoDescriptor),
            (other, _) => Err(ClientError::Unexpected(other)),
        }
    }

    /// Gives a device state to a VM that was started as incoming.
    pub fn load(&mut self, state: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.done(&Request::Load, Some(state))
    }

    /// Writes the paused VM as a snapshot into an empty file, and syncs it.
    pub fn snapshot(
        &mut self,
        file: BorrowedFd<'_>,
        order: SnapshotOrder,
    ) -> Result<SnapshotDigest, ClientError> {
        let request = Request::Snapshot(order);
        match self.ask_slowly(&request, Some(file), SNAPSHOT_TIMEOUT)? {
            (Reply::Snapshot { digest }, _) => Ok(digest),
            (other, _) => Err(ClientError::Unexpected(other)),
        }
    }

    /// Makes a shell what a snapshot holds; its files, the newest first.
    pub fn restore(&mut self, layers: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.done_with(&Request::Restore, layers)
    }

    /// Makes a shell what the template was whose memory it was given.
    pub fn fork(&mut self, state: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.done(&Request::Fork, Some(state))
    }

    /// How the VM is.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(&Request::Status, None)? {
            (Reply::Status(status), _) => Ok(status),
            (other, _) => Err(ClientError::Unexpected(other)),
        }
    }

    /// What the guest was told of its CPU, and what this host offers.
    pub fn cpu(&mut self) -> Result<CpuStatus, ClientError> {
        match self.ask(&Request::Cpu, None)? {
            (Reply::Cpu(cpu), _) => Ok(cpu),
            (other, _) => Err(ClientError::Unexpected(other)),
        }
    }

    fn done(&mut self, request: &Request, fd: Option<BorrowedFd<'_>>) -> Result<(), ClientError> {
        self.done_with(request, fd.as_slice())
    }

    fn done_with(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.ask_with(request, fds)? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(ClientError::Unexpected(other)),
        }
    }

    fn ask(
        &mut self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Option<OwnedFd>), ClientError> {
        self.ask_with(request, fd.as_slice())
    }

    /// What may take longer than other requests.
    fn ask_slowly(
        &mut self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<(Reply, Option<OwnedFd>), ClientError> {
        self.channel.set_read_timeout(timeout)?;
        let answer = self.ask(request, fd);
        self.channel.set_read_timeout(REPLY_TIMEOUT)?;
        answer
    }

    fn ask_with(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Option<OwnedFd>), ClientError> {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        self.channel.send(request, &fds)?;
        match self.channel.receive()? {
            (Reply::Refused { reason }, _) => Err(ClientError::Refused(reason)),
            (reply, fds) => Ok((reply, fds.into_iter().next())),
        }
    }
}
