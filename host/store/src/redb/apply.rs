//! Carrying out one transaction inside a write transaction of the file, and cleaning up compacted history.
//!
//! Knows no thread and no reply: what it is given is either committed with all the rest of its group, or never was.

use std::sync::Arc;

use ::redb::{ReadableTable, Table, WriteTransaction};

use super::fault;
use super::tables::{self, CURRENT, HISTORY, LOG, META};
use crate::error::StoreError;
use crate::records::{Batch, Entry, Event, Op, OpResult, Revision, Txn, TxnOutcome};

/// The tables, open for writing.
pub(super) struct Session<'t> {
    current: Table<'t, &'static str, &'static [u8]>,
    history: Table<'t, (&'static str, u64), &'static [u8]>,
    log: Table<'t, (u64, u32), (u32, &'static str)>,
    meta: Table<'t, &'static str, u64>,
}

/// What one transaction came to, with what watches will see of it.
pub(super) struct Applied {
    pub(super) outcome: TxnOutcome,
    pub(super) batch: Option<Arc<Batch>>,
    pub(super) cost_bytes: u64,
}

impl<'t> Session<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            current: txn.open_table(CURRENT).map_err(fault)?,
            history: txn.open_table(HISTORY).map_err(fault)?,
            log: txn.open_table(LOG).map_err(fault)?,
            meta: txn.open_table(META).map_err(fault)?,
        })
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        match self.current.get(key).map_err(fault)? {
            Some(row) => tables::decode(key, row.value()),
            None => Ok(None),
        }
    }

    pub(super) fn set_meta(&mut self, name: &str, revision: Revision) -> Result<(), StoreError> {
        self.meta.insert(name, revision.0).map_err(fault)?;
        Ok(())
    }

    /// Carries out `txn`, whose changes get the revision after `latest`.
    pub(super) fn apply(&mut self, txn: &Txn, latest: Revision) -> Result<Applied, StoreError> {
        let mut succeeded = true;
        for compare in &txn.compares {
            succeeded = succeeded && compare.test.holds(self.get(&compare.key)?.as_ref());
        }
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        let revision = latest.next();
        let mut results = Vec::with_capacity(ops.len());
        let mut events = Vec::new();
        let mut cost_bytes = 0;
        for op in ops {
            let old = self.get(op.key())?;
            let (result, event) = self.carry_out(op, old.as_ref(), revision)?;
            // A get gives what it finds; a change leaves that to history.
            results.push(match result {
                Some(result) => result,
                None => OpResult::Get(old.clone()),
            });
            if let Some(event) = event {
                events.push(event);
                let position = u32::try_from(events.len()).unwrap_or(u32::MAX);
                cost_bytes += self.remember(op.key(), old, (revision.0, position))?;
            }
        }
        // What changed nothing has no revision of its own.
        let changed = !events.is_empty();
        let outcome = TxnOutcome {
            succeeded,
            revision: if changed { revision } else { latest },
            results,
        };
        Ok(Applied {
            outcome,
            batch: changed.then(|| Arc::new(Batch { revision, events })),
            cost_bytes,
        })
    }

    /// One operation on the live rows: its result (none of a get), and what watches will see of it.
    fn carry_out(
        &mut self,
        op: &Op,
        old: Option<&Entry>,
        revision: Revision,
    ) -> Result<(Option<OpResult>, Option<Event>), StoreError> {
        Ok(match op {
            Op::Get { .. } => (None, None),
            Op::Delete { .. } if old.is_none() => (Some(OpResult::Delete { existed: false }), None),
            Op::Delete { key } => {
                self.current.remove(key.as_str()).map_err(fault)?;
                self.history
                    .insert((key.as_str(), revision.0), tables::DELETED)
                    .map_err(fault)?;
                let key = key.clone();
                let event = Event::Delete { key, revision };
                (Some(OpResult::Delete { existed: true }), Some(event))
            }
            Op::Put { key, value } => {
                let entry = Entry {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: old.map_or(revision, |e| e.create_revision),
                    mod_revision: revision,
                    version: old.map_or(1, |e| e.version + 1),
                };
                self.current
                    .insert(key.as_str(), &*tables::encode(&entry))
                    .map_err(fault)?;
                (Some(OpResult::Put), Some(Event::Put(entry)))
            }
        })
    }

    /// Puts what a key was into history, and the change into the log at a revision and position. Answers its cost, bytes.
    fn remember(
        &mut self,
        key: &str,
        old: Option<Entry>,
        at: (u64, u32),
    ) -> Result<u64, StoreError> {
        let old_bytes = old.as_ref().map_or(0, |e| e.value.len());
        if let Some(old) = old {
            let row = tables::encode(&old);
            self.history
                .insert((key, old.mod_revision.0), &*row)
                .map_err(fault)?;
        }
        let cost = tables::cost_bytes(key, old_bytes);
        self.log.insert(at, (cost, key)).map_err(fault)?;
        Ok(u64::from(cost))
    }

    /// Cleans up at most `rows_max` changes that `compacted` has given up; answers up to where it is clean now.
    pub(super) fn purge(
        &mut self,
        compacted: Revision,
        rows_max: usize,
    ) -> Result<Revision, StoreError> {
        let mut rows = Vec::new();
        let mut full = false;
        for row in self.log.range(..=(compacted.0, u32::MAX)).map_err(fault)? {
            if rows.len() == rows_max {
                full = true;
                break;
            }
            let (at, change) = row.map_err(fault)?;
            rows.push((at.value(), change.value().1.to_owned()));
        }
        let mut purged = compacted;
        for ((revision, position), key) in &rows {
            self.purge_versions(key, compacted)?;
            self.log.remove((*revision, *position)).map_err(fault)?;
            if full {
                // The last revision may have rows left; it is gone through again.
                purged = Revision(revision.saturating_sub(1));
            }
        }
        Ok(purged)
    }

    /// Removes the versions of `key` that nobody can ask for once `compacted` is the oldest revision to be read.
    fn purge_versions(&mut self, key: &str, compacted: Revision) -> Result<(), StoreError> {
        let live_since = self.get(key)?.map(|entry| entry.mod_revision);
        // What the key was at `compacted` must stay readable, unless that is "live as it is now" or "gone".
        let mut keep = live_since.is_none_or(|since| since > compacted);
        let mut remove = Vec::new();
        for row in self
            .history
            .range((key, 0)..=(key, compacted.0))
            .map_err(fault)?
            .rev()
        {
            let (at, row) = row.map_err(fault)?;
            if !keep || row.value() == tables::DELETED {
                remove.push(at.value().1);
            }
            keep = false;
        }
        for revision in remove {
            self.history.remove((key, revision)).map_err(fault)?;
        }
        Ok(())
    }
}
