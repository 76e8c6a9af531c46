//! The policy world: whether something may be.
//!
//! Always: documents that a policy plugin refuses leave the ones in force where they are; a decision is made by an
//! instance configured with exactly the documents in force when it began; instances are reused, never after a fault.
//! Never: which requests are asked about (that is bound in `dwcp-policy`), and never an allowance in place of a fault.

use crate::{
    bindings::policy as bound,
    bindings::policy::exports::dwcp::policy::rules as wit,
    counters::Usage,
    document::Document,
    fault::{Fault, FaultKind},
    instance::Live,
    plugin::{Plugin, digest},
    record::{DecisionRecord, Replay, ReplayError, Stamp, World},
    sandbox::{Compiled, OpenError, Sandbox, Setup},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Something wrong in a document, where an editor can go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// The document's path; empty when it is about all together.
    pub file: String,
    /// From 1; 0 when unknown.
    pub line: u32,
    /// From 1, in characters; 0 when unknown.
    pub column: u32,
    /// A sentence.
    pub message: String,
}

impl std::fmt::Display for Diagnostic {
    /// `file:line:column: message`, leaving out what is unknown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
        }
        for number in [self.line, self.column].into_iter().take_while(|n| *n > 0) {
            write!(f, "{number}:")?;
        }
        if !self.file.is_empty() || self.line > 0 {
            f.write_str(" ")?;
        }
        f.write_str(&self.message)
    }
}

/// A fact that policies need to be told under `facts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Name below `facts`, dots between levels.
    pub name: String,
    /// The policies that need it.
    pub policies: Vec<String>,
}

/// What a set of documents decides and needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Names of what decides: for Rego its packages.
    pub policies: Vec<String>,
    /// What it must be told.
    pub facts: Vec<Fact>,
}

/// What came of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing against it.
    Allow,
    /// Allowed as changed by the patch.
    Patch,
    /// Allowed, but somebody should look.
    Warn,
    /// Not allowed.
    Deny,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Which policy of the summary.
    pub policy: String,
    /// Which of its rules: `deny`, `warn`, `allow`, `facts`, `error`.
    pub rule: String,
    /// For the person who is refused or warned.
    pub message: String,
}

/// A policy plugin's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The strongest of all policies.
    pub effect: Effect,
    /// Why; empty when allowed.
    pub reasons: Vec<Reason>,
    /// JSON Patch for the input's `object`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub patch: Option<String>,
    /// Facts that were needed and missing.
    pub missing_facts: Vec<String>,
}

/// Why documents were not taken. Those in force stay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigureError {
    /// The plugin found something wrong with them.
    #[error("{}", list(.0))]
    Refused(Vec<Diagnostic>),
    /// The plugin failed on them.
    #[error(transparent)]
    Fault(#[from] Fault),
}

fn list(diagnostics: &[Diagnostic]) -> String {
    diagnostics
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

struct Configured {
    documents: Vec<wit::Document>,
    /// SHA-256 of configuration and documents.
    digest: String,
    summary: Summary,
}

type Instance = Live<bound::Policy>;

#[derive(Default)]
struct State {
    configured: Option<Arc<Configured>>,
    /// Configured instances at rest; all of them have the present documents.
    idle: Vec<Instance>,
}

/// An opened policy plugin.
pub struct Policy {
    plugin: Plugin,
    indices: bound::PolicyIndices,
    state: Mutex<State>,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.plugin.fmt(f)
    }
}

impl Sandbox {
    /// Opens a policy plugin. It decides nothing before it was configured.
    pub fn policy(
        self: &Arc<Self>,
        compiled: &Compiled,
        setup: Setup,
    ) -> Result<Policy, OpenError> {
        let concurrent = setup.limits.concurrent_calls;
        let (plugin, indices) =
            Plugin::open(self, compiled, setup, World::Policy, concurrent, |pre| {
                bound::PolicyIndices::new(pre)
            })?;
        Ok(Policy {
            plugin,
            indices,
            state: Mutex::default(),
        })
    }
}

impl Policy {
    /// The component.
    pub fn compiled(&self) -> &Compiled {
        self.plugin.compiled()
    }

    /// What it did so far.
    pub fn usage(&self) -> Usage {
        self.plugin.usage()
    }

    /// SHA-256 of configuration and documents in force; none before the first.
    pub fn configuration(&self) -> Option<String> {
        self.lock().configured.as_ref().map(|c| c.digest.clone())
    }

