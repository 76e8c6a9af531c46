//! The set of policies in force: changed as a whole, asked without locks held.
//!
//! Always: a reader sees one set from beginning to end; a change is complete or did not happen; policies are
//! compiled before they take the place of others.

use crate::{
    binding::{Binding, Mode},
    cache::{Cache, Key},
    canonical::canonical,
    engine::{Engine, Judge, Source},
    outcome::{Finding, MissingFact, Outcome, Question},
};
use dwcp_plugins::{
    ConfigureError, DecisionRecord, Effect, Fact, Outcome as RecordOutcome, Reason, Recorder,
    Stamp, Summary, Verdict, World,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Instant,
};

/// Policies in force at once. Each holds an instance.
const MAX_POLICIES: usize = 256;
const MAX_BINDINGS: usize = 1_024;
/// Outcomes kept.
const CACHED: usize = 4_096;

/// Why a policy was not put in force; its predecessor stays.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Its name cannot be used.
    #[error("'{0}' is no name for a policy. Use 1 to 64 lower-case letters, digits and hyphens.")]
    Name(String),
    /// It is wrong, or the engine failed on it.
    #[error(transparent)]
    Source(#[from] ConfigureError),
    /// There are too many.
    #[error("There are {MAX_POLICIES} policies already. Remove one first.")]
    TooMany,
}

/// Why a policy was not bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// There is no such policy.
    #[error("There is no policy {0}. Apply it first.")]
    Unknown(String),
    /// There are too many bindings.
    #[error("There are {MAX_BINDINGS} bindings already. Remove one first.")]
    TooMany,
    /// There is no such binding to remove.
    #[error("Policy {0} is not bound there.")]
    NotBound(String),
}

/// Why a policy was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is no such policy.
    #[error("There is no policy {0}.")]
    Unknown(String),
    /// It is bound; removing it would loosen what it denies.
    #[error("Policy {0} is bound. Unbind it first.")]
    Bound(String),
}

/// One policy as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Its name.
    pub name: String,
    /// What it decides and needs; empty when it is broken.
    pub summary: Summary,
    /// Names everything its answers depend on.
    pub digest: String,
    /// Why it cannot be asked and therefore denies; none when it is well.
    pub broken: Option<String>,
    /// Where it acts.
    pub bindings: Vec<Binding>,
}

#[derive(Clone)]
enum Standing {
    Ready(Arc<dyn Judge>),
    /// It was in force before and cannot be compiled now: it denies until it can.
    Broken(String),
}

#[derive(Clone, Default)]
struct InForce {
    policies: BTreeMap<String, Standing>,
    bindings: Vec<Binding>,
    digest: String,
}

impl InForce {
    fn seal(mut self) -> Arc<InForce> {
        let mut sha = Sha256::new();
        let mut part = |text: &str| {
            sha.update((text.len() as u64).to_le_bytes());
            sha.update(text);
        };
        for (name, standing) in &self.policies {
            part(name);
            match standing {
                Standing::Ready(judge) => part(&judge.digest()),
                Standing::Broken(why) => part(&format!("broken: {why}")),
            }
        }
        for binding in &self.bindings {
            part(&serde_json::to_string(binding).unwrap_or_default());
        }
        self.digest = hex::encode(sha.finalize());
        Arc::new(self)
    }
}

/// The policies of a host.
pub struct PolicySet {
    engine: Arc<dyn Engine>,
    recorder: Arc<dyn Recorder>,
    in_force: RwLock<Arc<InForce>>,
    /// Held while a change is prepared, so that changes follow each other.
    change: Mutex<()>,
    cache: Mutex<Cache>,
}

impl std::fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set = self.read();
        f.debug_struct("PolicySet")
            .field("policies", &set.policies.keys())
            .field("bindings", &set.bindings)
            .field("digest", &set.digest)
            .finish_non_exhaustive()
    }
}

fn unpoisoned<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

impl PolicySet {
    /// An empty set: everything is allowed until something is bound.
    pub fn new(engine: Arc<dyn Engine>, recorder: Arc<dyn Recorder>) -> PolicySet {
        PolicySet {
            engine,
            recorder,
            in_force: RwLock::new(InForce::default().seal()),
            change: Mutex::new(()),
            cache: Mutex::new(Cache::new(CACHED)),
        }
    }

    /// Puts back what was in force before a restart. A policy that cannot be compiled now stays, broken, and denies
    /// what it is bound to; so does a binding whose policy is gone. Gives the names of the broken ones.
    pub fn restore(
        &self,
        policies: impl IntoIterator<Item = (String, Source)>,
        bindings: impl IntoIterator<Item = Binding>,
    ) -> Vec<String> {
        let _change = unpoisoned(self.change.lock());
        let mut set = InForce {
            bindings: bindings.into_iter().collect(),
            ..InForce::default()
        };
        for (name, source) in policies {
            let standing = match self.engine.compile(&source) {
                Ok(judge) => Standing::Ready(judge),
                Err(error) => Standing::Broken(error.to_string()),
            };
            set.policies.insert(name, standing);
        }
        for binding in &set.bindings {
            set.policies
                .entry(binding.policy.clone())
                .or_insert_with(|| {
                    Standing::Broken("The policy is bound and its source is missing.".into())
                });
        }
        let broken = |(name, standing): (&String, &Standing)| {
            matches!(standing, Standing::Broken(_)).then(|| name.clone())
        };
        let broken = set.policies.iter().filter_map(broken).collect();
        self.replace(set);
        broken
    }

