//! Events and operations: what happened, and what is under way.
//!
//! An event is durable before anyone hears of it. An operation that was under way when the daemon died is found again
//! and ended at the next start, so that nobody waits for ever.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dwcp_api::Fault;
use dwcp_api::service::{Answer, RecordStream};
use dwcp_control::records::{Event, Migration, Operation, OperationState};
use dwcp_store::TypedError;
use futures::StreamExt;
use tokio::sync::{broadcast, watch};

use crate::errors::{chain, record};
use crate::state::{Records, now_ms};

/// Events kept; older ones are dropped.
const EVENTS_MAX: u64 = 10_000;
/// Ended operations whose last state is kept in memory.
const ENDED_MAX: usize = 1_000;

/// Events of a host.
#[derive(Debug)]
pub(crate) struct Events {
    records: Records,
    next: AtomicU64,
    live: broadcast::Sender<Event>,
}

fn key(sequence: u64) -> String {
    format!("{sequence:020}")
}

impl Events {
    pub(crate) async fn open(records: Records) -> Result<Self, TypedError> {
        // Sequence numbers only need to grow; the newest is found by walking the bounded list once.
        let mut last = 0;
        let mut after: Option<String> = None;
        loop {
            let page = records.events.list(after.as_deref(), 500, None).await?;
            if let Some(newest) = page.records.last() {
                last = newest.value.sequence;
                after = Some(newest.id.clone());
            }
            if !page.more {
                break;
            }
        }
        let (live, _) = broadcast::channel(1024);
        Ok(Self {
            records,
            next: AtomicU64::new(last + 1),
            live,
        })
    }

    /// Records that something happened. A store that fails is said in the log: what happened, happened.
    pub(crate) async fn emit(&self, kind: &str, object: &str, message: impl Into<String>) {
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        let event = Event {
            sequence,
            time_ms: now_ms(),
            kind: kind.into(),
            object: object.into(),
            message: message.into(),
        };
        tracing::info!(kind, object, "{}", event.message);
        if let Err(error) = self.records.events.put(&key(sequence), &event).await {
            tracing::error!("an event is not stored: {}", chain(&error));
        }
        if sequence > EVENTS_MAX {
            let _ = self
                .records
                .events
                .delete(&key(sequence - EVENTS_MAX))
                .await;
        }
        let _ = self.live.send(event);
    }

    /// Events after a sequence number, oldest first.
    pub(crate) async fn list(&self, after: u64, limit: usize) -> Answer<(Vec<Event>, bool)> {
        let page = self
            .records
            .events
            .list(Some(&key(after)), limit, None)
            .await
            .map_err(record)?;
        let more = page.more;
        Ok((page.records.into_iter().map(|r| r.value).collect(), more))
    }

    /// Events after a sequence number, and then as they happen. A reader who falls behind gets what it missed from the
    /// store.
    pub(crate) fn watch(self: &Arc<Self>, after: u64) -> RecordStream<Event> {
        let live = self.live.subscribe();
        let state = (self.clone(), live, after, std::collections::VecDeque::new());
        Box::pin(futures::stream::unfold(
            state,
            |(events, mut live, mut after, mut ready)| async move {
                loop {
                    if let Some(event) = ready.pop_front() {
                        let event: Event = event;
                        after = event.sequence;
                        return Some((event, (events, live, after, ready)));
                    }
                    let (stored, _) = events.list(after, 500).await.ok()?;
                    if !stored.is_empty() {
                        ready.extend(stored);
                        continue;
                    }
                    // Nothing stored: wait until something is said, then read it from the store, in order.
                    if let Err(broadcast::error::RecvError::Closed) = live.recv().await {
                        return None;
                    }
                }
            },
        ))
    }
}

/// Operations of a host.
#[derive(Debug)]
pub(crate) struct Operations {
    records: Records,
    live: Mutex<HashMap<String, watch::Sender<Operation>>>,
}

/// An operation under way, as the one that carries it out holds it.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    id: String,
    operations: Arc<Operations>,
}

