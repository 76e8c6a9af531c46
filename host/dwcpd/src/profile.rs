//! The command line's profile of a new host, written for the user who starts it and with that user's rights only.
//!
//! A daemon started by root gives root up before it has anything to write. So a child made while it is still root, the
//! [`Scribe`], waits for the one profile there may be, as the user whose file it is. It follows nobody else's names: the
//! directory must belong to it, and what it writes is new.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, UnlinkatFlags, geteuid, unlinkat};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// How long the profile may take to be written; its directory may lie far away.
const PATIENCE: Duration = Duration::from_secs(30);
const FILE: &str = "config.toml";
const NEW_FILE: &str = "config.new";

/// What a profile says of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The host's name.
    pub(crate) host: String,
    /// `https://IP:PORT` of its API.
    pub(crate) address: String,
    /// Its authority, PEM.
    pub(crate) ca: String,
    /// The API key.
    pub(crate) key: String,
}

/// The user's directory of configurations (it may be made), if this user has one.
fn base() -> Option<PathBuf> {
    let of = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let config = of("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = of("HOME").map(|home| PathBuf::from(home).join(".config"));
    config.or(home)
}

impl Entry {
    /// Adds this as a profile: `default` if there is none of that name, else under the host's name. Answers where and
    /// under which name, or nothing if this user has no home.
    pub(crate) fn add(&self) -> anyhow::Result<Option<(PathBuf, String)>> {
        base().map(|base| self.add_below(&base)).transpose()
    }

    fn add_below(&self, base: &Path) -> anyhow::Result<(PathBuf, String)> {
        let dir = base.join("dwcp");
        let path = dir.join(FILE);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&dir)
            .with_context(|| format!("{} is no directory", dir.display()))?;
        if opened.metadata()?.uid() != geteuid().as_raw() {
            bail!("{} belongs to another user", dir.display());
        }
        let (text, name) = self.merged(&path)?;
        match unlinkat(&opened, NEW_FILE, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut out: File =
            openat(&opened, NEW_FILE, flags, Mode::from_bits_truncate(0o600))?.into();
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        renameat(&opened, NEW_FILE, &opened, FILE)?;
        Ok((path, name))
    }

    /// The profile file with this entry in it, and the entry's name.
    fn merged(&self, path: &Path) -> anyhow::Result<(String, String)> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("{} cannot be read", path.display()));
            }
        };
        let mut file: Table = toml::from_str(&text)
            .with_context(|| format!("{} is not a profile file", path.display()))?;
        let profiles = file
            .entry("profiles")
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .with_context(|| format!("`profiles` in {} is not a table", path.display()))?;
        let free = |profile: Option<&Value>| {
            profile.is_none_or(|p| p.get("address").and_then(Value::as_str) == Some(&self.address))
        };
        let name = if free(profiles.get("default")) {
            "default"
        } else {
            &self.host
        };
        let mut profile = Table::new();
        profile.insert("address".into(), self.address.clone().into());
        profile.insert("ca".into(), self.ca.clone().into());
        profile.insert("key".into(), self.key.clone().into());
        profiles.insert(name.into(), profile.into());
        if !file.contains_key("current") {
            file.insert("current".into(), name.into());
        }
        Ok((toml::to_string(&file)?, name.into()))
    }
}

/// What the scribe answers.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    /// Where the profile was written and under which name; nothing if the user has no home.
    kept: Option<(PathBuf, String)>,
    /// Why it was not.
    error: Option<String>,
}

/// A child that stays the invoking user and writes one profile, if it is told one.
#[derive(Debug)]
pub(crate) struct Scribe {
    child: Pid,
    socket: UnixStream,
}

