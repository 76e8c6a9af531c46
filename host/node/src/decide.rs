//! Decisions of plugins: which component decides in which world, and what it is asked. What is kept of it is the
//! business of [`crate::decisions`].
//!
//! A plugin that fails costs its answer, not the request: placement falls back to this host, if it fits. What it said is
//! checked again before anything is reserved. (Policies are the exception: there a fault denies.)

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dwcp_api::Fault;
use dwcp_api::service::Answer;
use dwcp_control::records::{Placement as Placed, Template as TemplateRecord, VmSpec};
use dwcp_plugins::placement::{Batch, Fleet, Free, Host, Region, Relation, Request, Scope, Term};
use dwcp_plugins::{
    Compiled, Document, Placement, Sandbox, SandboxConfig, Setup, Stamp, Template, TemplateError,
    VmSpec as Expanded, World,
};

use crate::config::NodeConfig;
use crate::decisions::{About, Decisions};
use crate::errors::{NodeError, chain, impossible, internal, invalid};
use crate::node::Node;
use crate::state::{Records, now_ms};

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
    decisions: Arc<Decisions>,
    in_use: RwLock<InUse>,
    /// The fleet's revision: the clock's at the start, so that it grows over restarts too.
    revision: AtomicU64,
    /// Held while a fleet is loaded and decided on, so that a decision is about the fleet that is kept with it.
    placing: Arc<Mutex<()>>,
    dir: PathBuf,
}

impl std::fmt::Debug for Decider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decider").finish_non_exhaustive()
    }
}

impl Decider {
    pub(crate) async fn open(config: &NodeConfig, records: Records) -> Result<Self, NodeError> {
        let decisions = Arc::new(Decisions::new(records.clone()));
        let dir = config.dir("plugins");
        std::fs::create_dir_all(dir.join("sha256")).map_err(|source| NodeError::State {
            path: dir.clone(),
            source,
        })?;
        let setup = SandboxConfig::below(&dir, decisions.clone());
        let sandbox = Sandbox::new(setup).map_err(|error| NodeError::Sandbox(chain(&error)))?;
        let decider = Self {
            sandbox,
            decisions,
            in_use: RwLock::default(),
            revision: AtomicU64::new(now_ms()),
            placing: Arc::default(),
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

    pub(crate) fn decisions(&self) -> Arc<Decisions> {
        self.decisions.clone()
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
        if in_use.rego.as_ref().is_some_and(|r| r.digest() == digest) {
            // Every policy has instances of its own, which come and go: what they did is counted where it is kept.
            return self.decisions.policy_usage(digest);
        }
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
        let expanding = move |stamp: &Stamp| plugin.expand(stamp, &document, &parameters);
        let (_, expanded) = self
            .decisions
            .decide(About::subject(subject), expanding)
            .await?;
        expanded.map_err(refused)
    }

    /// Chooses the host of a machine and says why.
    pub(crate) async fn place(
        &self,
        fleet: Fleet,
        region: &str,
        spec: &VmSpec,
        near: Option<String>,
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
                near,
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
        let name = plugin.compiled().manifest().address();
        let about = About {
            fleet: serde_json::to_string(&fleet).map_err(internal)?,
            ..About::subject(subject)
        };
        let placing = self.placing.clone();
        let deciding = move |stamp: &Stamp| -> Result<_, String> {
            let _placing = placing.lock().unwrap_or_else(PoisonError::into_inner);
            plugin
                .load(fleet, revision)
                .map_err(|error| chain(&error))?;
            plugin
                .decide(stamp, &batch)
                .map_err(|fault| fault.to_string())
        };
        let (decision, answer) = self.decisions.decide(about, deciding).await?;
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
