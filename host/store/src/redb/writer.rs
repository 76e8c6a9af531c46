//! The one thread that writes: takes what has queued up, carries it all out in one write transaction, makes it durable
//! with one fsync, and only then answers.
//!
//! What always holds: an answer or an event leaves this thread only after its commit. At most [`QUEUE`] requests wait;
//! more wait in their senders.

use std::collections::VecDeque;
use std::sync::Arc;

use ::redb::WriteTransaction;
use tokio::sync::{mpsc, oneshot};

use super::apply::Session;
use super::tables::{META_COMPACTED, META_PURGED, META_REVISION};
use super::{Retention, Shared, fault};
use crate::error::StoreError;
use crate::records::{Batch, Op, Revision, Txn, TxnOutcome};

/// Most requests that wait for the writer.
pub(super) const QUEUE: usize = 1024;
/// Most requests, and bytes of values, that share a commit.
const GROUP_REQUESTS_MAX: usize = 512;
const GROUP_BYTES_MAX: usize = 16 << 20;
/// Fewest changes of the past cleaned up with a commit, while there are any.
const PURGE_ROWS_MIN: usize = 512;

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Request {
    Transact(Txn, oneshot::Sender<Result<TxnOutcome, StoreError>>),
    Compact(Revision, oneshot::Sender<Result<(), StoreError>>),
}

impl Request {
    fn bytes(&self) -> usize {
        let Self::Transact(txn, _) = self else {
            return 0;
        };
        let value_bytes = |op: &Op| {
            if let Op::Put { value, .. } = op {
                value.len()
            } else {
                0
            }
        };
        txn.then.iter().chain(&txn.otherwise).map(value_bytes).sum()
    }

    /// Answers; whoever asked may be gone.
    fn answer(self, answer: Answer) {
        match (self, answer) {
            (Self::Transact(_, reply), Answer::Transact(outcome)) => drop(reply.send(Ok(outcome))),
            (Self::Compact(_, reply), Answer::Compact(result)) => drop(reply.send(result)),
            (request, _) => request.refuse("the writer mixed up its answers"),
        }
    }

    fn refuse(self, why: &str) {
        let error = StoreError::Unavailable(why.into());
        match self {
            Self::Transact(_, reply) => drop(reply.send(Err(error))),
            Self::Compact(_, reply) => drop(reply.send(Err(error))),
        }
    }
}

/// An answer that waits for the commit.
enum Answer {
    Transact(TxnOutcome),
    Compact(Result<(), StoreError>),
}

/// Where the file stands.
#[derive(Debug, Clone)]
pub(super) struct Position {
    pub(super) latest: Revision,
    pub(super) compacted: Revision,
    pub(super) purged: Revision,
    /// Revisions that are kept for watches, oldest first, with what each costs in bytes.
    pub(super) kept: VecDeque<(Revision, u64)>,
    pub(super) kept_bytes: u64,
}

impl Position {
    /// Counts what one revision costs.
    pub(super) fn keep(&mut self, revision: Revision, cost_bytes: u64) {
        self.kept.push_back((revision, cost_bytes));
        self.kept_bytes += cost_bytes;
    }

    /// Gives up what is at or before `revision`.
    fn compact(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision);
        while let Some((_, cost_bytes)) = self
            .kept
            .pop_front_if(|(oldest, _)| *oldest <= self.compacted)
        {
            self.kept_bytes -= cost_bytes;
        }
    }

    fn retain(&mut self, retention: &Retention) {
        while self.kept.len() > retention.revisions || self.kept_bytes > retention.bytes {
            let Some((oldest, _)) = self.kept.front().copied() else {
                break;
            };
            self.compact(oldest);
        }
    }
}

/// Runs until every sender is gone.
pub(super) fn run(
    shared: &Shared,
    retention: Retention,
    position: Position,
    mut requests: mpsc::Receiver<Request>,
) {
    let mut writer = Writer {
        shared,
        retention,
        position,
    };
    loop {
        let behind = writer.position.purged < writer.position.compacted;
        let first = if behind {
            requests.try_recv().ok()
        } else {
            requests.blocking_recv()
        };
        if first.is_none() && (!behind || requests.is_closed()) {
            return;
        }
        let mut group: Vec<Request> = first.into_iter().collect();
        let mut bytes: usize = group.iter().map(Request::bytes).sum();
        while group.len() < GROUP_REQUESTS_MAX && bytes < GROUP_BYTES_MAX {
            let Ok(request) = requests.try_recv() else {
                break;
            };
            bytes += request.bytes();
            group.push(request);
        }
        if let Err(cause) = writer.commit_or_split(group) {
            return refuse_all(&cause, requests);
        }
    }
}

