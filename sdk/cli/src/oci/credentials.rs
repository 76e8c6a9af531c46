//! Logins that `podman login` and `docker login` have kept.
//!
//! What always holds: they are read when a registry asks for one, sent to nobody but that registry and whom it names,
//! and never shown. No credential helper is started.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::reference::Reference;

/// Under what Docker keeps the login of `docker.io`.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// What a registry knows somebody by.
#[derive(Clone)]
pub struct Login {
    /// A name and a password.
    pub user: String,
    /// The password.
    pub password: String,
    /// A token that others are had for, instead of both.
    pub identity_token: Option<String>,
    /// Where it was kept.
    pub file: PathBuf,
}

impl fmt::Debug for Login {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Login of {:?} in {}", self.user, self.file.display())
    }
}

#[derive(Deserialize)]
struct Kept {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
}

/// The login for an image, if one is kept; the first file that has one counts.
pub fn of(reference: &Reference) -> Result<Option<Login>> {
    for file in files(&|name| std::env::var_os(name).map(PathBuf::from)) {
        let Ok(text) = std::fs::read(&file) else {
            continue; // most of them are not there
        };
        let kept = serde_json::from_slice(&text);
        let kept = kept.with_context(|| format!("{} cannot be read", file.display()))?;
        if let Some(login) = in_file(kept, reference, &file)? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

/// Where Podman looks, and then Docker.
fn files(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let home = variable("HOME");
    let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let config = variable("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
    let docker = variable("DOCKER_CONFIG").or_else(|| in_home(".docker"));
    let found = [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
        config.map(|folder| folder.join("containers/auth.json")),
        docker.map(|folder| folder.join("config.json")),
    ];
    found.into_iter().flatten().collect()
}

fn in_file(kept: Kept, reference: &Reference, file: &Path) -> Result<Option<Login>> {
    let mut keys = Vec::new();
    // A login may be for a part of a registry; the narrowest counts.
    let whole = format!("{}/{}", reference.registry, reference.repository);
    let mut name = whole.as_str();
    loop {
        keys.push(name);
        match name.rsplit_once('/') {
            Some((shorter, _)) => name = shorter,
            None => break,
        }
    }
    if reference.registry == "docker.io" {
        keys.push(DOCKER_HUB_KEY);
    }
    let found = keys.into_iter().find_map(|key| {
        let entry = kept.auths.get(key)?;
        (!entry.auth.is_empty() || !entry.identitytoken.is_empty()).then_some((key, entry))
    });
    let Some((key, entry)) = found else {
        return Ok(None);
    };
    let damaged = || {
        format!(
            "The login for {key} in {} is damaged: log in anew",
            file.display()
        )
    };
    let text = STANDARD
        .decode(&entry.auth)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let text = text.with_context(damaged)?;
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, password.trim_end_matches('\0')),
        None if text.is_empty() => ("", ""),
        None => return Err(anyhow::anyhow!(damaged())),
    };
    Ok(Some(Login {
        user: user.to_owned(),
        password: password.to_owned(),
        identity_token: Some(entry.identitytoken.clone()).filter(|token| !token.is_empty()),
        file: file.to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn user(auths: serde_json::Value, name: &str) -> Result<Option<String>> {
        let kept = serde_json::from_value(json!({ "auths": auths })).unwrap();
        let login = in_file(kept, &name.parse().unwrap(), Path::new("auth.json"));
        Ok(login?.map(|login| login.user))
    }

    #[test]
    fn the_narrowest_login_counts() {
        let auth = |user: &str| json!({ "auth": STANDARD.encode(format!("{user}:secret")) });
        let auths = json!({
            "quay.io": auth("all"),
            "quay.io/mine": auth("mine"),
            "ghcr.io": {}, // kept by a helper
            DOCKER_HUB_KEY: auth("hub"),
        });
        let user = |name: &str| user(auths.clone(), name).unwrap();
        assert_eq!(user("quay.io/mine/disk:1").as_deref(), Some("mine"));
        assert_eq!(user("quay.io/yours/disk:1").as_deref(), Some("all"));
        assert_eq!(user("docker.io/library/debian").as_deref(), Some("hub"));
        assert_eq!(user("ghcr.io/a/b"), None);
        assert_eq!(user("localhost:5000/a"), None);
    }

    #[test]
    fn damage_is_told_and_nothing_secret_with_it() {
        let damaged = json!({ "quay.io": { "auth": STANDARD.encode("no colon") } });
        let said = user(damaged, "quay.io/a").unwrap_err().to_string();
        assert!(
            said.contains("log in anew") && !said.contains("no colon"),
            "{said}"
        );
    }

    #[test]
    fn podmans_files_come_before_dockers() {
        let variable = |name: &str| match name {
            "HOME" => Some("/home/ada".into()),
            "XDG_RUNTIME_DIR" => Some("/run/user/1".into()),
            _ => None,
        };
        let files: Vec<_> = files(&variable)
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        assert_eq!(
            files,
            [
                "/run/user/1/containers/auth.json",
                "/home/ada/.config/containers/auth.json",
                "/home/ada/.docker/config.json"
            ]
        );
    }
}
