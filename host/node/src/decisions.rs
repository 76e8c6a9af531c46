//! The decisions that are kept: each durable before its answer is used, the newest ones only, found by id.
//!
//! What always holds: who asks through [`Decisions::decide`] gets the answer only after every record of it is stored;
//! what is kept is enough to decide again (component and configuration by digest, input, and for placement the fleet),
//! unless a part was too large, which then says so in its place.
//!
//! What it must not know: what is decided, and by which plugin.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dwcp_api::service::{Answer, Page, PageRequest};
use dwcp_control::records::Decision;
use dwcp_plugins::{DecisionRecord, Outcome, Recorder, Stamp, World};
use dwcp_store::{Entry, Op, StoreError, Txn, TypedError};
use serde_json::{Value, json};

use crate::errors::{chain, internal, record};
use crate::state::{Records, newest_first, now_ms, page};

/// Decisions kept.
const DECISIONS_MAX: usize = 10_000;
/// Decisions stored between two looks at how many are kept.
const TRIM_EVERY: usize = 500;
/// Decisions held in memory at a time, and stored or removed in one transaction.
const PAGE: usize = 100;
/// Longest id of a decision: a UUID, a slash, a policy's name.
const ID_BYTES_MAX: usize = 36 + 1 + 64;
/// Largest input, answer or fleet that is kept; three of them fit into a value of the store.
const PART_BYTES_MAX: usize = 384 << 10;
/// Texts of decisions stored in one transaction; one decision more still fits into a request of the store.
const TRANSACTION_BYTES: usize = 256 << 10;
/// Components of which calls are counted; a host has few, and old ones are forgotten with the process.
const COUNTED_MAX: usize = 1_024;

/// What a decision is about.
#[derive(Debug, Default)]
pub(crate) struct About {
    /// Such as `projects/default/vms/web`.
    pub subject: String,
    /// The fleet that placement decides on, JSON text; empty in other worlds.
    pub fleet: String,
}

impl About {
    pub(crate) fn subject(subject: &str) -> Self {
        Self {
            subject: subject.to_owned(),
            fleet: String::new(),
        }
    }
}

/// What a question under way has led to so far.
#[derive(Debug, Default)]
struct Open {
    records: Vec<DecisionRecord>,
}

/// Keeps decisions.
#[derive(Debug)]
pub(crate) struct Decisions {
    records: Records,
    /// Questions under way, by their ids. As many as threads that decide.
    open: Mutex<HashMap<String, Open>>,
    /// Calls and faults of components that decide for policies.
    policy_usage: Mutex<HashMap<String, (u64, u64)>>,
    since_trim: AtomicUsize,
}

impl Recorder for Decisions {
    fn record(&self, record: DecisionRecord) {
        // A policy's own record is named after the question's, with the policy behind a slash.
        let (question, policy) = match record.id.split_once('/') {
            Some((question, _)) => (question, true),
            None => (record.id.as_str(), false),
        };
        if policy && record.world == World::Policy {
            self.count(&record);
        }
        match self.open().get_mut(question) {
            Some(open) => open.records.push(record),
            None => tracing::error!("decision {} has no question: it is not kept", record.id),
        }
    }
}

impl Decisions {
    pub(crate) fn new(records: Records) -> Self {
        Self {
            records,
            open: Mutex::default(),
            policy_usage: Mutex::default(),
            since_trim: AtomicUsize::new(0),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usages(&self) -> MutexGuard<'_, HashMap<String, (u64, u64)>> {
        let usage = self.policy_usage.lock();
        usage.unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, record: &DecisionRecord) {
        let mut usage = self.usages();
        if usage.len() >= COUNTED_MAX && !usage.contains_key(&record.digest) {
            return;
        }
        let (calls, faults) = usage.entry(record.digest.clone()).or_default();
        *calls += 1;
        *faults += u64::from(matches!(record.outcome, Outcome::Fault(_)));
    }

    /// Calls and faults of a component on behalf of policies, since the daemon started.
    pub(crate) fn policy_usage(&self, digest: &str) -> (u64, u64) {
        self.usages().get(digest).copied().unwrap_or_default()
    }

    /// Runs `decide` on a thread that may block, stores what it recorded, and only then gives its answer, with the
    /// decision's id.
    pub(crate) async fn decide<T: Send + 'static>(
        &self,
        about: About,
        decide: impl FnOnce(&Stamp) -> T + Send + 'static,
    ) -> Answer<(String, T)> {
        // The time is the id's own, so that the record can be found by its id.
        let uuid = uuid::Uuid::now_v7();
        let id = uuid.to_string();
        let stamp = Stamp::new(id.clone(), uuid_ms(&uuid).unwrap_or_else(now_ms));
        self.open().insert(id.clone(), Open::default());
        let decided = tokio::task::spawn_blocking(move || decide(&stamp)).await;
        let open = self.open().remove(&id).unwrap_or_default();
        self.keep(&about, open.records).await?;
        Ok((id, decided.map_err(internal)?))
    }

