//! The audit log as the node uses it: every mutation and denial is in it, durably, before it is answered.

use std::sync::Arc;

use dwcp_api::service::{Answer, Principal};
use dwcp_api::{Fault, FaultKind};
use dwcp_audit::{AuditLog, Entry, Outcome, Signer};
use serde_json::{Value, json};

use crate::config::NodeConfig;
use crate::errors::{NodeError, internal};
use crate::identity::HostKeys;
use crate::node::Node;
use crate::state::now_ms;

/// Opens the log under the host's own key.
pub(crate) fn open(config: &NodeConfig, keys: &HostKeys) -> Result<Arc<AuditLog>, NodeError> {
    let name = format!("dwcp.{}.{}", config.region, config.name);
    let signer = Signer::from_seed(&name, &keys.audit_seed).map_err(|_| NodeError::Identity {
        what: "audit.key".into(),
    })?;
    let log = AuditLog::open(config.dir("audit"), signer)?;
    let report = log.report();
    if report.dropped_bytes > 0 {
        tracing::warn!(
            "the audit log ended in {} bytes of an entry that was never acknowledged; they are gone",
            report.dropped_bytes
        );
    }
    Ok(Arc::new(log))
}

impl Node {
    /// Appends an entry and waits until it is durable.
    pub(crate) async fn audit(
        &self,
        who: &str,
        action: &str,
        object: &str,
        outcome: Outcome,
        detail: Value,
    ) -> Answer<()> {
        let entry = Entry {
            time_ms: now_ms(),
            principal: who.into(),
            action: action.into(),
            object: object.into(),
            outcome,
            detail,
        };
        let log = self.audit.clone();
        match tokio::task::spawn_blocking(move || log.append(&entry)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(internal(error)),
            Err(error) => Err(internal(error)),
        }
    }

    /// Notes how a mutation ended, and hands its answer on. A denial is noted as one; the caller learns of it only when
    /// it is durable.
    pub(crate) async fn audited<T>(
        &self,
        who: &Principal,
        action: &str,
        object: &str,
        detail: Value,
        answer: Answer<T>,
    ) -> Answer<T> {
        let (outcome, detail) = match &answer {
            Ok(_) => (Outcome::Done, detail),
            Err(fault) => {
                let outcome = match fault.kind {
                    FaultKind::Denied | FaultKind::Unauthenticated => Outcome::Denied,
                    _ => Outcome::Failed,
                };
                (outcome, with_reasons(detail, fault))
            }
        };
        self.audit(&who.name, action, object, outcome, detail)
            .await?;
        answer
    }
}

fn with_reasons(detail: Value, fault: &Fault) -> Value {
    json!({ "request": detail, "message": fault.message, "reasons": fault.reasons })
}
