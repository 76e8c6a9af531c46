//! The parts of the guest that need no machine: what it fills memory with, its sums, its patterns, its ticks.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../guest/check.rs"]
mod check;
#[path = "../guest/fill.rs"]
mod fill;

use dwcp_guest::{Tick, pattern};
use fill::{Mix, PAGE_WORDS, Page, Random, fill_page};
use proptest::prelude::*;

/// FNV-1a, which is enough to compare with a known value.
fn hash(hash: u64, page: &Page) -> u64 {
    let bytes = page.iter().flat_map(|word| word.to_le_bytes());
    bytes.fold(hash, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[test]
fn the_fill_is_the_reference_to_the_byte() {
    // Made by the reference guest's fill, in C, with its seed.
    for (mib, expected, next) in [
        (4, 0x7ab0_a09b_3f74_5cba, 0xf5ba_7891_0ce2_8287),
        (16, 0xc2f389e01899e3cf, 0x41e8fb464e4b2484),
    ] {
        let mut random = Random::new(88_172_645_463_325_252);
        let sum = (0..mib * 256).fold(0xcbf2_9ce4_8422_2325, |sum, number| {
            let mut page = [0; PAGE_WORDS];
            let is_written = fill_page(Mix::Reference, number, &mut page, &mut random);
            assert_eq!(is_written, page != [0; PAGE_WORDS]);
            hash(sum, &page)
        });
        assert_eq!((sum, random.next()), (expected, next), "{mib} MiB");
    }
}

#[test]
fn the_other_mixes_are_pure() {
    let fill = |name: &str| -> (bool, Page) {
        let mut page = [0; PAGE_WORDS];
        let mix = Mix::named(name.as_bytes()).unwrap();
        // The reference would leave this page untouched.
        let written = fill_page(mix, 0, &mut page, &mut Random::new(7));
        (written, page)
    };
    assert_eq!(fill("zero"), (false, [0; PAGE_WORDS]));
    let (written, text) = fill("text");
    let ascii = |word: &u64| word.to_le_bytes().is_ascii();
    assert!(written && text.iter().all(ascii));
    let (written, random) = fill("random");
    assert!(written && !random.iter().all(ascii));
    assert!(Mix::named(b"zeros").is_none());
}

fn page() -> impl Strategy<Value = Box<Page>> {
    prop::collection::vec(any::<u64>(), PAGE_WORDS)
        .prop_map(|words| Box::new(Page::try_from(words.as_slice()).unwrap()))
}

proptest! {
    #[test]
    fn the_sum_follows_what_was_replaced(page in page(), changes in prop::collection::vec((0..PAGE_WORDS, any::<u64>()), 0..20)) {
        let mut page = page;
        let mut sum = check::sum(&page);
        for (place, new) in changes {
            sum = check::replace(sum, place, page[place], new);
            page[place] = new;
        }
        prop_assert_eq!(sum, check::sum(&page));
    }

    #[test]
    fn a_changed_word_and_a_swap_are_noticed(page in page(), place in 0..PAGE_WORDS - 1, bit in 0..64) {
        let sum = check::sum(&page);
        let mut changed = page.clone();
        changed[place] ^= 1u64 << bit;
        prop_assert_ne!(sum, check::sum(&changed));
        let mut swapped = page.clone();
        swapped.swap(place, place + 1);
        prop_assert_eq!(sum == check::sum(&swapped), page[place] == page[place + 1]);
    }

    #[test]
    fn a_change_stays_noticed_when_the_guest_writes_over_it(page in page(), place in 0..PAGE_WORDS, bit in 0..64, new in any::<u64>()) {
        let mut page = page;
        let sum = check::sum(&page);
        page[place] ^= 1u64 << bit;
        let sum = check::replace(sum, place, page[place], new);
        page[place] = new;
        prop_assert_ne!(sum, check::sum(&page));
    }

    #[test]
    fn any_part_of_the_pattern_is_the_pattern(seed in any::<u64>(), word in 0..1_u64 << 50, bytes in 0..200_usize, bit in 0..8) {
        let mut whole = vec![0; bytes + 64];
        pattern::fill(seed, word * 8, &mut whole);
        let mut part = vec![0; bytes];
        pattern::fill(seed, word * 8 + 64, &mut part);
        prop_assert_eq!(&whole[64..], &part[..]);
        prop_assert_eq!(pattern::differences(seed, word * 8 + 64, &part), 0);
        if let Some(last) = part.last_mut() {
            *last ^= 1_u8 << bit;
            prop_assert_eq!(pattern::differences(seed, word * 8 + 64, &part), 1);
            let odd = (word * 8 + 61, &[&whole[61..64], &part[..]].concat());
            prop_assert_eq!(pattern::wrong_bytes(seed, odd.0, odd.1), 1);
        }
    }

    #[test]
    fn ticks_are_read_as_they_are_written(tick in any::<[u64; 5]>()) {
        let [tick, pages, gap_us, checked, bad] = tick;
        let line = format!("guest: tick {tick} pages {pages} gap_us {gap_us} checked {checked} bad {bad}\r\n");
        prop_assert_eq!(Tick::parse(&line), Some(Tick { tick, pages, gap_us, checked, bad }));
    }
}

#[test]
fn an_untouched_page_sums_to_nothing() {
    assert_eq!(check::sum(&[0; PAGE_WORDS]), 0);
}

#[test]
fn other_lines_are_no_ticks() {
    for line in [
        "",
        "guest: up tsc_khz 5",
        "guest: tick 1 pages 2",
        "guest: tick 1 pages 2 gap_us 3 checked 4 bad x",
    ] {
        assert_eq!(Tick::parse(line), None, "{line}");
    }
}