    /// Says what is wrong with a source, or what it decides and needs, without putting it in force.
    pub fn check(&self, source: &Source) -> Result<Summary, ConfigureError> {
        self.engine.compile(source).map(|judge| judge.summary())
    }

    /// Puts a policy in force, in place of the one of that name.
    pub fn apply(&self, name: &str, source: &Source) -> Result<Summary, ApplyError> {
        if !is_name(name) {
            return Err(ApplyError::Name(name.to_owned()));
        }
        let _change = unpoisoned(self.change.lock());
        let mut set = InForce::clone(&self.read());
        if !set.policies.contains_key(name) && set.policies.len() >= MAX_POLICIES {
            return Err(ApplyError::TooMany);
        }
        let judge = self.engine.compile(source)?;
        let summary = judge.summary();
        set.policies.insert(name.to_owned(), Standing::Ready(judge));
        self.replace(set);
        Ok(summary)
    }

    /// Takes a policy away that is bound nowhere.
    pub fn remove(&self, name: &str) -> Result<(), RemoveError> {
        let _change = unpoisoned(self.change.lock());
        let mut set = InForce::clone(&self.read());
        if set.bindings.iter().any(|b| b.policy == name) {
            return Err(RemoveError::Bound(name.to_owned()));
        }
        if set.policies.remove(name).is_none() {
            return Err(RemoveError::Unknown(name.to_owned()));
        }
        self.replace(set);
        Ok(())
    }

    /// Binds a policy, or changes the mode of a binding. Gives the facts that it will need.
    pub fn bind(&self, binding: Binding) -> Result<Vec<Fact>, BindError> {
        let _change = unpoisoned(self.change.lock());
        let mut set = InForce::clone(&self.read());
        let facts = match set.policies.get(&binding.policy) {
            Some(Standing::Ready(judge)) => judge.summary().facts,
            Some(Standing::Broken(_)) => Vec::new(),
            None => return Err(BindError::Unknown(binding.policy)),
        };
        let full = set.bindings.len() >= MAX_BINDINGS;
        match set.bindings.iter_mut().find(|b| b.same_place(&binding)) {
            Some(present) => present.mode = binding.mode,
            None if full => return Err(BindError::TooMany),
            None => set.bindings.push(binding),
        }
        self.replace(set);
        Ok(facts)
    }

    /// Takes a binding away, whatever its mode.
    pub fn unbind(&self, binding: &Binding) -> Result<(), BindError> {
        let _change = unpoisoned(self.change.lock());
        let mut set = InForce::clone(&self.read());
        let before = set.bindings.len();
        set.bindings.retain(|b| !b.same_place(binding));
        if set.bindings.len() == before {
            return Err(BindError::NotBound(binding.policy.clone()));
        }
        self.replace(set);
        Ok(())
    }

    /// All policies, by name.
    pub fn policies(&self) -> Vec<PolicyStatus> {
        let set = self.read();
        let status = |(name, standing): (&String, &Standing)| {
            let (summary, digest, broken) = match standing {
                Standing::Ready(judge) => (judge.summary(), judge.digest(), None),
                Standing::Broken(why) => (Summary::default(), String::new(), Some(why.clone())),
            };
            let bindings = set
                .bindings
                .iter()
                .filter(|b| b.policy == *name)
                .cloned()
                .collect();
            PolicyStatus {
                name: name.clone(),
                summary,
                digest,
                broken,
                bindings,
            }
        };
        set.policies.iter().map(status).collect()
    }

    /// SHA-256 of the whole set in force.
    pub fn digest(&self) -> String {
        self.read().digest.clone()
    }

    /// How often the cache answered, how often not, and how many outcomes it holds.
    pub fn cache_usage(&self) -> (u64, u64, usize) {
        let cache = self.cache();
        (cache.hits, cache.misses, cache.len())
    }

    /// Asks every policy that is bound to this action and project.
    ///
    /// Recorded under the stamp's id; each policy that is evaluated also under `ID/POLICY`.
    pub fn decide(&self, stamp: &Stamp, question: &Question) -> Outcome {
        let began = Instant::now();
        let set = self.read();
        let input = match serde_json::to_value(question) {
            Ok(value) => canonical(&value),
            Err(error) => return self.unaskable(stamp, &set, &error.to_string(), began),
        };
        let key: Key = Sha256::new()
            .chain_update(&set.digest)
            .chain_update(&input)
            .finalize()
            .into();
        let cached = self.cache().get(&key);
        let outcome = match cached {
            Some(outcome) => Outcome {
                cached: true,
                ..outcome
            },
            None => {
                let outcome = evaluate(&set, stamp, question, &input);
                self.cache().put(key, outcome.clone());
                outcome
            }
        };
        self.record(stamp, &set, input, &outcome, began);
        outcome
    }

