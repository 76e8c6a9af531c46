//! A store beside the simplest thing that behaves like one: a map, and a copy of it for every revision.
//!
//! What happens is read from a string of bytes, so that a seed, a fuzzer or a property test can drive it and shrink it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{good, next_change};
use crate::{Batch, Compare, Entry, Event, Op, OpResult, Revision, Store, StoreError, Test, Txn};

const KEYS: [&str; 9] = ["a", "a/", "a/b", "a/b/c", "a/c", "a0", "b", "b/1", "é"];
const PREFIXES: [&str; 7] = ["", "a", "a/", "a/b", "b/", "é", "x"];

/// The map and its past.
#[derive(Default)]
struct Model {
    live: BTreeMap<String, Entry>,
    /// The state after every revision, and what changed in it.
    past: Vec<(Batch, BTreeMap<String, Entry>)>,
    compacted: Revision,
}

/// Reads decisions from bytes; zeros when they are used up.
struct Program<'b> {
    bytes: std::slice::Iter<'b, u8>,
}

impl Program<'_> {
    fn pick(&mut self, count: usize) -> usize {
        usize::from(self.bytes.next().copied().unwrap_or(0)) % count
    }

    fn key(&mut self) -> &'static str {
        KEYS[self.pick(KEYS.len())]
    }

    fn value(&mut self) -> Bytes {
        let value = ["", "0", "1", "two", "a longer value"][self.pick(5)];
        Bytes::from_static(value.as_bytes())
    }

    fn ops(&mut self) -> Vec<Op> {
        let mut ops: Vec<Op> = Vec::new();
        for _ in 0..=self.pick(5) {
            let key = self.key();
            let op = match self.pick(5) {
                0..=2 => Op::put(key, self.value()),
                3 => Op::delete(key),
                _ => Op::get(key),
            };
            let changed = ops
                .iter()
                .any(|other| other.key() == key && !matches!(other, Op::Get { .. }));
            ops.push(if changed { Op::get(key) } else { op });
        }
        ops
    }

    fn compare(&mut self, model: &Model) -> Compare {
        let key = self.key();
        let entry = model.live.get(key);
        let stale = self.pick(3) == 0;
        let revision = |now: Option<Revision>| {
            let now = now.unwrap_or(Revision::ZERO);
            if stale {
                Revision(now.0.wrapping_sub(1))
            } else {
                now
            }
        };
        let test = match self.pick(6) {
            0 => Test::Exists,
            1 => Test::Absent,
            2 | 3 => Test::ModRevision(revision(entry.map(|e| e.mod_revision))),
            4 => Test::CreateRevision(revision(entry.map(|e| e.create_revision))),
            _ => Test::Value(self.value()),
        };
        Compare::new(key, test)
    }
}

impl Model {
    /// What `txn` must come to when its changes get `revision`.
    fn apply(&mut self, txn: &Txn, revision: Revision) -> (bool, Vec<OpResult>, Vec<Event>) {
        let succeeded = txn
            .compares
            .iter()
            .all(|compare| compare.test.holds(self.live.get(&compare.key)));
        let (mut results, mut events) = (Vec::new(), Vec::new());
        for op in if succeeded { &txn.then } else { &txn.otherwise } {
            match op {
                Op::Get { key } => results.push(OpResult::Get(self.live.get(key).cloned())),
                Op::Delete { key } => {
                    let existed = self.live.remove(key).is_some();
                    if existed {
                        events.push(Event::Delete {
                            key: key.clone(),
                            revision,
                        });
                    }
                    results.push(OpResult::Delete { existed });
                }
                Op::Put { key, value } => {
                    let old = self.live.get(key);
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: old.map_or(revision, |e| e.create_revision),
                        mod_revision: revision,
                        version: old.map_or(1, |e| e.version + 1),
                    };
                    self.live.insert(key.clone(), entry.clone());
                    events.push(Event::Put(entry));
                    results.push(OpResult::Put);
                }
            }
        }
        (succeeded, results, events)
    }

    /// A revision of the past to ask for; the latest when there is none.
    fn pick_revision(
        &self,
        program: &mut Program<'_>,
    ) -> Option<(Revision, &BTreeMap<String, Entry>)> {
        let back = program.pick(12);
        let (batch, state) = self.past.get(self.past.len().checked_sub(1 + back)?)?;
        Some((batch.revision, state))
    }
}

