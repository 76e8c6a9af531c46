//! A snapshot that is damaged, cut off, foreign, newer or nonsense is refused, and says which.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::*;
use dwcp_memory::PAGE_BYTES;
use dwcp_snapshot::{Chain, ChunkContent, ChunkIndex, Encoding, Part, ReadError, Snapshot};
use proptest::prelude::*;

/// Offsets in the header, as the book has them.
const FORMAT_AT: usize = 8;
const STORED_AT: usize = 32;
const RECORDS_AT: usize = 40;
const MANIFEST_BYTES_AT: usize = 48;
const STATE_BYTES_AT: usize = 56;
const DIGEST_AT: usize = 4064;
const RECORD_BYTES: u64 = 184;

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Where each part lies, in the order of the file.
struct Map {
    table: usize,
    manifest: usize,
    state: usize,
}

impl Map {
    fn of(bytes: &[u8], encoding: Encoding) -> Self {
        let memory = match encoding {
            Encoding::Raw => 2 << 20,
            Encoding::Zstd => 4096,
        };
        let table = memory + number(bytes, STORED_AT);
        let manifest = table + number(bytes, RECORDS_AT) * RECORD_BYTES;
        let state = manifest + number(bytes, MANIFEST_BYTES_AT);
        assert_eq!(state + number(bytes, STATE_BYTES_AT), bytes.len() as u64);
        Self {
            table: table as usize,
            manifest: manifest as usize,
            state: state as usize,
        }
    }
}

fn open(bytes: &[u8]) -> Result<Snapshot, ReadError> {
    Snapshot::open(file_of(bytes))
}

fn damage(error: &ReadError) -> Option<Part> {
    match error {
        ReadError::Damaged(part) => Some(*part),
        _ => None,
    }
}

/// Gives a header whose fields were changed the digest that its author would have given it.
fn resign(bytes: &mut [u8]) {
    let digest = blake3::derive_key("DWCP snapshot 1 header", &bytes[..DIGEST_AT]);
    bytes[DIGEST_AT..4096].copy_from_slice(&digest);
}

#[test]
fn every_bit_of_header_table_manifest_and_state_is_checked() {
    for encoding in [Encoding::Raw, Encoding::Zstd] {
        let bytes = bytes_of(&write_full(&PlainMemory::mixed(600, 1), encoding).0);
        let map = Map::of(&bytes, encoding);
        let areas = [
            (0..4096, 1, Part::Header),
            (map.table..map.manifest, 3, Part::ChunkTable),
            (map.manifest..map.state, 5, Part::Manifest),
            (map.state..bytes.len(), 1, Part::DeviceState),
        ];
        let file = file_of(&bytes);
        for (area, step, part) in areas {
            for at in area.step_by(step) {
                use std::os::unix::fs::FileExt;
                let changed = bytes[at] ^ 1 << (at % 8);
                file.write_all_at(&[changed], at as u64).unwrap();
                let error = Snapshot::open(file.try_clone().unwrap()).unwrap_err();
                file.write_all_at(&bytes[at..=at], at as u64).unwrap();
                if at < 8 {
                    assert!(matches!(error, ReadError::Foreign), "byte {at}: {error}");
                } else {
                    assert_eq!(damage(&error), Some(part), "byte {at}: {error}");
                }
            }
        }
        Snapshot::open(file).unwrap();
    }
}

#[test]
fn every_page_of_memory_is_checked() {
    let memory = PlainMemory::mixed(600, 1);
    for encoding in [Encoding::Raw, Encoding::Zstd] {
        let bytes = bytes_of(&write_full(&memory, encoding).0);
        let map = Map::of(&bytes, encoding);
        let start = match encoding {
            Encoding::Raw => 2 << 20,
            Encoding::Zstd => 4096,
        };
        // Zeros inside a chunk are mapped too; beyond the last page of raw memory the table begins.
        for at in (start..map.table).step_by(4096 * 7 + 11) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let snapshot = open(&damaged).unwrap();
            let error = snapshot.verify(&mut go_on).unwrap_err();
            let Some(Part::Memory(chunk)) = damage(&error) else {
                panic!("byte {at}: {error}");
            };
            if encoding == Encoding::Raw {
                assert_eq!(chunk, ChunkIndex(((at - start) >> 21) as u64));
            }
        }
    }
}

#[test]
fn what_lies_where_a_full_snapshot_has_nothing_is_found() {
    // Chunks 0 and 3 hold something, 1, 2 and a part of a chunk at the end do not.
    let mut memory = PlainMemory::zeros(4 * 512 + 100);
    memory.fill(5, 1);
    memory.fill(3 * 512 + 5, 1);
    let (file, _) = write_full(&memory, Encoding::Raw);
    // Where memory begins in a raw file.
    let start = 2 << 20;
    let verify = |file: &File| {
        Snapshot::open(file.try_clone().unwrap())
            .unwrap()
            .verify(&mut go_on)
    };
    verify(&file).unwrap();
    for (page, chunk) in [(512, 1), (3 * 512 - 1, 2), (4 * 512, 4), (4 * 512 + 99, 4)] {
        for at in [0, PAGE_BYTES as u64 - 1] {
            let place = start + page * PAGE_BYTES as u64 + at;
            file.write_all_at(&[1], place).unwrap();
            let found = damage(&verify(&file).unwrap_err());
            assert_eq!(found, Some(Part::Memory(ChunkIndex(chunk))), "page {page}");
            // Zeros that are written are as good as a hole.
            file.write_all_at(&[0], place).unwrap();
            verify(&file).unwrap();
        }
    }
}

