//! An audit log in memory, with the real tree and real signatures, and a way to tamper with it.

use std::convert::Infallible;

use dwcp_api::service::{Answer, Fault, FaultKind};
use dwcp_audit::tree::{self, Frontier, Nodes};
use dwcp_audit::{Checkpoint, Entry, Hash, Outcome, Signer};
use dwcp_control::records::{AuditCheckpoint, AuditRecord};

/// The log.
pub(super) struct Log {
    signer: Signer,
    /// Canonical texts; a test may change one.
    pub(super) entries: Vec<String>,
    /// What is signed: the leaves as they were when appended.
    leaves: Vec<Hash>,
}

struct Leaves<'a>(&'a [Hash]);

impl Nodes for Leaves<'_> {
    type Error = Infallible;
    fn node(&self, level: u32, index: u64) -> Result<Hash, Infallible> {
        if level == 0 {
            return Ok(self.0[usize::try_from(index).unwrap()]);
        }
        let left = self.node(level - 1, 2 * index)?;
        Ok(Hash::of_node(&left, &self.node(level - 1, 2 * index + 1)?))
    }
}

impl Log {
    pub(super) fn new() -> Self {
        Self {
            signer: Signer::from_seed("left.test/audit", &[7; 32]).unwrap(),
            entries: Vec::new(),
            leaves: Vec::new(),
        }
    }

    pub(super) fn append(&mut self, principal: &str, action: &str, object: &str) {
        let entry = Entry {
            time_ms: 1_700_000_000_000 + self.entries.len() as u64,
            principal: principal.to_owned(),
            action: action.to_owned(),
            object: object.to_owned(),
            outcome: Outcome::Done,
            detail: serde_json::Value::Null,
        };
        let text = entry.canonical().unwrap();
        self.leaves.push(Hash::of_leaf(text.as_bytes()));
        self.entries.push(text);
    }

    /// Removes entries from the end, as a thief would who has the signing key.
    pub(super) fn cut(&mut self, left: usize) {
        self.entries.truncate(left);
        self.leaves.truncate(left);
    }

    pub(super) fn checkpoint(&self) -> AuditCheckpoint {
        let mut tree = Frontier::new();
        for leaf in &self.leaves {
            tree.push(*leaf, |_, _, _| {});
        }
        let checkpoint = Checkpoint {
            origin: self.signer.verifier().name().to_owned(),
            size: tree.size(),
            root: tree.root(),
        };
        AuditCheckpoint {
            note: checkpoint.sign(&self.signer),
            key: self.signer.verifier().to_string(),
        }
    }

    pub(super) fn records(&self, from: u64, limit: usize) -> Vec<AuditRecord> {
        let entries = self.entries.iter().zip(0..);
        entries
            .skip(usize::try_from(from).unwrap_or(usize::MAX))
            .take(limit)
            .map(|(entry, index)| AuditRecord {
                index,
                entry: entry.clone(),
            })
            .collect()
    }

    pub(super) fn consistency(&self, old: u64, new: u64) -> Answer<Vec<String>> {
        self.has(new)?;
        let proof = tree::consistency_proof(&Leaves(&self.leaves), old, new);
        Ok(proof.unwrap().iter().map(Hash::to_string).collect())
    }

    pub(super) fn inclusion(&self, index: u64, size: u64) -> Answer<Vec<String>> {
        self.has(size)?;
        let proof = tree::inclusion_proof(&Leaves(&self.leaves), index, size);
        Ok(proof.unwrap().iter().map(Hash::to_string).collect())
    }

    fn has(&self, size: u64) -> Answer<()> {
        if size <= self.leaves.len() as u64 {
            Ok(())
        } else {
            Err(Fault::new(FaultKind::Invalid, "The log is not that long"))
        }
    }
}
