//! What a peer can do that holds the right key and speaks frames of its own making: fail its own transfer.
#![allow(clippy::unwrap_used)]

mod common;

use common::bench::Bench;
use common::{PATIENCE, configurations, failure, next, pair};
use dwcp_migrate::protocol::{Event, MoverConfig};
use dwcp_wire::frame::{self, Counts, Header, Kind};
use dwcp_wire::stream::SecureStream;
use dwcp_wire::tls::{self, Use};

/// A hostile peer: it holds the right key and speaks frames of its own making.
struct Peer {
    stream: SecureStream,
    transfer: u64,
}

enum Answer {
    Acks(Vec<u64>),
    Error(String),
    Closed,
}

impl Peer {
    /// As the source, to the bench's destination.
    fn connect(bench: &Bench, config: &MoverConfig) -> Self {
        let (near, far) = pair();
        bench.destination.add_stream(far);
        let tls = tls::client(&config.identity(), &[config.peer_sha256], Use::Transfer).unwrap();
        Self {
            stream: SecureStream::connect(near, tls, PATIENCE).unwrap(),
            transfer: config.transfer,
        }
    }

    fn send(&mut self, kind: Kind, sequence: u64, offset: u64, payload: &[u8]) {
        let header = Header {
            kind,
            transfer: self.transfer,
            sequence,
            offset,
        };
        self.send_bytes(&frame::encode(&header, payload));
    }

    fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.queue(bytes).unwrap();
        while self.stream.queued_bytes() > 0 {
            self.stream.wait(None, false, PATIENCE).unwrap();
            self.stream.flush().unwrap();
        }
    }

    fn answer(&mut self) -> Answer {
        loop {
            if let Ok(Some((frame, taken))) = frame::decode(self.stream.received()) {
                let answer = match frame.header.kind {
                    Kind::Ack => Answer::Acks(frame::decode_ack(frame.payload).unwrap().collect()),
                    Kind::Error => Answer::Error(frame::decode_error(frame.payload)),
                    other => panic!("{other:?} from a destination"),
                };
                self.stream.consume(taken);
                match answer {
                    Answer::Acks(acks) if acks.is_empty() => continue,
                    answer => return answer,
                }
            }
            self.stream.wait(None, true, PATIENCE).unwrap();
            if self.stream.fill().is_err() {
                return Answer::Closed;
            }
        }
    }

    fn acks(&mut self) -> Vec<u64> {
        match self.answer() {
            Answer::Acks(acks) => acks,
            Answer::Error(text) => panic!("refused: {text}"),
            Answer::Closed => panic!("closed"),
        }
    }
}

/// One zero page at `page`, as a payload.
const ONE: [u8; 3] = [1, 0, 1];

/// Sends `attack` to a fresh destination and returns why it failed.
fn refused(attack: impl FnOnce(&mut Peer)) -> String {
    let pages = 64;
    let configs = configurations(pages, 2);
    let bench = Bench::new(pages, &configs);
    let mut peer = Peer::connect(&bench, &configs.0);
    attack(&mut peer);
    let reason = failure(next(&bench.from_destination));
    loop {
        match peer.answer() {
            Answer::Acks(_) => {}
            Answer::Error(told) => {
                assert_eq!(told, reason);
                return reason;
            }
            Answer::Closed => return reason,
        }
    }
}

