//! Which frames of a transfer have been applied: each exactly once, whichever streams it came by.
//!
//! A source that loses a stream sends its unacknowledged frames again on another, while the lost one's bytes may still
//! be on their way; applied late, they would put old content over new. So a frame is claimed before it is applied,
//! and one that was claimed before is only waited for. Bounded: sequence numbers more than [`WINDOW`] ahead of the
//! first missing one are refused. Must not know what frames carry.

use std::collections::BTreeMap;

/// How far a frame may be ahead of the first one that is missing. A source stays within half of it.
pub(crate) const WINDOW: u64 = 1 << 16;

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Apply it, then call [`Ledger::done`].
    Apply,
    /// Another stream is applying it.
    Wait,
    /// It has been applied: acknowledge it again.
    Applied,
    /// No honest source sends this number now.
    Refuse,
}

/// The record, from sequence number 1 on.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Every number up to and including this one is done.
    through: u64,
    /// Later ones: whether they are done, or only claimed.
    later: BTreeMap<u64, bool>,
}

impl Ledger {
    /// Claims a frame.
    pub(crate) fn claim(&mut self, sequence: u64) -> Claim {
        if sequence == 0 || sequence.saturating_sub(self.through) > WINDOW {
            return Claim::Refuse;
        }
        if sequence <= self.through {
            return Claim::Applied;
        }
        match self.later.get(&sequence) {
            Some(true) => Claim::Applied,
            Some(false) => Claim::Wait,
            None => {
                self.later.insert(sequence, false);
                Claim::Apply
            }
        }
    }

    /// Records that a claimed frame is applied.
    pub(crate) fn done(&mut self, sequence: u64) {
        if let Some(done) = self.later.get_mut(&sequence) {
            *done = true;
        }
        while let Some((&next, &true)) = self.later.first_key_value() {
            if next != self.through + 1 {
                break;
            }
            self.later.pop_first();
            self.through = next;
        }
    }

    /// Every frame up to and including this one is applied.
    pub(crate) fn through(&self) -> u64 {
        self.through
    }

    /// The highest number ever claimed.
    pub(crate) fn highest(&self) -> u64 {
        let later = self.later.last_key_value().map_or(0, |(last, _)| *last);
        later.max(self.through)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_frame_is_applied_once_in_any_order(order in Just((1..200u64).collect::<Vec<_>>()).prop_shuffle(), again: Vec<u8>) {
            let mut ledger = Ledger::default();
            let mut applied = vec![0; 200];
            let repeats = again.iter().map(|n| u64::from(*n) % 199 + 1);
            for sequence in order.into_iter().chain(repeats) {
                match ledger.claim(sequence) {
                    Claim::Apply => {
                        prop_assert_eq!(ledger.claim(sequence), Claim::Wait);
                        applied[sequence as usize] += 1;
                        ledger.done(sequence);
                    }
                    claim => prop_assert_eq!(claim, Claim::Applied),
                }
            }
            prop_assert!(applied[1..].iter().all(|times| *times == 1));
            prop_assert_eq!(ledger.through(), 199);
        }
    }

    #[test]
    fn numbers_from_nowhere_are_refused() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.claim(0), Claim::Refuse);
        assert_eq!(ledger.claim(WINDOW + 1), Claim::Refuse);
        assert_eq!(ledger.claim(u64::MAX), Claim::Refuse);
        assert_eq!(ledger.claim(WINDOW), Claim::Apply);
        assert_eq!(ledger.highest(), WINDOW);
    }
}
