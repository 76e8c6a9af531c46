//! A good driver is understood, whatever it does; a hostile one is told what it broke, and nothing worse happens.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::devices::virtio::driver::{Driver, Piece, QUEUE_BYTES, memory, readable, writable};

const MEMORY_BYTES: u64 = 64 << 10;
/// Where buffers are.
const BUFFERS: u64 = QUEUE_BYTES;

fn open(driver: &Driver, has_event_index: bool, has_indirect: bool) -> Result<Queue, Broken> {
    Queue::new(
        driver.state,
        256,
        has_event_index,
        has_indirect,
        &driver.memory,
    )
}

/// What a driver and a device do to a queue.
#[derive(Debug, Clone)]
enum Step {
    /// The driver asks, perhaps with all but so many pieces in a table.
    Add(Vec<Piece>, Option<usize>),
    /// The device takes.
    Pop,
    /// The device takes, and puts back.
    PutBack,
    /// The device gives back one of those that it has.
    Push(prop::sample::Index, u32),
    /// The driver wants to be told so many entries on.
    Want(u16),
    /// The device asks whether to tell.
    Tell,
    /// The device asks to be told.
    Listen,
    /// The driver takes.
    Take,
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let place = || (BUFFERS..MEMORY_BYTES - 300, 0..300u32);
    let readables = prop::collection::vec(place(), 0..4);
    let writables = prop::collection::vec(place(), 0..4);
    let all = (readables, writables).prop_map(|(readables, writables)| {
        let readables = readables.into_iter().map(|(at, n)| readable(at, n));
        let writables = writables.into_iter().map(|(at, n)| writable(at, n));
        readables.chain(writables).collect::<Vec<_>>()
    });
    all.prop_filter("something is asked", |pieces| !pieces.is_empty())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (pieces(), prop::option::of(0..3usize)).prop_map(|(pieces, direct)| Step::Add(pieces, direct)),
        3 => Just(Step::Pop),
        1 => Just(Step::PutBack),
        3 => (any::<prop::sample::Index>(), any::<u32>()).prop_map(|(which, n)| Step::Push(which, n)),
        1 => (0..6u16).prop_map(Step::Want),
        2 => Just(Step::Tell),
        1 => Just(Step::Listen),
        2 => Just(Step::Take),
    ]
}

/// What the device should see of pieces: those without bytes are nothing.
fn seen(head: u16, pieces: &[Piece]) -> Chain {
    let some = |is_writable| {
        let pieces = pieces.iter().filter(move |piece| piece.range.bytes > 0);
        let pieces = pieces.filter(move |piece| piece.is_writable == is_writable);
        pieces.map(|piece| piece.range).collect()
    };
    Chain {
        head,
        readable: some(false),
        writable: some(true),
    }
}

