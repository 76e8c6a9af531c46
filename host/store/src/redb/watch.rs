//! A watch on the file: the latest changes from memory, older ones from the file, and the end when those are gone.
//!
//! Holds no reference to the store between two batches, so a forgotten watch does not keep the file open.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, Weak};

use futures::stream;
use tokio::sync::watch::Receiver;

use super::recent::Lookup;
use super::{Shared, blocking, read};
use crate::error::StoreError;
use crate::records::{Batch, Revision};
use crate::watch::Watch;

/// A watch that has seen nothing of its own for this many revisions says how far it is.
const PROGRESS_REVISIONS: u64 = 1000;

struct Follower {
    shared: Weak<Shared>,
    latest: Receiver<Revision>,
    prefix: String,
    /// Everything before this revision has been seen.
    next: Revision,
    /// The last revision that its owner was told of.
    told: Revision,
    /// Read from the file and not yet delivered.
    pending: VecDeque<Batch>,
}

pub(super) fn start(
    shared: &Arc<Shared>,
    prefix: &str,
    from: Revision,
) -> Result<Watch, StoreError> {
    if from <= read::compacted(&shared.db)? {
        return Err(StoreError::Compacted);
    }
    let follower = Follower {
        shared: Arc::downgrade(shared),
        latest: shared.latest.subscribe(),
        prefix: prefix.to_owned(),
        next: from,
        told: from,
        pending: VecDeque::new(),
    };
    Ok(Watch::new(stream::unfold(
        Some(follower),
        |follower| async {
            let mut follower = follower?;
            match follower.next_batch().await {
                Ok(batch) => Some((Ok(batch), Some(follower))),
                Err(error) => Some((Err(error), None)),
            }
        },
    )))
}

impl Follower {
    async fn next_batch(&mut self) -> Result<Batch, StoreError> {
        let closed = || StoreError::Unavailable("the store was closed".into());
        loop {
            if let Some(batch) = self.pending.pop_front() {
                self.told = batch.revision;
                return Ok(batch);
            }
            // Before looking, so that a change in between wakes the wait below.
            self.latest.borrow_and_update();
            let shared = self.shared.upgrade().ok_or_else(closed)?;
            let lookup = shared
                .recent
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .find(&self.prefix, self.next);
            drop(shared);
            match lookup {
                Lookup::Found(batch) => {
                    self.next = batch.revision.next();
                    self.told = batch.revision;
                    let wanted = batch
                        .events
                        .iter()
                        .filter(|event| event.key().starts_with(&self.prefix));
                    return Ok(Batch {
                        revision: batch.revision,
                        events: wanted.cloned().collect(),
                    });
                }
                Lookup::NothingUntil(latest) => {
                    self.next = self.next.max(latest.next());
                    if latest.0 >= self.told.0.saturating_add(PROGRESS_REVISIONS) {
                        self.told = latest;
                        return Ok(Batch {
                            revision: latest,
                            events: Vec::new(),
                        });
                    }
                    self.latest.changed().await.map_err(|_| closed())?;
                }
                Lookup::TooOld => {
                    let shared = self.shared.upgrade().ok_or_else(closed)?;
                    let (prefix, from) = (self.prefix.clone(), self.next);
                    let (batches, done) =
                        blocking(move || read::changes(&shared.db, &prefix, from)).await?;
                    self.next = done.next();
                    self.pending = batches.into();
                }
            }
        }
    }
}
