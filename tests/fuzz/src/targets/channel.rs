//! Messages between processes of one host: lengths and JSON, as a process gone wrong sends them.
//!
//! The channel that waits and the one that does not must read the same.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use dwcp_channel::{Channel, ChannelError, MESSAGE_BYTES_MAX, Mailbox};
use serde_json::Value;

/// What is read of a message, or that it could not be understood; `None` at the end.
type Read = Option<Result<Value, ()>>;

/// The first byte says how much is sent at a time.
pub(super) fn channel(input: &[u8]) {
    let Some((pace, bytes)) = input.split_first() else {
        return;
    };
    let read = match (waiting(bytes), in_turns(bytes, usize::from(*pace) + 1)) {
        (Ok(waiting), Ok(in_turns)) => (waiting, in_turns),
        (Err(error), _) | (_, Err(error)) => panic!("{error}"),
    };
    assert_eq!(read.0, read.1);
}

/// All of it by a channel that waits.
fn waiting(bytes: &[u8]) -> std::io::Result<Vec<Result<Value, ()>>> {
    let (ours, mut theirs) = UnixStream::pair()?;
    theirs.write_all(bytes)?;
    theirs.shutdown(Shutdown::Write)?;
    let mut channel = Channel::new(ours);
    let mut messages = Vec::new();
    loop {
        match read(channel.receive().map(|(message, _)| message)) {
            Some(message) => messages.push(message),
            None => return Ok(messages),
        }
    }
}

/// The same by a channel that never waits, piece by piece.
fn in_turns(bytes: &[u8], piece_bytes: usize) -> std::io::Result<Vec<Result<Value, ()>>> {
    let (ours, mut theirs) = UnixStream::pair()?;
    let mut mailbox =
        Mailbox::new(ours, MESSAGE_BYTES_MAX, 1 << 16).map_err(std::io::Error::other)?;
    let mut messages = Vec::new();
    for piece in bytes.chunks(piece_bytes) {
        theirs.write_all(piece)?;
        loop {
            let received = match mailbox.receive::<Value>() {
                Ok(None) => break,
                Ok(Some((message, _))) => Ok(message),
                Err(error) => Err(error),
            };
            match read(received) {
                Some(message) => messages.push(message),
                None => return Ok(messages),
            }
        }
    }
    Ok(messages)
}

/// A message that is not understood is followed by others; after anything else there is nothing more.
fn read(received: Result<Value, ChannelError>) -> Read {
    match received {
        Ok(message) => Some(Ok(message)),
        Err(ChannelError::Malformed(_)) => Some(Err(())),
        Err(_) => None,
    }
}
