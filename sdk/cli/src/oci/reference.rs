//! Names of images in registries: `quay.io/containerdisks/debian:13`, or with `@sha256:…` instead of a tag.
//!
//! What always holds: the registry is named (there is none that is meant otherwise), and no part can leave its place in
//! a URL.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};

use super::manifest::Digest;

/// Longest repository, bytes (distribution specification).
const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag, bytes (distribution specification).
const TAG_BYTES_MAX: usize = 128;

/// One image in one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The registry, with its port if that is not the usual one.
    pub registry: String,
    /// The repository in it.
    pub repository: String,
    /// Which of its images.
    pub at: At,
}

/// Which image of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// The one that has a tag now.
    Tag(String),
    /// The one with this digest, for ever.
    Digest(Digest),
}

impl Reference {
    /// True if the registry is on this machine, where no network is between.
    pub fn is_local(&self) -> bool {
        is_local(host(&self.registry))
    }
}

/// True of `localhost` and of loopback addresses.
pub fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((registry, rest)) = text.split_once('/').filter(|(name, _)| is_registry(name))
        else {
            bail!(
                "{text:?} names no registry: write it whole, like quay.io/containerdisks/debian:13"
            );
        };
        let (named, digest) = match rest.split_once('@') {
            Some((named, digest)) => (named, Some(digest.parse()?)),
            None => (rest, None),
        };
        let (repository, tag) = match named.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (named, None),
        };
        ensure!(
            is_repository(repository),
            "{repository:?} is not a repository: lower-case letters, digits and single separators, like \
             containerdisks/debian"
        );
        let tag = tag.unwrap_or("latest");
        ensure!(is_tag(tag), "{tag:?} is not a tag");
        Ok(Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            // A digest says all that a tag beside it could.
            at: digest.map_or_else(|| At::Tag(tag.to_owned()), At::Digest),
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.registry, self.repository)?;
        match &self.at {
            At::Tag(tag) => write!(out, ":{tag}"),
            At::Digest(digest) => write!(out, "@{digest}"),
        }
    }
}

/// The host of `host:port`.
fn host(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => registry,
    }
}

/// The first part of a name is a registry if it looks like a host, as everywhere.
fn is_registry(name: &str) -> bool {
    let host = host(name);
    let port = &name[host.len()..];
    let good_port = port.is_empty() || port[1..].parse::<u16>().is_ok();
    let good_host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
            !host.is_empty() && !host.starts_with('.') && host.bytes().all(plain)
        }
    };
    let looks_like_host = host == "localhost" || name.contains(['.', ':']);
    good_host && good_port && looks_like_host
}

fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends = [part.bytes().next(), part.bytes().next_back()];
        ends.into_iter().all(|end| end.is_some_and(plain))
            && part.bytes().all(|b| plain(b) || b"._-".contains(&b))
            && !part.contains("..")
    };
    text.len() <= REPOSITORY_BYTES_MAX && text.split('/').all(is_part)
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=TAG_BYTES_MAX).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b".-".contains(&b))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_read() {
        let hex = "ab".repeat(32);
        for (text, shown, local) in [
            (
                "quay.io/containerdisks/debian:13",
                "quay.io/containerdisks/debian:13",
                false,
            ),
            ("localhost:5000/a", "localhost:5000/a:latest", true),
            ("localhost/a/b_c:T.1", "localhost/a/b_c:T.1", true),
            ("127.0.0.1:80/a:1", "127.0.0.1:80/a:1", true),
            ("[::1]:5000/a:1", "[::1]:5000/a:1", true),
            ("registry:5000/a:1", "registry:5000/a:1", false),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(
                (reference.to_string().as_str(), reference.is_local()),
                (shown, local)
            );
        }
        let pinned: Reference = format!("ghcr.io/a/b:1@sha256:{hex}").parse().unwrap();
        assert_eq!(pinned.to_string(), format!("ghcr.io/a/b@sha256:{hex}"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "debian:13",
            "library/debian",
            "quay.io/",
            "quay.io/A",
            "quay.io/a/../b",
            "quay.io/a//b",
            "quay.io/a:",
            "quay.io/a:b/c",
            "quay.io/a@sha256:12",
            "quay.io/a@md5:12",
            "quay.io:x/a",
            "[::1/a",
            "quay.io/a?x=1",
            "user@quay.io/a",
            ".io/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
