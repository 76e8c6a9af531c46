//! A rate limit as a token bucket: a steady rate, and a burst that may be had at once.
//!
//! What costs more than the bucket holds is let through when the bucket is full, and paid for afterwards: so no
//! request waits for ever.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Tokens that fill up with time.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket; both numbers at least 1.
    fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        let burst = burst.max(1) as f64;
        Self {
            per_second: per_second.max(1) as f64,
            burst,
            tokens: burst,
            filled_at: now,
        }
    }

    /// Whether something of this cost may be had now.
    fn has(&mut self, cost: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled_at);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.per_second).min(self.burst);
        self.filled_at = now;
        self.tokens >= (cost as f64).min(self.burst)
    }

    /// Takes what something cost.
    fn pay(&mut self, cost: u64) {
        self.tokens -= cost as f64;
    }

    /// How long until something of this cost may be had.
    fn wait(&self, cost: u64) -> Duration {
        let missing = (cost as f64).min(self.burst) - self.tokens;
        Duration::from_secs_f64((missing / self.per_second).clamp(0.0, 3600.0))
    }
}

/// What may pass: so many a second, and so many bytes a second.
#[derive(Debug)]
pub struct Limits {
    times: Option<Bucket>,
    bytes: Option<Bucket>,
    waits_until: Option<Instant>,
}

/// How much of a rate may be had at once.
const BURST: Duration = Duration::from_millis(100);

impl Limits {
    /// With these rates; none is no limit.
    pub fn new(per_second: Option<NonZeroU64>, bytes_per_second: Option<NonZeroU64>) -> Self {
        let now = Instant::now();
        let bucket = |rate: Option<NonZeroU64>| {
            let rate = rate?.get();
            let burst = (rate as f64 * BURST.as_secs_f64()) as u64;
            Some(Bucket::new(rate, burst, now))
        };
        Self {
            times: bucket(per_second),
            bytes: bucket(bytes_per_second),
            waits_until: None,
        }
    }

    /// Whether something of so many bytes may pass now; if not, a wait begins.
    pub fn allow(&mut self, bytes: u64) -> bool {
        let now = Instant::now();
        let mut wait = Duration::ZERO;
        for (bucket, cost) in [(&mut self.times, 1), (&mut self.bytes, bytes)] {
            if let Some(bucket) = bucket
                && !bucket.has(cost, now)
            {
                wait = wait.max(bucket.wait(cost));
            }
        }
        if wait > Duration::ZERO {
            self.waits_until = Some(now + wait);
        }
        wait == Duration::ZERO
    }

    /// Something passed.
    pub fn pay(&mut self, bytes: u64) {
        if let Some(times) = &mut self.times {
            times.pay(1);
        }
        self.pay_bytes(bytes);
    }

    /// It had more bytes than could be seen before.
    pub fn pay_bytes(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.pay(bytes);
        }
    }

    /// Until when nothing may pass.
    pub fn waits_until(&self) -> Option<Instant> {
        self.waits_until
    }

    /// Whether the wait has ended by now; answered once.
    pub fn is_over(&mut self, now: Instant) -> bool {
        self.waits_until.take_if(|until| *until <= now).is_some()
    }

    /// Nobody waits any more.
    pub fn forget_wait(&mut self) {
        self.waits_until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_time_and_the_burst_at_once() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, 10, start);
        let mut had = 0;
        for ms in 0..2000 {
            let now = start + Duration::from_millis(ms);
            while bucket.has(1, now) {
                bucket.pay(1);
                had += 1;
            }
        }
        assert!((205..=210).contains(&had), "{had}");
    }

    #[test]
    fn what_is_larger_than_the_bucket_is_paid_for_afterwards() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, 10, start);
        assert!(bucket.has(100, start));
        bucket.pay(100);
        assert!(!bucket.has(1, start));
        let wait = bucket.wait(10);
        assert_eq!(wait, Duration::from_secs(1));
        assert!(bucket.has(10, start + wait));
    }
}
