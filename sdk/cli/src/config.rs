//! Which host is talked to: profiles in `~/.config/dwcp/config.toml`, flags and environment on top.
//!
//! The file is written by `dwcpd` for whoever starts it:
//!
//! ```toml
//! current = "default"
//!
//! [profiles.default]
//! address = "https://127.0.0.1:4610"
//! ca = """-----BEGIN CERTIFICATE-----…"""
//! key = "dwcp_…"
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use dwcp_sdk::Profile;
use serde::{Deserialize, Serialize};

/// The configuration file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Config {
    /// Name of the profile in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// The profiles, by name.
    #[serde(default)]
    pub profiles: BTreeMap<String, Entry>,
}

/// A profile as it is kept.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Entry {
    /// `https://IP:PORT`.
    pub address: String,
    /// The authority, PEM.
    pub ca: String,
    /// The API key.
    pub key: String,
}

/// What flags and environment say.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--profile` or `DWCP_PROFILE`.
    pub profile: Option<String>,
    /// `DWCP_ADDRESS`.
    pub address: Option<String>,
    /// `DWCP_KEY`.
    pub key: Option<String>,
    /// `DWCP_CA_FILE`.
    pub ca_file: Option<PathBuf>,
}

impl Overrides {
    /// From the environment, `--profile` first.
    pub fn from_environment(profile: Option<String>) -> Self {
        let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            profile,
            address: text("DWCP_ADDRESS"),
            key: text("DWCP_KEY"),
            ca_file: text("DWCP_CA_FILE").map(PathBuf::from),
        }
    }
}

/// The profile in use and what it is called.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Its name; it names files of this machine, so it is made of plain characters.
    pub name: String,
    /// How the host is reached.
    pub profile: Profile,
}

/// The file's place: `$XDG_CONFIG_HOME/dwcp/config.toml` or `~/.config/dwcp/config.toml`.
pub fn path() -> anyhow::Result<PathBuf> {
    Ok(directory("XDG_CONFIG_HOME", ".config")?.join("config.toml"))
}

/// A directory of ours, by the XDG base directory specification.
pub fn directory(variable: &str, below_home: &str) -> anyhow::Result<PathBuf> {
    let absolute = |text: std::ffi::OsString| Some(PathBuf::from(text)).filter(|p| p.is_absolute());
    if let Some(base) = std::env::var_os(variable).and_then(absolute) {
        return Ok(base.join("dwcp"));
    }
    let home = std::env::var_os("HOME").and_then(absolute);
    let home = home
        .ok_or_else(|| anyhow!("Set HOME or {variable}: it is not known where files are kept"))?;
    Ok(home.join(below_home).join("dwcp"))
}

/// Reads the file; an absent one holds nothing.
pub fn load(path: &Path) -> anyhow::Result<Config> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Config::default()),
        Err(error) => return Err(error).context(format!("{} could not be read", path.display())),
    };
    toml::from_str(&text).with_context(|| format!("{} is not good", path.display()))
}

/// Decides which profile is used.
pub fn choose(overrides: &Overrides, path: &Path) -> anyhow::Result<Chosen> {
    let ca = match &overrides.ca_file {
        None => None,
        Some(file) => Some(
            std::fs::read_to_string(file)
                .with_context(|| format!("{} (DWCP_CA_FILE) could not be read", file.display()))?,
        ),
    };
    if let (None, Some(address), Some(key), Some(ca)) =
        (&overrides.profile, &overrides.address, &overrides.key, &ca)
    {
        return Ok(Chosen {
            name: plain(address),
            profile: Profile {
                address: address.clone(),
                ca_pem: ca.clone(),
                api_key: key.clone(),
            },
        });
    }
    let config = load(path)?;
    let name = overrides.profile.clone().or(config.current);
    let name = name.unwrap_or_else(|| "default".to_owned());
    let Some(entry) = config.profiles.get(&name) else {
        if config.profiles.is_empty() {
            bail!(
                "There is no profile yet: start dwcpd, which writes one to {}, or set DWCP_ADDRESS, DWCP_KEY and DWCP_CA_FILE",
                path.display()
            );
        }
        let known: Vec<_> = config.profiles.keys().map(String::as_str).collect();
        bail!(
            "There is no profile {name}; there are: {}",
            known.join(", ")
        );
    };
    Ok(Chosen {
        name: plain(&name),
        profile: Profile {
            address: overrides.address.clone().unwrap_or(entry.address.clone()),
            ca_pem: ca.unwrap_or(entry.ca.clone()),
            api_key: overrides.key.clone().unwrap_or(entry.key.clone()),
        },
    })
}

/// A name that is safe as a file's.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        (directory, path)
    }

    const TWO: &str = "current = \"b\"\n[profiles.a]\naddress = \"https://a\"\nca = \"A\"\nkey = \"ka\"\n\
        [profiles.b]\naddress = \"https://b\"\nca = \"B\"\nkey = \"kb\"\n";

    #[test]
    fn flags_come_before_the_current_profile() {
        let (_kept, path) = file(TWO);
        let current = choose(&Overrides::default(), &path).unwrap();
        assert_eq!(
            (current.name.as_str(), current.profile.address.as_str()),
            ("b", "https://b")
        );
        let overrides = Overrides {
            profile: Some("a".into()),
            key: Some("other".into()),
            ..Overrides::default()
        };
        let chosen = choose(&overrides, &path).unwrap().profile;
        assert_eq!(
            (chosen.address.as_str(), chosen.api_key.as_str()),
            ("https://a", "other")
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let (_kept, path) = file(TWO);
        let overrides = Overrides {
            profile: Some("c".into()),
            ..Overrides::default()
        };
        let error = choose(&overrides, &path).unwrap_err().to_string();
        assert_eq!(error, "There is no profile c; there are: a, b");
        let absent = path.with_file_name("none.toml");
        let error = choose(&Overrides::default(), &absent)
            .unwrap_err()
            .to_string();
        assert!(error.contains("start dwcpd"), "{error}");
        let (_kept, broken) = file("current = 3");
        let error = choose(&Overrides::default(), &broken)
            .unwrap_err()
            .to_string();
        assert!(error.contains("is not good"), "{error}");
    }

    #[test]
    fn the_environment_alone_is_enough() {
        let (_kept, ca) = file("PEM");
        let overrides = Overrides {
            profile: None,
            address: Some("https://192.0.2.7:4610".into()),
            key: Some("k".into()),
            ca_file: Some(ca),
        };
        let chosen = choose(&overrides, Path::new("/nowhere/config.toml")).unwrap();
        assert_eq!(chosen.name, "https___192_0_2_7_4610");
        assert_eq!(chosen.profile.ca_pem, "PEM");
    }
}
