//! Policies, bindings and decisions.

use reqwest::Method;

use crate::error::Result;
use crate::pages::Listing;
use crate::transport::Client;
use crate::types::{Binding, Decision, Policy};

impl Client {
    /// Policies.
    pub fn policy_list(&self) -> Listing<Policy> {
        self.listing(&["v1", "policies"], &[])
    }

    /// One, by name.
    pub async fn policy_get(&self, name: &str) -> Result<Policy> {
        self.get(&["v1", "policies", name], &[]).await
    }

    /// Stores a policy, or a new version of it, from Rego source.
    pub async fn policy_apply(&self, name: &str, source: &str) -> Result<Policy> {
        let call = self.call(Method::PUT, &["v1", "policies", name], &[]);
        self.object(call.text(source.to_owned())).await
    }

    /// Removes one that is not bound.
    pub async fn policy_remove(&self, name: &str) -> Result<()> {
        self.delete(&["v1", "policies", name], &[]).await
    }

    /// Where policies act.
    pub fn binding_list(&self) -> Listing<Binding> {
        self.listing(&["v1", "policy-bindings"], &[])
    }

    /// Binds one: from the next request on it is asked.
    pub async fn policy_bind(&self, binding: &Binding) -> Result<Binding> {
        self.post(&["v1", "policy-bindings"], &[], binding).await
    }

    /// Unbinds one from an action.
    pub async fn policy_unbind(&self, policy: &str, action: &str) -> Result<()> {
        self.delete(&["v1", "policy-bindings", policy, action], &[])
            .await
    }

    /// Decisions, newest first; of one object if a subject is given.
    pub fn decision_list(&self, subject: Option<&str>) -> Listing<Decision> {
        let query = subject.map(|subject| ("subject", subject));
        self.listing(&["v1", "decisions"], query.as_slice())
    }

    /// One decision.
    pub async fn decision_get(&self, id: &str) -> Result<Decision> {
        self.get(&["v1", "decisions", id], &[]).await
    }
}