proptest! {
    #[test]
    fn a_good_driver_is_understood(
        power in 0..5u32,
        index in prop_oneof![any::<u16>(), 65530..=u16::MAX],
        has_event_index in any::<bool>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let memory = memory(MEMORY_BYTES);
        let mut driver = Driver::new(&memory, 0, 1 << power, index);
        let mut queue = open(&driver, has_event_index, true).unwrap();
        let mut offered: VecDeque<Chain> = VecDeque::new();
        let mut taken: Vec<Chain> = Vec::new();
        let mut given: VecDeque<(u16, u32)> = VecDeque::new();
        // Entries that the driver was not told of, and where it wants to be told.
        let (mut untold, mut wanted): (Vec<u16>, u16) = (Vec::new(), index);
        if has_event_index {
            driver.put(driver.state.driver + 4 + 2 * u64::from(driver.state.size), wanted);
        }
        for step in steps {
            match step {
                Step::Add(pieces, direct) => {
                    let head = match direct {
                        Some(direct) => driver.add_indirect(&pieces, direct),
                        None => driver.add(&pieces),
                    };
                    offered.extend(head.map(|head| seen(head, &pieces)));
                }
                Step::Pop => {
                    let chain = queue.pop(&memory).unwrap();
                    prop_assert_eq!(&chain, &offered.pop_front());
                    taken.extend(chain);
                }
                Step::PutBack => {
                    if let Some(chain) = queue.pop(&memory).unwrap() {
                        prop_assert_eq!(Some(&chain), offered.front());
                        queue.put_back();
                    }
                }
                Step::Push(which, written) => {
                    if !taken.is_empty() {
                        let chain = taken.swap_remove(which.index(taken.len()));
                        untold.push(queue.state().next_used);
                        queue.push(&memory, chain.head, written).unwrap();
                        given.push_back((chain.head, written));
                    }
                }
                Step::Want(on) => {
                    wanted = driver.used.wrapping_add(on);
                    if has_event_index {
                        driver.put(driver.state.driver + 4 + 2 * u64::from(driver.state.size), wanted);
                    } else {
                        driver.put(driver.state.driver, on % 2);
                    }
                }
                Step::Tell => {
                    let expected = if has_event_index {
                        untold.contains(&wanted)
                    } else {
                        !untold.is_empty() && driver.get(driver.state.driver) == 0
                    };
                    untold.clear();
                    prop_assert_eq!(queue.wants_interrupt(&memory).unwrap(), expected);
                }
                Step::Listen => {
                    prop_assert_eq!(queue.listen(&memory).unwrap(), !offered.is_empty());
                    if has_event_index {
                        let at = driver.state.device + 4 + 8 * u64::from(driver.state.size);
                        prop_assert_eq!(driver.get(at), queue.state().next_available);
                    } else {
                        prop_assert_eq!(driver.get(driver.state.device), 0);
                        queue.ignore(&memory).unwrap();
                        prop_assert_eq!(driver.get(driver.state.device), 1);
                    }
                }
                Step::Take => prop_assert_eq!(driver.take(), given.pop_front()),
            }
        }
    }

    /// Whatever is in memory: every chain that comes out is good, and there is an end.
    #[test]
    fn a_hostile_driver_gets_nothing_but_an_error(
        power in 0..5u32,
        is_indirect in any::<bool>(),
        descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), 0..8u16, 0..20u16, 0..6u8), 32),
        heads in prop::collection::vec(prop_oneof![9 => 0..16u16, 1 => any::<u16>()], 16),
        jump in prop_oneof![8 => 0..17u16, 1 => any::<u16>()],
    ) {
        let memory = memory(MEMORY_BYTES);
        let driver = Driver::new(&memory, 0, 1 << power, 0);
        for (n, (start, bytes, flags, next, kind)) in (0u16..).zip(descriptors) {
            // Most are in memory, or nearly; some are tables, in which the last sixteen are.
            let (start, bytes) = match kind {
                0 => (start, bytes),
                1 => (MEMORY_BYTES - start % 3, bytes % 5),
                2 => (256 + start % 256 / 16 * 16, 16 * (bytes % 18)),
                _ => (start % MEMORY_BYTES, bytes % 300),
            };
            driver.describe(0, n, readable(start, bytes), flags, next);
        }
        for (n, head) in (0..).zip(heads) {
            driver.put(driver.state.driver + 4 + 2 * n, head);
        }
        driver.put(driver.state.driver + 2, jump);
        let mut queue = open(&driver, false, is_indirect).unwrap();
        for _ in 0..40 {
            let before = queue.state();
            match queue.pop(&memory) {
                Ok(Some(chain)) => {
                    prop_assert!(chain.head < driver.state.size);
                    prop_assert!(chain.readable.len() + chain.writable.len() <= CHAIN_MAX);
                    for range in chain.readable.iter().chain(&chain.writable) {
                        prop_assert!(range.bytes > 0);
                        let end = range.start.0.checked_add(range.bytes.into());
                        prop_assert!(end.is_some_and(|end| end <= MEMORY_BYTES));
                    }
                }
                // The device is as far as it was.
                Ok(None) | Err(_) => prop_assert_eq!(queue.state(), before),
            }
        }
    }

    #[test]
    fn a_queue_of_any_place_is_taken_only_if_it_lies_in_memory(
        size in any::<u16>(),
        places in prop::array::uniform3(prop_oneof![any::<u64>(), 0..MEMORY_BYTES + 100, (u64::MAX - 100)..]),
    ) {
        let memory = memory(MEMORY_BYTES);
        let [descriptors, driver, device] = places;
        let state = QueueState { size, enabled: true, descriptors, driver, device, ..QueueState::default() };
        let Ok(mut queue) = Queue::new(state, 256, true, true, &memory) else { return Ok(()) };
        prop_assert!(size.is_power_of_two() && size <= 256);
        let size = u64::from(size);
        for (start, align, bytes) in [(descriptors, 16, 16 * size), (driver, 2, 6 + 2 * size), (device, 4, 6 + 8 * size)] {
            prop_assert!(start % align == 0 && start + bytes <= MEMORY_BYTES);
        }
        let _ = queue.pop(&memory);
        queue.push(&memory, 0, 1).unwrap();
        let _ = queue.wants_interrupt(&memory);
        let _ = queue.listen(&memory);
    }

    #[test]
    fn ranges_are_split_and_copied_without_loss(
        parts in prop::collection::vec((0..8000u64, 1..50u32), 0..8),
        at in 0..300u64,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let memory = memory(1 << 20);
        // Apart from each other, so that what is written is what is read.
        let ranges: Vec<_> = (0..).zip(parts).map(|(n, (at, bytes))| {
            GuestRange { start: GuestAddress(n * 10_000 + at), bytes }
        }).collect();
        let total = length(&ranges);
        match split(&ranges, at) {
            None => prop_assert!(at > total),
            Some((front, back)) => {
                prop_assert_eq!((length(&front), length(&back)), (at, total - at));
                let done = scatter(&memory, &ranges, &bytes).unwrap();
                prop_assert_eq!(u64::from(done), total.min(bytes.len() as u64));
                let (mut head, mut tail) = (vec![0; at as usize], vec![0; (total - at) as usize]);
                gather(&memory, &front, &mut head).unwrap();
                gather(&memory, &back, &mut tail).unwrap();
                head.extend(tail);
                prop_assert_eq!(&head[..done as usize], &bytes[..done as usize]);
            }
        }
    }
}

