//! A client that trusts only a key and keeps a checkpoint, against logs that lie.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;

use dwcp_audit::tree::{self, Frontier, Nodes};
use dwcp_audit::{Checkpoint, Hash, Kept, Replay, Signer, StoredEntry, Verifier, VerifyError};
use proptest::prelude::*;

const NAME: &str = "left.example/dwcp/audit";

fn signer(seed: u8) -> Signer {
    Signer::from_seed(NAME, &[seed; 32]).unwrap()
}

/// A log as a (hostile) host holds it: it can say what it likes.
#[derive(Clone)]
struct Log {
    entries: Vec<StoredEntry>,
}

impl Log {
    fn new(count: u64) -> Self {
        Self {
            entries: (0..count)
                .map(|index| StoredEntry {
                    index,
                    text: format!("{{\"n\":{index}}}"),
                })
                .collect(),
        }
    }

    /// Numbers the entries anew, as a log that has been tampered with would.
    fn renumber(mut self) -> Self {
        for (entry, index) in self.entries.iter_mut().zip(0..) {
            entry.index = index;
        }
        self
    }

    fn tree(&self) -> Frontier {
        let mut tree = Frontier::new();
        self.entries
            .iter()
            .for_each(|entry| tree.push(entry.leaf(), |_, _, _| {}));
        tree
    }

    fn checkpoint(&self, signer: &Signer) -> String {
        let tree = self.tree();
        Checkpoint {
            origin: NAME.into(),
            size: tree.size(),
            root: tree.root(),
        }
        .sign(signer)
    }

    fn kept(&self) -> Kept {
        Kept {
            note: self.checkpoint(&signer(1)),
            tree: self.tree(),
        }
    }
}

impl Nodes for Log {
    type Error = Infallible;

    fn node(&self, level: u32, index: u64) -> Result<Hash, Infallible> {
        let mut tree = Frontier::new();
        let first = (index << level) as usize;
        self.entries[first..first + (1 << level)]
            .iter()
            .for_each(|entry| tree.push(entry.leaf(), |_, _, _| {}));
        Ok(tree.root())
    }
}

