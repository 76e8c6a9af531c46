//! What the fake keeps, and the helpers of its service.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use dwcp_api::service::{Answer, Fault, FaultKind, Page, PageRequest, Remembered, Versioned};
use dwcp_control::records::{
    Binding, Decision, Event, Host, Image, MarketplaceItem, Migration, Operation, OperationState,
    Plugin, Policy, Snapshot, Template, Vm,
};
use tokio::sync::{Semaphore, watch};

use super::audit::Log;
use super::sample::{self, NOW_MS, digest_of};

/// A key that is known.
pub const TEST_KEY: &str = "dwcp_test";
/// Another one.
pub const OTHER_KEY: &str = "dwcp_other";

/// A host in memory.
pub struct Fake {
    pub(super) state: Mutex<State>,
    /// How often a machine was really created.
    pub created: AtomicUsize,
    /// A machine named `slow` waits for a permit of this before it is created.
    pub gate: Semaphore,
    /// Machines that came to the gate.
    pub at_gate: watch::Sender<u32>,
    pub(super) skip_hashing: AtomicBool,
    /// One for each console that is attached, and one of ours.
    pub(super) attached: std::sync::Arc<()>,
    /// All events; watchers wait on it.
    pub(super) events: watch::Sender<Vec<Event>>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) revision: u64,
    pub(super) hosts: BTreeMap<String, Versioned<Host>>,
    pub(super) snapshots: BTreeMap<String, Versioned<Snapshot>>,
    pub(super) images: BTreeMap<String, Versioned<Image>>,
    pub(super) vms: BTreeMap<(String, String), Versioned<Vm>>,
    pub(super) migrations: BTreeMap<String, Versioned<Migration>>,
    pub(super) operations: HashMap<String, watch::Receiver<Operation>>,
    pub(super) marketplace: Vec<MarketplaceItem>,
    pub(super) plugins: BTreeMap<String, Versioned<Plugin>>,
    pub(super) templates: BTreeMap<String, Versioned<Template>>,
    pub(super) policies: BTreeMap<String, Versioned<Policy>>,
    pub(super) bindings: Vec<Binding>,
    pub(super) decisions: Vec<Decision>,
    pub(super) audit: Option<Log>,
    pub(super) remembered: HashMap<(String, String), Remembered>,
    pub(super) denied: Vec<String>,
}

impl State {
    pub(super) fn versioned<T>(&mut self, value: T) -> Versioned<T> {
        self.revision += 1;
        Versioned {
            value,
            revision: self.revision,
        }
    }

    pub(super) fn log(&mut self) -> &mut Log {
        self.audit.get_or_insert_with(Log::new)
    }
}

