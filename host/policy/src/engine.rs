//! What evaluates a policy: in production the plugin sandbox, behind a trait so that its faults can be tried.
//!
//! Never: bindings, modes or caches.

use dwcp_plugins::{
    Compiled, ConfigureError, Diagnostic, Document, Fault, FaultKind, Policy, Sandbox, Setup,
    Stamp, Summary, Verdict,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a policy is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What it is configured with: Rego modules, data.
    pub documents: Vec<Document>,
}

impl Source {
    /// A policy of Rego documents.
    pub fn rego(documents: Vec<Document>) -> Source {
        Source { documents }
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
    setup: Setup,
}

impl SandboxEngine {
    /// `rego` is the component that decides Rego documents; without it such policies are refused.
    pub fn new(sandbox: Arc<Sandbox>, rego: Option<Compiled>, setup: Setup) -> SandboxEngine {
        SandboxEngine {
            sandbox,
            rego,
            setup,
        }
    }
}

impl Engine for SandboxEngine {
    fn compile(&self, source: &Source) -> Result<Arc<dyn Judge>, ConfigureError> {
        let compiled = self.rego.as_ref().ok_or_else(|| {
            let what = "The Rego component is not installed. Install it (`dwcp plugin install dwcp/policy-rego`) and apply again.";
            Fault::new(FaultKind::Start, what)
        })?;
        let policy = self
            .sandbox
            .policy(compiled, self.setup.clone())
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
