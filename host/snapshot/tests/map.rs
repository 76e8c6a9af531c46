//! A chain laid over guest memory is what was saved; what is written to it stays with the one who wrote.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use dwcp_memory::{DirtyBitmap, GuestMemory, MemorySize, PAGE_BYTES, PageIndex, open_page_map};
use dwcp_snapshot::{Chain, Content, Encoding, MapError, Snapshot, write};

fn reserve(size: MemorySize) -> GuestMemory {
    GuestMemory::reserve(size, open_page_map()).unwrap()
}

fn read(memory: &GuestMemory) -> PlainMemory {
    let mut plain = PlainMemory::zeros(memory.size().pages());
    memory.read_pages(PageIndex(0), &mut plain.0).unwrap();
    plain
}

/// A full snapshot, and two changes on top of it, raw.
fn history() -> (Vec<PlainMemory>, Chain) {
    let first = PlainMemory::mixed(1300, 1);
    let mut second = first.clone();
    let mut third = first.clone();
    for page in (3..1300).step_by(7) {
        second.fill(page, 8);
    }
    for page in 600..900 {
        second.fill(page, 0);
    }
    third.0.copy_from_slice(&second.0);
    for page in (500..1299).step_by(3) {
        third.fill(page, (page % 11) as u8);
    }
    let history = vec![first, second, third];
    let (file, mut digest) = write_full(&history[0], Encoding::Raw);
    let mut layers = vec![Snapshot::open(file).unwrap()];
    for pair in history.windows(2) {
        let (file, next) = write_change(&pair[0], &pair[1], digest, Encoding::Raw);
        layers.insert(0, Snapshot::open(file).unwrap());
        digest = next;
    }
    (history, Chain::new(layers).unwrap())
}

#[test]
fn a_mapped_chain_is_what_was_saved_and_stays_so() {
    let (history, chain) = history();
    let (one, other) = (reserve(chain.size()), reserve(chain.size()));
    for memory in [&one, &other] {
        let mapped = chain.map_into(memory).unwrap();
        assert_eq!(mapped.copied_pages, 0);
        assert!(mapped.pieces > 100);
        assert!(read(memory) == history[2]);
    }
    // Two VMs from one file do not see each other's writes, nor does the file.
    let page = [0x5a; PAGE_BYTES];
    for at in [0, 3, 513, 1299] {
        one.write_pages(PageIndex(at), &page).unwrap();
    }
    assert!(read(&other) == history[2]);
    assert!(restored(&chain) == history[2]);
    let bitmap = DirtyBitmap::map(DirtyBitmap::create(one.size()).unwrap(), one.size()).unwrap();
    one.mark_private(&bitmap).unwrap();
    let private: Vec<u64> = bitmap.iter().map(|page| page.0).collect();
    assert_eq!(private, [0, 3, 513, 1299]);

    // What became private is the next incremental.
    let file = fresh_file();
    let content = Content {
        manifest: &manifest(&history[2], Some(chain.newest().digest())),
        state: STATE,
        memory: &one,
        pages: &bitmap,
        encoding: Encoding::Raw,
    };
    write(&file, &content, &mut go_on).unwrap();
    let mut layers = vec![Snapshot::open(file).unwrap()];
    for layer in chain.layers() {
        layers.push(Snapshot::open(layer.file().try_clone().unwrap()).unwrap());
    }
    assert!(restored(&Chain::new(layers).unwrap()) == read(&one));
}

#[test]
fn when_there_are_too_many_pieces_the_shortest_are_copied() {
    // Every other page changed: more runs than a process may have mappings for.
    let old = PlainMemory::zeros(17_500);
    let mut new = old.clone();
    for page in (0..17_000).step_by(2) {
        new.0[page as usize * PAGE_BYTES] = 1;
    }
    for page in 17_000..17_400 {
        new.0[page as usize * PAGE_BYTES] = 2;
    }
    let (file, digest) = write_full(&old, Encoding::Raw);
    let (change, _) = write_change(&old, &new, digest, Encoding::Raw);
    let layers = [change, file].map(|file| Snapshot::open(file).unwrap());
    let chain = Chain::new(layers.into()).unwrap();
    let memory = reserve(chain.size());
    let mapped = chain.map_into(&memory).unwrap();
    assert_eq!((mapped.pieces, mapped.copied_pages), (1, 8_500));
    assert!(read(&memory) == new);
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let memory = PlainMemory::mixed(600, 1);
    let packed = Chain::new(vec![full(&memory, Encoding::Zstd)]).unwrap();
    let refused = packed.map_into(&reserve(packed.size())).unwrap_err();
    assert!(matches!(refused, MapError::Compressed(_)), "{refused}");
    let raw = Chain::new(vec![full(&memory, Encoding::Raw)]).unwrap();
    let other = reserve(MemorySize::mib(4).unwrap());
    assert!(matches!(
        raw.map_into(&other),
        Err(MapError::OtherSize { .. })
    ));
    let shared = dwcp_memory::create_memory(raw.size()).unwrap();
    let shared = GuestMemory::map(shared, raw.size()).unwrap();
    assert!(matches!(raw.map_into(&shared), Err(MapError::Memory(_))));
}

#[test]
fn a_page_map_that_is_missing_makes_every_page_private() {
    let (_, chain) = history();
    let memory = GuestMemory::reserve(chain.size(), None).unwrap();
    chain.map_into(&memory).unwrap();
    let size = memory.size();
    let bitmap = DirtyBitmap::map(DirtyBitmap::create(size).unwrap(), size).unwrap();
    memory.mark_private(&bitmap).unwrap();
    assert_eq!(bitmap.count(), size.pages());
}
