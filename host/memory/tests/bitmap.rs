//! The shared bitmap against a plain set: setting, merging a kernel's log, taking, and what another process may do to it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use dwcp_memory::{DirtyBitmap, MemoryError, MemorySize, PAGE_BYTES, PageIndex};
use proptest::prelude::*;

fn size(pages: u64) -> MemorySize {
    MemorySize::new(pages * PAGE_BYTES as u64).unwrap()
}

fn bitmap(pages: u64) -> DirtyBitmap {
    DirtyBitmap::map(DirtyBitmap::create(size(pages)).unwrap(), size(pages)).unwrap()
}

fn take_all(bitmap: &DirtyBitmap) -> Vec<PageIndex> {
    (0..bitmap.words())
        .filter_map(|word| bitmap.take_word(word))
        .flat_map(|taken| taken.pages())
        .collect()
}

#[derive(Debug, Clone)]
enum Step {
    Set(u64),
    SetRange(u64, u64),
    Log(u64, Vec<u64>),
    Take(usize),
    SetAll,
    ClearAll,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..400u64).prop_map(Step::Set),
        3 => (0..400u64, 0..300u64).prop_map(|(first, count)| Step::SetRange(first, count)),
        3 => (0..8u64, prop::collection::vec(any::<u64>(), 0..5)).prop_map(|(word, log)| Step::Log(word, log)),
        3 => (0..8usize).prop_map(Step::Take),
        1 => Just(Step::SetAll),
        1 => Just(Step::ClearAll),
    ]
}

proptest! {
    #[test]
    fn behaves_like_a_set_of_pages(pages in 1..380u64, steps in prop::collection::vec(step(), 0..40)) {
        let bitmap = bitmap(pages);
        let mut model = BTreeSet::new();
        for step in steps {
            match step {
                Step::Set(page) => {
                    bitmap.set(PageIndex(page));
                    model.insert(page);
                }
                Step::SetRange(first, count) => {
                    bitmap.set_range(PageIndex(first), count);
                    model.extend(first..first + count);
                }
                Step::Log(word, log) => {
                    let fits = word as usize + log.len() <= bitmap.words();
                    prop_assert_eq!(bitmap.or_from_log(PageIndex(word * 64), &log).is_ok(), fits);
                    if fits {
                        let bits = log.iter().enumerate().flat_map(|(i, bits)| {
                            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| (word + i as u64) * 64 + bit)
                        });
                        model.extend(bits);
                    }
                }
                Step::Take(word) => {
                    let taken: Vec<u64> = bitmap.take_word(word).into_iter().flat_map(|w| w.pages()).map(|p| p.0).collect();
                    let range = word as u64 * 64..(word as u64 + 1) * 64;
                    let expected: Vec<u64> = model.range(range).copied().collect();
                    prop_assert_eq!(&taken, &expected);
                    for page in taken {
                        model.remove(&page);
                    }
                }
                Step::SetAll => {
 bitmap.set_all();
 model.extend(0..pages);
 }
                Step::ClearAll => {
 bitmap.clear_all();
 model.clear();
 }
            }
            model.retain(|page| *page < pages);
            prop_assert_eq!(bitmap.count(), model.len() as u64);
            prop_assert_eq!(bitmap.iter().map(|p| p.0).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
        }
        let rest: Vec<u64> = take_all(&bitmap).into_iter().map(|p| p.0).collect();
        prop_assert_eq!(rest, model.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(bitmap.count(), 0);
    }
}

#[test]
fn two_mappings_share_their_bits() {
    let ours = bitmap(130);
    let theirs = DirtyBitmap::map(ours.fd().try_clone_to_owned().unwrap(), size(130)).unwrap();
    ours.set(PageIndex(129));
    assert!(theirs.is_set(PageIndex(129)));
    assert_eq!(take_all(&theirs), [PageIndex(129)]);
    assert_eq!(ours.count(), 0);
}

#[test]
fn bits_past_the_last_page_are_not_believed() {
    let bitmap = bitmap(70);
    let file = std::fs::File::from(bitmap.fd().try_clone_to_owned().unwrap());
    file.write_all_at(&[0xff; PAGE_BYTES], 0).unwrap();
    assert_eq!(bitmap.count(), 70);
    assert!(!bitmap.is_set(PageIndex(70)));
    let taken = take_all(&bitmap);
    assert_eq!(taken, (0..70).map(PageIndex).collect::<Vec<_>>());
}

#[test]
fn every_bit_is_taken_once_by_racing_takers() {
    let bitmap = bitmap(64 * 512);
    bitmap.set_all();
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let takers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| take_all(&bitmap).len()))
            .collect();
        takers
            .into_iter()
            .map(|taker| taker.join().unwrap())
            .collect()
    });
    assert_eq!(counts.iter().sum::<usize>(), 64 * 512);
}

#[test]
fn a_bitmap_of_another_guest_is_refused() {
    let fd = DirtyBitmap::create(size(64)).unwrap();
    let refused = DirtyBitmap::map(fd, size(40_000)).unwrap_err();
    assert!(
        matches!(refused, MemoryError::WrongLength { .. }),
        "{refused}"
    );
}
