//! Hosts.

use crate::error::Result;
use crate::pages::Listing;
use crate::transport::Client;
use crate::types::{Host, HostAdd};

impl Client {
    /// The host that answers.
    pub async fn host_this(&self) -> Result<Host> {
        self.get(&["v1", "host"], &[]).await
    }

    /// That host and those it was introduced to.
    pub fn host_list(&self) -> Listing<Host> {
        self.listing(&["v1", "hosts"], &[])
    }

    /// One of them.
    pub async fn host_get(&self, name: &str) -> Result<Host> {
        self.get(&["v1", "hosts", name], &[]).await
    }

    /// Introduces another host. It need not be there yet: whether it was reached and showed its fingerprint is in
    /// `reachable`, and why not in `problem`.
    pub async fn host_add(&self, host: &HostAdd) -> Result<Host> {
        self.post(&["v1", "hosts"], &[], host).await
    }

    /// Forgets a host.
    pub async fn host_remove(&self, name: &str) -> Result<()> {
        self.delete(&["v1", "hosts", name], &[]).await
    }

    /// Measurements in the Prometheus text format.
    pub async fn metrics(&self) -> Result<String> {
        let call = self.call(reqwest::Method::GET, &["metrics"], &[]);
        let body = self.send(call).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}
