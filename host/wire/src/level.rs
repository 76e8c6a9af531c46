//! How hard to compress: chosen by a small cost model from what was just measured on this stream.
//!
//! For each level the model knows how its speed and its result compare to the others' (`COSTS`); two factors,
//! corrected after every batch, fit that table to this processor (with whatever else runs on it) and this content. The
//! link's rate is what the peer's kernel acknowledges while the link holds ours up; when it does not (because we make
//! less, or the peer takes less), the link is taken to be faster than that, and ever faster while it stays so. The level chosen is the one with the shortest time
//! per byte, that being the longer of the time to encode and the time to send. Raw is always among them, so
//! compressing is never chosen where it would be slower. Until the link has been measured, level 3 it is.
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

/// A level, the seconds per byte it takes and the share of bytes it leaves, on text-like content in batches of some
/// 700 KiB on a processor of about 3 GHz. Only how the rows relate to each other matters. Levels in between cost more
/// than they save; those above 9 take whole seconds of a core for each gigabyte that a link of 100 Mbit/s is spared.
const COSTS: [(Level, f64, f64); 4] = [
    (Level::Raw, 0.0, 1.0),
    (Level::Zstd(1), 2.5e-9, 0.241),
    (Level::Zstd(3), 3.1e-9, 0.231),
    (Level::Zstd(9), 17e-9, 0.213),
];

/// Seconds per byte that everything but compression takes: copying, checking, encrypting.
const BASE_S_PER_BYTE: f64 = 1e-9;
/// How much a new measurement counts against the old ones.
const WEIGHT: f64 = 0.25;
/// The link is measured over at least this long.
pub const WINDOW: Duration = Duration::from_millis(20);
/// No link is taken to be slower or faster than this, in bytes per second.
const LINK_BYTES_PER_S_MIN: f64 = 1e4;
const LINK_BYTES_PER_S_MAX: f64 = 1e11;
/// A link that does not hold us up is taken to carry so much more, in each window.
const GROWTH: f64 = 1.25;
/// The level of a link that has not been measured.
const UNMEASURED: Level = Level::Zstd(3);

/// Chooses the level for one stream.
#[derive(Clone, Debug)]
pub struct LevelChooser {
    slowness: f64,
    bulk: f64,
    compressible: f64,
    link_bytes_per_s: Option<f64>,
}

impl Default for LevelChooser {
    fn default() -> Self {
        Self {
            slowness: 1.0,
            bulk: 1.0,
            compressible: 1.0,
            link_bytes_per_s: None,
        }
    }
}

impl LevelChooser {
    /// The level for the next batch.
    pub fn choose(&self) -> Level {
        let Some(link_bytes_per_s) = self.link_bytes_per_s else {
            return UNMEASURED;
        };
        let time = |speed: f64, left: f64| {
            let encode = BASE_S_PER_BYTE + self.compressible * speed * self.slowness;
            let left = (left * self.bulk).min(1.0);
            let sent = 1.0 - self.compressible * (1.0 - left);
            encode.max(sent / link_bytes_per_s)
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

    /// Learns that within `elapsed`, at least [`WINDOW`], the peer's kernel acknowledged `bytes`; and whether it was the
    /// link that `limited` it to that: our kernel has bytes left, and the peer has room for them.
    pub fn delivered(&mut self, bytes: u64, elapsed: Duration, limited: bool) {
        let rate = bytes as f64 / elapsed.max(WINDOW).as_secs_f64();
        let known = self.link_bytes_per_s;
        let link = match (known, limited) {
            (None, true) => rate,
            (Some(known), true) => known + 2.0 * WEIGHT * (rate - known),
            (None, false) => 4.0 * rate,
            (Some(known), false) => (GROWTH * known).max(2.0 * rate),
        };
        self.link_bytes_per_s = Some(link.clamp(LINK_BYTES_PER_S_MIN, LINK_BYTES_PER_S_MAX));
    }
}
