//! The audit log. Checking it is for `dwcp-audit`; this fetches what there is to check.

use crate::error::Result;
use crate::transport::Client;
use crate::types::{AuditCheckpoint, AuditRecord, Page, Proof};

impl Client {
    /// The newest signed checkpoint, and the key that it claims.
    pub async fn audit_checkpoint(&self) -> Result<AuditCheckpoint> {
        self.get(&["v1", "audit", "checkpoint"], &[]).await
    }

    /// Up to `limit` (1 to 1,000) entries from an index on.
    pub async fn audit_entries(&self, from: u64, limit: usize) -> Result<Vec<AuditRecord>> {
        let (from, limit) = (from.to_string(), limit.to_string());
        let query = [("from", from.as_str()), ("limit", limit.as_str())];
        let page: Page<AuditRecord> = self.get(&["v1", "audit", "entries"], &query).await?;
        Ok(page.items)
    }

    /// Consistency proof between two sizes.
    pub async fn audit_consistency(&self, old: u64, new: u64) -> Result<Vec<String>> {
        let (old, new) = (old.to_string(), new.to_string());
        let query = [("old", old.as_str()), ("new", new.as_str())];
        let proof: Proof = self.get(&["v1", "audit", "consistency"], &query).await?;
        Ok(proof.hashes)
    }

    /// Inclusion proof of an entry in a tree of a size.
    pub async fn audit_inclusion(&self, index: u64, size: u64) -> Result<Vec<String>> {
        let (index, size) = (index.to_string(), size.to_string());
        let query = [("index", index.as_str()), ("size", size.as_str())];
        let proof: Proof = self.get(&["v1", "audit", "inclusion"], &query).await?;
        Ok(proof.hashes)
    }
}
