//! Lines of SSH public keys, as in `authorized_keys`.
//!
//! What always holds: a line that passes names a known kind of key, and its bytes say the same; options in front of a
//! key are not taken, for what is given here is a key and not a permission. Formats: RFC 4253 section 6.6, and
//! OpenSSH's PROTOCOL.u2f.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::limits::SSH_KEY_BYTES_MAX;
use crate::shown::shown;

const KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Why a line is no key.
#[derive(Debug, thiserror::Error)]
pub enum SshKeyError {
    /// Longer than any key.
    #[error("It has {0} bytes; at most {SSH_KEY_BYTES_MAX} are taken")]
    TooLong(usize),
    /// The secret half.
    #[error(
        "It is a private key; keep it to yourself, and give the line of the file that ends in .pub"
    )]
    Private,
    /// Several lines.
    #[error("It is not one line; give each key by itself")]
    Lines,
    /// Something else than a key.
    #[error("It begins with '{0}' and not with a kind of key, such as ssh-ed25519")]
    Kind(String),
    /// The key's bytes.
    #[error(
        "The text after {0} is not a key of that kind; it may have been cut or broken when it was copied"
    )]
    Body(&'static str),
}

/// Checks one line; spaces and an end of line around it do not count.
pub(super) fn check(line: &str) -> Result<(), SshKeyError> {
    if line.len() > SSH_KEY_BYTES_MAX {
        return Err(SshKeyError::TooLong(line.len()));
    }
    let line = line.trim();
    if line.starts_with("-----BEGIN") {
        return Err(SshKeyError::Private);
    }
    if line.chars().any(char::is_control) {
        return Err(SshKeyError::Lines);
    }
    let mut words = line.split_ascii_whitespace();
    let first = words.next().unwrap_or_default();
    let Some(kind) = KINDS.into_iter().find(|kind| *kind == first) else {
        return Err(SshKeyError::Kind(shown(first)));
    };
    let body = words.next().and_then(|body| STANDARD.decode(body).ok());
    match body.is_some_and(|body| is_of(kind, &body)) {
        true => Ok(()),
        false => Err(SshKeyError::Body(kind)),
    }
}

/// Whether a key's bytes are whole fields, the first of which is its kind.
fn is_of(kind: &str, body: &[u8]) -> bool {
    let mut rest = body;
    let mut fields = 0;
    while !rest.is_empty() {
        let Some((length, after)) = rest.split_first_chunk::<4>() else {
            return false;
        };
        let length = u32::from_be_bytes(*length) as usize;
        let Some((field, after)) = after.split_at_checked(length) else {
            return false;
        };
        if fields == 0 && field != kind.as_bytes() {
            return false;
        }
        fields += 1;
        rest = after;
    }
    fields >= 2
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    const BODY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAFQRgXG0kE9/8uPT0fkz3MX7QAfYrg1E4aCCU7";

    #[test]
    fn keys_as_people_have_them_pass() {
        for line in [
            format!("ssh-ed25519 {BODY}"),
            format!("ssh-ed25519 {BODY} me@home, work\n"),
            format!("  ssh-ed25519   {BODY}\r\n"),
        ] {
            check(&line).unwrap();
        }
    }

    #[test]
    fn what_is_no_key_is_said() {
        let error = |line: &str| check(line).unwrap_err().to_string();
        assert!(error("-----BEGIN OPENSSH PRIVATE KEY-----\nx").contains("private key"));
        assert!(error(&format!("ssh-ed25519 {BODY}\nssh-ed25519 {BODY}")).contains("one line"));
        assert!(error(&format!("command=\"x\" ssh-ed25519 {BODY}")).contains("begins with"));
        assert!(error("").contains("begins with ''"));
        assert!(error(&format!("ssh-rsa {BODY}")).contains("not a key of that kind"));
        assert!(error(&format!("ssh-ed25519 {}", &BODY[..64])).contains("cut or broken"));
        assert!(error("ssh-ed25519").contains("ssh-ed25519 is not"));
        assert!(error(&"x".repeat(SSH_KEY_BYTES_MAX + 1)).contains("at most"));
    }

    proptest! {
        #[test]
        fn any_line_is_a_key_or_an_error(line in "(ssh-ed25519 )?(?s).{0,120}") {
            let _ = check(&line);
        }

        #[test]
        fn a_key_with_a_piece_missing_is_none(at in 0usize..67, length in 1usize..20) {
            let mut body = BODY.to_owned();
            body.replace_range(at..(at + length).min(BODY.len()), "");
            let line = format!("ssh-ed25519 {body}");
            prop_assert!(check(&line).is_err());
        }
    }
}
