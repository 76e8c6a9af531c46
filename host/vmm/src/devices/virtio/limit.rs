//! A rate limit as a token bucket: a steady rate, and a burst that may be had at once.
//!
//! What costs more than the bucket holds is let through when the bucket is full, and paid for afterwards: so no
//! request waits for ever.

use std::time::{Duration, Instant};

/// Tokens that fill up with time.
#[derive(Debug)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket; both numbers at least 1.
    pub fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        let burst = burst.max(1) as f64;
        Self {
            per_second: per_second.max(1) as f64,
            burst,
            tokens: burst,
            filled_at: now,
        }
    }

    /// Whether something of this cost may be had now.
    pub fn has(&mut self, cost: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled_at);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.per_second).min(self.burst);
        self.filled_at = now;
        self.tokens >= (cost as f64).min(self.burst)
    }

    /// Takes what something cost.
    pub fn pay(&mut self, cost: u64) {
        self.tokens -= cost as f64;
    }

    /// How long until something of this cost may be had.
    pub fn wait(&self, cost: u64) -> Duration {
        let missing = (cost as f64).min(self.burst) - self.tokens;
        Duration::from_secs_f64((missing / self.per_second).clamp(0.0, 3600.0))
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