#[test]
fn a_damaged_chunk_is_never_handed_out() {
    let bytes = bytes_of(&write_full(&PlainMemory::mixed(1100, 1), Encoding::Zstd).0);
    let mut damaged = bytes.clone();
    damaged[5000] ^= 1;
    let chain = Chain::new(vec![open(&damaged).unwrap()]).unwrap();
    let mut content = ChunkContent::new().unwrap();
    assert!(chain.load(ChunkIndex(0), &mut content).is_err());
    assert!(content.filled().is_empty());
    chain.load(ChunkIndex(2), &mut content).unwrap();
}

#[test]
fn a_cut_off_snapshot_says_so() {
    let bytes = bytes_of(&write_full(&PlainMemory::mixed(600, 1), Encoding::Zstd).0);
    for length in (9..bytes.len())
        .step_by(997)
        .chain([8, 4095, 4096, bytes.len() - 1])
    {
        let error = open(&bytes[..length]).unwrap_err();
        assert!(
            matches!(error, ReadError::Truncated { found, .. } if found == length as u64),
            "{length}: {error}"
        );
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(damage(&open(&longer).unwrap_err()), Some(Part::End));
}

#[test]
fn what_is_no_snapshot_is_told_from_one() {
    let foreign: [&[u8]; 4] = [b"x", b"QFI\xfb and so on", &[1; 5000], b"DWCPDEV\0"];
    for bytes in foreign {
        let error = open(bytes).unwrap_err();
        assert!(matches!(error, ReadError::Foreign), "{error}");
    }
    for bytes in [vec![], vec![0; 4096], vec![0; 5 << 20]] {
        let error = open(&bytes).unwrap_err();
        let is_unfinished = matches!(error, ReadError::Unfinished);
        assert!(is_unfinished, "{} bytes: {error}", bytes.len());
    }
}

#[test]
fn a_newer_format_is_named() {
    let mut bytes = bytes_of(&write_full(&PlainMemory::mixed(600, 1), Encoding::Raw).0);
    bytes[FORMAT_AT] = 7;
    resign(&mut bytes);
    let error = open(&bytes).unwrap_err();
    assert!(matches!(error, ReadError::Newer { found: 7 }), "{error}");
    assert!(error.to_string().contains("upgrade this host"));
}

#[test]
fn a_header_that_lies_costs_nothing() {
    let bytes = bytes_of(&write_full(&PlainMemory::mixed(600, 1), Encoding::Raw).0);
    for at in (12..72).step_by(4) {
        for value in [0u32, 1, 0xffff, u32::MAX] {
            let mut lying = bytes.clone();
            if lying[at..at + 4] == value.to_le_bytes() {
                continue;
            }
            lying[at..at + 4].copy_from_slice(&value.to_le_bytes());
            resign(&mut lying);
            assert!(open(&lying).is_err(), "{value:#x} at {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_change_of_a_small_snapshot_is_found(at in any::<prop::sample::Index>(), change in 1..=255u8) {
        let mut memory = PlainMemory::zeros(530);
        memory.fill(7, 3);
        memory.fill(525, 4);
        let mut bytes = bytes_of(&write_full(&memory, Encoding::Zstd).0);
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        let found = open(&bytes).and_then(|snapshot| snapshot.verify(&mut go_on));
        prop_assert!(found.is_err(), "byte {}", at);
    }

    #[test]
    fn a_hostile_table_harms_nobody(edits in prop::collection::vec((0..(2 * RECORD_BYTES) as usize, any::<u8>()), 1..6)) {
        let mut bytes = bytes_of(&write_full(&PlainMemory::mixed(600, 1), Encoding::Zstd).0);
        let map = Map::of(&bytes, Encoding::Zstd);
        for (at, value) in edits {
            bytes[map.table + at] = value;
        }
        // An author can give a wrong table its right digest.
        let table = blake3::derive_key("DWCP snapshot 1 chunk table", &bytes[map.table..map.manifest]);
        bytes[136..168].copy_from_slice(&table);
        resign(&mut bytes);
        if let Ok(snapshot) = open(&bytes) {
            let _ = snapshot.verify(&mut go_on);
            let chain = Chain::new(vec![snapshot]).unwrap();
            let mut content = ChunkContent::new().unwrap();
            for chunk in ChunkIndex::all(chain.size()) {
                let _ = chain.load(chunk, &mut content);
            }
        }
    }

    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        prop_assert!(open(&bytes).is_err());
    }
}
