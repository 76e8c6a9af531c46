//! The audit log.

use serde::{Deserialize, Serialize};

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Its index in the log, from 0.
    pub index: u64,
    /// The entry exactly as it was hashed.
    pub entry: String,
}

/// What a client needs to check the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditCheckpoint {
    /// The signed note (C2SP tlog-checkpoint).
    pub note: String,
    /// The verifier key (C2SP signed-note).
    pub key: String,
}

/// A proof: hashes of the Merkle tree, base64, in the order of RFC 9162.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The hashes.
    pub hashes: Vec<String>,
}
