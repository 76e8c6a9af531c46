//! What a channel promises, over a real socket pair.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use dwcp_channel::{Channel, ChannelError, MESSAGE_BYTES_MAX};

fn pair() -> (Channel, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    (Channel::new(a), b)
}

#[test]
fn a_message_arrives_with_its_descriptor() {
    let (mut left, right) = pair();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"guest").unwrap();
    file.rewind().unwrap();
    left.send(&"hello", &[file.as_raw_fd()]).unwrap();
    let (text, mut fds): (String, _) = Channel::new(right).receive().unwrap();
    let mut content = String::new();
    File::from(fds.remove(0))
        .read_to_string(&mut content)
        .unwrap();
    assert_eq!((text.as_str(), content.as_str()), ("hello", "guest"));
    assert!(fds.is_empty());
}

#[test]
fn a_closed_peer_is_told_from_a_broken_one() {
    let (mut left, right) = pair();
    drop(right);
    assert!(matches!(
        left.receive::<String>(),
        Err(ChannelError::Closed)
    ));
    let (mut left, mut right) = pair();
    right.write_all(&[9, 0]).unwrap();
    drop(right);
    assert!(matches!(left.receive::<String>(), Err(ChannelError::Io(_))));
}

#[test]
fn a_length_over_the_limit_is_refused_before_it_is_allocated() {
    let (mut left, mut right) = pair();
    right.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert!(matches!(
        left.receive::<String>(),
        Err(ChannelError::TooLong(_))
    ));
    assert!(matches!(
        left.send(&"x".repeat(MESSAGE_BYTES_MAX), &[]),
        Err(ChannelError::TooLong(_))
    ));
}

#[test]
fn what_is_not_the_expected_json_is_malformed() {
    let (mut left, mut right) = pair();
    right.write_all(&[3, 0, 0, 0]).unwrap();
    right.write_all(b"{x}").unwrap();
    assert!(matches!(
        left.receive::<String>(),
        Err(ChannelError::Malformed(_))
    ));
}