#[test]
fn what_a_hostile_peer_can_do_is_fail_its_transfer() {
    type Attack = fn(&mut Peer);
    let attacks: [(Attack, &str); 14] = [
        (
            |peer| peer.send(Kind::ZeroRuns, 1, 64 * 4096, &ONE),
            "outside",
        ),
        (
            |peer| peer.send(Kind::ZeroRuns, 1, 0, &[1, 0, 65]),
            "outside",
        ),
        (
            |peer| peer.send(Kind::ZeroRuns, 1, 7, &ONE),
            "does not carry",
        ),
        (
            |peer| peer.send(Kind::Pages, 1, 0, &[9, 1, 0, 1]),
            "unknown way",
        ),
        (
            |peer| peer.send(Kind::Pages, 1, 0, &[2, 1, 0, 1, 5]),
            "wrong length",
        ),
        (|peer| peer.send(Kind::ZeroRuns, 0, 0, &ONE), "numbered"),
        (
            |peer| peer.send(Kind::ZeroRuns, u64::MAX, 0, &ONE),
            "numbered",
        ),
        (
            |peer| peer.send(Kind::DeviceState, 1, u64::MAX, b"x"),
            "too long",
        ),
        (
            |peer| peer.send(Kind::DeviceState, 1, 1 << 40, b"x"),
            "too long",
        ),
        (
            |peer| peer.send(Kind::Ack, 0, 0, &[0; 8]),
            "only a destination",
        ),
        (
            |peer| peer.send(Kind::Error, 0, 0, b"no\x1b more"),
            "gave up: no? more",
        ),
        (
            |peer| peer.send_bytes(&[0x55; 100]),
            "does not carry DWCP frames",
        ),
        (
            |peer| {
                peer.transfer += 1;
                peer.send(Kind::ZeroRuns, 1, 0, &ONE);
            },
            "another transfer",
        ),
        (
            |peer| {
                let header = Header {
                    kind: Kind::ZeroRuns,
                    transfer: peer.transfer,
                    sequence: 1,
                    offset: 0,
                };
                let mut bytes = frame::encode(&header, &ONE);
                bytes[41] ^= 1;
                peer.send_bytes(&bytes);
            },
            "damaged",
        ),
    ];
    for (attack, expected) in attacks {
        let reason = refused(attack);
        assert!(reason.contains(expected), "{reason} / {expected}");
    }
}

#[test]
fn an_end_that_does_not_add_up_is_refused() {
    let counts = |zero_pages, state_bytes| {
        Counts {
            data_pages: 0,
            zero_pages,
            state_bytes,
        }
        .encode()
    };
    let reason = refused(|peer| {
        peer.send(Kind::ZeroRuns, 1, 0, &ONE);
        peer.send(Kind::End, 2, 0, &counts(2, 0));
    });
    assert!(reason.contains("counts do not agree"), "{reason}");
    // A hole in the device state.
    let reason = refused(|peer| {
        peer.send(Kind::DeviceState, 1, 100, b"1234");
        peer.send(Kind::End, 2, 0, &counts(0, 4));
    });
    assert!(reason.contains("counts do not agree"), "{reason}");
    let reason = refused(|peer| {
        peer.send(Kind::End, 5, 0, &counts(0, 0));
        peer.send(Kind::End, 6, 0, &counts(0, 0));
    });
    assert!(reason.contains("twice"), "{reason}");
    let reason = refused(|peer| {
        peer.send(Kind::ZeroRuns, 1, 0, &ONE);
        peer.send(Kind::End, 1, 0, &counts(1, 0));
    });
    assert!(reason.contains("before its last"), "{reason}");
    let reason = refused(|peer| {
        peer.send(Kind::End, 2, 0, &counts(1, 0));
        peer.send(Kind::ZeroRuns, 3, 0, &ONE);
    });
    assert!(reason.contains("numbered"), "{reason}");
}

#[test]
fn frames_that_come_twice_are_applied_once() {
    let pages = 64;
    let configs = configurations(pages, 2);
    let bench = Bench::new(pages, &configs);
    let (mut first, mut second) = (
        Peer::connect(&bench, &configs.0),
        Peer::connect(&bench, &configs.0),
    );
    let page = |byte| [&[2, 1, 0, 1][..], &[byte; 4096]].concat();
    first.send(Kind::Pages, 1, 0, &page(1));
    assert_eq!(first.acks(), [1]);
    // The newer content comes, and then the older frame once more, by the other stream.
    first.send(Kind::Pages, 2, 0, &page(2));
    assert_eq!(first.acks(), [2]);
    second.send(Kind::Pages, 1, 0, &page(1));
    assert_eq!(second.acks(), [1]);
    let counts = Counts {
        data_pages: 2,
        ..Counts::default()
    };
    second.send(Kind::End, 3, 0, &counts.encode());
    assert_eq!(second.acks(), [3]);
    assert!(matches!(
        next(&bench.from_destination).0,
        Event::Complete(_)
    ));
    assert_eq!(bench.right.read(0), [2; 4096]);
}
