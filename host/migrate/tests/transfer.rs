//! Whole transfers within one process: two sides, real sockets and TLS, and everything that can happen in between.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::bench::Bench;
use common::{PATIENCE, Random, certificate, configurations, failure, next, pair, seed};
use dwcp_migrate::protocol::{Bytes, Event, MoverConfig};
use dwcp_wire::stream::SecureStream;
use dwcp_wire::tcp;
use dwcp_wire::tls::{self, Use};

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

fn wait_until(condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "the condition never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}
