//! The log on disk: what it answers, what it survives, and that any change to it is refused with its place.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dwcp_audit::{
    AppendError, AuditLog, Entry, Hash, OpenError, Options, Outcome, ReadError, Replay, Signer,
    Verifier,
};
use proptest::prelude::*;
use serde_json::json;

const NAME: &str = "left.example/dwcp/audit";
const SMALL: Options = Options {
    segment_bytes: 4096,
};

fn signer() -> Signer {
    Signer::from_seed(NAME, &[7; 32]).unwrap()
}

fn entry(n: u64) -> Entry {
    Entry {
        time_ms: 1_700_000_000_000 + n,
        principal: format!("user-{}", n % 3),
        action: "vm.start".into(),
        object: format!("projects/default/vms/{n}"),
        outcome: Outcome::Done,
        detail: json!({ "n": n }),
    }
}

fn open(directory: &Path) -> Result<AuditLog, OpenError> {
    AuditLog::open_with(directory, signer(), SMALL)
}

/// A log of `count` entries in groups of one to five, and what it answered last.
fn write(directory: &Path, count: u64) -> String {
    let log = open(directory).unwrap();
    let mut n = log.size();
    while n < count {
        let group: Vec<Entry> = (n..count.min(n + 1 + n % 5)).map(entry).collect();
        let receipts = log.append_batch(&group).unwrap();
        assert_eq!(receipts[0].index, n);
        n += group.len() as u64;
        assert_eq!(receipts.last().unwrap().size, n);
    }
    log.checkpoint()
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    paths.retain(|path| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("segment-")
    });
    paths.sort();
    paths
}

#[test]
fn a_new_log_is_empty_and_signed() {
    let directory = tempfile::tempdir().unwrap();
    let log = AuditLog::open(directory.path().join("a/b"), signer()).unwrap();
    let verifier = Verifier::new(log.verifier().clone());
    let checkpoint = verifier.checkpoint(&log.checkpoint()).unwrap();
    assert_eq!(
        (checkpoint.size, checkpoint.root),
        (0, Hash::of_empty_tree())
    );
    assert_eq!(log.entries(0, 10).unwrap().entries, []);
    assert!(matches!(
        log.entries(1, 10),
        Err(ReadError::BeyondEnd { asked: 1, size: 0 })
    ));
    assert!(matches!(log.entries(0, 0), Err(ReadError::Invalid(_))));
    assert!(matches!(
        log.inclusion_proof(0, 0),
        Err(ReadError::BeyondEnd { .. })
    ));
    assert_eq!(log.consistency_proof(0, 0).unwrap(), []);
    assert!(matches!(
        log.consistency_proof(0, 1),
        Err(ReadError::BeyondEnd { .. })
    ));
    assert!(matches!(
        AuditLog::open(directory.path().join("a/b"), signer()),
        Err(OpenError::InUse { .. })
    ));
}

#[test]
fn everything_appended_is_read_and_proven() {
    const COUNT: u64 = 300;
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), COUNT);
    assert!(segments(directory.path()).len() > 5, "several segments");
    let log = open(directory.path()).unwrap();
    let report = log.report();
    assert_eq!(
        (report.entries, report.dropped_bytes, report.hashes_mended),
        (COUNT, 0, 0)
    );

    for (from, limit) in [
        (0, 1),
        (0, 1000),
        (1, 64),
        (63, 2),
        (64, 1),
        (150, 100),
        (299, 5),
        (300, 5),
    ] {
        let page = log.entries(from, limit).unwrap();
        assert_eq!(page.size, COUNT);
        assert_eq!(page.entries.len() as u64, (COUNT - from).min(limit as u64));
        for (stored, n) in page.entries.iter().zip(from..) {
            assert_eq!((stored.index, stored.entry().unwrap()), (n, entry(n)));
        }
    }

    let verifier = Verifier::new(log.verifier().clone());
    let checkpoint = verifier.checkpoint(&log.checkpoint()).unwrap();
    for stored in log.entries(0, 1000).unwrap().entries {
        let proof = log.inclusion_proof(stored.index, COUNT).unwrap();
        verifier.inclusion(&checkpoint, &stored, &proof).unwrap();
    }
}