    /// Stores records, and drops the oldest beyond what is kept.
    async fn keep(&self, about: &About, made: Vec<DecisionRecord>) -> Answer<()> {
        let count = made.len();
        let mut txn = Txn::new();
        let (mut bytes, mut operations) = (0, 0);
        for one in made {
            bytes += one.input.len() + about.fleet.len() + answer_bytes(&one);
            let key = newest_first(one.at_ms, &one.id);
            let decision = decision(about, one);
            let op = self.records.decisions.put_op(&key, &decision);
            txn = txn.then(op.map_err(record)?);
            operations += 1;
            if bytes >= TRANSACTION_BYTES || operations >= PAGE {
                self.store(std::mem::take(&mut txn)).await?;
                (bytes, operations) = (0, 0);
            }
        }
        if operations > 0 {
            self.store(txn).await?;
        }
        if self.since_trim.fetch_add(count, Ordering::Relaxed) + count >= TRIM_EVERY {
            self.since_trim.store(0, Ordering::Relaxed);
            if let Err(error) = trim_to(&self.records, DECISIONS_MAX).await {
                tracing::error!("old decisions are not removed: {}", chain(&error));
            }
        }
        Ok(())
    }

    async fn store(&self, txn: Txn) -> Answer<()> {
        let stored = self.records.store.transact(txn).await;
        stored.map(drop).map_err(|error| record(error.into()))
    }
}

fn answer_bytes(record: &DecisionRecord) -> usize {
    match &record.outcome {
        Outcome::Answer(text) => text.len(),
        Outcome::Fault(_) => 0,
    }
}

fn decision(about: &About, record: DecisionRecord) -> Decision {
    let (answer, fault) = match &record.outcome {
        Outcome::Answer(text) => (part(text), false),
        Outcome::Fault(fault) => (Value::String(fault.to_string()), true),
    };
    Decision {
        id: record.id,
        time_ms: record.at_ms,
        world: record.world.name().into(),
        plugin: record.plugin,
        digest: record.digest,
        configuration: record.configuration,
        subject: about.subject.clone(),
        input: part(&record.input),
        fleet: (!about.fleet.is_empty()).then(|| part(&about.fleet)),
        answer,
        fault,
        duration_us: record.duration_us,
    }
}

/// A part of a decision as it is kept; one that is too large says so.
fn part(text: &str) -> Value {
    if text.len() > PART_BYTES_MAX {
        return json!({ "left_out_bytes": text.len() });
    }
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.into()))
}

