//! Whole transfers within one process: two sides, real sockets and TLS, and everything that can happen in between.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use common::{
    Guest, PATIENCE, Random, certificate, configurations, failure, next, pair, seed, sink,
};
use dwcp_migrate::Said;
use dwcp_migrate::destination::Destination;
use dwcp_migrate::protocol::{Bytes, Complete, Event, MoverConfig, RoundDone};
use dwcp_migrate::source::Source;
use dwcp_wire::frame::{self, Counts, Header, Kind};
use dwcp_wire::stream::SecureStream;
use dwcp_wire::tcp;
use dwcp_wire::tls::{self, Use};

/// Both sides of a transfer, and their guests.
struct Bench {
    source: Source,
    destination: Destination,
    from_source: Receiver<Said>,
    from_destination: Receiver<Said>,
    left: Guest,
    right: Guest,
}

impl Bench {
    fn new(pages: u64, configs: &(MoverConfig, MoverConfig)) -> Self {
        let (left, right) = (Guest::new(pages), Guest::new(pages));
        let (source_sink, from_source) = sink();
        let (destination_sink, from_destination) = sink();
        let (view, bitmap) = (left.view(), left.shared_bitmap());
        let memory = dwcp_memory::GuestMemory::map(right.memory_fd(), right.memory.size()).unwrap();
        Self {
            source: Source::start(&configs.0, view, bitmap, source_sink).unwrap(),
            destination: Destination::start(&configs.1, memory, destination_sink).unwrap(),
            from_source,
            from_destination,
            left,
            right,
        }
    }

    /// Opens streams; returns the source's ends, for measuring and cutting.
    fn streams(&self, count: usize) -> Vec<TcpStream> {
        (0..count)
            .map(|_| {
                let (near, far) = pair();
                let copy = near.try_clone().unwrap();
                self.source.add_stream(near);
                self.destination.add_stream(far);
                copy
            })
            .collect()
    }

    fn round_done(&self) -> RoundDone {
        match next(&self.from_source).0 {
            Event::RoundDone(done) => done,
            other => panic!("{other:?} instead of the end of a round"),
        }
    }

    /// The final round and its confirmations; checks the device state and the memory.
    fn finish(&self, state: &[u8]) -> (RoundDone, Complete) {
        self.source.finish(state);
        assert_eq!(next(&self.from_source).0, Event::Flushed);
        let done = self.round_done();
        let (event, fd) = next(&self.from_destination);
        let Event::Complete(complete) = event else {
            panic!("{event:?} instead of completion");
        };
        let file = File::from(fd.unwrap());
        let mut arrived = vec![0; state.len() + 1];
        let length = file.read_at(&mut arrived, 0).unwrap();
        assert!(arrived[..length] == *state);
        assert!(
            file.write_at(b"x", 0).is_err(),
            "the device state is sealed"
        );
        self.left.assert_same(&self.right);
        (done, complete)
    }
}

#[test]
fn memory_arrives_whole_while_the_guest_writes() {
    let mut random = Random(seed());
    let pages = 6000;
    let bench = Bench::new(pages, &configurations(pages, 4));
    let sockets = bench.streams(4);
    // So that no handshake is counted late: the client's second flight carries its certificate.
    wait_until(|| {
        sockets
            .iter()
            .all(|socket| tcp::info(socket).unwrap().sent_bytes > 700)
    });
    bench.left.fill_all(&mut random);
    let zero_before = (0..pages).filter(|page| bench.left.read(*page).iter().all(|b| *b == 0));
    let zero_before = zero_before.count() as u64;

    let stop = Arc::new(AtomicBool::new(false));
    let rounds = std::thread::scope(|scope| {
        // The guest writes all the while, whole pages and often the same ones.
        let (guest, writing, seed) = (&bench.left, Arc::clone(&stop), random.next() | 1);
        scope.spawn(move || {
            let mut random = Random(seed);
            while !writing.load(Ordering::SeqCst) {
                let hot = random.below(100) + 500;
                let page = if random.below(2) == 0 {
                    hot
                } else {
                    random.below(pages)
                };
                guest.write(page, &mut random);
            }
        });
        let mut rounds = Vec::new();
        for _ in 0..4 {
            bench.source.round();
            rounds.push(bench.round_done());
        }
        stop.store(true, Ordering::SeqCst);
        rounds
    });
    assert!(rounds[0].pages >= pages, "{rounds:?}");
    assert!(
        rounds[0].zero_pages.abs_diff(zero_before) < pages / 2,
        "{rounds:?}"
    );
    assert!(
        rounds
            .iter()
            .all(|round| round.payload_bytes <= round.wire_bytes)
    );

    let state: Vec<u8> = (0..700_000).map(|_| random.next() as u8).collect();
    let (last, complete) = bench.finish(&state);
    let all = rounds.iter().chain([&last]);
    let sum = |figure: fn(&RoundDone) -> u64| all.clone().map(figure).sum::<u64>();
    assert_eq!(complete.pages, sum(|round| round.pages));

    // The figures are what the sockets carried, to the byte.
    let carried: u64 = sockets
        .iter()
        .map(|socket| tcp::info(socket).unwrap())
        .map(|info| info.sent_bytes - info.resent_bytes)
        .sum();
    let wire_bytes = sum(|round| round.wire_bytes);
    // After the last round each stream closes, with an alert of 24 bytes.
    let closing = carried - wire_bytes;
    assert!(closing <= 24 * 4, "carried {carried}, counted {wire_bytes}");
    let difference = complete.wire_bytes.abs_diff(wire_bytes);
    assert!(
        difference <= 24 * 4 + 74 * 4,
        "{complete:?} and {wire_bytes}"
    );
}

