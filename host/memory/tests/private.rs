//! Private guest RAM: laid over files copy-on-write, told from what was laid, read from outside, forked from a template.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use dwcp_memory::vm_memory::{Bytes, GuestAddress};
use dwcp_memory::{
    DirtyBitmap, GAP_START, GuestMemory, HostMap, MemoryError, MemorySize, MemoryView, PAGE_BYTES,
    PageIndex, Piece, create_memory, is_template, open_own_memory, open_page_map, seal_template,
};
use proptest::prelude::*;

const PAGES: u64 = 400;

fn size(pages: u64) -> MemorySize {
    MemorySize::new(pages * PAGE_BYTES as u64).unwrap()
}

fn marked(mark: impl Fn(&DirtyBitmap), size: MemorySize) -> BTreeSet<u64> {
    let bitmap = DirtyBitmap::map(DirtyBitmap::create(size).unwrap(), size).unwrap();
    mark(&bitmap);
    bitmap.iter().map(|page| page.0).collect()
}

fn private(memory: &GuestMemory) -> BTreeSet<u64> {
    marked(|bitmap| memory.mark_private(bitmap).unwrap(), memory.size())
}

fn present(memory: &GuestMemory) -> BTreeSet<u64> {
    marked(|bitmap| memory.mark_present(bitmap).unwrap(), memory.size())
}

/// A file whose page `i` is full of `i % 251 + 1`.
fn file(pages: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    for page in 0..pages {
        let bytes = [(page % 251) as u8 + 1; PAGE_BYTES];
        file.write_all_at(&bytes, page * PAGE_BYTES as u64).unwrap();
    }
    file
}

fn piece(file: &File, first: u64, pages: u64, from: u64) -> Piece<'_> {
    Piece {
        first: PageIndex(first),
        pages,
        file: file.as_fd(),
        offset_bytes: from * PAGE_BYTES as u64,
    }
}

