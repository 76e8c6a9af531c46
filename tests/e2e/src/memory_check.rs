//! When the guest's own memory check says something: only after a whole pass over what it filled.

use dwcp_guest::Tick;

const PAGES_PER_MIB: u64 = 256;

/// Whether between two of its words the guest checked as many pages as it fills: then it checked each of them, for it
/// goes over them in order, and over no more of them than it fills.
pub fn whole_pass(first: &Tick, last: &Tick, fill_mib: u32) -> bool {
    last.checked.saturating_sub(first.checked) >= u64::from(fill_mib) * PAGES_PER_MIB
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(checked: u64) -> Tick {
        Tick {
            tick: 1,
            pages: 0,
            gap_us: 0,
            checked,
            bad: 0,
        }
    }

    #[test]
    fn a_part_of_memory_is_no_pass() {
        assert!(!whole_pass(&tick(100), &tick(101), 1));
        assert!(!whole_pass(&tick(100), &tick(355), 1));
        assert!(whole_pass(&tick(100), &tick(356), 1));
        assert!(!whole_pass(&tick(356), &tick(100), 1));
    }
}