/// After a failed commit nobody knows what the file holds until it is opened again, so nothing more is written.
fn refuse_all(cause: &StoreError, mut requests: mpsc::Receiver<Request>) {
    while let Some(request) = requests.blocking_recv() {
        request.refuse(&format!(
            "writing failed earlier and needs a restart: {}",
            full_text(cause)
        ));
    }
}

/// An error with its causes, for an answer that several get.
fn full_text(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

struct Writer<'s> {
    shared: &'s Shared,
    retention: Retention,
    position: Position,
}

impl Writer<'_> {
    /// Commits a group; when one of its requests cannot be carried out, each alone, so that the others are. Fails only
    /// when the file does.
    fn commit_or_split(&mut self, group: Vec<Request>) -> Result<(), StoreError> {
        match self.commit(&group)? {
            Ok(answers) => {
                for (request, answer) in group.into_iter().zip(answers) {
                    request.answer(answer);
                }
            }
            Err(_) if group.len() > 1 => {
                for request in group {
                    self.commit_or_split(vec![request])?;
                }
            }
            Err(error) => {
                let cleaning_up = group.is_empty();
                for request in group {
                    request.refuse(&full_text(&error));
                }
                if cleaning_up {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The outer error is the file's failure, the inner one that of carrying out a request, with nothing changed.
    fn commit(&mut self, group: &[Request]) -> Result<Result<Vec<Answer>, StoreError>, StoreError> {
        let txn = self.shared.db.begin_write().map_err(fault)?;
        let mut position = self.position.clone();
        let (answers, batches) = match Self::carry_out(&txn, group, &mut position, &self.retention)
        {
            Ok(done) => done,
            Err(error) => {
                txn.abort().map_err(fault)?;
                return Ok(Err(error));
            }
        };
        let unchanged = position.latest == self.position.latest
            && position.compacted == self.position.compacted
            && position.purged == self.position.purged;
        if unchanged {
            txn.abort().map_err(fault)?;
        } else {
            txn.commit().map_err(fault)?;
            self.position = position;
            self.shared.publish(batches, self.position.latest);
        }
        Ok(Ok(answers))
    }

    fn carry_out(
        txn: &WriteTransaction,
        group: &[Request],
        position: &mut Position,
        retention: &Retention,
    ) -> Result<(Vec<Answer>, Vec<Arc<Batch>>), StoreError> {
        let mut session = Session::open(txn)?;
        let mut answers = Vec::with_capacity(group.len());
        let mut batches = Vec::new();
        let mut changes = 0;
        for request in group {
            answers.push(match request {
                Request::Transact(txn, _) => {
                    let applied = session.apply(txn, position.latest)?;
                    if let Some(batch) = applied.batch {
                        position.latest = batch.revision;
                        position.keep(batch.revision, applied.cost_bytes);
                        changes += batch.events.len();
                        batches.push(batch);
                    }
                    Answer::Transact(applied.outcome)
                }
                Request::Compact(revision, _) if *revision <= position.compacted => {
                    Answer::Compact(Err(StoreError::Compacted))
                }
                Request::Compact(revision, _) if *revision > position.latest => {
                    Answer::Compact(Err(StoreError::FutureRevision))
                }
                Request::Compact(revision, _) => {
                    position.compact(*revision);
                    Answer::Compact(Ok(()))
                }
            });
        }
        position.retain(retention);
        if position.purged < position.compacted {
            position.purged = session.purge(position.compacted, PURGE_ROWS_MIN.max(2 * changes))?;
        }
        session.set_meta(META_REVISION, position.latest)?;
        session.set_meta(META_COMPACTED, position.compacted)?;
        session.set_meta(META_PURGED, position.purged)?;
        Ok((answers, batches))
    }
}
