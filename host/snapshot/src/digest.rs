//! BLAKE3 digests: of parts of a snapshot, and of the snapshot as a whole, by which an incremental names its base.
//!
//! Each kind has a context of its own, so that no bytes of one kind can pass for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 32;

const HEADER: &str = "DWCP snapshot 1 header";
const MANIFEST: &str = "DWCP snapshot 1 manifest";
const STATE: &str = "DWCP snapshot 1 device state";
const TABLE: &str = "DWCP snapshot 1 chunk table";
const CONTENT: &str = "DWCP snapshot 1 chunk content";
const MEMORY: &str = "DWCP snapshot 1 memory";
const WHOLE: &str = "DWCP snapshot 1 whole";

/// What identifies a snapshot: its manifest, device state and memory, however the memory is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotDigest(pub(crate) [u8; DIGEST_BYTES]);

/// The text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A snapshot's digest has 64 hexadecimal digits")]
pub struct BadDigest;

impl FromStr for SnapshotDigest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let mut bytes = [0; DIGEST_BYTES];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| BadDigest)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for SnapshotDigest {
    type Error = BadDigest;

    fn try_from(text: String) -> Result<Self, BadDigest> {
        text.parse()
    }
}

impl From<SnapshotDigest> for String {
    fn from(digest: SnapshotDigest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for SnapshotDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SnapshotDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A digest of one part.
pub(crate) type Digest = [u8; DIGEST_BYTES];

pub(crate) fn of_header(bytes: &[u8]) -> Digest {
    blake3::derive_key(HEADER, bytes)
}

pub(crate) fn of_manifest(bytes: &[u8]) -> Digest {
    blake3::derive_key(MANIFEST, bytes)
}

pub(crate) fn of_state(bytes: &[u8]) -> Digest {
    blake3::derive_key(STATE, bytes)
}

pub(crate) fn of_content(bytes: &[u8]) -> Digest {
    blake3::derive_key(CONTENT, bytes)
}

pub(crate) fn table_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key(TABLE)
}

pub(crate) fn memory_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key(MEMORY)
}

pub(crate) fn of_whole(manifest: &Digest, state: &Digest, memory: &Digest) -> SnapshotDigest {
    let mut hasher = blake3::Hasher::new_derive_key(WHOLE);
    for part in [manifest, state, memory] {
        hasher.update(part);
    }
    SnapshotDigest(hasher.finalize().into())
}
