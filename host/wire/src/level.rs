//! How hard to compress: chosen by a small cost model from what was just measured on this stream.
//!
//! For each level the model knows how its speed and its result compare to the others' ([`COSTS`]); two factors,
//! corrected after every batch, fit that table to this processor (with whatever else runs on it) and this content. The
//! link's rate is measured while the link is what we wait for; when it never is, it is taken to be faster than what
//! we made of it. The level chosen is the one with the shortest time per byte, that being the longer of the time to
//! encode and the time to send. Raw is always among them, so compressing is never chosen where it would be slower.
//!
//! Must not know sockets or pages: durations and byte counts are all it sees. It has no clock.

use std::time::Duration;

use crate::ladder::Effort;

/// How a batch's compressible pages are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Not at all.
    Raw,
    /// By zstd at this level.
    Zstd(i32),
}

/// A level, the seconds per byte it takes and the share of bytes it leaves, on text-like content on a processor of
/// about 3 GHz. Only how the rows relate to each other matters.
const COSTS: [(Level, f64, f64); 5] = [
    (Level::Raw, 0.0, 1.0),
    (Level::Zstd(1), 2.5e-9, 0.30),
    (Level::Zstd(3), 3.5e-9, 0.27),
    (Level::Zstd(6), 12e-9, 0.25),
    (Level::Zstd(9), 25e-9, 0.24),
];

/// Seconds per byte that everything but compression takes: copying, checking, encrypting.
const BASE_S_PER_BYTE: f64 = 1e-9;
/// How much a new measurement counts against the old ones.
const WEIGHT: f64 = 0.25;
/// The link is measured over at least this much.
const WINDOW: Duration = Duration::from_millis(50);
/// Below this share of waiting, the link is not what holds us up.
const WAITING_SHARE: f64 = 0.1;

/// Chooses the level for one stream.
#[derive(Clone, Debug)]
pub struct LevelChooser {
    slowness: f64,
    bulk: f64,
    compressible: f64,
    link_bytes_per_s: f64,
    window: Window,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    bytes: u64,
    waited: Duration,
    total: Duration,
}

impl Default for LevelChooser {
    fn default() -> Self {
        Self {
            slowness: 1.0,
            bulk: 1.0,
            compressible: 1.0,
            // Unknown yet: a middling guess, at which level 3 wins.
            link_bytes_per_s: 60e6,
            window: Window::default(),
        }
    }
}

impl LevelChooser {
    /// The level for the next batch.
    pub fn choose(&self) -> Level {
        let time = |speed: f64, left: f64| {
            let encode = BASE_S_PER_BYTE + self.compressible * speed * self.slowness;
            let left = (left * self.bulk).min(1.0);
            let sent = 1.0 - self.compressible * (1.0 - left);
            encode.max(sent / self.link_bytes_per_s)
        };
        let mut best = (Level::Raw, time(0.0, f64::INFINITY));
        for (level, speed, left) in &COSTS[1..] {
            let candidate = time(*speed, *left);
            if candidate < best.1 {
                best = (*level, candidate);
            }
        }
        best.0
    }

    /// What the link is taken to carry, in bytes per second.
    pub fn link_bytes_per_s(&self) -> f64 {
        self.link_bytes_per_s
    }

    /// Learns from a batch that was encoded at `level` within `elapsed`.
    pub fn encoded(&mut self, level: Level, effort: &Effort, elapsed: Duration) {
        let content = effort.compressed_from + effort.raw;
        if effort.compressed_from == 0 || content == 0 {
            return;
        }
        let Some((_, speed, left)) = COSTS[1..].iter().find(|row| row.0 == level) else {
            return;
        };
        let from = effort.compressed_from as f64;
        let measured = (elapsed.as_secs_f64() / from / speed).clamp(0.05, 20.0);
        self.slowness += WEIGHT * (measured - self.slowness);
        let measured = (effort.compressed_to as f64 / from / left).clamp(0.01, 4.0);
        self.bulk += WEIGHT * (measured - self.bulk);
        let share = from / content as f64;
        self.compressible += WEIGHT * (share - self.compressible);
    }

    /// Learns that in `total` the socket took `bytes`, and that for `waited` of it we had bytes and it had no room.
    pub fn sent(&mut self, bytes: u64, waited: Duration, total: Duration) {
        self.window.bytes += bytes;
        self.window.waited += waited;
        self.window.total += total;
        if self.window.total < WINDOW {
            return;
        }
        let seconds = self.window.total.as_secs_f64();
        let rate = (self.window.bytes as f64 / seconds).max(1.0);
        if self.window.waited.as_secs_f64() >= WAITING_SHARE * seconds {
            self.link_bytes_per_s += 2.0 * WEIGHT * (rate - self.link_bytes_per_s);
        } else {
            self.link_bytes_per_s = self.link_bytes_per_s.max(2.0 * rate);
        }
        self.window = Window::default();
    }
}