#[test]
fn many_writers_get_places_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let log = Arc::new(open(directory.path()).unwrap());
    let writers: Vec<_> = (0..16_u64)
        .map(|writer| {
            let log = log.clone();
            std::thread::spawn(move || {
                (0..20)
                    .map(|n| {
                        (
                            log.append(&entry(writer * 100 + n)).unwrap(),
                            writer * 100 + n,
                        )
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut receipts: Vec<_> = writers
        .into_iter()
        .flat_map(|writer| writer.join().unwrap())
        .collect();
    receipts.sort_by_key(|(receipt, _)| receipt.index);
    let entries = log.entries(0, 1000).unwrap().entries;
    assert_eq!(entries.len(), receipts.len());
    for ((receipt, n), stored) in receipts.iter().zip(&entries) {
        assert_eq!((receipt.index, receipt.leaf), (stored.index, stored.leaf()));
        assert!(receipt.size > receipt.index);
        assert_eq!(stored.entry().unwrap(), entry(*n));
    }
}

#[test]
fn what_is_too_much_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    let mut long = entry(1);
    long.detail = json!("x".repeat(70_000));
    assert!(matches!(log.append(&long), Err(AppendError::Entry(_))));
    assert!(matches!(
        log.append_batch(&vec![entry(1); 4097]),
        Err(AppendError::TooMany(4097))
    ));
    assert!(matches!(
        log.append_batch(&[entry(1), long]),
        Err(AppendError::Entry(_))
    ));
    assert_eq!(log.append_batch(&[]).unwrap(), []);
    assert_eq!(
        log.append(&entry(0)).unwrap().index,
        0,
        "nothing of what was refused is there"
    );
}

/// Every place of every segment, one bit at a time: refused, with the right file, at or before the place.
#[test]
fn every_changed_byte_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 30);
    let paths = segments(directory.path());
    assert!(paths.len() > 1);
    for path in &paths {
        let whole = std::fs::read(path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            std::fs::write(path, &changed).unwrap();
            match open(directory.path()) {
                Err(OpenError::Damaged {
                    path: found,
                    offset,
                    ..
                }) => {
                    assert_eq!(&found, path);
                    // The record that holds the byte, or the group that it belongs to.
                    assert!(
                        offset <= at as u64 && at as u64 - offset < 2048,
                        "byte {at}, told {offset}"
                    );
                }
                other => panic!("byte {at} of {}: {other:?}", path.display()),
            }
        }
        std::fs::write(path, &whole).unwrap();
    }
    assert_eq!(open(directory.path()).unwrap().size(), 30);
}

/// The offsets of the records of a segment, and one past the last.
fn records(bytes: &[u8]) -> Vec<usize> {
    let mut offsets = vec![32];
    while let Some(length) = bytes
        .get(offsets[offsets.len() - 1] + 1..)
        .and_then(|rest| rest.get(..4))
    {
        let length = u32::from_le_bytes(length.try_into().unwrap()) as usize;
        offsets.push(offsets[offsets.len() - 1] + 9 + length);
    }
    offsets
}

#[test]
fn removed_repeated_and_exchanged_records_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 40);
    for path in segments(directory.path()) {
        let whole = std::fs::read(&path).unwrap();
        let offsets = records(&whole);
        assert_eq!(*offsets.last().unwrap(), whole.len());
        let spans: Vec<_> = offsets.windows(2).map(|pair| pair[0]..pair[1]).collect();
        for (n, span) in spans.iter().enumerate() {
            let is_commit = whole[span.start] == b'C';
            let without = [&whole[..span.start], &whole[span.end..]].concat();
            let twice = [&whole[..span.end], &whole[span.start..]].concat();
            let exchanged = spans.get(n + 1).map(|next| {
                [
                    &whole[..span.start],
                    &whole[next.clone()],
                    &whole[span.clone()],
                    &whole[next.end..],
                ]
                .concat()
            });
            for (what, changed) in [
                ("removed", Some(without)),
                ("repeated", Some(twice)),
                ("exchanged", exchanged),
            ] {
                // Signing the same tree twice, or leaving out a checkpoint between two others, changes no entry.
                let harmless =
                    is_commit && (what == "repeated" || what == "removed" && n + 1 < spans.len());
                let Some(changed) = changed.filter(|_| !harmless) else {
                    continue;
                };
                std::fs::write(&path, &changed).unwrap();
                let opened = open(directory.path());
                assert!(
                    matches!(
                        opened,
                        Err(OpenError::Damaged { .. } | OpenError::Cut { .. })
                    ),
                    "record {n} {what} in {}: {opened:?}",
                    path.display()
                );
            }
        }
        std::fs::write(&path, &whole).unwrap();
    }
    open(directory.path()).unwrap();
}

#[test]
fn a_cut_tail_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 60);
    let paths = segments(directory.path());
    for (n, path) in paths.iter().enumerate() {
        let whole = std::fs::read(path).unwrap();
        for length in [0, 10, 32, whole.len() / 2, whole.len() - 1]
            .into_iter()
            .chain(records(&whole))
        {
            if length == whole.len() {
                continue;
            }
            std::fs::write(path, &whole[..length]).unwrap();
            let opened = open(directory.path());
            assert!(
                matches!(
                    opened,
                    Err(OpenError::Cut { .. } | OpenError::Damaged { .. })
                ),
                "segment {n} cut to {length}: {opened:?}"
            );
            assert_eq!(
                std::fs::read(path).unwrap(),
                whole[..length],
                "a refused log is not touched"
            );
        }
        std::fs::remove_file(path).unwrap();
        let opened = open(directory.path());
        assert!(
            matches!(
                opened,
                Err(OpenError::Cut { .. } | OpenError::Damaged { .. })
            ),
            "segment {n}: {opened:?}"
        );
        std::fs::write(path, &whole).unwrap();
    }
    assert_eq!(open(directory.path()).unwrap().size(), 60);
}

