//! Policies as this host keeps and asks them. What is in force is what the store holds; a fault denies.

use std::sync::{Arc, PoisonError, RwLock};

use dwcp_api::service::{Answer, Principal};
use dwcp_api::{Fault, FaultKind};
use dwcp_control::Name;
use dwcp_control::records::{Binding, BindingMode, Policy, Vm, VmSpec};
use dwcp_plugins::{ConfigureError, Document, Setup};
use dwcp_policy::{
    ApplyError, BindError, Engine, Judge, Mode, PolicySet, Question, RemoveError, SandboxEngine,
    Source, Stamp,
};
use dwcp_store::Typed;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::create::withhold;
use crate::decide::Decider;
use crate::decisions::{About, Decisions};
use crate::errors::{NodeError, chain, conflict, impossible, internal, invalid, record};
use crate::node::Node;
use crate::state::{Peer, Records, now_ms, object};

/// Bindings at once; the set of policies takes no more.
const BINDINGS_MAX: usize = 1_024;

/// A machine is asked for.
const CREATE: &str = "vm.create";
/// A machine is to go to another host.
const MIGRATE: &str = "vm.migrate";
/// A machine is to come from another host.
const RECEIVE: &str = "vm.receive";
/// Everything that policies are asked about.
const ACTIONS: [&str; 3] = [CREATE, MIGRATE, RECEIVE];

/// The engine that decides Rego now; it changes when a plugin is installed.
struct Current(RwLock<Arc<SandboxEngine>>);

impl Engine for Current {
    fn compile(&self, source: &Source) -> Result<Arc<dyn Judge>, ConfigureError> {
        let engine = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let engine = engine.clone();
        engine.compile(source)
    }
}

/// The policies of a host.
pub(crate) struct Policies {
    set: Arc<PolicySet>,
    current: Arc<Current>,
    decisions: Arc<Decisions>,
    /// Held during a change, so that store and set follow the same order.
    change: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.set.fmt(f)
    }
}

fn engine(decider: &Decider) -> Arc<SandboxEngine> {
    let engine = SandboxEngine::new(decider.sandbox(), decider.rego(), Setup::default());
    Arc::new(engine)
}

fn source(name: &str, text: &str) -> Source {
    Source::rego(vec![Document {
        path: format!("{name}.rego"),
        media: "application/vnd.openpolicyagent.rego".into(),
        text: text.to_owned(),
    }])
}

fn bound(binding: &Binding) -> Answer<dwcp_policy::Binding> {
    Ok(dwcp_policy::Binding {
        policy: binding.policy.to_string(),
        action: binding.action.parse().map_err(|why: String| invalid(why))?,
        project: binding.project.as_ref().map(ToString::to_string),
        mode: match binding.mode {
            BindingMode::Enforce => Mode::Enforce,
            BindingMode::Warn => Mode::Warn,
            BindingMode::DryRun => Mode::DryRun,
        },
    })
}

/// A binding to what nobody ever asks about would look like protection and be none.
fn asked_about(action: &dwcp_policy::Action) -> Answer<()> {
    if ACTIONS.iter().any(|known| action.covers(known)) {
        return Ok(());
    }
    Err(invalid(format!(
        "No policy is ever asked about {action}: bind to {}, or to several of them (vm.*, *)",
        ACTIONS.join(", ")
    )))
}

/// The key of a binding's record.
fn key(policy: &Name, action: &str, project: Option<&Name>) -> String {
    let project = project.map_or("*", Name::as_str);
    format!("{policy}/{action}/{project}")
}

impl Policies {
    pub(crate) async fn open(decider: &Decider, records: &Records) -> Result<Self, NodeError> {
        let current = Arc::new(Current(RwLock::new(engine(decider))));
        let decisions = decider.decisions();
        let policies = Self {
            set: Arc::new(PolicySet::new(current.clone(), decisions.clone())),
            current,
            decisions,
            change: tokio::sync::Mutex::new(()),
        };
        policies.restore(records).await?;
        Ok(policies)
    }

    /// Puts in force what the store holds, on the engine that is installed now.
    async fn restore(&self, records: &Records) -> Result<(), NodeError> {
        let policies = records.all(&records.policies).await?.into_iter().map(|p| {
            let name = p.value.name.to_string();
            let source = source(&name, &p.value.source);
            (name, source)
        });
        let policies: Vec<_> = policies.collect();
        let bindings = records.all(&records.bindings).await?.into_iter();
        let bindings: Vec<_> = bindings.filter_map(|b| bound(&b.value).ok()).collect();
        let set = self.set.clone();
        let broken = tokio::task::spawn_blocking(move || set.restore(policies, bindings)).await;
        for name in broken.unwrap_or_default() {
            tracing::error!(
                "policy {name} cannot be compiled now, so it denies what it is bound to"
            );
        }
        Ok(())
    }

