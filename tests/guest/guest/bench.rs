//! What a measurement prints: operations, bytes, and how long they took.

use core::fmt::{Arguments, Write};

use crate::clock::{self, Clock};
use crate::serial::Serial;
use crate::virtio::Fault;
use crate::virtio::dma::{Arena, Region};

/// Latencies that are kept; later ones take the place of the earliest.
const SAMPLES_MAX: usize = 32 << 10;
const SAMPLE_BYTES: usize = 4;

/// A measurement under way.
#[derive(Debug)]
pub struct Bench {
    clock: Clock,
    begun: u64,
    ended: u64,
    /// Latencies in microseconds.
    samples: Region,
    operations: u64,
    bytes: u64,
}

impl Bench {
    /// Ready to begin.
    pub fn new(clock: Clock, arena: &mut Arena) -> Result<Self, Fault> {
        let samples = arena
            .take(SAMPLES_MAX * SAMPLE_BYTES)
            .ok_or(Fault::Memory)?;
        let begun = clock::now();
        Ok(Self {
            clock,
            begun,
            ended: begun,
            samples,
            operations: 0,
            bytes: 0,
        })
    }

    /// Begins now, with nothing counted.
    pub fn begin(&mut self) {
        self.begun = clock::now();
        self.ended = self.begun;
        (self.operations, self.bytes) = (0, 0);
    }

    /// Counts an operation that began at a tick and ends now.
    pub fn count(&mut self, began: u64, bytes: u64) {
        self.ended = clock::now();
        let latency = self.clock.microseconds(self.ended.saturating_sub(began));
        let sample = u32::try_from(latency).unwrap_or(u32::MAX);
        let place = (self.operations % SAMPLES_MAX as u64) as usize;
        self.samples
            .put(place * SAMPLE_BYTES, &sample.to_le_bytes());
        self.operations += 1;
        self.bytes += bytes;
    }

    /// Tells what was measured under a name.
    pub fn tell(&mut self, name: Arguments<'_>) {
        let (operations, bytes) = (self.operations, self.bytes);
        let kept = operations.min(SAMPLES_MAX as u64) as usize;
        let (samples, _) = self.samples.slice_mut().as_chunks_mut::<SAMPLE_BYTES>();
        let samples = &mut samples[..kept];
        samples.sort_unstable_by_key(|sample| u32::from_le_bytes(*sample));
        let at = |part: usize| {
            let sample = samples.get(kept * part / 100);
            sample.map_or(0, |sample| u32::from_le_bytes(*sample))
        };
        let (median_us, p99_us) = (at(50), at(99));
        let elapsed_us = self
            .clock
            .microseconds(self.ended.saturating_sub(self.begun));
        let per_s = |n: u64| n.saturating_mul(1_000_000) / elapsed_us.max(1);
        let _ = writeln!(
            Serial,
            "guest: bench {name}: operations {operations} bytes {bytes} elapsed_us {elapsed_us} \
             median_us {median_us} p99_us {p99_us} per_s {} mb_s {}",
            per_s(operations),
            per_s(bytes) / 1_000_000,
        );
    }
}