impl Fake {
    pub fn new() -> Self {
        let mut state = State {
            marketplace: sample::marketplace(),
            ..State::default()
        };
        let this = state.versioned(sample::this_host());
        state.hosts.insert("left".into(), this);
        Self {
            state: Mutex::new(state),
            created: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            at_gate: watch::channel(0).0,
            skip_hashing: AtomicBool::new(false),
            attached: std::sync::Arc::new(()),
            events: watch::channel(Vec::new()).0,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How often a machine was really created.
    pub fn created(&self) -> usize {
        self.created.load(Ordering::SeqCst)
    }

    /// Requests of nobody known that it was told of.
    pub fn denied(&self) -> Vec<String> {
        self.state().denied.clone()
    }

    /// Puts a machine there, as if it had been created.
    pub fn add_vm(&self, name: &str) {
        let request = serde_json::json!({"name": name, "template": "dwcp/worker"});
        let request = serde_json::from_value(request).unwrap();
        let vm = sample::vm(&sample::name("default"), &request, "none");
        let mut state = self.state();
        let vm = state.versioned(vm);
        state.vms.insert(("default".into(), name.into()), vm);
    }

    /// Machines that there are.
    pub fn vms(&self) -> usize {
        self.state().vms.len()
    }

    /// Consoles that are attached to the machine that prints without end.
    pub fn consoles(&self) -> usize {
        std::sync::Arc::strong_count(&self.attached) - 1
    }

    /// Takes images without hashing them, where only their length matters.
    pub fn skip_hashing(&self) {
        self.skip_hashing.store(true, Ordering::SeqCst);
    }

    /// Changes an entry of the audit log, as a thief would.
    pub fn tamper(&self, index: usize) {
        let mut state = self.state();
        let entry = &mut state.log().entries[index];
        *entry = entry.replacen("1700000000", "1700000001", 1);
    }

    /// Removes the newest entries of the audit log and signs what is left.
    pub fn cut_audit(&self, left: usize) {
        self.state().log().cut(left);
    }

    /// Writes an event and an audit entry.
    pub fn happened(&self, who: &str, kind: &str, object: &str, message: &str) {
        self.state().log().append(who, kind, object);
        self.events.send_modify(|events| {
            let sequence = events.len() as u64 + 1;
            events.push(Event {
                sequence,
                time_ms: NOW_MS + sequence,
                kind: kind.into(),
                object: object.into(),
                message: message.into(),
            });
        });
    }

    /// Starts an operation that goes through some states, the last of which ends it.
    pub(super) fn operate(&self, operation: Operation, states: Vec<Operation>) -> Operation {
        let (sender, receiver) = watch::channel(operation.clone());
        self.state()
            .operations
            .insert(operation.id.clone(), receiver);
        tokio::spawn(async move {
            for state in states {
                tokio::task::yield_now().await;
                sender.send_replace(state);
            }
            // Kept until watchers have gone, as the record would be.
            sender.closed().await;
        });
        operation
    }

    /// A started operation that just ends.
    pub(super) fn simple(&self, action: &str, object: &str) -> Operation {
        let operation = sample::operation(action, object);
        let done = finished(operation.clone());
        self.operate(operation, vec![done])
    }

    pub(super) fn record_decision(&self, world: &str, subject: &str, fault: bool) -> String {
        let mut state = self.state();
        let id = uuid::Uuid::now_v7().to_string();
        state.decisions.insert(
            0,
            Decision {
                id: id.clone(),
                time_ms: NOW_MS,
                world: world.into(),
                plugin: "dwcp/placement-default@1.0.0".into(),
                digest: digest_of(b"placement"),
                configuration: String::new(),
                subject: subject.into(),
                fleet: None,
                input: serde_json::json!({"memory_bytes": 536_870_912_u64}),
                answer: serde_json::json!({"host": "left", "score": 0.875}),
                fault,
                duration_us: 412,
            },
        );
        id
    }
}

pub(super) fn finished(mut operation: Operation) -> Operation {
    operation.state = OperationState::Done;
    operation.ended_ms = Some(NOW_MS + 1_000);
    operation
}

/// A part of a sorted list, the cursor being the key of its last object.
pub(super) fn part<T: Clone>(
    all: impl Iterator<Item = (String, T)>,
    page: &PageRequest,
) -> Page<T> {
    let after = page.cursor.clone().unwrap_or_default();
    let mut rest: Vec<(String, T)> = all
        .filter(|(key, _)| after.is_empty() || *key > after)
        .take(page.limit + 1)
        .collect();
    let more = rest.len() > page.limit;
    rest.truncate(page.limit);
    let last = rest.last().map(|(key, _)| key.clone());
    Page {
        items: rest.into_iter().map(|(_, value)| value).collect(),
        next_cursor: last.filter(|_| more),
    }
}

/// The same of versioned objects.
pub(super) fn part_of<T: Clone>(
    all: &BTreeMap<String, Versioned<T>>,
    page: &PageRequest,
) -> Page<T> {
    part(
        all.iter()
            .map(|(key, one)| (key.clone(), one.value.clone())),
        page,
    )
}

/// The object or 404.
pub(super) fn found<T: Clone>(
    all: &BTreeMap<String, Versioned<T>>,
    what: &str,
    key: &str,
) -> Answer<Versioned<T>> {
    all.get(key)
        .cloned()
        .ok_or_else(|| Fault::not_found(format!("{what} {key}")))
}

pub(super) fn refuse<T>(kind: FaultKind, message: &str) -> Answer<T> {
    Err(Fault::new(kind, message))
}
