//! Decisions of plugins: which component decides in which world, what it is asked, and what is kept of it.
//!
//! A plugin that fails costs its answer, not the request: placement falls back to this host, if it fits. What it said is
//! checked again before anything is reserved. (Policies are the exception: there a fault denies.)

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dwcp_api::Fault;
use dwcp_api::service::Answer;
use dwcp_control::records::{Decision, Placement as Placed, Template as TemplateRecord, VmSpec};
use dwcp_plugins::placement::{Batch, Fleet, Free, Host, Region, Relation, Request, Scope, Term};
use dwcp_plugins::{
    Compiled, DecisionRecord, Document, Outcome, Placement, Recorder, Sandbox, SandboxConfig,
    Setup, Stamp, Template, TemplateError, VmSpec as Expanded, World,
};
use dwcp_store::{Entry, Op, StoreError, Txn, TypedError};
use tokio::sync::mpsc;

use crate::config::NodeConfig;
use crate::errors::{NodeError, chain, impossible, internal, invalid};
use crate::node::Node;
use crate::state::{Records, newest_first, now_ms};

/// Decisions on their way to the store; a decision waits when they are this many.
const QUEUE_MAX: usize = 1024;
/// Decisions kept.
const DECISIONS_MAX: usize = 10_000;
/// Decisions held in memory at a time, and removed in one transaction.
const PAGE: usize = 100;
/// Longest id of a decision: a UUID, a slash, a policy's name.
const ID_BYTES_MAX: usize = 36 + 1 + 64;

/// The plugins in use.
#[derive(Default)]
struct InUse {
    placement: Option<Arc<Placement>>,
    /// Template expanders, by `publisher/name`.
    templates: HashMap<String, Arc<Template>>,
    rego: Option<Compiled>,
}

/// Asks plugins and keeps what they decided.
pub(crate) struct Decider {
    sandbox: Arc<Sandbox>,
    recorder: Arc<StoreRecorder>,
    in_use: RwLock<InUse>,
    revision: AtomicU64,
    dir: PathBuf,
}

impl std::fmt::Debug for Decider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decider").finish_non_exhaustive()
    }
}

/// Takes decisions from the deciding threads to the store.
pub(crate) struct StoreRecorder {
    queue: mpsc::Sender<(DecisionRecord, String)>,
    /// What a decision under way is about, by its id.
    subjects: Mutex<HashMap<String, String>>,
}

impl Recorder for StoreRecorder {
    fn record(&self, record: DecisionRecord) {
        // A policy's own record is named after the question's, with the policy behind a slash.
        let question = record.id.split('/').next().unwrap_or_default();
        let subject = self.subjects().get(question).cloned().unwrap_or_default();
        if self.queue.blocking_send((record, subject)).is_err() {
            tracing::error!("a decision is not recorded: the recorder has ended");
        }
    }
}