/// What a driver is told that makes descriptors, from the first one on, available.
fn broken(descriptors: &[(Piece, u16, u16)]) -> Broken {
    broken_with(true, |driver| {
        for (n, (piece, flags, next)) in (0..).zip(descriptors) {
            driver.describe(0, n, *piece, *flags, *next);
        }
        driver.offer(0);
    })
}

fn broken_with(has_indirect: bool, breaks: impl FnOnce(&mut Driver)) -> Broken {
    let memory = memory(MEMORY_BYTES);
    let mut driver = Driver::new(&memory, 0, 16, 0);
    breaks(&mut driver);
    let mut queue = open(&driver, false, has_indirect).unwrap();
    queue.pop(&memory).unwrap_err()
}

#[test]
fn loops_have_an_end() {
    let some = readable(BUFFERS, 1);
    assert_eq!(broken(&[(some, NEXT, 0)]), Broken::Endless);
    assert_eq!(broken(&[(some, NEXT, 1), (some, NEXT, 0)]), Broken::Endless);
    // In a table, too; and pieces without bytes count.
    let table = readable(BUFFERS, 32);
    let none = readable(0, 0);
    let inner = broken_with(true, |driver| {
        driver.describe(0, 0, table, INDIRECT, 0);
        driver.describe(BUFFERS, 0, none, NEXT, 1);
        driver.describe(BUFFERS, 1, none, NEXT, 0);
        driver.offer(0);
    });
    assert_eq!(inner, Broken::Endless);
    // Behind descriptors and in a table together, a chain is no longer than alone.
    let both = broken_with(true, |driver| {
        driver.describe(0, 0, some, NEXT, 1);
        driver.describe(0, 1, readable(BUFFERS, 16 * CHAIN_MAX as u32), INDIRECT, 0);
        for n in 0..CHAIN_MAX as u16 {
            let flags = if usize::from(n) + 1 < CHAIN_MAX {
                NEXT
            } else {
                0
            };
            driver.describe(BUFFERS, n, none, flags, n + 1);
        }
        driver.offer(0);
    });
    assert_eq!(both, Broken::Endless);
}

#[test]
fn a_table_longer_than_any_chain_is_no_reason_to_go_on() {
    let table = readable(BUFFERS, 16 * 2000);
    let endless = broken_with(true, |driver| {
        driver.describe(0, 0, table, INDIRECT, 0);
        for n in 0..2000 {
            driver.describe(BUFFERS, n, readable(0, 1), NEXT, n + 1);
        }
        driver.offer(0);
    });
    assert_eq!(endless, Broken::Endless);
}

#[test]
fn numbers_out_of_range_are_told() {
    assert_eq!(
        broken_with(true, |driver| driver.offer(16)),
        Broken::Number(16)
    );
    let some = readable(BUFFERS, 1);
    assert_eq!(broken(&[(some, NEXT, 999)]), Broken::Number(999));
    let in_table = broken_with(true, |driver| {
        driver.describe(0, 0, readable(BUFFERS, 16), INDIRECT, 0);
        driver.describe(BUFFERS, 0, some, NEXT, 1);
        driver.offer(0);
    });
    assert_eq!(in_table, Broken::Number(1));
}

#[test]
fn buffers_outside_of_memory_are_told() {
    for (start, bytes) in [
        (MEMORY_BYTES, 1),
        (MEMORY_BYTES - 1, 2),
        (0, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX - 10, u32::MAX),
        (0xfee0_0000, 4),
    ] {
        let told = broken(&[(readable(start, bytes), 0, 0)]);
        assert_eq!(told, Broken::Buffer { start, bytes });
    }
}