    /// A question that is no JSON cannot be judged, so it is denied.
    fn unaskable(&self, stamp: &Stamp, set: &InForce, why: &str, began: Instant) -> Outcome {
        let reasons = vec![error_reason(format!(
            "The question cannot be written as JSON: {why}."
        ))];
        let denial = Finding {
            policy: String::new(),
            mode: Mode::Enforce,
            reasons,
            fault: true,
        };
        let outcome = Outcome {
            denials: vec![denial],
            ..Outcome::default()
        };
        self.record(stamp, set, String::new(), &outcome, began);
        outcome
    }

    fn record(
        &self,
        stamp: &Stamp,
        set: &InForce,
        input: String,
        outcome: &Outcome,
        began: Instant,
    ) {
        self.recorder.record(DecisionRecord {
            id: stamp.id.clone(),
            at_ms: stamp.at_ms,
            world: World::Policy,
            plugin: "policy-set".into(),
            digest: set.digest.clone(),
            configuration: String::new(),
            input,
            outcome: RecordOutcome::Answer(serde_json::to_string(outcome).unwrap_or_default()),
            duration_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        });
    }

    fn read(&self) -> Arc<InForce> {
        unpoisoned(self.in_force.read()).clone()
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        unpoisoned(self.cache.lock())
    }

    fn replace(&self, set: InForce) {
        *unpoisoned(self.in_force.write()) = set.seal();
        // Outcomes of the old set could not be found any more; this only frees them.
        self.cache().clear();
    }
}

fn evaluate(set: &InForce, stamp: &Stamp, question: &Question, input: &str) -> Outcome {
    // A policy bound twice to the same question is asked once, in its strictest mode.
    let mut bound: BTreeMap<&str, Mode> = BTreeMap::new();
    for binding in set
        .bindings
        .iter()
        .filter(|b| b.covers(&question.action, &question.project))
    {
        let mode = bound.entry(&binding.policy).or_insert(binding.mode);
        *mode = (*mode).min(binding.mode);
    }
    let mut outcome = Outcome {
        allowed: true,
        ..Outcome::default()
    };
    for (policy, mode) in bound {
        outcome.asked.push(policy.to_owned());
        let stamp = Stamp::new(format!("{}/{policy}", stamp.id), stamp.at_ms);
        let verdict = match set.policies.get(policy) {
            Some(Standing::Ready(judge)) => {
                judge.decide(&stamp, input).map_err(|fault| fault.message)
            }
            Some(Standing::Broken(why)) => Err(why.clone()),
            None => Err("The policy is bound and does not exist.".into()),
        };
        add(&mut outcome, policy, mode, verdict);
    }
    outcome.allowed = outcome.denials.is_empty();
    outcome
}

fn add(outcome: &mut Outcome, policy: &str, mode: Mode, verdict: Result<Verdict, String>) {
    let finding = |reasons, fault| Finding {
        policy: policy.to_owned(),
        mode,
        reasons,
        fault,
    };
    let (denied, finding) = match verdict {
        Err(why) => {
            let reason = error_reason(format!("The policy could not decide, so it denies. {why}"));
            (true, finding(vec![reason], true))
        }
        Ok(verdict) => {
            let missing = verdict.missing_facts.into_iter();
            outcome
                .missing_facts
                .extend(missing.map(|fact| MissingFact {
                    policy: policy.to_owned(),
                    fact,
                }));
            match (verdict.effect, verdict.patch) {
                (Effect::Deny, _) => (true, finding(verdict.reasons, false)),
                (Effect::Warn, None) => (false, finding(verdict.reasons, false)),
                (Effect::Allow, _) => return,
                (Effect::Patch | Effect::Warn, patch) => {
                    // Letting the request pass unchanged would be looser than what the policy says.
                    let patch = patch.unwrap_or_default();
                    let reason = error_reason(format!(
                        "The policy allows this only with changes, which have to be made in the request: {patch}"
                    ));
                    (
                        true,
                        finding([verdict.reasons, vec![reason]].concat(), false),
                    )
                }
            }
        }
    };
    match (denied, mode) {
        (true, Mode::Enforce) => outcome.denials.push(finding),
        (true, Mode::Warn) | (false, Mode::Enforce | Mode::Warn) => outcome.warnings.push(finding),
        (_, Mode::DryRun) => outcome.dry_run.push(finding),
    }
}

fn error_reason(message: String) -> Reason {
    Reason {
        policy: String::new(),
        rule: "error".into(),
        message,
    }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