    /// What the documents in force decide and need.
    pub fn summary(&self) -> Option<Summary> {
        self.lock().configured.as_ref().map(|c| c.summary.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is wrong with documents, or what they decide and need, and leaves those in force alone.
    pub fn check(&self, documents: &[Document]) -> Result<Summary, ConfigureError> {
        self.prepare(documents)
            .map(|(_, configured)| configured.summary)
    }

    /// Puts documents in force, all of them in place of the old ones.
    pub fn configure(&self, documents: &[Document]) -> Result<Summary, ConfigureError> {
        let (live, configured) = self.prepare(documents)?;
        let summary = configured.summary.clone();
        let mut state = self.lock();
        state.configured = Some(Arc::new(configured));
        state.idle.clear();
        state.idle.push(live);
        Ok(summary)
    }

    fn prepare(&self, documents: &[Document]) -> Result<(Instance, Configured), ConfigureError> {
        let began = Instant::now();
        let result = self.try_prepare(documents);
        self.plugin.count(began, &result, |error| match error {
            ConfigureError::Fault(fault) => Some(fault.kind),
            ConfigureError::Refused(_) => None,
        });
        result
    }

    fn try_prepare(
        &self,
        documents: &[Document],
    ) -> Result<(Instance, Configured), ConfigureError> {
        check_documents(documents)?;
        self.plugin
            .check_input(documents.iter().map(|d| d.path.len() + d.text.len()).sum())?;
        let _permit = self.plugin.enter()?;
        let setup = self.plugin.setup().configuration.as_str();
        let digest = digest(
            [setup].into_iter().chain(
                documents
                    .iter()
                    .flat_map(|d| [d.path.as_str(), d.media.as_str(), d.text.as_str()]),
            ),
        );
        let documents: Vec<wit::Document> = documents
            .iter()
            .map(|d| wit::Document {
                path: d.path.clone(),
                media: d.media.clone(),
                text: d.text.clone(),
            })
            .collect();
        let (live, summary) = self.configured_instance(&documents)?;
        Ok((
            live,
            Configured {
                documents,
                digest,
                summary,
            },
        ))
    }

    fn configured_instance(
        &self,
        documents: &[wit::Document],
    ) -> Result<(Instance, Summary), ConfigureError> {
        let mut live = self
            .plugin
            .start(|store, instance| self.indices.load(store, instance))?;
        let answer = self.plugin.feed(&mut live, |exports, store| {
            exports.dwcp_policy_rules().call_configure(store, documents)
        })?;
        match answer {
            Ok(summary) => Ok((live, checked_summary(summary)?)),
            Err(found) => Err(ConfigureError::Refused(checked_diagnostics(found)?)),
        }
    }

    /// Asks about one input, JSON text.
    pub fn decide(&self, stamp: &Stamp, input: &str) -> Result<Verdict, Fault> {
        let began = Instant::now();
        let mut digest = String::new();
        let result = self.try_decide(input, &mut digest);
        self.plugin.count(began, &result, |fault| Some(fault.kind));
        self.plugin.record(
            stamp,
            World::Policy,
            &digest,
            input.to_owned(),
            result.as_ref(),
            began,
        );
        result
    }

    fn try_decide(&self, input: &str, digest: &mut String) -> Result<Verdict, Fault> {
        self.plugin.check_input(input.len())?;
        let _permit = self.plugin.enter()?;
        let (configured, idle) = {
            let mut state = self.lock();
            (state.configured.clone(), state.idle.pop())
        };
        let configured = configured.ok_or_else(|| {
            Fault::new(FaultKind::Start, "The policy plugin has no documents yet.")
        })?;
        digest.clone_from(&configured.digest);
        let mut live = match idle {
            Some(live) => live,
            None => self.instance_for(&configured)?,
        };
        let verdict = self.ask(&mut live, input)?;
        let mut state = self.lock();
        let present = state
            .configured
            .as_ref()
            .is_some_and(|c| Arc::ptr_eq(c, &configured));
        if present && state.idle.len() < self.plugin.limits().concurrent_calls.max(1) as usize {
            state.idle.push(live);
        }
        Ok(verdict)
    }

    /// One more instance with documents that were taken before; that it refuses them now is a fault.
    fn instance_for(&self, configured: &Configured) -> Result<Instance, Fault> {
        match self.configured_instance(&configured.documents) {
            Ok((live, _)) => Ok(live),
            Err(ConfigureError::Fault(fault)) => Err(fault),
            Err(ConfigureError::Refused(_)) => Err(Fault::new(
                FaultKind::Start,
                "The policy plugin refuses documents that it took before.",
            )),
        }
    }

    fn ask(&self, live: &mut Instance, input: &str) -> Result<Verdict, Fault> {
        let inputs = [input.to_owned()];
        let answer = self.plugin.call(live, |exports, store| {
            exports.dwcp_policy_rules().call_decide(store, &inputs)
        })?;
        let count = answer.len();
        match <[wit::Verdict; 1]>::try_from(answer) {
            Ok([verdict]) => checked_verdict(verdict),
            Err(_) => Err(wrong(format!("{count} verdicts for one input"))),
        }
    }

    /// Decides a record again in a fresh instance. The documents in force must be those of the record.
    pub fn replay(&self, record: &DecisionRecord) -> Result<Replay, ReplayError> {
        let configured = self.lock().configured.clone();
        let digest = configured.as_ref().map_or("", |c| c.digest.as_str());
        self.plugin.replay(record, digest, || {
            Ok(match &configured {
                Some(configured) => self
                    .plugin
                    .check_input(record.input.len())
                    .and_then(|()| self.instance_for(configured))
                    .and_then(|mut live| self.ask(&mut live, &record.input)),
                None => Err(Fault::new(
                    FaultKind::Start,
                    "The policy plugin has no documents yet.",
                )),
            })
        })
    }
}

fn wrong(what: impl std::fmt::Display) -> Fault {
    Fault::new(
        FaultKind::Answer,
        format!("The plugin's answer is wrong: {what}."),
    )
}

fn check_documents(documents: &[Document]) -> Result<(), Fault> {
    let input = |message: String| Err(Fault::new(FaultKind::Input, message));
    if documents.len() > 256 {
        return input(format!(
            "At most 256 policy documents can be in force together, these are {}.",
            documents.len()
        ));
    }
    let mut paths = std::collections::HashSet::new();
    for document in documents {
        if document.path.is_empty() || document.path.len() > 256 || !paths.insert(&document.path) {
            return input("Document paths are unique and have 1 to 256 bytes.".into());
        }
        if document.text.len() > 1 << 20 {
            return input(format!("Document {} is larger than 1 MiB.", document.path));
        }
    }
    if documents.iter().map(|d| d.text.len()).sum::<usize>() > 8 << 20 {
        return input("The policy documents are larger than 8 MiB together.".into());
    }
    Ok(())
}

fn checked_summary(from: wit::Summary) -> Result<Summary, Fault> {
    if from.policies.len() > 256 || from.facts.len() > 256 {
        return Err(wrong("a summary of more than 256 policies or facts"));
    }
    let facts = from
        .facts
        .into_iter()
        .map(|f| Fact {
            name: f.name,
            policies: f.policies,
        })
        .collect();
    Ok(Summary {
        policies: from.policies,
        facts,
    })
}

fn checked_diagnostics(from: Vec<wit::Diagnostic>) -> Result<Vec<Diagnostic>, Fault> {
    if !(1..=64).contains(&from.len())
        || from
            .iter()
            .any(|d| d.message.len() > 1_024 || d.file.len() > 256)
    {
        return Err(wrong("diagnostics out of bounds"));
    }
    Ok(from
        .into_iter()
        .map(|d| Diagnostic {
            file: d.file,
            line: d.line,
            column: d.column,
            message: d.message,
        })
        .collect())
}

fn checked_verdict(from: wit::Verdict) -> Result<Verdict, Fault> {
    let effect = match from.outcome {
        wit::Outcome::Allow => Effect::Allow,
        wit::Outcome::Patch => Effect::Patch,
        wit::Outcome::Warn => Effect::Warn,
        wit::Outcome::Deny => Effect::Deny,
    };
    if from.reasons.len() > 64
        || from
            .reasons
            .iter()
            .any(|r| r.message.len() > 1_024 || r.policy.len() > 256)
    {
        return Err(wrong("reasons out of bounds"));
    }
    if from.missing_facts.iter().any(|f| f.len() > 128) || from.missing_facts.len() > 256 {
        return Err(wrong("missing facts out of bounds"));
    }
    if !from.missing_facts.is_empty() && effect != Effect::Deny {
        return Err(wrong("facts are missing and it does not deny"));
    }
    let patch_belongs = match effect {
        Effect::Patch => from.patch.is_some(),
        Effect::Warn => true,
        Effect::Allow | Effect::Deny => from.patch.is_none(),
    };
    if !patch_belongs || from.patch.as_ref().is_some_and(|p| !is_patch(p)) {
        return Err(wrong(
            "the patch does not fit the outcome, or is no JSON Patch of at most 64 KiB",
        ));
    }
    let reasons = from
        .reasons
        .into_iter()
        .map(|r| Reason {
            policy: r.policy,
            rule: r.rule,
            message: r.message,
        })
        .collect();
    Ok(Verdict {
        effect,
        reasons,
        patch: from.patch,
        missing_facts: from.missing_facts,
    })
}

fn is_patch(text: &str) -> bool {
    text.len() <= 64 << 10 && matches!(serde_json::from_str(text), Ok(serde_json::Value::Array(_)))
}
