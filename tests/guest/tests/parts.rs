//! The parts of the guest that need no machine: what it fills memory with, its sums, its command line, its ticks.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../guest/check.rs"]
mod check;
#[path = "../guest/fill.rs"]
mod fill;
#[path = "../guest/orders.rs"]
mod orders;
#[path = "../guest/params.rs"]
mod params;

use dwcp_guest::said::{Bench, DiskFound, DiskLoop, DiskRead, DiskStep, RngRead};
use dwcp_guest::{Tick, pattern};
use fill::{Mix, PAGE_WORDS, Page, Random, fill_page};
use orders::{Ending, Orders};
use params::Params;
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
    fn any_command_line_is_read(line in prop::collection::vec(any::<u8>(), 0..200)) {
        let params = Params::parse(&line);
        prop_assert!(params.ws_mib <= params.fill_mib);
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
        }
    }

    #[test]
    fn any_line_is_read(line in "(guest: )?(disk|rng|bench) ?[0-9]?:? ?[a-z0-9 \"]{0,60}") {
        DiskFound::parse(&line);
        DiskStep::parse(&line);
        DiskRead::parse(&line);
        DiskLoop::parse(&line);
        RngRead::parse(&line);
        Bench::parse(&line);
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
fn parameters_are_taken_and_nonsense_is_not() {
    let params = Params::parse(
        b"console=ttyS0 fill_mib=256 ws_mib=32 rate=2000 verify=2 tsc_khz=2400000 seed=x",
    );
    assert_eq!(
        (params.fill_mib, params.ws_mib, params.rate),
        (256, 32, 2000)
    );
    assert_eq!((params.verify, params.tsc_khz), (2, 2_400_000));
    assert_eq!(params.seed, Params::parse(b"").seed);
    assert!(Params::parse(b"exit=reset").exit && !params.exit);
    assert_eq!(Params::parse(b"mix=zeros").mix, None);
    assert_eq!(Params::parse(b"mix=text").mix, Some(Mix::Text));
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

#[test]
fn orders_add_up_and_nonsense_is_not_taken() {
    let orders = |line: &str| Params::parse(line.as_bytes()).orders;
    assert_eq!(
        orders("fill_mib=8 disk= disk=eat disk=check:5"),
        Orders::new()
    );
    assert!(!Orders::new().wants_devices());
    let some = orders("disk=check disk=read:8 disk=loop disk_at_mib=3 rng=64 then=power-off");
    assert!(some.disk_check && some.disk_loop && some.wants_devices());
    assert_eq!(
        (some.disk_read_mib, some.disk_bench_s, some.disk_at_mib),
        (8, 0, 3)
    );
    assert_eq!(some.rng_bytes, 64);
    assert_eq!(some.then, Some(Ending::PowerOff));
}

#[test]
fn what_is_said_of_disks_is_read() {
    let found = DiskFound::parse(
        "guest: disk 1: sectors 131072 features 0x120006644 queues 2 read_only 1 id \"a-b\"\r\n",
    );
    assert_eq!(
        found,
        Some(DiskFound {
            number: 1,
            sectors: 131_072,
            features: 0x1_2000_6644,
            queues: 2,
            read_only: true,
            id: "a-b".to_owned()
        })
    );
    let step = DiskStep::parse("guest: disk 0: beyond ioerr").unwrap();
    assert_eq!(
        (step.number, &*step.step, &*step.outcome),
        (0, "beyond", "ioerr")
    );
    let read =
        DiskRead::parse("guest: disk 0: read bytes 8192 sum 0xff wrong 1 outcome ok").unwrap();
    assert_eq!(
        (read.bytes, read.sum, read.wrong, &*read.outcome),
        (8192, 255, 1, "ok")
    );
    let seen = DiskLoop::parse("guest: disk 3: loop transfers 7 bad 0 errors 1 slow_us 900");
    assert_eq!(
        seen,
        Some(DiskLoop {
            number: 3,
            transfers: 7,
            bad: 0,
            errors: 1,
            slow_us: 900
        })
    );
    let bench = Bench::parse(
        "guest: bench disk 0 random-1: operations 500 bytes 2048000 elapsed_us 1000000 median_us 9 p99_us 20 per_s 500 mb_s 2",
    )
    .unwrap();
    assert_eq!(
        (&*bench.name, bench.operations_per_s(), bench.median_us),
        ("disk 0 random-1", 500.0, 9)
    );
    for line in [
        "guest: disk 0: sectors 131072 features 0x12",
        "guest: disk 0: fault: no answer",
        "guest: disk: no device",
        "guest: tick 1 pages 2",
    ] {
        assert_eq!(DiskFound::parse(line), None, "{line}");
        assert_eq!(DiskStep::parse(line), None, "{line}");
    }
}
