//! The latest changes in memory, so that a watch which keeps up reads no file.
//!
//! Bounded in number and bytes; values are shared with the requests they came from. Always a gapless tail of history:
//! every change after `floor` is here.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::records::{Batch, Event, Revision};

const BATCHES_MAX: usize = 4096;
const BYTES_MAX: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Recent {
    batches: VecDeque<(Arc<Batch>, usize)>,
    bytes: usize,
    floor: Revision,
    latest: Revision,
}

/// What is known in memory about the changes from some revision on.
#[derive(Debug)]
pub(super) enum Lookup {
    /// The first batch with a matching key; none of those skipped had one.
    Found(Arc<Batch>),
    /// No match up to this revision, the latest.
    NothingUntil(Revision),
    /// The answer begins before what is kept here.
    TooOld,
}

impl Recent {
    pub(super) fn new(latest: Revision) -> Self {
        Self {
            batches: VecDeque::new(),
            bytes: 0,
            floor: latest,
            latest,
        }
    }

    pub(super) fn push(&mut self, batch: Arc<Batch>) {
        self.latest = batch.revision;
        let bytes = batch
            .events
            .iter()
            .map(|event| match event {
                Event::Put(entry) => entry.key.len() + entry.value.len(),
                Event::Delete { key, .. } => key.len(),
            })
            .sum();
        self.bytes += bytes;
        self.batches.push_back((batch, bytes));
        while self.batches.len() > BATCHES_MAX || self.bytes > BYTES_MAX {
            let Some((oldest, bytes)) = self.batches.pop_front() else {
                break;
            };
            self.bytes -= bytes;
            self.floor = oldest.revision;
        }
    }

    /// The first change from `from` on whose key begins with `prefix`.
    pub(super) fn find(&self, prefix: &str, from: Revision) -> Lookup {
        if from <= self.floor {
            return Lookup::TooOld;
        }
        let start = self
            .batches
            .partition_point(|(batch, _)| batch.revision < from);
        self.batches
            .range(start..)
            .find(|(batch, _)| {
                batch
                    .events
                    .iter()
                    .any(|event| event.key().starts_with(prefix))
            })
            .map_or(Lookup::NothingUntil(self.latest), |(batch, _)| {
                Lookup::Found(batch.clone())
            })
    }
}