impl Operations {
    pub(crate) async fn open(records: Records) -> Result<Arc<Self>, TypedError> {
        for found in records.all(&records.operations).await? {
            if found.value.state == OperationState::Running {
                let mut operation = found.value;
                operation.state = OperationState::Failed;
                operation.message =
                    "The daemon ended while this was under way: look at the object itself".into();
                operation.ended_ms = Some(now_ms());
                records.operations.put(&found.id, &operation).await?;
            }
        }
        Ok(Arc::new(Self {
            records,
            live: Mutex::new(HashMap::new()),
        }))
    }

    /// Begins an operation; it is durable when this returns.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        action: &str,
        object: &str,
        message: &str,
    ) -> Answer<(Operation, Running)> {
        self.begin_warned(action, object, message, Vec::new()).await
    }

    /// The same for one that policies let pass with warnings.
    pub(crate) async fn begin_warned(
        self: &Arc<Self>,
        action: &str,
        object: &str,
        message: &str,
        warnings: Vec<String>,
    ) -> Answer<(Operation, Running)> {
        let operation = Operation {
            id: uuid::Uuid::now_v7().to_string(),
            action: action.into(),
            object: object.into(),
            state: OperationState::Running,
            message: message.into(),
            warnings,
            started_ms: now_ms(),
            ended_ms: None,
            migration: None,
        };
        self.records
            .operations
            .put(&operation.id, &operation)
            .await
            .map_err(record)?;
        let (sender, _) = watch::channel(operation.clone());
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.len() >= ENDED_MAX {
            live.retain(|_, s| s.borrow().state == OperationState::Running);
        }
        live.insert(operation.id.clone(), sender);
        let running = Running {
            id: operation.id.clone(),
            operations: self.clone(),
        };
        Ok((operation, running))
    }

    /// One operation as it is now.
    pub(crate) async fn get(&self, id: &str) -> Answer<Operation> {
        let live = self.lock().get(id).map(|s| s.borrow().clone());
        if let Some(operation) = live {
            return Ok(operation);
        }
        let found = self.records.operations.get(id).await.map_err(record)?;
        found
            .map(|f| f.value)
            .ok_or_else(|| Fault::not_found(format!("operation {id}")))
    }

    /// Its states until it ends, the current one first.
    pub(crate) async fn watch(&self, id: &str) -> Answer<RecordStream<Operation>> {
        let receiver = self.lock().get(id).map(watch::Sender::subscribe);
        let Some(receiver) = receiver else {
            let operation = self.get(id).await?;
            return Ok(Box::pin(futures::stream::once(async { operation })));
        };
        let states = tokio_stream::wrappers::WatchStream::new(receiver);
        let ended = std::cell::Cell::new(false);
        Ok(Box::pin(states.take_while(move |operation| {
            // The last state goes out too, and nothing after it.
            let before = ended.replace(operation.state != OperationState::Running);
            std::future::ready(!before)
        })))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, watch::Sender<Operation>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// The operation's identity.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    fn change(&self, change: impl FnOnce(&mut Operation)) -> Option<Operation> {
        let live = self.operations.lock();
        let sender = live.get(&self.id)?;
        sender.send_modify(change);
        Some(sender.borrow().clone())
    }

    /// Says what is being done now.
    pub(crate) fn say(&self, message: impl Into<String>) {
        self.change(|operation| operation.message = message.into());
    }

    /// Shows how a migration stands.
    pub(crate) fn show(&self, migration: &Migration) {
        self.change(|operation| operation.migration = Some(Box::new(migration.clone())));
    }

    /// Ends the operation; durable when this returns, as far as the store works.
    pub(crate) async fn end(&self, result: &Answer<String>) {
        let ended = self.change(|operation| {
            operation.ended_ms = Some(now_ms());
            match result {
                Ok(message) => {
                    operation.state = OperationState::Done;
                    operation.message.clone_from(message);
                }
                Err(fault) => {
                    operation.state = OperationState::Failed;
                    operation.message.clone_from(&fault.message);
                }
            }
        });
        if let Some(operation) = ended
            && let Err(error) = self
                .operations
                .records
                .operations
                .put(&self.id, &operation)
                .await
        {
            tracing::error!("the end of an operation is not stored: {}", chain(&error));
        }
    }
}
