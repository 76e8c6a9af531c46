//! When does copying stop and the hand-over begin? A pure function of the recorded rounds.
//!
//! The rule, in order:
//! 1. nothing was copied yet → copy;
//! 2. what is dirty now would cross within the pause that the guest may see → hand over;
//! 3. the rounds no longer shrink what is left, or there were too many → hand over all the same, because a longer pause
//!    is better than no end; the record says so;
//! 4. otherwise → copy another round.
//!
//! It never sees a clock or a link; the numbers come from the rounds that were measured.

use crate::records::Round;

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;
/// Rounds after which copying more is given up.
pub const ROUNDS_MAX: u32 = 30;
/// A round must leave at most this share of the previous round's dirty pages to count as progress.
pub const PROGRESS_SHARE: f64 = 0.9;

/// What the operator allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Pause that the guest may see, ms.
    pub pause_ms: u64,
    /// Round trip of the link, ms: a one-way delay of it belongs to every pause.
    pub rtt_ms: f64,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Copy another round.
    Copy {
        /// Why.
        why: String,
    },
    /// Pause the guest and send the rest.
    HandOver {
        /// Why.
        why: String,
        /// The pause to expect, ms.
        pause_ms: f64,
    },
}

/// Pages with content that the wire carried a second, over the given rounds.
fn pages_per_s(rounds: &[Round]) -> Option<f64> {
    let (pages, ms) = rounds.iter().fold((0u64, 0u64), |(pages, ms), r| {
        let content = r.pages.saturating_sub(r.zero_pages);
        (pages + content, ms + r.duration_ms)
    });
    (pages > 0 && ms > 0).then(|| pages as f64 * 1000.0 / ms as f64)
}

/// Decides what follows the last of `rounds`.
pub fn decide(rounds: &[Round], limits: Limits) -> Next {
    let Some(last) = rounds.last() else {
        return Next::Copy {
            why: "nothing is copied yet".into(),
        };
    };
    // With nothing measured, nothing dirty is nothing to send, and anything else may take for ever.
    let transfer_ms = match pages_per_s(rounds) {
        Some(speed) => last.dirty_pages as f64 * 1000.0 / speed,
        None if last.dirty_pages == 0 => 0.0,
        None => f64::INFINITY,
    };
    let pause_ms = transfer_ms + limits.rtt_ms / 2.0;
    if pause_ms <= limits.pause_ms as f64 {
        return Next::HandOver {
            why: format!(
                "{} pages are left, {pause_ms:.0} ms of pause, within {} ms",
                last.dirty_pages, limits.pause_ms
            ),
            pause_ms,
        };
    }
    if last.number >= ROUNDS_MAX {
        return Next::HandOver {
            why: format!(
                "{ROUNDS_MAX} rounds are enough; {} pages are left, {pause_ms:.0} ms of pause, over the {} ms asked for",
                last.dirty_pages, limits.pause_ms
            ),
            pause_ms,
        };
    }
    let stalled = rounds.len() >= 4
        && rounds
            .windows(2)
            .rev()
            .take(3)
            .all(|w| w[1].dirty_pages as f64 > w[0].dirty_pages as f64 * PROGRESS_SHARE);
    if stalled {
        return Next::HandOver {
            why: format!(
                "three rounds left as much as before; {} pages are left, {pause_ms:.0} ms of pause, over the {} ms asked for",
                last.dirty_pages, limits.pause_ms
            ),
            pause_ms,
        };
    }
    Next::Copy {
        why: format!(
            "{} pages are left, {pause_ms:.0} ms of pause, over the {} ms asked for",
            last.dirty_pages, limits.pause_ms
        ),
    }
}

/// Time until the end as far as the rounds tell, ms: the rest of this round, and as long again as a geometric series
/// of rounds with the same share of dirty pages would take.
pub fn remaining_ms(pages_left: u64, dirty_pages_per_s: f64, rate_pages_per_s: f64) -> Option<u64> {
    if rate_pages_per_s <= 0.0 {
        return None;
    }
    let share = (dirty_pages_per_s / rate_pages_per_s).clamp(0.0, 0.95);
    Some((pages_left as f64 / rate_pages_per_s * 1000.0 / (1.0 - share)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(number: u32, pages: u64, duration_ms: u64, dirty_pages: u64) -> Round {
        Round {
            number,
            pages,
            zero_pages: 0,
            wire_bytes: pages * PAGE_BYTES / 2,
            duration_ms,
            dirty_pages,
            decision: String::new(),
        }
    }

    const LIMITS: Limits = Limits {
        pause_ms: 300,
        rtt_ms: 100.0,
    };

    #[test]
    fn copies_until_the_rest_fits_the_pause() {
        assert!(matches!(decide(&[], LIMITS), Next::Copy { .. }));
        // 5,000 pages a second: 8,000 pages are 1.6 s.
        let first = round(1, 50_000, 10_000, 8_000);
        assert!(matches!(
            decide(std::slice::from_ref(&first), LIMITS),
            Next::Copy { .. }
        ));
        let second = round(2, 8_000, 1_600, 1_000);
        let Next::HandOver { pause_ms, .. } = decide(&[first, second], LIMITS) else {
            panic!("1,000 pages fit");
        };
        assert!((200.0..300.0).contains(&pause_ms), "{pause_ms}");
    }

    #[test]
    fn ends_even_when_the_guest_outruns_the_link() {
        let mut rounds = vec![round(1, 50_000, 10_000, 20_000)];
        loop {
            match decide(&rounds, LIMITS) {
                Next::Copy { .. } => {
                    let n = rounds.len() as u32 + 1;
                    assert!(n <= ROUNDS_MAX);
                    rounds.push(round(n, 20_000, 4_000, 20_000));
                }
                Next::HandOver { why, .. } => {
                    assert!(why.contains("over the 300 ms"), "{why}");
                    break;
                }
            }
        }
        assert_eq!(rounds.len(), 4);
    }

    #[test]
    fn an_idle_guest_is_handed_over_after_one_round() {
        let next = decide(&[round(1, 100, 10, 0)], LIMITS);
        assert!(matches!(next, Next::HandOver { .. }));
    }

    #[test]
    fn an_unknown_speed_is_no_reason_to_hand_over() {
        let next = decide(&[round(1, 0, 0, 500)], LIMITS);
        assert!(matches!(next, Next::Copy { .. }));
    }

    #[test]
    fn the_forecast_grows_with_the_dirty_rate() {
        assert_eq!(remaining_ms(1000, 0.0, 1000.0), Some(1000));
        assert!(remaining_ms(1000, 500.0, 1000.0) > remaining_ms(1000, 0.0, 1000.0));
        assert_eq!(remaining_ms(1000, 0.0, 0.0), None);
    }
}