#[test]
fn a_buffer_across_the_gap_of_devices_is_told() {
    // 3 GiB and a page: memory goes on at 4 GiB.
    let memory = memory((3 << 30) + 4096);
    for (start, fits) in [
        (0xbfff_fff8, false),
        (0xc000_0000, false),
        (0xffff_fffc, false),
        (0x1_0000_0000, true),
        (0x1_0000_0ff8, true),
        (0x1_0000_0ff9, false),
    ] {
        let mut driver = Driver::new(&memory, 0, 16, 0);
        driver.add(&[readable(start, 8)]);
        if start == 0xbfff_fff8 {
            driver.describe(0, 0, readable(start, 9), 0, 0);
        }
        let mut queue = open(&driver, false, false).unwrap();
        assert_eq!(queue.pop(&memory).is_ok(), fits, "{start:#x}");
    }
}

#[test]
fn readable_after_writable_is_told() {
    let told = broken(&[
        (writable(BUFFERS, 1), NEXT, 1),
        (readable(BUFFERS, 1), 0, 0),
    ]);
    assert_eq!(told, Broken::Order);
}

#[test]
fn malformed_tables_are_told() {
    let some = readable(BUFFERS, 16);
    let with = |bytes| readable(BUFFERS, bytes);
    // Of no entry, of half an entry, followed by another, outside of memory, and in a table.
    assert_eq!(broken(&[(with(0), INDIRECT, 0)]), Broken::Indirect);
    assert_eq!(broken(&[(with(24), INDIRECT, 0)]), Broken::Indirect);
    assert_eq!(
        broken(&[(with(16), INDIRECT | NEXT, 1), (some, 0, 0)]),
        Broken::Indirect
    );
    for start in [MEMORY_BYTES - 8, MEMORY_BYTES, u64::MAX - 7] {
        assert_eq!(
            broken(&[(readable(start, 32), INDIRECT, 0)]),
            Broken::Indirect
        );
    }
    let nested = |driver: &mut Driver| {
        driver.describe(0, 0, some, INDIRECT, 0);
        driver.describe(BUFFERS, 0, some, INDIRECT, 0);
        driver.offer(0);
    };
    assert_eq!(broken_with(true, nested), Broken::Indirect);
    // Behind another descriptor and followed by one, and not negotiated.
    assert_eq!(
        broken(&[(some, NEXT, 1), (some, INDIRECT | NEXT, 2), (some, 0, 0)]),
        Broken::Indirect
    );
    for direct in [0, 1] {
        let plain = |driver: &mut Driver| {
            driver.add_indirect(&[readable(BUFFERS, 4); 2], direct);
        };
        assert_eq!(broken_with(false, plain), Broken::Indirect);
    }
}

#[test]
fn an_index_that_jumps_is_told() {
    for (jump, told) in [(17, 17), (0x8000, 0x8000), (u16::MAX, u16::MAX)] {
        let told_of = broken_with(true, |driver| driver.put(driver.state.driver + 2, jump));
        assert_eq!(told_of, Broken::Ahead(told));
    }
    // As many as there are is no jump.
    let memory = memory(MEMORY_BYTES);
    let driver = Driver::new(&memory, 0, 16, 0);
    driver.put(driver.state.driver + 2, 16);
    let mut queue = open(&driver, false, false).unwrap();
    assert_eq!(queue.listen(&memory), Ok(true));
    driver.put(driver.state.driver + 2, 17);
    assert_eq!(queue.listen(&memory), Err(Broken::Ahead(17)));
}

#[test]
fn a_queue_that_was_not_offered_is_told() {
    let memory = memory(MEMORY_BYTES);
    let good = Driver::new(&memory, 0, 16, 0).state;
    let told = |state| Queue::new(state, 64, true, true, &memory).unwrap_err();
    for size in [0, 3, 128, 0x8000] {
        assert_eq!(told(QueueState { size, ..good }), Broken::Size);
    }
    for wrong in [
        QueueState {
            descriptors: 8,
            ..good
        },
        QueueState { driver: 1, ..good },
        QueueState { device: 2, ..good },
        QueueState {
            descriptors: MEMORY_BYTES - 16,
            ..good
        },
        QueueState {
            driver: MEMORY_BYTES - 8,
            ..good
        },
        QueueState { device: !3, ..good },
    ] {
        assert_eq!(told(wrong), Broken::Place);
    }
}