    /// The installed engine has changed: everything is compiled again.
    pub(crate) async fn engine_changed(&self, node: &Node) -> Answer<()> {
        let _change = self.change.lock().await;
        {
            let mut current = self
                .current
                .0
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            *current = engine(&node.decider);
        }
        self.restore(&node.records).await.map_err(internal)
    }

    /// Asks the policies that are bound to an action. Answers what they warn of.
    async fn ask(&self, subject: &str, question: Question) -> Answer<Vec<String>> {
        let set = self.set.clone();
        let action = question.action.clone();
        let asking = move |stamp: &Stamp| set.decide(stamp, &question);
        let (decision, outcome) = self
            .decisions
            .decide(About::subject(subject), asking)
            .await?;
        if outcome.allowed {
            return Ok(outcome.warning_lines());
        }
        Err(Fault {
            kind: FaultKind::Denied,
            message: format!("A policy denies {action} (decision {decision})"),
            reasons: outcome.denial_lines(),
        })
    }

    /// May this machine be created? This and the next two answer what policies warn of.
    pub(crate) async fn check_create(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        spec: &VmSpec,
        networks: &[Name],
    ) -> Answer<Vec<String>> {
        let mut machine = serde_json::to_value(spec).map_err(internal)?;
        withhold(&mut machine, spec.setup.as_ref());
        machine["name"] = json!(name);
        // Addresses are chosen for what is allowed.
        let cards = networks.iter().map(|network| json!({ "network": network }));
        machine["networks"] = cards.collect();
        self.ask(
            &object(project, name),
            question(CREATE, json!({ "name": who.name }), project, machine),
        )
        .await
    }

    /// May this machine be sent to that host?
    pub(crate) async fn check_migrate(
        &self,
        who: &Principal,
        vm: &Vm,
        to: &Peer,
    ) -> Answer<Vec<String>> {
        let mut machine = of_machine(vm)?;
        machine["to"] = json!({ "host": to.name, "region": to.region });
        self.ask(
            &object(&vm.project, &vm.name),
            question(MIGRATE, json!({ "name": who.name }), &vm.project, machine),
        )
        .await
    }

    /// May this machine come here from that host?
    pub(crate) async fn check_receive(&self, vm: &Vm, from: &Peer) -> Answer<Vec<String>> {
        let mut machine = of_machine(vm)?;
        machine["from"] = json!({ "host": from.name, "region": from.region });
        let who = json!({ "name": format!("host:{}", from.name) });
        self.ask(
            &object(&vm.project, &vm.name),
            question(RECEIVE, who, &vm.project, machine),
        )
        .await
    }

    /// Checks a policy, keeps it, and puts it in force: what is in force is never more than what is kept.
    pub(crate) async fn apply(
        &self,
        node: &Node,
        name: &Name,
        text: String,
    ) -> Answer<dwcp_store::Versioned<Policy>> {
        let _change = self.change.lock().await;
        let policies = &node.records.policies;
        let made = source(name.as_str(), &text);
        let (set, checked) = (self.set.clone(), made.clone());
        let summary = tokio::task::spawn_blocking(move || set.check(&checked))
            .await
            .map_err(internal)?
            .map_err(|error| wrong(name, error.into()))?;
        let before = policies.get(name.as_str()).await.map_err(record)?;
        let policy = Policy {
            name: name.clone(),
            digest: hex::encode(Sha256::digest(text.as_bytes())),
            source: text,
            facts: summary.facts.into_iter().map(|fact| fact.name).collect(),
            applied_ms: now_ms(),
        };
        let kept = policies.put(name.as_str(), &policy).await;
        kept.map_err(record)?;
        let (set, id) = (self.set.clone(), name.to_string());
        let applied = tokio::task::spawn_blocking(move || set.apply(&id, &made)).await;
        let applied = applied.map_err(internal).and_then(|applied| {
            let applied = applied.map(drop);
            applied.map_err(|error| wrong(name, error))
        });
        if let Err(fault) = applied {
            undo(policies, name.as_str(), before).await;
            return Err(fault);
        }
        let found = policies.get(name.as_str()).await;
        found
            .map_err(record)?
            .ok_or_else(|| conflict("The policy was removed meanwhile"))
    }

    /// Removes a policy that is bound nowhere.
    pub(crate) async fn remove(&self, node: &Node, name: &Name) -> Answer<()> {
        let _change = self.change.lock().await;
        let all = self.set.policies();
        let Some(status) = all.iter().find(|status| status.name == name.as_str()) else {
            return Err(not_removed(name, RemoveError::Unknown(name.to_string())));
        };
        if !status.bindings.is_empty() {
            return Err(not_removed(name, RemoveError::Bound(name.to_string())));
        }
        let policies = &node.records.policies;
        let before = policies.get(name.as_str()).await.map_err(record)?;
        policies.delete(name.as_str()).await.map_err(record)?;
        if let Err(error) = self.set.remove(name.as_str()) {
            undo(policies, name.as_str(), before).await;
            return Err(not_removed(name, error));
        }
        Ok(())
    }

