//! When a packet arrives, if it does: a bottleneck with a drop-tail queue, then a delay.
//!
//! A pure function of arrival times, sizes and a seed. The queue is not a list but a time: until when the bottleneck
//! is busy. That is exact for first in, first out, and no timer's lateness adds up.

use std::time::Duration;

use dwcp_wan::Settings;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is there at this time.
    Arrives(Duration),
    /// The queue is full.
    QueueFull,
    /// It is lost under way, after it took its time at the bottleneck.
    Lost,
}

/// One direction of a link. Times count from any common beginning.
#[derive(Debug)]
pub struct Bottleneck {
    settings: Settings,
    busy_until: Duration,
    last_arrival: Duration,
    random: u64,
}

impl Bottleneck {
    /// Idle, with checked settings.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            busy_until: Duration::ZERO,
            last_arrival: Duration::ZERO,
            random: seed,
        }
    }

    /// Changes the settings for packets that come from now on; what is queued keeps its time.
    pub fn change(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Forgets what is queued: the link was cut.
    pub fn clear(&mut self) {
        self.busy_until = Duration::ZERO;
        self.last_arrival = Duration::ZERO;
    }

    /// Takes a packet of `bytes` at `now`.
    pub fn take(&mut self, now: Duration, bytes: usize) -> Fate {
        if self.busy_until.saturating_sub(now) > self.settings.queue_time() {
            return Fate::QueueFull;
        }
        let sending = Duration::from_secs_f64(bytes as f64 * 8.0 / self.settings.bits_per_s());
        self.busy_until = self.busy_until.max(now) + sending;
        if self.is_lost() {
            return Fate::Lost;
        }
        // A shorter delay does not let later packets overtake.
        let arrival = (self.busy_until + self.settings.delay()).max(self.last_arrival);
        self.last_arrival = arrival;
        Fate::Arrives(arrival)
    }

    fn is_lost(&mut self) -> bool {
        if self.settings.loss == 0.0 {
            return false;
        }
        // SplitMix64 (Steele, Lea, Flood 2014): any seed will do.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed >> 11) as f64) < self.settings.loss * (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_wan::Queue;
    use proptest::prelude::*;

    const SETTINGS: Settings = Settings {
        rate_mbit: 100.0,
        rtt_ms: 100.0,
        loss: 0.0,
        queue: Queue::Ms(200.0),
    };

    fn arrival(fate: Fate) -> Option<Duration> {
        match fate {
            Fate::Arrives(at) => Some(at),
            _ => None,
        }
    }

    #[test]
    fn an_idle_link_takes_sending_time_and_half_a_round_trip() {
        let mut link = Bottleneck::new(SETTINGS, 1);
        let now = Duration::from_secs(5);
        let expected = now + Duration::from_micros(120) + Duration::from_millis(50);
        assert_eq!(link.take(now, 1500), Fate::Arrives(expected));
    }

    #[test]
    fn a_burst_arrives_at_the_rate_and_overflows_the_queue() {
        let mut link = Bottleneck::new(SETTINGS, 1);
        let fates: Vec<Fate> = (0..3000).map(|_| link.take(Duration::ZERO, 1500)).collect();
        let arrivals: Vec<Duration> = fates.iter().copied().filter_map(arrival).collect();
        // 200 ms hold 2.5 MB, and one packet is being sent.
        assert_eq!(arrivals.len(), 2_500_000 / 1500 + 1);
        assert!(
            fates[arrivals.len()..]
                .iter()
                .all(|fate| *fate == Fate::QueueFull)
        );
        for pair in arrivals.windows(2) {
            assert_eq!(pair[1] - pair[0], Duration::from_micros(120));
        }
    }

    #[test]
    fn loss_is_as_frequent_as_asked_and_the_same_for_a_seed() {
        let settings = Settings {
            loss: 0.01,
            rate_mbit: 10_000.0,
            ..SETTINGS
        };
        let run = |seed| {
            let mut link = Bottleneck::new(settings, seed);
            let mut lost =
                |number: u64| link.take(Duration::from_millis(number), 100) == Fate::Lost;
            (0..100_000)
                .filter(|number| lost(*number))
                .collect::<Vec<u64>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        assert!((800..1200).contains(&run(7).len()), "{}", run(7).len());
    }

    proptest! {
        #[test]
        fn order_is_kept_and_the_rate_never_exceeded(
            gaps in proptest::collection::vec((0u64..2000, 20usize..1500, 0.0f64..100.0), 1..200),
        ) {
            let mut link = Bottleneck::new(SETTINGS, 1);
            let mut now = Duration::ZERO;
            let mut last = Duration::ZERO;
            let mut bytes = 0;
            for (gap, size, rtt_ms) in gaps {
                now += Duration::from_micros(gap);
                link.change(Settings { rtt_ms, ..SETTINGS });
                if let Some(at) = arrival(link.take(now, size)) {
                    bytes += size;
                    prop_assert!(at >= last && at >= now);
                    prop_assert!(at >= Duration::from_secs_f64(bytes as f64 * 8.0 / 100e6) - Duration::from_micros(1));
                    last = at;
                }
            }
        }
    }
}