#[test]
fn a_rewritten_log_is_not_ours() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 30);
    // A forger who has everything but the key: a whole log under the same name with one entry changed.
    let forged = tempfile::tempdir().unwrap();
    let forger = Signer::from_seed(NAME, &[8; 32]).unwrap();
    let log = AuditLog::open_with(forged.path(), forger, SMALL).unwrap();
    for n in 0..30 {
        log.append(&entry(if n == 17 { 99 } else { n })).unwrap();
    }
    drop(log);
    for file in std::fs::read_dir(forged.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), directory.path().join(file.file_name())).unwrap();
    }
    for path in segments(directory.path()) {
        if !forged.path().join(path.file_name().unwrap()).exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let opened = open(directory.path());
    assert!(
        matches!(opened, Err(OpenError::NotOurs { entry: 0, .. })),
        "{opened:?}"
    );
}

#[test]
fn damaged_or_missing_hashes_are_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = write(directory.path(), 100);
    let hashes = directory.path().join("hashes");
    let whole = std::fs::read(&hashes).unwrap();
    for at in [0, 33, whole.len() / 2, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&hashes, &changed).unwrap();
        assert!(open(directory.path()).unwrap().report().hashes_mended > 0);
        assert_eq!(std::fs::read(&hashes).unwrap(), whole);
        assert_eq!(open(directory.path()).unwrap().report().hashes_mended, 0);
    }
    std::fs::write(&hashes, &whole[..whole.len() - 5]).unwrap();
    assert_eq!(open(directory.path()).unwrap().report().hashes_mended, 1);
    std::fs::remove_file(&hashes).unwrap();
    let log = open(directory.path()).unwrap();
    assert_eq!((log.report().entries, log.checkpoint()), (100, checkpoint));
    assert_eq!(std::fs::read(&hashes).unwrap(), whole);
}

/// A crash at any moment leaves a beginning of the last write, and no hashes of it: exactly that is dropped.
#[test]
fn a_torn_group_is_dropped_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options::default();
    let log = AuditLog::open_with(directory.path(), signer(), options).unwrap();
    log.append_batch(&[entry(0), entry(1), entry(2)]).unwrap();
    let before = log.checkpoint();
    drop(log);
    let path = &segments(directory.path())[0];
    let hashes = directory.path().join("hashes");
    let (acknowledged, its_hashes) = (
        std::fs::read(path).unwrap(),
        std::fs::read(&hashes).unwrap(),
    );
    let log = AuditLog::open_with(directory.path(), signer(), options).unwrap();
    log.append_batch(&[entry(3), entry(4)]).unwrap();
    let after = log.checkpoint();
    drop(log);
    let whole = std::fs::read(path).unwrap();

    for length in acknowledged.len()..=whole.len() {
        for zeros in [0, 100, 5000] {
            let torn = [&whole[..length], &vec![0; zeros]].concat();
            std::fs::write(path, &torn).unwrap();
            std::fs::write(&hashes, &its_hashes).unwrap();
            let log = AuditLog::open_with(directory.path(), signer(), options).unwrap();
            // A group that was written whole is kept, though nobody was told.
            let (size, kept, checkpoint) = if length == whole.len() {
                (5, whole.len(), &after)
            } else {
                (3, acknowledged.len(), &before)
            };
            assert_eq!(
                (log.size(), &log.checkpoint()),
                (size, checkpoint),
                "{length} bytes, {zeros} zeros"
            );
            assert_eq!(log.report().dropped_bytes, (torn.len() - kept) as u64);
            drop(log);
            assert_eq!(std::fs::read(path).unwrap(), whole[..kept]);
        }
    }

    // A power cut may keep any pages of the last write.
    for at in acknowledged.len()..whole.len() {
        let mut torn = whole.clone();
        torn[at] = !torn[at];
        std::fs::write(path, &torn).unwrap();
        std::fs::write(&hashes, &its_hashes).unwrap();
        let log = AuditLog::open_with(directory.path(), signer(), options).unwrap();
        assert_eq!(
            (log.size(), log.checkpoint()),
            (3, before.clone()),
            "byte {at}"
        );
        assert_eq!(log.append(&entry(3)).unwrap().index, 3);
    }
}

