//! The one way our processes talk to each other: length-prefixed JSON over a Unix stream socket, with descriptors.
//!
//! A message is a 4-byte little-endian length and that many bytes of JSON; descriptors ride (`SCM_RIGHTS`) with the
//! length. Both are bounded, so a hostile peer costs one message's memory and no more, and every descriptor received
//! is owned, so none leaks when a message turns out to be bad.
//!
//! This crate must never know what the messages mean.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

mod mailbox;

pub use mailbox::Mailbox;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Serialize, de::DeserializeOwned};

/// Longest message body, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Most descriptors that one message carries: as many as a confined process is handed.
pub const DESCRIPTORS_MAX: usize = 64;

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer closed the socket between two messages.
    #[error("The other process closed the channel")]
    Closed,
    /// The message is longer than [`MESSAGE_BYTES_MAX`].
    #[error("A message of {0} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// More than [`DESCRIPTORS_MAX`] descriptors were sent, or the kernel cut some off.
    #[error("A message carries more than {DESCRIPTORS_MAX} descriptors")]
    TooManyDescriptors,
    /// The body is not the JSON that the receiver expects.
    #[error("A message could not be understood")]
    Malformed(#[from] serde_json::Error),
    /// The socket failed, or the peer went away in the middle of a message.
    #[error("The channel failed")]
    Io(#[from] std::io::Error),
}

/// One end of a channel. Blocking; one message at a time.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    /// How long a message may take, from the first wait for it to its last byte.
    patience: Option<Duration>,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    /// Takes over a connected stream socket.
    pub fn new(socket: UnixStream) -> Self {
        Self {
            patience: None,
            socket,
        }
    }

    /// Gives the socket back, for a connection that stops speaking messages (a console).
    pub fn into_inner(self) -> UnixStream {
        self.socket
    }

    /// How long [`Channel::receive`] waits for a whole message, however it comes.
    pub fn set_read_timeout(&mut self, timeout: Duration) -> Result<(), ChannelError> {
        self.socket.set_read_timeout(Some(timeout))?;
        self.patience = Some(timeout);
        Ok(())
    }

    /// Sends one message with descriptors, which stay the caller's.
    pub fn send<T: Serialize>(&mut self, message: &T, fds: &[RawFd]) -> Result<(), ChannelError> {
        let body = serde_json::to_vec(message)?;
        let length = u32::try_from(body.len()).map_err(|_| ChannelError::TooLong(body.len()))?;
        if body.len() > MESSAGE_BYTES_MAX {
            return Err(ChannelError::TooLong(body.len()));
        }
        if fds.len() > DESCRIPTORS_MAX {
            return Err(ChannelError::TooManyDescriptors);
        }
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        let message = [&length.to_le_bytes()[..], &body].concat();
        // In one piece: the peer wakes once.
        let sent = loop {
            match sendmsg::<()>(
                self.socket.as_raw_fd(),
                &[IoSlice::new(&message)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => break other.map_err(std::io::Error::from)?,
            }
        };
        self.socket.write_all(&message[sent..])?;
        Ok(())
    }

    /// Waits for one message. Its descriptors are close-on-exec and owned by the caller.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), ChannelError> {
        let until = self.patience.map(|patience| Instant::now() + patience);
        let mut head = [0u8; 4];
        let (got, fds) = receive_head(&self.socket, &mut head)?;
        if got == 0 {
            return Err(ChannelError::Closed);
        }
        self.read_exact(&mut head[got..], until)?;
        let length = u32::from_le_bytes(head) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(ChannelError::TooLong(length));
        }
        let mut body = vec![0; length];
        self.read_exact(&mut body, until)?;
        Ok((serde_json::from_slice(&body)?, fds))
    }

    /// A peer that sends a byte now and then is not waited for longer than one that sends nothing.
    fn read_exact(&mut self, mut rest: &mut [u8], until: Option<Instant>) -> std::io::Result<()> {
        while !rest.is_empty() {
            if until.is_some_and(|until| Instant::now() > until) {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            match self.socket.read(rest) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => rest = &mut rest[count..],
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Reads the beginning of a message, and the descriptors that ride with it.
fn receive_head(
    socket: &UnixStream,
    head: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), ChannelError> {
    let mut space = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let mut slices = [IoSliceMut::new(head)];
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => break other.map_err(std::io::Error::from)?,
        }
    };
    let mut fds = Vec::new();
    for control in message.cmsgs().map_err(std::io::Error::from)? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us, and nothing else knows them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(ChannelError::TooManyDescriptors);
    }
    Ok((message.bytes, fds))
}