#[test]
fn nothing_dirty_is_a_round_too() {
    let pages = 300;
    let bench = Bench::new(pages, &configurations(pages, 2));
    bench.streams(2);
    bench.source.round();
    let done = bench.round_done();
    assert_eq!((done.pages, done.payload_bytes), (0, 0));
    bench.left.bitmap.set_all();
    let (done, complete) = bench.finish(&[]);
    assert_eq!((done.pages, done.zero_pages), (pages, pages));
    assert_eq!(complete.pages, pages);
    // An untouched guest costs next to nothing.
    assert!(done.payload_bytes < 1000, "{done:?}");
}

#[test]
fn a_page_that_becomes_zero_is_zero_there_too() {
    let mut random = Random(seed());
    let pages = 64;
    let bench = Bench::new(pages, &configurations(pages, 1));
    bench.streams(1);
    bench.left.fill_all(&mut random);
    bench.source.round();
    bench.round_done();
    let zeros = vec![0; 64 * 4096];
    bench
        .left
        .memory
        .write_pages(dwcp_memory::PageIndex(0), &zeros)
        .unwrap();
    bench.left.bitmap.set_all();
    let (done, _) = bench.finish(b"state");
    assert_eq!(done.zero_pages, 64);
}

#[test]
fn a_stream_that_dies_hands_its_work_to_the_others() {
    let mut random = Random(seed());
    let pages = 20_000;
    let bench = Bench::new(pages, &configurations(pages, 3));
    let sockets = bench.streams(3);
    bench.left.fill_all(&mut random);
    // Slow enough that the cut comes in the middle.
    for socket in &sockets {
        tcp::set_pacing(socket, Some(8_000_000)).unwrap();
    }
    bench.source.round();
    for (index, socket) in sockets[..2].iter().enumerate() {
        let enough = 300_000 * (index as u64 + 1);
        wait_until(|| tcp::info(socket).unwrap().sent_bytes > enough);
        socket.shutdown(Shutdown::Both).unwrap();
    }
    tcp::set_pacing(&sockets[2], None).unwrap();
    let round = bench.round_done();
    assert_eq!(round.pages, pages);
    // A stream that comes late is used like any other.
    bench.streams(1);
    let dirty = random.below(pages);
    bench.left.write(dirty, &mut random);
    let (last, complete) = bench.finish(b"device state");
    assert_eq!(last.pages, 1);
    assert_eq!(complete.pages, pages + 1);
}

#[test]
fn without_any_stream_left_both_sides_fail() {
    let mut random = Random(seed());
    let pages = 20_000;
    let bench = Bench::new(pages, &configurations(pages, 2));
    let sockets = bench.streams(2);
    bench.left.fill_all(&mut random);
    for socket in &sockets {
        tcp::set_pacing(socket, Some(2_000_000)).unwrap();
    }
    bench.source.round();
    for socket in &sockets {
        wait_until(|| tcp::info(socket).unwrap().sent_bytes > 100_000);
        socket.shutdown(Shutdown::Both).unwrap();
    }
    for events in [&bench.from_source, &bench.from_destination] {
        let reason = failure(next(events));
        assert!(
            reason.starts_with("Every stream of the transfer is lost"),
            "{reason}"
        );
    }
    // A failed transfer takes no stream and no command, and says nothing more.
    bench.streams(1);
    bench.source.round();
    let quiet = Duration::from_millis(100);
    assert!(bench.from_source.recv_timeout(quiet).is_err());
}

