//! What is written is read back, in either encoding; incrementals change what they should and nothing else.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::*;
use dwcp_memory::{PAGE_BYTES, PageIndex};
use dwcp_snapshot::{
    AllPages, Chain, ChainError, Content, Encoding, Offer, PageSource, Snapshot, SourceError,
    Unfit, WriteError, flatten, recode, write,
};
use proptest::prelude::*;

const BOTH: [Encoding; 2] = [Encoding::Raw, Encoding::Zstd];

fn encoding() -> impl Strategy<Value = Encoding> {
    prop::sample::select(&BOTH[..])
}

/// Memory of up to three chunks with a few pages filled, and later versions of it.
fn history() -> impl Strategy<Value = Vec<PlainMemory>> {
    let changes = || prop::collection::vec((any::<prop::sample::Index>(), 0..8u8), 0..24);
    (1..1200u64, prop::collection::vec(changes(), 1..5)).prop_map(|(pages, versions)| {
        let mut memory = PlainMemory::zeros(pages);
        let mut history = Vec::new();
        for changes in versions {
            for (page, seed) in changes {
                memory.fill(page.index(pages as usize) as u64, seed);
            }
            history.push(memory.clone());
        }
        history
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_is_the_memory_that_was_saved(history in history(), encodings in prop::collection::vec(encoding(), 5)) {
        let (file, mut digest) = write_full(&history[0], encodings[0]);
        let mut layers = vec![Snapshot::open(file).unwrap()];
        for (at, pair) in history.windows(2).enumerate() {
            let (file, next) = write_change(&pair[0], &pair[1], digest, encodings[at + 1]);
            let snapshot = Snapshot::open(file).unwrap();
            prop_assert_eq!(snapshot.digest(), next);
            snapshot.verify(&mut go_on).unwrap();
            layers.insert(0, snapshot);
            digest = next;
        }
        let chain = Chain::new(layers).unwrap();
        let newest = history.last().unwrap();
        prop_assert!(restored(&chain) == *newest);

        // As one full snapshot, in either encoding, it is what a full one of the same memory would be.
        for encoding in BOTH {
            let file = fresh_file();
            let flat = flatten(&chain, encoding, &file, &mut go_on).unwrap();
            prop_assert_eq!(flat, write_full(newest, Encoding::Raw).1);
            let flat = Chain::new(vec![Snapshot::open(file).unwrap()]).unwrap();
            prop_assert!(restored(&flat) == *newest);
        }
    }

    #[test]
    fn the_encoding_does_not_change_what_a_snapshot_is(history in history()) {
        let (file, digest) = write_full(&history[0], Encoding::Raw);
        let full = Snapshot::open(file).unwrap();
        let last = history.last().unwrap();
        let (file, change_digest) = write_change(&history[0], last, digest, Encoding::Zstd);
        let change = Snapshot::open(file).unwrap();
        let (packed, plain) = (fresh_file(), fresh_file());
        prop_assert_eq!(recode(&full, Encoding::Zstd, &packed, &mut go_on).unwrap(), digest);
        prop_assert_eq!(recode(&change, Encoding::Raw, &plain, &mut go_on).unwrap(), change_digest);
        let layers = vec![Snapshot::open(plain).unwrap(), Snapshot::open(packed).unwrap()];
        prop_assert!(restored(&Chain::new(layers).unwrap()) == *last);
    }
}

#[test]
fn raw_pages_lie_in_their_places_and_zeros_take_no_room() {
    let mut memory = PlainMemory::zeros(16 * 512);
    for page in [3, 511, 512, 9 * 512] {
        memory.fill(page, 5);
    }
    let (file, _) = write_full(&memory, Encoding::Raw);
    let mut page = vec![0; PAGE_BYTES];
    for at in [0, 3, 511, 512, 9 * 512, 16 * 512 - 1] {
        file.read_exact_at(&mut page, (2 << 20) + at * 4096)
            .unwrap();
        assert_eq!(page, memory.0[at as usize * PAGE_BYTES..][..PAGE_BYTES]);
    }
    assert!(file.metadata().unwrap().blocks() * 512 < 256 << 10);
}

#[test]
fn a_snapshot_tells_what_it_is_of() {
    let memory = PlainMemory::mixed(700, 3);
    for encoding in BOTH {
        let snapshot = full(&memory, encoding);
        assert_eq!(*snapshot.manifest(), manifest(&memory, None));
        assert_eq!(snapshot.state().unwrap(), STATE);
        assert_eq!(snapshot.encoding(), encoding);
    }
    let raw = full(&memory, Encoding::Raw).stored_bytes();
    let packed = full(&memory, Encoding::Zstd).stored_bytes();
    // Two of three filled pages are noise.
    assert!(packed < raw * 3 / 4, "{packed} of {raw}");
}

/// If this fails, snapshots that exist cannot be read any more: make a new format, and read the old one too.
#[test]
fn the_format_is_what_it_was() {
    let mut memory = PlainMemory::zeros(600);
    memory.fill(1, 4);
    memory.fill(599, 4);
    let (file, digest) = write_full(&memory, Encoding::Raw);
    let bytes = blake3_of(&bytes_of(&file));
    assert_eq!(
        (digest.to_string().as_str(), bytes.as_str()),
        (GOLDEN_DIGEST, GOLDEN_FILE)
    );
}

const GOLDEN_DIGEST: &str = "31e1c97bf7f3344d5901df7c3e54543be421cea353aa377cb969f2b1129eafed";
const GOLDEN_FILE: &str = "ca466e67b2c0254abf37844819582fc4f61d73d43316f021a1b7f5b3f5fd7701";

fn blake3_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[test]
fn snapshots_that_do_not_belong_together_are_refused() {
    let old = PlainMemory::mixed(600, 1);
    let new = PlainMemory::mixed(600, 9);
    let (base, digest) = write_full(&old, Encoding::Raw);
    let (change, _) = write_change(&old, &new, digest, Encoding::Raw);
    let (base, change) = (
        || Snapshot::open(base.try_clone().unwrap()).unwrap(),
        || Snapshot::open(change.try_clone().unwrap()).unwrap(),
    );
    let other = || full(&new, Encoding::Raw);
    let refused = |layers| Chain::new(layers).unwrap_err();
    assert_eq!(refused(vec![]), ChainError::Empty);
    assert!(matches!(refused(vec![change()]), ChainError::NoBase { .. }));
    assert!(matches!(
        refused(vec![change(), other()]),
        ChainError::OtherBase { .. }
    ));
    assert!(matches!(
        refused(vec![base(), other()]),
        ChainError::BelowFull(_)
    ));
    assert!(matches!(
        refused((0..65).map(|_| base()).collect()),
        ChainError::TooLong(65)
    ));
    Chain::new(vec![change(), base()]).unwrap();
}

#[test]
fn a_host_that_cannot_restore_says_what_it_lacks() {
    let memory = PlainMemory::zeros(600);
    let manifest = manifest(&memory, None);
    let offer = Offer {
        state_format: 1,
        vcpus_max: 32,
        memory_bytes_max: 1 << 30,
        cpu: manifest.cpu.clone(),
    };
    assert_eq!(manifest.fits(&offer), Ok(()));
    let mut poor = offer.clone();
    poor.cpu.features.remove("avx2");
    let refused = manifest.fits(&poor).unwrap_err();
    assert!(
        refused.to_string().ends_with("may be using: avx2"),
        "{refused}"
    );
    let mut other = offer.clone();
    other.cpu.vendor = "AuthenticAMD".to_owned();
    assert!(matches!(manifest.fits(&other), Err(Unfit::Vendor { .. })));
    let old = Offer {
        state_format: 0,
        ..offer.clone()
    };
    assert!(matches!(manifest.fits(&old), Err(Unfit::Newer { .. })));
    let few = Offer {
        vcpus_max: 1,
        ..offer.clone()
    };
    assert!(matches!(manifest.fits(&few), Err(Unfit::Vcpus { .. })));
    let small = Offer {
        memory_bytes_max: 4096,
        ..offer
    };
    assert!(matches!(manifest.fits(&small), Err(Unfit::Memory { .. })));
}

struct Broken;

impl PageSource for Broken {
    fn size(&self) -> dwcp_memory::MemorySize {
        PlainMemory::zeros(600).size()
    }

    fn read_pages(&self, _: PageIndex, _: &mut [u8]) -> Result<(), SourceError> {
        Err("the source is gone".into())
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let memory = PlainMemory::mixed(600, 1);
    let good = manifest(&memory, None);
    let state = vec![0; dwcp_snapshot::STATE_BYTES_MAX as usize + 1];
    let attempt = |manifest, state, memory: &dyn PageSource, file: &std::fs::File| {
        let content = Content {
            manifest,
            state,
            memory,
            pages: &AllPages,
            encoding: Encoding::Raw,
        };
        write(file, &content, &mut go_on).unwrap_err()
    };
    let fresh = || fresh_file();
    let mut other_size = good.clone();
    other_size.memory_bytes += 4096;
    let mut nameless = good.clone();
    nameless.vm.clear();
    let full = write_full(&memory, Encoding::Raw).0;
    assert!(matches!(
        attempt(&good, &state, &memory, &fresh()),
        WriteError::StateTooLong(_)
    ));
    assert!(matches!(
        attempt(&other_size, STATE, &memory, &fresh()),
        WriteError::OtherMemory { .. }
    ));
    assert!(matches!(
        attempt(&nameless, STATE, &memory, &fresh()),
        WriteError::Manifest(_)
    ));
    assert!(matches!(
        attempt(&good, STATE, &memory, &full),
        WriteError::NotEmpty
    ));
    assert!(matches!(
        attempt(&good, STATE, &Broken, &fresh()),
        WriteError::Source(_)
    ));
}

#[test]
fn writing_tells_how_far_it_is_and_can_be_stopped() {
    let memory = PlainMemory::mixed(5 * 512, 1);
    let content = Content {
        manifest: &manifest(&memory, None),
        state: STATE,
        memory: &memory,
        pages: &AllPages,
        encoding: Encoding::Zstd,
    };
    let mut seen = Vec::new();
    let file = fresh_file();
    write(&file, &content, &mut |progress| {
        seen.push(progress);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen.len(), 5);
    assert!(seen.is_sorted_by(|a, b| a.bytes < b.bytes && a.chunks_done < b.chunks_done));
    assert_eq!((seen[4].chunks_done, seen[4].chunks), (5, 5));

    let file = fresh_file();
    let stopped = write(
        &file,
        &content,
        &mut |progress| match progress.chunks_done {
            3 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(matches!(stopped, Err(WriteError::Stopped)));
    assert!(Snapshot::open(file).is_err());
}
