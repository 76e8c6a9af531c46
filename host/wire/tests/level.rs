//! The level follows the link and the processor: raw where encoding would hold the link up, higher where it waits.

use std::time::Duration;

use dwcp_wire::ladder::Effort;
use dwcp_wire::level::{Level, LevelChooser};

const MIB: usize = 1 << 20;

/// Drives a chooser with a modelled link and processor until it settles; returns the level.
fn settle(link_bytes_per_s: f64, slowness: f64, compressible: f64) -> Level {
    let mut chooser = LevelChooser::default();
    for _ in 0..400 {
        let level = chooser.choose();
        let dense = (MIB as f64 * compressible) as usize;
        let (speed, left) = match level {
            Level::Raw => (0.0, 1.0),
            Level::Zstd(1) => (2.5e-9, 0.30),
            Level::Zstd(3) => (3.5e-9, 0.27),
            Level::Zstd(_) => (25e-9, 0.24),
        };
        let compressed = if level == Level::Raw { 0 } else { dense };
        let effort = Effort {
            compressed_from: compressed,
            compressed_to: (compressed as f64 * left) as usize,
            raw: MIB - compressed,
        };
        let encode = MIB as f64 * 1e-9 + compressed as f64 * speed * slowness;
        let bytes = effort.compressed_to + effort.raw;
        let send = bytes as f64 / link_bytes_per_s;
        // Encoding and sending overlap; what is left over of either is waiting.
        let total = encode.max(send);
        let seconds = Duration::from_secs_f64;
        chooser.encoded(level, &effort, seconds(encode));
        let rounds = 1.0 + (0.05 / total).floor();
        let window = seconds(total * rounds);
        chooser.delivered((bytes as f64 * rounds) as u64, window, send > encode);
    }
    chooser.choose()
}

#[test]
fn an_unknown_link_gets_the_middle() {
    let mut chooser = LevelChooser::default();
    assert_eq!(chooser.choose(), Level::Zstd(3));
    // One that carries nothing at all is slow.
    chooser.delivered(0, Duration::from_millis(50), true);
    assert_eq!(chooser.choose(), Level::Zstd(9));
}

#[test]
fn a_slow_link_is_worth_much_work() {
    assert_eq!(settle(3e6, 1.0, 0.7), Level::Zstd(9));
}

#[test]
fn a_fast_link_is_worth_none() {
    assert_eq!(settle(5e9, 1.0, 0.7), Level::Raw);
}

#[test]
fn in_between_the_processor_stays_just_ahead() {
    assert!(matches!(settle(120e6, 1.0, 0.7), Level::Zstd(1 | 3)));
    // The same link, and a processor that is ten times slower.
    assert_eq!(settle(120e6, 10.0, 0.7), Level::Raw);
}

#[test]
fn what_does_not_compress_is_sent_raw() {
    let mut chooser = LevelChooser::default();
    for _ in 0..100 {
        let level = chooser.choose();
        let effort = match level {
            Level::Raw => Effort::default(),
            Level::Zstd(_) => Effort {
                compressed_from: MIB,
                compressed_to: MIB,
                raw: 0,
            },
        };
        chooser.encoded(level, &effort, Duration::from_millis(4));
        chooser.delivered(25 * MIB as u64, Duration::from_millis(100), false);
    }
    assert_eq!(chooser.choose(), Level::Raw);
}
