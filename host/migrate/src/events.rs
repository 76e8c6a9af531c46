//! From a mover's threads to whoever speaks to the daemon: a short queue.
//!
//! Progress is dropped when the queue is full; any other event waits for room, and is let go when the listener has
//! gone. So a daemon that does not listen stalls its own transfer, and nothing more. Must not know who listens.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::protocol::{Event, Progress};

/// An event and the descriptor that goes with it.
pub type Said = (Event, Option<OwnedFd>);

/// Events kept for a listener that is busy.
const QUEUE: usize = 64;
/// Progress is told no more often than this: five times a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Where a mover's events go.
#[derive(Clone, Debug)]
pub struct EventSink(SyncSender<Said>);

impl EventSink {
    /// A queue and its listener's end.
    pub fn new() -> (Self, Receiver<Said>) {
        let (sender, receiver) = sync_channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Says something that must be heard. When nobody listens any more the process is ending, and it does not matter.
    pub fn say(&self, event: Event, fd: Option<OwnedFd>) {
        let _ = self.0.send((event, fd));
    }

    /// Says how things go, if there is room.
    pub(crate) fn progress(&self, progress: Progress) {
        let _ = self.0.try_send((Event::Progress(progress), None));
    }
}

/// Measures the rate on the wire and says when progress is due.
#[derive(Debug)]
pub(crate) struct Meter {
    told: Instant,
    wire_bytes: u64,
    rate_bytes_per_s: f64,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self {
            told: Instant::now(),
            wire_bytes: 0,
            rate_bytes_per_s: 0.0,
        }
    }

    /// The rate in bytes per second, if it is time to tell progress again.
    pub(crate) fn due(&mut self, wire_bytes: u64) -> Option<u64> {
        let passed = self.told.elapsed();
        if passed < PROGRESS_EVERY {
            return None;
        }
        let bytes = wire_bytes.saturating_sub(self.wire_bytes) as f64;
        // Whatever the pace of the calls, what is older than a second counts for about a third.
        let weight = 1.0 - (-passed.as_secs_f64()).exp();
        self.rate_bytes_per_s += weight * (bytes / passed.as_secs_f64() - self.rate_bytes_per_s);
        self.told = Instant::now();
        self.wire_bytes = wire_bytes;
        Some(self.rate_bytes_per_s as u64)
    }
}
