//! How bridges and taps are called: `dwcp0` is a bridge, `dwcp-3-0` the first tap of the child in slot 3.
//!
//! What always holds: a name has at most 15 bytes, as the kernel wants it; no name of one prefix is a name of another,
//! so launchers with different prefixes never touch each other's links; and a name tells what the link is, so that
//! what a killed launcher left is found. A slot is a running child's alone, so a tap's name is too.

use std::fmt;
use std::str::FromStr;

/// Longest prefix, in bytes: with `-`, three digits, `-` and one digit it makes 15 at most.
pub const PREFIX_BYTES_MAX: usize = 8;
/// The first number that is no bridge's.
pub const BRIDGES_MAX: u32 = 64;

/// What the names of one launcher's links begin with: a letter, then letters and digits, then a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

/// The text is no [`Prefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "A prefix of networks has 1 to {PREFIX_BYTES_MAX} characters a-z and 0-9, and begins and ends with a letter"
)]
pub struct BadPrefixName;

/// What a link's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A network's bridge.
    Bridge,
    /// A child's tap.
    Tap,
}

impl Prefix {
    /// The name of the bridge with this number.
    pub fn bridge(&self, number: u32) -> String {
        format!("{self}{number}")
    }

    /// The name of one tap of the child in this slot.
    pub fn tap(&self, slot: u32, nic: usize) -> String {
        format!("{self}-{slot}-{nic}")
    }

    /// All taps, as a rule names them.
    pub fn taps(&self) -> String {
        format!("{self}-*")
    }

    /// What a name says, if it is one of this prefix.
    pub fn role(&self, name: &str) -> Option<Role> {
        let is_number =
            |text: &str| (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let rest = name.strip_prefix(&self.0)?;
        if is_number(rest) {
            return Some(Role::Bridge);
        }
        let (slot, nic) = rest.strip_prefix('-')?.split_once('-')?;
        (is_number(slot) && is_number(nic)).then_some(Role::Tap)
    }
}

impl FromStr for Prefix {
    type Err = BadPrefixName;

    fn from_str(text: &str) -> Result<Self, BadPrefixName> {
        let bytes = text.as_bytes();
        let is_letter = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_lowercase);
        let allowed = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = (1..=PREFIX_BYTES_MAX).contains(&bytes.len());
        if fits && is_letter(bytes.first()) && is_letter(bytes.last()) && bytes.iter().all(allowed)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadPrefixName)
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use dwcp_launch::protocol::{CHILDREN_MAX, NICS_MAX};

    use super::*;

    #[test]
    fn prefixes_are_plain() {
        for good in ["dwcp", "d", "a1b"] {
            assert_eq!(good.parse::<Prefix>().unwrap().to_string(), good);
        }
        for bad in ["", "1a", "a1", "a-b", "A", "abcdefghi", "a\"b", "a b"] {
            assert_eq!(bad.parse::<Prefix>(), Err(BadPrefixName), "{bad}");
        }
    }

    #[test]
    fn names_fit_and_tell_what_they_are() {
        let prefix: Prefix = "abcdefgh".parse().unwrap();
        let longest = prefix.tap(CHILDREN_MAX as u32 - 1, NICS_MAX - 1);
        assert!(longest.len() <= 15, "{longest}");
        assert!(prefix.bridge(BRIDGES_MAX - 1).len() <= 15);
        assert_eq!(prefix.role(&longest), Some(Role::Tap));
        assert_eq!(prefix.role(&prefix.bridge(63)), Some(Role::Bridge));
        for strange in [
            "abcdefgh",
            "abcdefgh-",
            "abcdefgh-1",
            "abcdefgh-x-0",
            "eth0",
            "abcdefgh1x",
        ] {
            assert_eq!(prefix.role(strange), None, "{strange}");
        }
    }

    #[test]
    fn no_prefix_claims_anothers_names() {
        let [short, long]: [Prefix; 2] = ["d", "d1d"].map(|text| text.parse().unwrap());
        for name in [long.bridge(1), long.tap(1, 1)] {
            assert_eq!(short.role(&name), None, "{name}");
        }
        for name in [short.bridge(1), short.tap(1, 1)] {
            assert_eq!(long.role(&name), None, "{name}");
        }
    }
}