    /// Binds a policy: kept first, then in force, so that a crash between the two loosens nothing.
    pub(crate) async fn bind(&self, node: &Node, binding: &Binding) -> Answer<()> {
        let _change = self.change.lock().await;
        let made = bound(binding)?;
        asked_about(&made.action)?;
        let known = node.records.policies.get(binding.policy.as_str()).await;
        if known.map_err(record)?.is_none() {
            return Err(Fault::not_found(format!(
                "policy {}: apply it first",
                binding.policy
            )));
        }
        let bindings = &node.records.bindings;
        let key = key(&binding.policy, &binding.action, binding.project.as_ref());
        let all = node.records.all(bindings).await.map_err(record)?;
        let many = all.len() >= BINDINGS_MAX;
        let before = all.into_iter().find(|found| found.id == key);
        if many && before.is_none() {
            return Err(not_bound(BindError::TooMany));
        }
        bindings.put(&key, binding).await.map_err(record)?;
        let set = self.set.clone();
        let done = tokio::task::spawn_blocking(move || set.bind(made)).await;
        let done = done
            .map_err(internal)
            .and_then(|done| done.map(drop).map_err(not_bound));
        if done.is_err() {
            undo(bindings, &key, before).await;
        }
        done
    }

    /// Unbinds a policy from an action, in all projects where it is bound to it.
    pub(crate) async fn unbind(&self, node: &Node, policy: &Name, action: &str) -> Answer<()> {
        let _change = self.change.lock().await;
        let all = node.records.all(&node.records.bindings).await;
        let mut found = false;
        for binding in all.map_err(record)? {
            if binding.value.policy == *policy && binding.value.action == action {
                found = true;
                // Out of force only after it is out of the store: the other way a crash would bring it back unseen.
                let kept = node.records.bindings.delete(&binding.id).await;
                kept.map_err(record)?;
                let _ = self.set.unbind(&bound(&binding.value)?);
            }
        }
        if found {
            Ok(())
        } else {
            Err(Fault::not_found(format!(
                "binding of policy {policy} to {action}"
            )))
        }
    }

    /// Hits, misses and size of the decision cache.
    pub(crate) fn cache(&self) -> (u64, u64, usize) {
        self.set.cache_usage()
    }
}

/// A machine as policies see it.
fn of_machine(vm: &Vm) -> Answer<Value> {
    let mut machine = serde_json::to_value(vm).map_err(internal)?;
    withhold(&mut machine["spec"], vm.spec.setup.as_ref());
    Ok(machine)
}

fn question(action: &str, principal: Value, project: &Name, object: Value) -> Question {
    Question {
        action: action.into(),
        principal,
        project: project.to_string(),
        object,
        facts: json!({}),
    }
}

/// Brings a record back to what it was before a change that did not come into force.
async fn undo<T: Serialize + DeserializeOwned>(
    kind: &Typed<T>,
    id: &str,
    before: Option<dwcp_store::Versioned<T>>,
) {
    let undone = match before {
        Some(before) => kind.put(id, &before.value).await.map(drop),
        None => kind.delete(id).await.map(drop),
    };
    if let Err(error) = undone {
        tracing::error!(
            "{} was refused and stays kept; it will be in force after a restart: {}",
            kind.key(id),
            chain(&error)
        );
    }
}

fn not_bound(error: BindError) -> Fault {
    match error {
        BindError::TooMany => impossible(error.to_string()),
        other => conflict(other.to_string()),
    }
}

fn not_removed(name: &Name, error: RemoveError) -> Fault {
    match error {
        RemoveError::Unknown(_) => Fault::not_found(format!("policy {name}")),
        bound @ RemoveError::Bound(_) => conflict(bound.to_string()),
    }
}

fn wrong(name: &Name, error: ApplyError) -> Fault {
    match error {
        ApplyError::Source(ConfigureError::Refused(diagnostics)) => Fault {
            reasons: diagnostics.iter().map(ToString::to_string).collect(),
            ..invalid(format!(
                "Policy {name} is not right; what was in force stays in force"
            ))
        },
        ApplyError::Source(ConfigureError::Fault(fault)) => impossible(fault.message),
        other => invalid(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_what_is_asked_about_can_be_bound() {
        for good in ["vm.create", "vm.migrate", "vm.receive", "vm.*", "*"] {
            asked_about(&good.parse().unwrap()).unwrap();
        }
        for bad in ["vm.craete", "vm.start", "vmm.*", "plugin.install"] {
            let fault = asked_about(&bad.parse().unwrap()).unwrap_err();
            assert!(fault.message.contains("vm.create"), "{fault}");
        }
    }
}