impl StoreRecorder {
    fn subjects(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.subjects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `decide` with a new stamp whose records are about `subject`.
    pub(crate) fn about<T>(&self, subject: &str, decide: impl FnOnce(&Stamp) -> T) -> (String, T) {
        // The time is the id's own, so that the record can be found by its id.
        let id = uuid::Uuid::now_v7();
        let stamp = Stamp::new(id.to_string(), uuid_ms(&id).unwrap_or_else(now_ms));
        self.subjects().insert(stamp.id.clone(), subject.to_owned());
        let answer = decide(&stamp);
        self.subjects().remove(&stamp.id);
        (stamp.id, answer)
    }
}

impl Decider {
    pub(crate) async fn open(config: &NodeConfig, records: Records) -> Result<Self, NodeError> {
        let (queue, decisions) = mpsc::channel(QUEUE_MAX);
        let recorder = Arc::new(StoreRecorder {
            queue,
            subjects: Mutex::default(),
        });
        let dir = config.dir("plugins");
        std::fs::create_dir_all(dir.join("sha256")).map_err(|source| NodeError::State {
            path: dir.clone(),
            source,
        })?;
        let setup = SandboxConfig::below(&dir, recorder.clone());
        let sandbox = Sandbox::new(setup).map_err(|error| NodeError::Sandbox(chain(&error)))?;
        tokio::spawn(keep(records.clone(), decisions));
        let decider = Self {
            sandbox,
            recorder,
            in_use: RwLock::default(),
            revision: AtomicU64::new(0),
            dir,
        };
        for found in records.all(&records.plugins).await? {
            let plugin = found.value;
            if !plugin.active {
                continue;
            }
            // A plugin that does not open now is left out: what it decided falls back, and the operator is told.
            if let Err(fault) = decider.activate(&plugin.digest).await {
                tracing::error!("plugin {} does not open: {fault}", plugin.name);
            }
        }
        Ok(decider)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, InUse> {
        self.in_use.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, InUse> {
        self.in_use.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sandbox(&self) -> Arc<Sandbox> {
        self.sandbox.clone()
    }

    pub(crate) fn recorder(&self) -> Arc<StoreRecorder> {
        self.recorder.clone()
    }

    /// The component that decides Rego, if one is installed.
    pub(crate) fn rego(&self) -> Option<Compiled> {
        self.read().rego.clone()
    }

    /// Where a component lies.
    pub(crate) fn path(&self, digest: &str) -> PathBuf {
        self.dir.join("sha256").join(format!("{digest}.wasm"))
    }

    /// Compiles a component without using it.
    pub(crate) async fn compile(&self, wasm: Vec<u8>) -> Answer<Compiled> {
        let sandbox = self.sandbox.clone();
        tokio::task::spawn_blocking(move || sandbox.compile(&wasm))
            .await
            .map_err(internal)?
            .map_err(|error| impossible(format!("The plugin cannot be used: {}", chain(&error))))
    }

    /// Opens an installed component and uses it for its world from now on.
    pub(crate) async fn activate(&self, digest: &str) -> Answer<()> {
        let wasm = tokio::fs::read(self.path(digest)).await.map_err(internal)?;
        let compiled = self.compile(wasm).await?;
        if compiled.digest() != digest {
            return Err(impossible(
                "The component on disk is not the one that was installed: install it again",
            ));
        }
        let sandbox = self.sandbox.clone();
        let opened = compiled.clone();
        let open = move || -> Result<Opened, dwcp_plugins::OpenError> {
            Ok(match opened.manifest().known_world() {
                Some(World::Placement) => {
                    let setup = Setup {
                        limits: dwcp_plugins::Limits::placement(),
                        ..Setup::default()
                    };
                    Opened::Placement(Arc::new(sandbox.placement(&opened, setup)?))
                }
                Some(World::Template) => {
                    Opened::Template(Arc::new(sandbox.template(&opened, Setup::default())?))
                }
                Some(World::Policy) => Opened::Policy,
                None => Opened::Unknown,
            })
        };
        let opened = tokio::task::spawn_blocking(open)
            .await
            .map_err(internal)?
            .map_err(|error| impossible(format!("The plugin cannot be used: {}", chain(&error))))?;
        let manifest = compiled.manifest();
        let name = format!("{}/{}", manifest.publisher, manifest.name);
        let mut in_use = self.write();
        match opened {
            Opened::Placement(placement) => in_use.placement = Some(placement),
            Opened::Template(template) => {
                in_use.templates.insert(name, template);
            }
            Opened::Policy => in_use.rego = Some(compiled),
            Opened::Unknown => {
                return Err(impossible(format!(
                    "This host knows no world {}: it may need a newer DWCP",
                    manifest.world
                )));
            }
        }
        Ok(())
    }

    /// Stops using a plugin.
    pub(crate) fn deactivate(&self, name: &str, digest: &str) {
        let mut in_use = self.write();
        let is = |compiled: &Compiled| compiled.digest() == digest;
        if in_use.placement.as_ref().is_some_and(|p| is(p.compiled())) {
            in_use.placement = None;
        }
        if in_use.templates.get(name).is_some_and(|t| is(t.compiled())) {
            in_use.templates.remove(name);
        }
        if in_use.rego.as_ref().is_some_and(is) {
            in_use.rego = None;
        }
    }

    /// Calls and faults of a component since the daemon started.
    pub(crate) fn usage(&self, digest: &str) -> (u64, u64) {
        let in_use = self.read();
        let placement = in_use.placement.iter().map(|p| (p.compiled(), p.usage()));
        let templates = in_use.templates.values().map(|t| (t.compiled(), t.usage()));
        placement
            .chain(templates)
            .find(|(compiled, _)| compiled.digest() == digest)
            .map_or((0, 0), |(_, usage)| {
                (usage.calls, usage.faults.values().sum())
            })
    }

    /// Expands a template.
    pub(crate) async fn expand(
        &self,
        template: &TemplateRecord,
        parameters: &std::collections::BTreeMap<String, String>,
        subject: &str,
    ) -> Answer<Expanded> {
        let Some(plugin) = self.read().templates.get(&template.plugin).cloned() else {
            return Err(impossible(format!(
                "Template {} is expanded by {}, which is not installed: `dwcp plugin install {}`",
                template.name, template.plugin, template.plugin
            )));
        };
        let document = Document {
            path: template.name.clone(),
            media: template.media_type.clone(),
            text: template.document.clone(),
        };
        let parameters = typed(&plugin, &document, parameters).await?;
        let recorder = self.recorder.clone();
        let subject = subject.to_owned();
        let expanding = move || {
            recorder.about(&subject, |stamp| {
                plugin.expand(stamp, &document, &parameters)
            })
        };
        let (_, expanded) = tokio::task::spawn_blocking(expanding)
            .await
            .map_err(internal)?;
        expanded.map_err(refused)
    }

    /// Chooses the host of a machine and says why.
    pub(crate) async fn place(
        &self,
        fleet: Fleet,
        region: &str,
        spec: &VmSpec,
        subject: &str,
    ) -> Answer<Option<Placed>> {
        let Some(plugin) = self.read().placement.clone() else {
            return Ok(None);
        };
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        let batch = Batch {
            requests: vec![Request {
                id: subject.to_owned(),
                cpu_millis: u32::from(spec.vcpus) * 1000,
                memory_mib: u32::try_from(spec.memory_bytes >> 20).unwrap_or(u32::MAX),
                // Another region is asked by asking it: `dwcp --profile REGION vm create`.
                terms: vec![Term {
                    relation: Relation::Requires,
                    scope: Scope::Region,
                    subject: region.to_owned(),
                    weight: 0,
                }],
                ..Request::default()
            }],
            alternatives: 8,
            explain: true,
        };
        let recorder = self.recorder.clone();
        let subject = subject.to_owned();
        let name = plugin.compiled().manifest().address();
        let deciding = move || -> (String, Result<_, String>) {
            recorder.about(&subject, |stamp| {
                plugin
                    .load(fleet, revision)
                    .map_err(|error| chain(&error))?;
                plugin
                    .decide(stamp, &batch)
                    .map_err(|fault| fault.to_string())
            })
        };
        let (decision, answer) = tokio::task::spawn_blocking(deciding)
            .await
            .map_err(internal)?;
        match answer {
            Ok(answer) => shown(decision, name, answer).map(Some),
            Err(fault) => {
                tracing::error!("{name} did not decide, so this host is taken: {fault}");
                Ok(None)
            }
        }
    }
}

enum Opened {
    Placement(Arc<Placement>),
    Template(Arc<Template>),
    Policy,
    Unknown,
}

fn refused(error: TemplateError) -> Fault {
    match error {
        TemplateError::Refused(problems) => Fault {
            reasons: problems.iter().map(ToString::to_string).collect(),
            ..invalid("The template does not take these parameters")
        },
        TemplateError::Fault(fault) => impossible(format!("The template's plugin failed: {fault}")),
    }
}

/// Parameters come as text; the template says of which type each is.
async fn typed(
    plugin: &Arc<Template>,
    document: &Document,
    given: &std::collections::BTreeMap<String, String>,
) -> Answer<String> {
    use dwcp_plugins::ParameterKind;
    let (plugin, document) = (plugin.clone(), document.clone());
    let description = tokio::task::spawn_blocking(move || plugin.describe(&document))
        .await
        .map_err(internal)?
        .map_err(refused)?;
    let mut typed = serde_json::Map::new();
    for (name, text) in given {
        let parameter = description.parameters.iter().find(|p| p.name == *name);
        let number = || text.parse::<i64>().map(Into::into).ok();
        let boolean = || text.parse::<bool>().map(Into::into).ok();
        let value = match parameter.map(|p| &p.kind) {
            Some(ParameterKind::Integer { .. }) => number(),
            Some(ParameterKind::Boolean) => boolean(),
            // An unknown name goes through as it is: the plugin says which names there are.
            _ => None,
        };
        let value = value.unwrap_or_else(|| serde_json::Value::String(text.clone()));
        typed.insert(name.clone(), value);
    }
    Ok(serde_json::Value::Object(typed).to_string())
}

fn shown(
    decision: String,
    plugin: String,
    mut answer: dwcp_plugins::placement::Answer,
) -> Answer<Placed> {
    let factors = answer.factors;
    let Some(decided) = answer.decisions.pop() else {
        return Err(impossible("The placement plugin answered nothing"));
    };
    let Some(chosen) = decided.chosen else {
        return Err(Fault {
            reasons: decided
                .rejected
                .iter()
                .map(|r| format!("{} host(s): {}", r.hosts, r.reason))
                .collect(),
            ..impossible("No host can take this machine")
        });
    };
    let mut alternatives: Vec<String> = decided
        .alternatives
        .iter()
        .map(|other| format!("{} scored {:.1}", other.host, other.score))
        .collect();
    alternatives.extend(
        decided
            .rejected
            .iter()
            .map(|r| format!("{} host(s) left out: {}", r.hosts, r.reason)),
    );
    let values = factors.iter().zip(&chosen.values);
    let reasons = if decided.reasons.is_empty() {
        values
            .map(|(factor, value)| format!("{} {value:.2} × {:.2}", factor.name, factor.weight))
            .collect()
    } else {
        decided.reasons
    };
    Ok(Placed {
        decision,
        plugin,
        host: dwcp_control::Name::new(chosen.host)
            .map_err(|error| impossible(format!("The placement plugin chose no host: {error}")))?,
        score: chosen.score,
        reasons,
        alternatives,
    })
}

impl Node {
    /// The hosts that placement sees: this one, and the others as last heard. A region has one host, so that one which
    /// calls itself another of this region is left out: what it says could draw all machines of the region to it.
    pub(crate) async fn fleet(&self) -> Answer<Fleet> {
        let capacity = self.capacity().await?;
        let own = host(
            self.config.name.as_str(),
            self.config.region.as_str(),
            Some(0),
            &capacity,
            self.config.vcpus_per_cpu,
        );
        let mut hosts = vec![own];
        let mut regions = vec![region(self.config.region.as_str())];
        for (name, heard) in self.heard() {
            if heard.region == self.config.region {
                continue;
            }
            hosts.push(host(
                name.as_str(),
                heard.region.as_str(),
                Some((heard.rtt_ms * 1000.0) as u32),
                &heard.capacity,
                self.config.vcpus_per_cpu,
            ));
            if !regions.iter().any(|r| r.name == heard.region.as_str()) {
                regions.push(region(heard.region.as_str()));
            }
        }
        Ok(Fleet { regions, hosts })
    }
}

fn region(name: &str) -> Region {
    Region {
        name: name.to_owned(),
        priority: 50,
        latency_us: Default::default(),
    }
}

fn host(
    name: &str,
    region: &str,
    latency_us: Option<u32>,
    capacity: &dwcp_control::records::Capacity,
    vcpus_per_cpu: u32,
) -> Host {
    let total = capacity
        .cpus
        .saturating_mul(vcpus_per_cpu)
        .saturating_mul(1000);
    let mib = |bytes: u64| u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    Host {
        id: name.to_owned(),
        region: region.to_owned(),
        zone: None,
        accepting: true,
        health: 100,
        latency_us,
        cpu_price_micros: 0,
        memory_price_micros: 0,
        cpu_total_millis: total,
        memory_total_mib: mib(capacity.memory_bytes),
        storage_total_gib: 0,
        gpu_model: None,
        labels: Default::default(),
        free: Free {
            cpu_millis: total.saturating_sub(capacity.vcpus_used.saturating_mul(1000)),
            memory_mib: mib(capacity
                .memory_bytes
                .saturating_sub(capacity.memory_used_bytes)),
            ..Free::default()
        },
        members: Default::default(),
    }
}

/// Writes decisions to the store, and drops the oldest beyond what is kept.
async fn keep(records: Records, mut decisions: mpsc::Receiver<(DecisionRecord, String)>) {
    let mut since_trim = 0usize;
    while let Some((record, subject)) = decisions.recv().await {
        let parse = |text: &str| {
            serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::String(text.into()))
        };
        let (answer, fault) = match &record.outcome {
            Outcome::Answer(text) => (parse(text), false),
            Outcome::Fault(fault) => (serde_json::Value::String(fault.to_string()), true),
        };
        let decision = Decision {
            id: record.id.clone(),
            time_ms: record.at_ms,
            world: record.world.name().into(),
            plugin: record.plugin,
            digest: record.digest,
            subject,
            input: parse(&record.input),
            answer,
            fault,
            duration_us: record.duration_us,
        };
        let key = newest_first(record.at_ms, &record.id);
        if let Err(error) = records.decisions.put(&key, &decision).await {
            tracing::error!("a decision is not stored: {}", chain(&error));
        }
        since_trim += 1;
        if since_trim >= 500 {
            since_trim = 0;
            trim(&records).await;
        }
    }
}

/// Deletes what lies beyond the newest [`DECISIONS_MAX`]; holds one page of them at a time.
async fn trim(records: &Records) {
    if let Err(error) = trim_to(records, DECISIONS_MAX).await {
        tracing::error!("old decisions are not removed: {}", chain(&error));
    }
}

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

    use dwcp_store::RedbStore;

    use super::*;

    fn decision(id: &str, time_ms: u64) -> Decision {
        Decision {
            id: id.into(),
            time_ms,
            world: "policy".into(),
            plugin: String::new(),
            digest: String::new(),
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
}