impl Scribe {
    /// Starts it. Call this as root, before there is any other thread.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (socket, its) = UnixStream::pair()?;
        // SAFETY: there is one thread, so that the child may do whatever this process may.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Parent { child } => Ok(Self { child, socket }),
            ForkResult::Child => {
                drop(socket);
                // Nothing of the parent's may be run again here, so the child ends before anything unwinds.
                let done = catch_unwind(AssertUnwindSafe(|| serve(its)));
                let status = i32::from(!matches!(done, Ok(Ok(()))));
                // SAFETY: ends this process at once, without anything that the parent has registered.
                unsafe { libc::_exit(status) }
            }
        }
    }

    /// Has the profile written; answers as [`Entry::add`] does.
    pub(crate) fn add(self, entry: &Entry) -> anyhow::Result<Option<(PathBuf, String)>> {
        let mut socket = &self.socket;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(toml::to_string(entry)?.as_bytes())?;
        socket.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        socket
            .read_to_string(&mut text)
            .context("Its writer does not answer")?;
        let answer: Answer = toml::from_str(&text).context("Its writer answers nothing")?;
        match answer.error {
            Some(error) => bail!("{error}"),
            None => Ok(answer.kept),
        }
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        // Without its socket the child ends; only one that hangs in a file system is left to itself.
        let _ = self.socket.shutdown(Shutdown::Both);
        for _ in 0..100 {
            match waitpid(self.child, Some(WaitPidFlag::WNOHANG)) {
                Ok(nix::sys::wait::WaitStatus::StillAlive) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => return,
            }
        }
    }
}

/// The child's life: one profile or none.
fn serve(mut socket: UnixStream) -> anyhow::Result<()> {
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    if text.is_empty() {
        return Ok(());
    }
    let entry: Entry = toml::from_str(&text)?;
    let add = || {
        let Some(base) = base() else { return Ok(None) };
        become_owner(&base)?;
        entry.add_below(&base).map(Some)
    };
    let answer = match add() {
        Ok(kept) => Answer { kept, error: None },
        Err(error) => Answer {
            kept: None,
            error: Some(format!("{error:#}")),
        },
    };
    socket.write_all(toml::to_string(&answer)?.as_bytes())?;
    Ok(())
}

/// Becomes the user behind `sudo` if the directory is that user's, and stays root if it is root's.
fn become_owner(base: &Path) -> anyhow::Result<()> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let sudo = number("SUDO_UID").zip(number("SUDO_GID"));
    let base = std::path::absolute(base)?;
    let about = base.ancestors().find_map(|dir| fs::metadata(dir).ok());
    let owner = about.map_or(0, |about| about.uid());
    match sudo {
        _ if owner == 0 => Ok(()),
        Some((uid, gid)) if owner == uid => {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            nix::unistd::setgroups(&[])?;
            nix::unistd::setresgid(gid, gid, gid)?;
            nix::unistd::setresuid(uid, uid, uid)?;
            Ok(())
        }
        _ => bail!("{} belongs to user {owner}, not to you", base.display()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn entry(host: &str, port: u16) -> Entry {
        Entry {
            host: host.into(),
            address: format!("https://127.0.0.1:{port}"),
            ca: "CA".into(),
            key: "KEY".into(),
        }
    }

    #[test]
    fn profiles_are_added_beside_others() {
        let dir = tempfile::tempdir().unwrap();
        let (path, first) = entry("left", 1).add_below(dir.path()).unwrap();
        let (_, again) = entry("left", 1).add_below(dir.path()).unwrap();
        let (_, second) = entry("right", 2).add_below(dir.path()).unwrap();
        assert_eq!(
            [first.as_str(), &again, &second],
            ["default", "default", "right"]
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let file: Table = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(file["current"].as_str(), Some("default"));
        assert_eq!(
            file["profiles"]["right"]["address"].as_str(),
            Some("https://127.0.0.1:2")
        );
    }

    #[test]
    fn links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let config = dir.path().join("config");
        fs::create_dir_all(config.join("dwcp")).unwrap();
        let temporary = config.join("dwcp").join(NEW_FILE);
        std::os::unix::fs::symlink(&victim, temporary).unwrap();
        entry("left", 1).add_below(&config).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        let linked = dir.path().join("linked");
        fs::create_dir(&linked).unwrap();
        std::os::unix::fs::symlink(config.join("dwcp"), linked.join("dwcp")).unwrap();
        assert!(entry("left", 1).add_below(&linked).is_err());
    }
}