/// What the client does with a log: checks its growth against what it kept, and every entry that is new to it.
fn visit(kept: &Kept, log: &Log, note: &str, whole: bool) -> Result<Kept, VerifyError> {
    let verifier = Verifier::new(signer(1).verifier().clone());
    let old = verifier.checkpoint(&kept.note)?;
    let new = verifier.checkpoint(note)?;
    let size = log.entries.len() as u64;
    let proof = if old.size <= size {
        tree::consistency_proof(log, old.size, size).unwrap()
    } else {
        Vec::new()
    };
    verifier.growth(&old, &new, &proof)?;
    let mut replay = if whole {
        Replay::from_start(Some(old))
    } else {
        Replay::resume(&verifier, kept)?
    };
    for entry in &log.entries[replay.next_index() as usize..] {
        replay.push(entry)?;
    }
    replay.finish(&verifier, note)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_honest_log_is_believed(old in 0_u64..60, more in 0_u64..60, whole: bool) {
        let log = Log::new(old + more);
        let note = log.checkpoint(&signer(1));
        let kept = visit(&Log::new(old).kept(), &log, &note, whole).unwrap();
        prop_assert_eq!(kept, log.kept());
    }

    /// The host signs whatever it did with its true key: a client that was there before finds out.
    #[test]
    fn tampering_with_what_was_seen_is_found(old in 2_u64..60, more in 0_u64..60, at in any::<prop::sample::Index>(), how in 0..4, whole: bool) {
        let kept = Log::new(old).kept();
        let mut log = Log::new(old + more);
        let at = at.index(old as usize - 1);
        match how {
            0 => log.entries[at].text.push(' '),
            1 => { log.entries.remove(at); }
            2 => log.entries.swap(at, at + 1),
            _ => log.entries.insert(at, StoredEntry { index: 0, text: "{}".into() }),
        }
        let log = log.renumber();
        let found = visit(&kept, &log, &log.checkpoint(&signer(1)), whole);
        let is_found = matches!(found, Err(VerifyError::Rewritten { .. } | VerifyError::Cut { .. }));
        prop_assert!(is_found, "{:?}", found);
    }

    #[test]
    fn a_cut_tail_is_found(old in 1_u64..60, cut in 1_u64..60) {
        let log = Log::new(old.saturating_sub(cut));
        let found = visit(&Log::new(old).kept(), &log, &log.checkpoint(&signer(1)), false);
        prop_assert_eq!(found, Err(VerifyError::Cut { kept: old, shown: old.saturating_sub(cut) }));
    }

    /// The entries shown are not those of the checkpoint shown.
    #[test]
    fn other_entries_than_signed_are_found(old in 0_u64..60, more in 1_u64..60, at in any::<prop::sample::Index>(), how in 0..3) {
        let kept = Log::new(old).kept();
        let true_log = Log::new(old + more);
        let note = true_log.checkpoint(&signer(1));
        let verifier = Verifier::new(signer(1).verifier().clone());
        let mut shown = true_log.entries[old as usize..].to_vec();
        let at = at.index(shown.len());
        match how {
            0 => shown[at].text = shown[at].text.replace("n", "m"),
            1 => { shown.remove(at); }
            _ => { shown.truncate(at); }
        }
        let mut replay = Replay::resume(&verifier, &kept).unwrap();
        let pushed = shown.iter().try_for_each(|entry| replay.push(entry));
        let found = pushed.and_then(|()| replay.finish(&verifier, &note));
        let is_found = matches!(
            found,
            Err(VerifyError::Changed { .. } | VerifyError::Missing { .. } | VerifyError::WrongCount { .. })
        );
        prop_assert!(is_found, "{:?}", found);
    }
}

#[test]
fn another_key_is_found() {
    let log = Log::new(9);
    let found = visit(
        &Log::new(5).kept(),
        &log,
        &log.checkpoint(&signer(2)),
        false,
    );
    assert!(
        matches!(found, Err(VerifyError::Checkpoint(_))),
        "{found:?}"
    );
}

#[test]
fn an_entry_is_proven_alone() {
    let log = Log::new(21);
    let verifier = Verifier::new(signer(1).verifier().clone());
    let checkpoint = verifier.checkpoint(&log.checkpoint(&signer(1))).unwrap();
    let proof = tree::inclusion_proof(&log, 13, 21).unwrap();
    verifier
        .inclusion(&checkpoint, &log.entries[13], &proof)
        .unwrap();
    let changed = StoredEntry {
        text: "{}".into(),
        ..log.entries[13].clone()
    };
    let moved = StoredEntry {
        index: 12,
        ..log.entries[13].clone()
    };
    for bad in [changed, moved] {
        let refused = verifier.inclusion(&checkpoint, &bad, &proof);
        assert_eq!(
            refused,
            Err(VerifyError::NotIncluded {
                index: bad.index,
                size: 21
            })
        );
    }
}

#[test]
fn a_damaged_memory_is_noticed() {
    let verifier = Verifier::new(signer(1).verifier().clone());
    let kept = Log::new(11).kept();
    let text = serde_json::to_string(&kept).unwrap();
    assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept);
    let other = Kept {
        tree: Log::new(10).tree(),
        ..kept.clone()
    };
    assert!(matches!(
        Replay::resume(&verifier, &other),
        Err(VerifyError::KeptDamaged)
    ));
    let hollow: Kept = serde_json::from_value(serde_json::json!({
        "note": kept.note, "tree": { "size": u64::MAX, "roots": [] }
    }))
    .unwrap();
    assert!(matches!(
        Replay::resume(&verifier, &hollow),
        Err(VerifyError::KeptDamaged)
    ));
}
