//! What evaluates a policy: in production the plugin sandbox, behind a trait so that its faults can be tried.
//!
//! Never: bindings, modes or caches.

use dwcp_plugins::{
    Compiled, ConfigureError, Diagnostic, Document, Fault, FaultKind, Policy, Sandbox, Setup,
    Stamp, Summary, Verdict,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// What a policy is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// SHA-256 (hex) of the policy component that decides; none for the Rego component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// What it is configured with: Rego modules, data.
    pub documents: Vec<Document>,
}

impl Source {
    /// A policy of Rego documents.
    pub fn rego(documents: Vec<Document>) -> Source {
        Source {
            component: None,
            documents,
        }
    }
}

/// A policy that is ready to be asked.
pub trait Judge: Send + Sync {
    /// What it decides and needs.
    fn summary(&self) -> Summary;
    /// Names everything its answers depend on, beside the input.
    fn digest(&self) -> String;
    /// Asks about one input, JSON text.
    fn decide(&self, stamp: &Stamp, input: &str) -> Result<Verdict, Fault>;
}

/// Makes judges of sources.
pub trait Engine: Send + Sync {
    /// Compiles a policy; diagnostics when it is wrong.
    fn compile(&self, source: &Source) -> Result<Arc<dyn Judge>, ConfigureError>;
}

/// Policies in the plugin sandbox, each in instances of its own.
#[derive(Debug)]
pub struct SandboxEngine {
    sandbox: Arc<Sandbox>,
    rego: Option<Compiled>,
    components: std::sync::RwLock<BTreeMap<String, Compiled>>,
    setup: Setup,
}

impl SandboxEngine {
    /// `rego` is the component that decides Rego documents; without it such policies are refused.
    pub fn new(sandbox: Arc<Sandbox>, rego: Option<Compiled>, setup: Setup) -> SandboxEngine {
        SandboxEngine {
            sandbox,
            rego,
            components: Default::default(),
            setup,
        }
    }

    /// Makes a policy component known, so that sources can name it.
    pub fn add_component(&self, compiled: Compiled) {
        let mut components = self
            .components
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        components.insert(compiled.digest().to_owned(), compiled);
    }

    fn component(&self, source: &Source) -> Result<Compiled, Fault> {
        let missing = |what: String| Fault::new(FaultKind::Start, what);
        match &source.component {
            None => self.rego.clone().ok_or_else(|| {
                missing("The Rego component is not installed. Install it (dwcp plugin install) and apply again.".into())
            }),
            Some(digest) => {
                let components = self.components.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                components.get(digest).cloned().ok_or_else(|| missing(format!("There is no policy component {digest}.")))
            }
        }
    }
}

impl Engine for SandboxEngine {
    fn compile(&self, source: &Source) -> Result<Arc<dyn Judge>, ConfigureError> {
        let compiled = self.component(source)?;
        let policy = self
            .sandbox
            .policy(&compiled, self.setup.clone())
            .map_err(|error| Fault::new(FaultKind::Start, error.to_string()))?;
        let summary = policy.configure(&source.documents)?;
        if summary.policies.is_empty() {
            let message = "There is no policy here that decides: write a package below `dwcp` with a rule named \
                           deny, warn, allow or patch.";
            return Err(ConfigureError::Refused(vec![Diagnostic {
                file: source
                    .documents
                    .first()
                    .map(|d| d.path.clone())
                    .unwrap_or_default(),
                line: 0,
                column: 0,
                message: message.into(),
            }]));
        }
        let digest = format!(
            "{}:{}",
            compiled.digest(),
            policy.configuration().unwrap_or_default()
        );
        Ok(Arc::new(Sandboxed {
            policy,
            summary,
            digest,
        }))
    }
}

#[derive(Debug)]
struct Sandboxed {
    policy: Policy,
    summary: Summary,
    digest: String,
}

impl Judge for Sandboxed {
    fn summary(&self) -> Summary {
        self.summary.clone()
    }

    fn digest(&self) -> String {
        self.digest.clone()
    }

    fn decide(&self, stamp: &Stamp, input: &str) -> Result<Verdict, Fault> {
        self.policy.decide(stamp, input)
    }
}