/// What came after proves that a group was acknowledged, even without the hash file.
#[test]
fn a_later_commit_speaks_for_the_groups_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let log = AuditLog::open(directory.path(), signer()).unwrap();
    for n in 0..6 {
        log.append(&entry(n)).unwrap();
    }
    drop(log);
    let path = &segments(directory.path())[0];
    let whole = std::fs::read(path).unwrap();
    let records = records(&whole);
    // The commit of the empty tree, then an entry and a commit each.
    assert_eq!(records.len(), 1 + 1 + 12);
    for at in records[0]..records[records.len() - 5] {
        let mut changed = whole.clone();
        changed[at] ^= 4;
        std::fs::write(path, &changed).unwrap();
        std::fs::remove_file(directory.path().join("hashes")).unwrap();
        let opened = AuditLog::open(directory.path(), signer());
        assert!(
            matches!(opened, Err(OpenError::Damaged { .. })),
            "byte {at}: {opened:?}"
        );
    }
}

#[test]
fn a_torn_new_segment_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = write(directory.path(), 60);
    for header in [&b""[..], b"DWCP", &[0; 32]] {
        let torn = directory.path().join(format!("segment-{:020}", 60));
        std::fs::write(&torn, header).unwrap();
        let log = open(directory.path()).unwrap();
        assert_eq!((log.size(), log.checkpoint()), (60, checkpoint.clone()));
        drop(log);
        assert!(!torn.exists());
    }
    write(directory.path(), 90);
    assert_eq!(open(directory.path()).unwrap().size(), 90);
}

/// A client that keeps a checkpoint finds everything, whatever the host's disk says of itself.
#[test]
fn a_client_follows_a_log_that_grows() {
    let directory = tempfile::tempdir().unwrap();
    let verifier = Verifier::new(signer().verifier().clone());
    let mut kept: Option<dwcp_audit::Kept> = None;
    for size in [1, 7, 8, 40, 41, 100] {
        write(directory.path(), size);
        let log = open(directory.path()).unwrap();
        let note = log.checkpoint();
        let new = verifier.checkpoint(&note).unwrap();
        let mut replay = match &kept {
            None => Replay::from_start(None),
            Some(kept) => {
                let old = verifier.checkpoint(&kept.note).unwrap();
                let proof = log.consistency_proof(old.size, new.size).unwrap();
                verifier.growth(&old, &new, &proof).unwrap();
                Replay::resume(&verifier, kept).unwrap()
            }
        };
        while replay.next_index() < new.size {
            for stored in log.entries(replay.next_index(), 10).unwrap().entries {
                replay.push(&stored).unwrap();
            }
        }
        kept = Some(replay.finish(&verifier, &note).unwrap());
    }
}

/// One thing that may happen to a file.
#[derive(Debug, Clone)]
enum Accident {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Delete,
}

fn accident() -> impl Strategy<Value = Accident> {
    prop_oneof![
        (any::<prop::sample::Index>(), 1..=255_u8).prop_map(|(at, bits)| Accident::Flip(at, bits)),
        any::<prop::sample::Index>().prop_map(Accident::Cut),
        (
            any::<prop::sample::Index>(),
            prop::collection::vec(any::<u8>(), 1..300)
        )
            .prop_map(|(at, bytes)| Accident::Insert(at, bytes)),
        (any::<prop::sample::Index>(), 1..600_usize)
            .prop_map(|(at, count)| Accident::Remove(at, count)),
        Just(Accident::Delete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to the files, a log that opens says nothing that was not written, in the order it was written.
    #[test]
    fn a_log_that_opens_is_true(accidents in prop::collection::vec((any::<prop::sample::Index>(), accident()), 1..4)) {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), 25);
        for (which, accident) in accidents {
            let mut paths = segments(directory.path());
            paths.push(directory.path().join("hashes"));
            let path = which.get(&paths);
            let Ok(mut bytes) = std::fs::read(path) else { continue };
            let place = |at: &prop::sample::Index| at.index(bytes.len() + 1);
            match &accident {
                Accident::Flip(at, bits) => {
                    let at = place(at);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= bits;
                    }
                }
                Accident::Cut(at) => bytes.truncate(place(at)),
                Accident::Insert(at, more) => {
                    let at = place(at);
                    bytes.splice(at..at, more.iter().copied());
                }
                Accident::Remove(at, count) => {
                    let at = place(at);
                    bytes.drain(at..(at + count).min(bytes.len()));
                }
                Accident::Delete => {
                    std::fs::remove_file(path).unwrap();
                    continue;
                }
            }
            std::fs::write(path, &bytes).unwrap();
        }
        if let Ok(log) = open(directory.path()) {
            for (n, stored) in log.entries(0, 1000).unwrap().entries.iter().enumerate() {
                prop_assert_eq!(stored.entry().unwrap(), entry(n as u64));
            }
            prop_assert_eq!(log.append(&entry(99)).unwrap().index, log.size() - 1);
        }
    }
}
