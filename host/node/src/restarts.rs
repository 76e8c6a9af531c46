//! How often, and when, a machine is started again that ended without anybody having asked for it.
//!
//! At once the first time, later and later after that, so that one that does nothing else costs little. Ten minutes
//! without it, and all is forgiven.

use std::time::Duration;

/// After this long without an end, the next one counts as the first, ms.
const FORGIVEN_MS: u64 = 10 * 60 * 1000;
/// Longest wait before a start, as a power of two of seconds.
const WAIT_EXPONENT_MAX: u32 = 6;
/// Starts in a row by a restart policy; then it is given up.
pub(crate) const RESTARTS_MAX: u32 = 12;

/// What is known of a machine's ends.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Restarts {
    /// Starts in a row that came of them.
    count: u32,
    /// When the last was, ms.
    last_ms: u64,
}

impl Restarts {
    /// Counts one more; how long to wait before the machine is started again.
    pub(crate) fn next(&mut self, now_ms: u64) -> Duration {
        if now_ms.saturating_sub(self.last_ms) > FORGIVEN_MS {
            self.count = 0;
        }
        let wait = match self.count {
            0 => Duration::ZERO,
            n => Duration::from_secs(1 << n.min(WAIT_EXPONENT_MAX)),
        };
        *self = Self {
            count: self.count.saturating_add(1),
            last_ms: now_ms,
        };
        wait
    }

    /// The start that was counted last did not come about, for a reason that is not the guest's.
    pub(crate) fn undo(&mut self) {
        self.count = self.count.saturating_sub(1);
    }

    /// Whether it has been started so often in a row that a policy gives it up.
    pub(crate) fn is_hopeless(&self, now_ms: u64) -> bool {
        self.count >= RESTARTS_MAX && now_ms.saturating_sub(self.last_ms) <= FORGIVEN_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_longer_and_longer_and_then_it_is_given_up() {
        let (mut restarts, mut now) = (Restarts::default(), 1_700_000_000_000);
        let mut waits = Vec::new();
        while !restarts.is_hopeless(now) {
            let wait = restarts.next(now);
            waits.push(wait.as_secs());
            now += wait.as_millis() as u64 + 1;
        }
        assert_eq!(waits, [0, 2, 4, 8, 16, 32, 64, 64, 64, 64, 64, 64]);
    }

    #[test]
    fn ten_good_minutes_are_enough() {
        let (mut restarts, now) = (Restarts::default(), 1_700_000_000_000);
        for _ in 0..RESTARTS_MAX {
            restarts.next(now);
        }
        assert!(restarts.is_hopeless(now + FORGIVEN_MS));
        assert!(!restarts.is_hopeless(now + FORGIVEN_MS + 1));
        assert_eq!(restarts.next(now + FORGIVEN_MS + 1), Duration::ZERO);
    }
}