/// The first byte of each page.
fn read(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.size().bytes() as usize];
    memory.read_pages(PageIndex(0), &mut bytes).unwrap();
    bytes.chunks(PAGE_BYTES).map(|page| page[0]).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Lay(u64, u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let run = || (0..PAGES, 1..150u64).prop_map(|(at, count)| (at, count.min(PAGES - at)));
    prop_oneof![
        (run(), 0..PAGES)
            .prop_map(|((at, count), from)| { Step::Lay(at, count.min(PAGES - from), from) }),
        (run(), any::<u8>()).prop_map(|((at, count), byte)| Step::Write(at, count.min(9), byte)),
        run().prop_map(|(at, count)| Step::Zero(at, count)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn private_memory_is_what_was_laid_and_written(steps in prop::collection::vec(step(), 1..20)) {
        let file = file(PAGES);
        let memory = GuestMemory::reserve(size(PAGES), open_page_map()).unwrap();
        let mut model = vec![0u8; PAGES as usize];
        let mut changed = BTreeSet::new();
        let mut expected_log = BTreeSet::new();
        memory.start_tracking();
        for step in steps {
            let touched = match step {
                Step::Lay(at, count, from) => {
                    memory.lay(&[piece(&file, at, count, from)]).unwrap();
                    for page in 0..count {
                        model[(at + page) as usize] = ((from + page) % 251) as u8 + 1;
                        changed.remove(&(at + page));
                    }
                    at..at + count
                }
                Step::Write(at, count, byte) => {
                    memory.write_pages(PageIndex(at), &vec![byte; count as usize * PAGE_BYTES]).unwrap();
                    model[at as usize..(at + count) as usize].fill(byte);
                    changed.extend(at..at + count);
                    at..at + count
                }
                Step::Zero(at, count) => {
                    memory.zero_pages(PageIndex(at), count).unwrap();
                    for page in at..at + count {
                        if model[page as usize] != 0 {
                            changed.insert(page);
                        }
                    }
                    model[at as usize..(at + count) as usize].fill(0);
                    at..at + count
                }
            };
            expected_log.extend(touched);
        }
        prop_assert_eq!(read(&memory), model.clone());
        let logged = marked(|bitmap| memory.drain_log(&[bitmap]), memory.size());
        prop_assert_eq!(logged, expected_log);
        // Nothing that differs from what was laid is left out, and nothing that is not zeros.
        let private = private(&memory);
        let differing: BTreeSet<u64> = changed.iter().copied().filter(|page| model[*page as usize] != 0).collect();
        prop_assert!(differing.is_subset(&private), "{differing:?} in {private:?}");
        let filled: BTreeSet<u64> = (0..PAGES).filter(|page| model[*page as usize] != 0).collect();
        prop_assert!(filled.is_subset(&present(&memory)));
        // The file is as it was.
        let mut bytes = vec![0; PAGE_BYTES];
        for page in 0..PAGES {
            file.read_exact_at(&mut bytes, page * PAGE_BYTES as u64).unwrap();
            prop_assert_eq!(bytes[0], (page % 251) as u8 + 1);
        }
    }
}

#[test]
fn pages_that_were_zeroed_over_a_file_are_private() {
    let file = file(PAGES);
    let memory = GuestMemory::reserve(size(PAGES), open_page_map()).unwrap();
    memory.lay(&[piece(&file, 0, PAGES, 0)]).unwrap();
    assert_eq!(private(&memory), BTreeSet::new());
    assert_eq!(present(&memory), (0..PAGES).collect());
    memory.zero_pages(PageIndex(100), 80).unwrap();
    memory.zero_pages(PageIndex(300), 2).unwrap();
    assert_eq!(private(&memory), (100..180).chain(300..302).collect());
    assert!(read(&memory)[100..180].iter().all(|byte| *byte == 0));
    // Written once more, and given back once more.
    memory
        .write_pages(PageIndex(100), &[7; PAGE_BYTES])
        .unwrap();
    memory.zero_pages(PageIndex(100), 80).unwrap();
    assert_eq!(read(&memory)[100], 0);
}

#[test]
fn a_piece_across_the_gap_lies_on_both_sides() {
    let last_low = GAP_START.0 / PAGE_BYTES as u64 - 1;
    let memory_size = MemorySize::mib(3 * 1024 + 2).unwrap();
    let memory = GuestMemory::reserve(memory_size, open_page_map()).unwrap();
    let file = file(2);
    memory.lay(&[piece(&file, last_low, 2, 0)]).unwrap();
    let mut pages = vec![0; 4 * PAGE_BYTES];
    memory
        .read_pages(PageIndex(last_low - 1), &mut pages)
        .unwrap();
    let seen: Vec<u8> = pages.chunks(PAGE_BYTES).map(|page| page[0]).collect();
    assert_eq!(seen, [0, 1, 2, 0]);
    assert_eq!(
        memory.ram().read_obj::<u8>(dwcp_memory::GAP_END).unwrap(),
        2
    );
}

#[test]
fn another_reader_sees_what_is_private() {
    let Some(own) = open_own_memory() else {
        println!("SKIPPED another_reader_sees_what_is_private: there is no /proc");
        return;
    };
    let file = file(PAGES);
    let memory_size = MemorySize::mib(3 * 1024 + 2).unwrap();
    let memory = GuestMemory::reserve(memory_size, None).unwrap();
    memory.lay(&[piece(&file, 0, PAGES, 0)]).unwrap();
    let low_end = GAP_START.0 / PAGE_BYTES as u64;
    memory
        .write_pages(PageIndex(5), &[0x77; PAGE_BYTES])
        .unwrap();
    memory
        .write_pages(PageIndex(low_end), &[0x78; PAGE_BYTES])
        .unwrap();
    let hosts = HostMap::new(memory_size, &memory.host_map().unwrap().hosts()).unwrap();
    let view = MemoryView::of_process(own, hosts).unwrap();
    let mut seen = vec![0; 3 * PAGE_BYTES];
    view.read_pages(PageIndex(4), &mut seen).unwrap();
    assert_eq!(
        [seen[0], seen[PAGE_BYTES], seen[2 * PAGE_BYTES]],
        [5, 0x77, 7]
    );
    view.read_pages(PageIndex(low_end - 1), &mut seen).unwrap();
    assert_eq!(
        [seen[0], seen[PAGE_BYTES], seen[2 * PAGE_BYTES]],
        [0, 0x78, 0]
    );
    assert!(
        view.read_pages(PageIndex(memory_size.pages()), &mut seen)
            .is_err()
    );
    // Nothing was brought into being by reading.
    assert!(view.size() == memory_size);
    let file = File::open("/dev/zero").unwrap();
    let hosts = memory.host_map().unwrap();
    let refused = MemoryView::of_process(file.into(), hosts).unwrap_err();
    assert!(
        matches!(refused, MemoryError::NotProcessMemory),
        "{refused}"
    );
}

#[test]
fn addresses_that_cannot_be_are_refused() {
    let one = size(PAGES);
    for hosts in [&[][..], &[4095], &[1 << 40, 1 << 41], &[u64::MAX - 4095]] {
        assert!(HostMap::new(one, hosts).is_err(), "{hosts:?}");
    }
    let hosts = HostMap::new(one, &[0x10_0000]).unwrap();
    assert_eq!(hosts.page_at(0x10_1fff), Some(PageIndex(1)));
    assert_eq!(hosts.page_at(0x10_0000 - 1), None);
    assert_eq!(hosts.page_at(0x10_0000 + PAGES * 4096), None);
}

#[test]
fn many_vms_come_from_one_sealed_template() {
    // Four chunks, of which two hold something.
    const ALL: u64 = 2048;
    const LAST: u64 = 1999;
    let memory_size = size(ALL);
    let fd = create_memory(memory_size).unwrap();
    let template = GuestMemory::map(fd.try_clone().unwrap(), memory_size).unwrap();
    for page in [0, 9, 10, LAST] {
        template
            .write_pages(PageIndex(page), &[page as u8 | 1; PAGE_BYTES])
            .unwrap();
    }
    let fork = || {
        let memory = GuestMemory::reserve(memory_size, open_page_map()).unwrap();
        memory.lay(&Piece::of_template(fd.as_fd(), memory_size)?)?;
        Ok::<_, MemoryError>(memory)
    };
    // Not while it can still be written to: by its VM, or by anybody.
    let refused = seal_template(&fd).unwrap_err();
    assert!(matches!(refused, MemoryError::StillMapped), "{refused}");
    let refused = fork().unwrap_err();
    assert!(matches!(refused, MemoryError::NotATemplate), "{refused}");
    drop(template);
    seal_template(&fd).unwrap();
    assert!(is_template(&fd).unwrap());
    // It never runs again: nobody can map it as a guest's memory any more.
    assert!(GuestMemory::map(fd.try_clone().unwrap(), memory_size).is_err());
    assert!(
        File::from(fd.try_clone().unwrap())
            .write_all_at(b"x", 0)
            .is_err()
    );

    let forks: Vec<_> = (0..3).map(|_| fork().unwrap()).collect();
    for (at, memory) in (0u8..).zip(&forks) {
        memory
            .ram()
            .write_obj(at + 100, GuestAddress(9 * 4096))
            .unwrap();
    }
    for (at, memory) in (0u8..).zip(&forks) {
        assert_eq!(private(memory), BTreeSet::from([9]));
        let chunks = (0..512).chain(1536..ALL);
        assert_eq!(present(memory), chunks.collect());
        let seen = read(memory);
        assert_eq!(
            [
                seen[0],
                seen[9],
                seen[10],
                seen[LAST as usize],
                seen[11],
                seen[600]
            ],
            [1, at + 100, 11, LAST as u8 | 1, 0, 0]
        );
    }
    // Chunks that the template never touched cost it nothing, whoever reads them.
    assert!(nix::sys::stat::fstat(&fd).unwrap().st_blocks <= 2 * 512 * 8);
}

#[test]
fn pieces_that_do_not_fit_are_refused() {
    let file = file(10);
    let memory = GuestMemory::reserve(size(PAGES), None).unwrap();
    let refused = |piece: Piece<'_>| memory.lay(&[piece]).unwrap_err();
    assert!(matches!(
        refused(piece(&file, 0, 11, 0)),
        MemoryError::WrongLength { .. }
    ));
    assert!(matches!(
        refused(piece(&file, 0, 5, 6)),
        MemoryError::WrongLength { .. }
    ));
    assert!(matches!(
        refused(piece(&file, PAGES - 1, 2, 0)),
        MemoryError::OutOfRange { .. }
    ));
    assert!(matches!(
        refused(piece(&file, 0, 0, 0)),
        MemoryError::OutOfRange { .. }
    ));
    let mut odd = piece(&file, 0, 1, 0);
    odd.offset_bytes = 512;
    assert!(matches!(refused(odd), MemoryError::UnalignedPiece(512)));
    let many = vec![piece(&file, 0, 1, 0); 8193];
    assert!(matches!(
        memory.lay(&many),
        Err(MemoryError::TooManyPieces(8193))
    ));
    let shared = GuestMemory::map(create_memory(size(PAGES)).unwrap(), size(PAGES)).unwrap();
    let refused = shared.lay(&[piece(&file, 0, 1, 0)]).unwrap_err();
    assert!(matches!(refused, MemoryError::NotPrivate), "{refused}");
}