/// Deletes what lies beyond the newest `max`; holds one page of them at a time.
async fn trim_to(records: &Records, max: usize) -> Result<(), StoreError> {
    let prefix = records.decisions.key("");
    let mut seen = 0usize;
    let mut after: Option<String> = None;
    loop {
        let page = records
            .store
            .range(&prefix, after.as_deref(), PAGE, None)
            .await?;
        after = page.next_after().map(str::to_owned);
        let kept = max.saturating_sub(seen).min(page.entries.len());
        seen += page.entries.len();
        if let Some(old) = page.entries.get(kept..).filter(|old| !old.is_empty()) {
            let delete = |txn: Txn, old: &Entry| txn.then(Op::delete(old.key.clone()));
            let txn = old.iter().fold(Txn::new(), delete);
            records.store.transact(txn).await?;
        }
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Decisions, newest first; of one subject, if one is named.
pub(crate) async fn list(
    records: &Records,
    subject: Option<&str>,
    request: PageRequest,
) -> Answer<Page<Decision>> {
    let Some(subject) = subject else {
        return page(&records.decisions, "", request, |found| found.value).await;
    };
    // They are kept by time; of one subject they are few among a bounded number.
    let mut items = Vec::new();
    let mut cursor = request.cursor;
    loop {
        let part = PageRequest {
            cursor: cursor.clone(),
            limit: PAGE,
        };
        let found = page(&records.decisions, "", part, |f| (f.id, f.value)).await?;
        for (id, decision) in found.items {
            if decision.subject == subject {
                items.push(decision);
            }
            if items.len() == request.limit {
                let next_cursor = Some(id);
                return Ok(Page { items, next_cursor });
            }
        }
        cursor = found.next_cursor;
        if cursor.is_none() {
            let next_cursor = None;
            return Ok(Page { items, next_cursor });
        }
    }
}

/// One decision by its id, which ends in `/POLICY` where a policy set asked one of its policies.
pub(crate) async fn find(records: &Records, id: &str) -> Result<Option<Decision>, TypedError> {
    // Every id begins with a UUID, which says when the decision was made, and so where it lies.
    let uuid = id.get(..36).and_then(|text| text.parse().ok());
    let Some(time_ms) = uuid.as_ref().and_then(uuid_ms) else {
        return Ok(None);
    };
    if id.len() > ID_BYTES_MAX {
        return Ok(None);
    }
    if let Some(found) = records.decisions.get(&newest_first(time_ms, id)).await? {
        return Ok(Some(found.value));
    }
    // Its time was taken from the clock a moment later, as older versions did.
    let mut after: Option<String> = None;
    loop {
        let page = records.decisions.list(after.as_deref(), PAGE, None).await?;
        after = page.records.last().map(|last| last.id.clone());
        let more = page.more;
        let mut found = page.records.into_iter().map(|found| found.value);
        if let Some(found) = found.find(|found| found.id == id) {
            return Ok(Some(found));
        }
        if !more || after.is_none() {
            return Ok(None);
        }
    }
}

/// The time in a UUID of version 7, ms.
fn uuid_ms(uuid: &uuid::Uuid) -> Option<u64> {
    let (seconds, nanos) = uuid.get_timestamp()?.to_unix();
    Some(seconds * 1000 + u64::from(nanos) / 1_000_000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use dwcp_plugins::Fault;
    use dwcp_plugins::FaultKind;
    use dwcp_store::RedbStore;

    use super::*;

    fn decision(id: &str, time_ms: u64) -> Decision {
        Decision {
            id: id.into(),
            time_ms,
            world: "policy".into(),
            plugin: String::new(),
            digest: String::new(),
            configuration: String::new(),
            fleet: None,
            subject: String::new(),
            input: serde_json::Value::Null,
            answer: serde_json::Value::Null,
            fault: false,
            duration_us: 0,
        }
    }

    #[tokio::test]
    async fn the_newest_decisions_are_kept_and_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path().join("store.redb")).unwrap();
        let records = Records::new(Arc::new(store));
        let mut ids = Vec::new();
        for number in 0..2 * PAGE as u64 + 50 {
            let time_ms = 1_700_000_000_000 + number;
            let time = uuid::Timestamp::from_unix(
                uuid::NoContext,
                time_ms / 1000,
                (time_ms % 1000) as u32 * 1_000_000,
            );
            let id = format!("{}/rule", uuid::Uuid::new_v7(time));
            // Some were kept under a later time than their id's.
            let key = newest_first(time_ms + number % 2, &id);
            let op = records.decisions.put_op(&key, &decision(&id, time_ms));
            records
                .store
                .transact(Txn::new().then(op.unwrap()))
                .await
                .unwrap();
            ids.push(id);
        }
        trim_to(&records, 60).await.unwrap();
        let left = records.all(&records.decisions).await.unwrap();
        assert_eq!(left.len(), 60);
        for (age, id) in ids.iter().rev().enumerate().step_by(7) {
            // The two around the border may have changed places.
            if (58..=62).contains(&age) {
                continue;
            }
            let found = find(&records, id).await.unwrap();
            assert_eq!(found.is_some(), age < 60, "age {age}");
        }
        assert!(find(&records, "nonsense").await.unwrap().is_none());
        assert!(find(&records, &"é".repeat(30)).await.unwrap().is_none());
    }

    fn made(id: &str, outcome: Outcome) -> DecisionRecord {
        DecisionRecord {
            id: id.into(),
            at_ms: 1_700_000_000_000,
            world: World::Policy,
            plugin: "dwcp/policy-rego@1.0.0".into(),
            digest: "d1".into(),
            configuration: "c1".into(),
            input: r#"{"a":1}"#.into(),
            outcome,
            duration_us: 7,
        }
    }

    #[tokio::test]
    async fn a_decision_is_kept_before_it_is_answered_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path().join("store.redb")).unwrap();
        let decisions = Arc::new(Decisions::new(Records::new(Arc::new(store))));
        let about = About {
            subject: "projects/default/vms/web".into(),
            fleet: r#"{"hosts":[]}"#.into(),
        };
        let recorder = decisions.clone();
        let deciding = move |stamp: &Stamp| {
            let answer = Outcome::Answer("true".into());
            recorder.record(made(&stamp.id, answer.clone()));
            recorder.record(made(&format!("{}/one", stamp.id), answer));
            let fault = Fault::new(FaultKind::Answer, "it failed");
            recorder.record(made(&format!("{}/two", stamp.id), Outcome::Fault(fault)));
        };
        let (id, ()) = decisions.decide(about, deciding).await.unwrap();
        assert_eq!(decisions.policy_usage("d1"), (2, 1));
        assert_eq!(decisions.policy_usage("other"), (0, 0));
        let kept = decisions.records.all(&decisions.records.decisions).await;
        let kept: Vec<Decision> = kept.unwrap().into_iter().map(|found| found.value).collect();
        assert_eq!(kept.len(), 3);
        assert!(kept.iter().all(|one| one.id.starts_with(&id)));
        assert!(kept.iter().all(|one| one.configuration == "c1"));
        assert_eq!(kept[0].fleet, Some(json!({ "hosts": [] })));
        assert!(decisions.open().is_empty());
    }

    #[test]
    fn what_is_too_large_says_so() {
        let long = format!("\"{}\"", "x".repeat(PART_BYTES_MAX));
        assert_eq!(part(&long), json!({ "left_out_bytes": long.len() }));
        assert_eq!(part("[1]"), json!([1]));
        assert_eq!(part("no JSON"), json!("no JSON"));
    }
}