/// Does what `program` says to an empty store and compares every answer with the model's.
pub async fn check_program(store: Arc<dyn Store>, program: &[u8]) {
    let mut program = Program {
        bytes: program.iter(),
    };
    let mut model = Model::default();
    let mut last = good(store.revision().await);
    let mut watch = good(store.watch("", last.next()).await);
    while program.bytes.len() > 0 {
        match program.pick(8) {
            0..=3 => {
                let compares = (0..program.pick(3))
                    .map(|_| program.compare(&model))
                    .collect();
                let txn = Txn {
                    compares,
                    then: program.ops(),
                    otherwise: program.ops(),
                };
                let outcome = good(store.transact(txn.clone()).await);
                let (succeeded, results, events) = model.apply(&txn, outcome.revision);
                assert_eq!(
                    (outcome.succeeded, &outcome.results),
                    (succeeded, &results),
                    "{txn:?}"
                );
                if events.is_empty() {
                    assert!(outcome.revision >= last, "{txn:?}");
                } else {
                    assert!(outcome.revision > last, "{txn:?}");
                    last = outcome.revision;
                    let batch = Batch {
                        revision: last,
                        events,
                    };
                    assert_eq!(next_change(&mut watch).await, batch, "{txn:?}");
                    model.past.push((batch, model.live.clone()));
                }
            }
            4 => {
                let key = program.key();
                assert_eq!(good(store.get(key).await), model.live.get(key).cloned());
            }
            5 | 6 => check_range(&store, &mut program, &model).await,
            _ => {
                let Some((revision, _)) = model.pick_revision(&mut program) else {
                    continue;
                };
                let result = store.compact(revision).await;
                if revision <= model.compacted {
                    assert!(matches!(result, Err(StoreError::Compacted)), "{result:?}");
                } else {
                    good(result);
                    model.compacted = revision;
                }
            }
        }
    }
    let kept: Vec<_> = model
        .past
        .iter()
        .map(|(batch, _)| batch)
        .filter(|b| b.revision > model.compacted)
        .collect();
    if let Some(first) = kept.first() {
        let mut watch = good(store.watch("", first.revision).await);
        for batch in &kept {
            assert_eq!(next_change(&mut watch).await, **batch);
        }
    }
}

async fn check_range(store: &Arc<dyn Store>, program: &mut Program<'_>, model: &Model) {
    let prefix = PREFIXES[program.pick(PREFIXES.len())];
    let after = [None, Some(program.key())][program.pick(2)];
    let limit = 1 + program.pick(10);
    let past = if program.pick(2) == 0 {
        None
    } else {
        model.pick_revision(program)
    };
    let page = store
        .range(prefix, after, limit, past.map(|(revision, _)| revision))
        .await;
    if past.is_some_and(|(revision, _)| revision < model.compacted) {
        assert!(matches!(page, Err(StoreError::Compacted)), "{page:?}");
        return;
    }
    let page = good(page);
    let state = past.map_or(&model.live, |(_, state)| state);
    let mut wanted: Vec<_> = state
        .values()
        .filter(|e| e.key.starts_with(prefix) && after.is_none_or(|after| *e.key > *after))
        .collect();
    let more = wanted.len() > limit;
    wanted.truncate(limit);
    assert_eq!(
        page.entries.iter().collect::<Vec<_>>(),
        wanted,
        "{prefix:?} after {after:?} limit {limit}"
    );
    assert_eq!(page.more, more, "{prefix:?} after {after:?} limit {limit}");
    if let Some((revision, _)) = past {
        assert_eq!(page.revision, revision);
    }
}
