//! The daemon's end of a mover's control socket.
//!
//! Every method takes `&self`: one thread may wait in [`MoverClient::next_event`] while another gives commands.
//! Blocking; must not know what the daemon makes of the events.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dwcp_channel::{Channel, ChannelError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::protocol::{Command, Event};

/// One mover, seen from its daemon. Dropping it closes the control socket, which ends the mover.
#[derive(Debug)]
pub struct MoverClient {
    socket: UnixStream,
    commands: Mutex<Channel>,
    events: Mutex<Channel>,
}

impl MoverClient {
    /// Over the daemon's end of the control socket.
    ///
    /// # Errors
    /// When the socket cannot be duplicated.
    pub fn new(socket: UnixStream) -> Result<Self, ChannelError> {
        Ok(Self {
            commands: Mutex::new(Channel::new(socket.try_clone()?)),
            events: Mutex::new(Channel::new(socket.try_clone()?)),
            socket,
        })
    }

    /// Hands over a connected TCP socket, whose preamble is through; the caller may close its own copy after this.
    ///
    /// # Errors
    /// When the mover has gone.
    pub fn add_stream(&self, socket: impl AsFd) -> Result<(), ChannelError> {
        self.command(Command::Stream, Some(socket.as_fd().as_raw_fd()))
    }

    /// Source: sends every page whose bit is set; [`Event::RoundDone`] follows.
    ///
    /// # Errors
    /// When the mover has gone.
    pub fn round(&self) -> Result<(), ChannelError> {
        self.command(Command::Round, None)
    }

    /// Source: the last round, then the device state, read from the start of `state`; [`Event::Flushed`] follows, and
    /// [`Event::RoundDone`] when the destination has confirmed it all.
    ///
    /// # Errors
    /// When the mover has gone.
    pub fn finish(&self, state: impl AsFd) -> Result<(), ChannelError> {
        self.command(Command::Final, Some(state.as_fd().as_raw_fd()))
    }

    /// Gives the transfer up; [`Event::Failed`] follows.
    ///
    /// # Errors
    /// When the mover has gone.
    pub fn abort(&self) -> Result<(), ChannelError> {
        self.command(Command::Abort, None)
    }

    /// Waits for the next event; the descriptor is the device state that comes with [`Event::Complete`].
    ///
    /// # Errors
    /// [`ChannelError::Closed`] when the mover has ended.
    pub fn next_event(&self) -> Result<(Event, Option<OwnedFd>), ChannelError> {
        let (event, fds) = lock(&self.events).receive::<Event>()?;
        Ok((event, fds.into_iter().next()))
    }

    /// As [`MoverClient::next_event`], but gives up after `patience` without one, losing nothing.
    ///
    /// # Errors
    /// As [`MoverClient::next_event`].
    pub fn next_event_within(
        &self,
        patience: Duration,
    ) -> Result<Option<(Event, Option<OwnedFd>)>, ChannelError> {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sockets, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(None),
            Ok(_) => self.next_event().map(Some),
            Err(errno) => Err(std::io::Error::from(errno).into()),
        }
    }

    fn command(&self, command: Command, fd: Option<i32>) -> Result<(), ChannelError> {
        lock(&self.commands).send(&command, fd.as_slice())
    }
}

/// A poisoned lock only means that another caller panicked; the channel itself is still whole between messages.
fn lock(channel: &Mutex<Channel>) -> MutexGuard<'_, Channel> {
    channel.lock().unwrap_or_else(PoisonError::into_inner)
}
