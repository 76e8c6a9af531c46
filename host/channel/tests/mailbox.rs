//! A mailbox never blocks, whatever its peer does.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use dwcp_channel::{Channel, ChannelError, Mailbox};
use proptest::prelude::*;

const MESSAGE_MAX: usize = 1000;
const UNSENT_MAX: usize = 1 << 20;

fn pair() -> (Mailbox, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    (Mailbox::new(a, MESSAGE_MAX, UNSENT_MAX).unwrap(), b)
}

#[test]
fn both_kinds_of_end_understand_each_other() {
    let (mut mailbox, socket) = pair();
    let mut channel = Channel::new(socket);
    assert!(mailbox.receive::<String>().unwrap().is_none());
    channel.send(&"ask", &[0, 1]).unwrap();
    let (text, fds) = mailbox.receive::<String>().unwrap().unwrap();
    assert_eq!((text.as_str(), fds.len()), ("ask", 2));
    mailbox.send(&"answer").unwrap();
    assert_eq!(channel.receive::<String>().unwrap().0, "answer");
}

#[test]
fn half_a_message_is_not_a_message() {
    let (mut mailbox, mut socket) = pair();
    socket.write_all(&[4, 0]).unwrap();
    assert!(mailbox.receive::<String>().unwrap().is_none());
    assert!(mailbox.is_waiting_on_peer());
    drop(socket);
    let end = mailbox.receive::<String>();
    assert!(matches!(end, Err(ChannelError::Io(_))));
}

#[test]
fn a_bad_message_does_not_hide_the_next() {
    let (mut mailbox, mut socket) = pair();
    socket.write_all(&[2, 0, 0, 0, b'{', b'x']).unwrap();
    Channel::new(socket).send(&"next", &[]).unwrap();
    let bad = mailbox.receive::<String>();
    assert!(matches!(bad, Err(ChannelError::Malformed(_))));
    let next = mailbox.receive::<String>().unwrap().unwrap();
    assert_eq!(next.0, "next");
    let end = mailbox.receive::<String>();
    assert!(matches!(end, Err(ChannelError::Closed)));
}

#[test]
fn a_long_message_is_refused() {
    let (mut mailbox, mut socket) = pair();
    let length = u32::try_from(MESSAGE_MAX + 1).unwrap();
    socket.write_all(&length.to_le_bytes()).unwrap();
    let refused = mailbox.receive::<String>();
    assert!(matches!(refused, Err(ChannelError::TooLong(_))));
}

#[test]
fn a_peer_that_does_not_read_costs_bounded_memory() {
    let (mut mailbox, mut socket) = pair();
    let message = "x".repeat(100_000);
    let refused = (0..1000).find_map(|_| mailbox.send(&message).err());
    assert!(matches!(refused, Some(ChannelError::TooLong(_))));
    assert!(mailbox.has_unsent());
    socket.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 20];
    while mailbox.has_unsent() {
        let _ = socket.read(&mut buffer);
        mailbox.flush().unwrap();
    }
}

proptest! {
    #[test]
    fn messages_arrive_whole_however_they_are_cut(
        texts in proptest::collection::vec(".{0,100}", 1..10),
        cuts in proptest::collection::vec(1usize..40, 1..50),
    ) {
        let (mut mailbox, mut socket) = pair();
        let mut bytes = Vec::new();
        for text in &texts {
            let body = serde_json::to_vec(text).unwrap();
            bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
            bytes.extend(body);
        }
        let mut received = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            let (piece, later) = rest.split_at(rest.len().min(*cut));
            socket.write_all(piece).unwrap();
            rest = later;
            while let Some((text, _)) = mailbox.receive::<String>().unwrap() {
                received.push(text);
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(received, texts);
    }
}
