//! Names, digests, fingerprints and keys: texts that become parts of paths, of store keys, of log lines.
//!
//! What is accepted reads the same when it is written again, and has no part that leads out of a directory.

use std::fmt::Display;
use std::str::FromStr;

use dwcp_audit::VerifierKey;
use dwcp_control::Name;
use dwcp_launch::protocol::ChildId;
use dwcp_marketplace::{Digest, Reference, TrustedKey};
use dwcp_wire::tls::Fingerprint;

/// One text.
pub(super) fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Some(name) = read::<Name>(text) {
        plain(name.as_str());
    }
    if let Some(id) = read::<ChildId>(text) {
        plain(id.as_str());
    }
    if let Some(reference) = read::<Reference>(text) {
        plain(reference.publisher());
        plain(reference.name());
        assert!(reference.accepts(&reference));
    }
    if let Some(digest) = read::<Digest>(text) {
        plain(&digest.to_hex());
    }
    read::<Fingerprint>(text);
    read::<VerifierKey>(text);
    if let Ok(key) = TrustedKey::from_pem("somebody", text) {
        plain(&key.fingerprint().to_hex());
    }
}

fn read<T: FromStr + Display>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    let written = value.to_string();
    let again: Result<T, _> = written.parse();
    assert!(again.is_ok_and(|again| again.to_string() == written));
    Some(value)
}

fn plain(name: &str) {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    assert!(!name.is_empty() && name.bytes().all(allowed), "{name:?}");
}
