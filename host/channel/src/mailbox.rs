//! A channel that never blocks, for a process that serves many peers in one thread.
//!
//! A peer that sends half a message, or does not read its replies, costs its own mailbox a bounded amount of memory
//! and nobody any time. How long that may last is the owner's to decide: [`Mailbox::is_waiting_on_peer`] tells it.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::{Serialize, de::DeserializeOwned};

use crate::{ChannelError, DESCRIPTORS_MAX, MESSAGE_BYTES_MAX, receive_head};

const HEAD_BYTES: usize = 4;
/// A body is read in pieces of at most this many bytes, so that a long one is not paid for before it comes.
const PIECE_BYTES: usize = 64 << 10;

/// One end of a channel whose calls return at once. Receives descriptors; sends none.
#[derive(Debug)]
pub struct Mailbox {
    socket: UnixStream,
    message_bytes_max: usize,
    unsent_bytes_max: usize,
    head: Vec<u8>,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
    unsent: VecDeque<u8>,
}

impl Mailbox {
    /// Takes over a connected stream socket and makes it non-blocking.
    ///
    /// A received message has at most `message_bytes_max` bytes (and never more than [`MESSAGE_BYTES_MAX`]); at most
    /// `unsent_bytes_max` bytes wait for a peer that does not read.
    pub fn new(
        socket: UnixStream,
        message_bytes_max: usize,
        unsent_bytes_max: usize,
    ) -> Result<Self, ChannelError> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            message_bytes_max: message_bytes_max.min(MESSAGE_BYTES_MAX),
            unsent_bytes_max,
            head: Vec::with_capacity(HEAD_BYTES),
            body: Vec::new(),
            fds: Vec::new(),
            unsent: VecDeque::new(),
        })
    }

    /// Takes one message if a whole one is there; `None` when more must come first.
    ///
    /// After [`ChannelError::Malformed`] the mailbox goes on with the next message; after any other error it is to be
    /// dropped.
    pub fn receive<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
        while self.head.len() < HEAD_BYTES {
            let mut piece = [0; HEAD_BYTES];
            let wanted = &mut piece[self.head.len()..];
            let (count, fds) = match receive_head(&self.socket, wanted) {
                Err(ChannelError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(None);
                }
                other => other?,
            };
            if count == 0 {
                return Err(self.hung_up());
            }
            self.head.extend_from_slice(&wanted[..count]);
            self.fds.extend(fds);
            if self.fds.len() > DESCRIPTORS_MAX {
                return Err(ChannelError::TooManyDescriptors);
            }
        }
        let length = self
            .head
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        if length > self.message_bytes_max {
            return Err(ChannelError::TooLong(length));
        }
        while self.body.len() < length {
            let start = self.body.len();
            self.body.resize(length.min(start + PIECE_BYTES), 0);
            let result = self.socket.read(&mut self.body[start..]);
            self.body.truncate(start + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) => return Err(self.hung_up()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.head.clear();
        let body = std::mem::take(&mut self.body);
        let fds = std::mem::take(&mut self.fds);
        Ok(Some((serde_json::from_slice(&body)?, fds)))
    }

    /// Queues a message and sends what the socket takes now. [`ChannelError::TooLong`] when too much waits already.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ChannelError> {
        let body = serde_json::to_vec(message)?;
        let waiting = self.unsent.len() + HEAD_BYTES + body.len();
        let length = u32::try_from(body.len()).map_err(|_| ChannelError::TooLong(body.len()))?;
        if body.len() > MESSAGE_BYTES_MAX || waiting > self.unsent_bytes_max {
            return Err(ChannelError::TooLong(waiting));
        }
        self.unsent.extend(length.to_le_bytes());
        self.unsent.extend(body);
        self.flush()
    }

    /// Sends what the socket takes of what waits.
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        while !self.unsent.is_empty() {
            let (front, _) = self.unsent.as_slices();
            match self.socket.write(front) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether replies wait for the peer to read.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether the peer owes something: the rest of a message, or the reading of replies.
    pub fn is_waiting_on_peer(&self) -> bool {
        self.has_unsent() || !self.head.is_empty()
    }

    fn hung_up(&self) -> ChannelError {
        if self.head.is_empty() {
            ChannelError::Closed
        } else {
            ChannelError::Io(ErrorKind::UnexpectedEof.into())
        }
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
