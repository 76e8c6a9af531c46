//! The command line's profile of a new host, written for the user who starts it.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context;
use toml::{Table, Value};

fn path() -> Option<PathBuf> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    Some(config.or(home)?.join("dwcp").join("config.toml"))
}

/// Adds a profile for a host: `default` if there is none of that name, else under the host's name. Answers where and
/// under which name, or nothing if this user has no home.
pub(crate) fn add(
    host: &str,
    address: SocketAddr,
    ca_pem: &str,
    key: &str,
) -> anyhow::Result<Option<(PathBuf, String)>> {
    let Some(path) = path() else { return Ok(None) };
    let text = fs::read_to_string(&path).unwrap_or_default();
    let mut file: Table = toml::from_str(&text)
        .with_context(|| format!("{} is not a profile file", path.display()))?;
    let profiles = file
        .entry("profiles")
        .or_insert_with(|| Value::Table(Table::new()))
        .as_table_mut()
        .with_context(|| format!("`profiles` in {} is not a table", path.display()))?;
    let address = format!("https://{address}");
    let free = |profile: Option<&Value>| {
        profile.is_none_or(|p| p.get("address").and_then(Value::as_str) == Some(&address))
    };
    let name = if free(profiles.get("default")) {
        "default"
    } else {
        host
    };
    let mut profile = Table::new();
    profile.insert("address".into(), address.clone().into());
    profile.insert("ca".into(), ca_pem.into());
    profile.insert("key".into(), key.into());
    profiles.insert(name.into(), profile.into());
    if !file.contains_key("current") {
        file.insert("current".into(), name.into());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let temporary = path.with_extension("new");
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    out.write_all(toml::to_string(&file)?.as_bytes())?;
    out.sync_all()?;
    fs::rename(&temporary, &path)?;
    Ok(Some((path, name.into())))
}