#[test]
fn a_peer_with_the_wrong_certificate_is_refused() {
    let pages = 64;
    let mut configs = configurations(pages, 1);
    let (other, key) = certificate();
    configs.0.certificate = Bytes(other);
    configs.0.key = Bytes(key);
    let bench = Bench::new(pages, &configs);
    bench.left.bitmap.set_all();
    bench.streams(1);
    bench.source.round();
    let reason = failure(next(&bench.from_source));
    assert!(reason.contains("TLS"), "{reason}");
    // The destination has only been knocked at: it still waits for its real peer.
    let quiet = Duration::from_millis(200);
    assert!(bench.from_destination.recv_timeout(quiet).is_err());
    bench.destination.abort();
    failure(next(&bench.from_destination));
}

#[test]
fn a_stranger_cannot_disturb_a_transfer() {
    let mut random = Random(seed());
    let pages = 2000;
    let bench = Bench::new(pages, &configurations(pages, 2));
    let (mut stranger, theirs) = pair();
    bench.destination.add_stream(theirs);
    std::io::Write::write_all(&mut stranger, &[0x16; 5000]).unwrap();
    // One that says nothing holds a place until its handshake is overdue; the other place is enough.
    let (silent, theirs) = pair();
    bench.destination.add_stream(theirs);
    bench.left.fill_all(&mut random);
    bench.streams(1);
    bench.source.round();
    assert_eq!(bench.round_done().pages, pages);
    bench.finish(b"state");
    drop((stranger, silent));
}

#[test]
fn a_silent_peer_fails_the_transfer() {
    let pages = 64;
    let mut configs = configurations(pages, 1);
    configs.0.idle_timeout_ms = 1000;
    configs.1.idle_timeout_ms = 1000;
    // Nobody comes at all.
    let bench = Bench::new(pages, &configs);
    for events in [&bench.from_source, &bench.from_destination] {
        let reason = failure(next(events));
        assert!(reason.contains("in time"), "{reason}");
    }
    // Somebody comes, proves who they are, and falls silent.
    let bench = Bench::new(pages, &configs);
    let mut peer = Peer::connect(&bench, &configs.0);
    let reason = failure(next(&bench.from_destination));
    assert!(reason.contains("silent"), "{reason}");
    assert!(matches!(peer.answer(), Answer::Closed | Answer::Error(_)));
}

#[test]
fn a_pulse_keeps_an_idle_transfer_alive() {
    let pages = 64;
    let mut configs = configurations(pages, 2);
    configs.0.idle_timeout_ms = 1500;
    configs.1.idle_timeout_ms = 1500;
    let bench = Bench::new(pages, &configs);
    bench.streams(2);
    bench.left.bitmap.set_all();
    bench.source.round();
    bench.round_done();
    // Several times the timeout, without a word from the daemon.
    let quiet = Duration::from_millis(4000);
    if let Ok(said) = bench.from_source.recv_timeout(quiet) {
        panic!("{said:?}");
    }
    bench.finish(b"state");
}

#[test]
fn commands_out_of_turn_and_aborts_fail_the_transfer() {
    let pages = 20_000;
    let bench = Bench::new(pages, &configurations(pages, 1));
    let sockets = bench.streams(1);
    tcp::set_pacing(&sockets[0], Some(500_000)).unwrap();
    bench.left.fill_all(&mut Random(seed()));
    bench.source.round();
    bench.source.round();
    assert!(failure(next(&bench.from_source)).contains("out of turn"));
    // The other side hears why.
    let reason = failure(next(&bench.from_destination));
    assert!(
        reason.contains("out of turn") || reason.contains("lost"),
        "{reason}"
    );

    let bench = Bench::new(pages, &configurations(pages, 1));
    bench.streams(1);
    bench.source.abort();
    assert!(failure(next(&bench.from_source)).contains("aborted"));
}

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

fn wait_until(condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "the condition never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}
