//! Calls of cargo: one build, and what it made.
//!
//! What always holds: every build of `demo`, `test` and clippy uses the same profile and target directory, and
//! `--locked`; cargo's own messages reach the user unchanged.
//!
//! What it must not know: which of the things built are tests of what.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cache;

/// One executable that a build made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// The package that it belongs to.
    pub package: String,
    /// The target's name: a library's, a program's, an integration test's.
    pub target: String,
    /// The target's first kind, as cargo names it: `lib`, `bin`, `test`, `example`, `proc-macro`.
    pub kind: String,
    /// True for a test harness, false for a program.
    pub test: bool,
    /// Where it is.
    pub path: PathBuf,
    /// The folder of the package's manifest: tests run there.
    pub folder: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// The cargo that started this program, in the environment that a user's own call of it has: build scripts (ring's)
/// watch what `cargo run` adds, and would run again each time that the two take turns.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(cache::workspace());
    for (name, _) in std::env::vars_os() {
        if added_by_run(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

/// True of the variables that `cargo run` sets for the program that it runs.
fn added_by_run(name: &str) -> bool {
    [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

/// Runs `cargo build --locked` with these arguments, its progress visible, and returns what it made.
pub fn build<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Result<Vec<Executable>> {
    build_with(arguments, &[])
}

/// The same with more environment.
pub fn build_with<S: AsRef<std::ffi::OsStr>>(
    arguments: &[S],
    environment: &[(&str, OsString)],
) -> Result<Vec<Executable>> {
    let mut child = cargo()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .args([
            "build",
            "--locked",
            "--message-format=json-render-diagnostics",
        ])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("Cannot start cargo.")?;
    let mut made = Vec::new();
    if let Some(messages) = child.stdout.take() {
        for line in BufReader::new(messages).lines() {
            made.extend(executable(&line.context("Cannot read cargo's messages.")?));
        }
    }
    let status = child.wait().context("Cannot wait for cargo.")?;
    if !status.success() {
        bail!("The build failed; cargo's messages above say where.");
    }
    Ok(made)
}

/// The folder in which a build puts its programs: that of the program `name`.
pub fn program<'a>(made: &'a [Executable], name: &str) -> Result<&'a Path> {
    made.iter()
        .find(|one| !one.test && one.kind == "bin" && one.target == name)
        .map(|one| one.path.as_path())
        .with_context(|| format!("The build made no program {name}; is it still in the workspace?"))
}

/// What one line of cargo's JSON says was made, if it is an executable.
fn executable(line: &str) -> Option<Executable> {
    let message: Message = serde_json::from_str(line).ok()?;
    if message.reason != "compiler-artifact" {
        return None;
    }
    let (target, path) = (message.target?, message.executable?);
    let folder = message.manifest_path.parent()?.to_path_buf();
    Some(Executable {
        package: package_name(&folder)?,
        target: target.name,
        kind: target.kind.into_iter().next()?,
        test: message.profile?.test,
        path,
        folder,
    })
}

/// A package's name, read from its manifest: cargo's package ids have had several forms.
fn package_name(folder: &Path) -> Option<String> {
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).ok()?;
    let after = manifest
        .lines()
        .skip_while(|line| line.trim() != "[package]")
        .find_map(|line| line.trim().strip_prefix("name"))?;
    Some(after.trim_matches(['=', ' ', '"']).to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_artifact_line_becomes_an_executable() {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let line = format!(
            r#"{{"reason":"compiler-artifact","package_id":"x","manifest_path":"{manifest}",
                "target":{{"kind":["bin"],"name":"xtask"}},"profile":{{"test":true}},"executable":"/t/xtask-1"}}"#
        );
        let found = executable(&line).unwrap();
        assert_eq!(found.package, "xtask");
        assert_eq!(found.kind, "bin");
        assert!(found.test);
        assert_eq!(found.path, Path::new("/t/xtask-1"));
    }

    #[test]
    fn what_cargo_run_adds_is_known_from_what_a_user_sets() {
        assert!(added_by_run("CARGO_PKG_VERSION_MAJOR"));
        assert!(added_by_run("CARGO_MANIFEST_DIR"));
        assert!(!added_by_run("CARGO_TARGET_DIR"));
        assert!(!added_by_run("CARGO_HOME"));
    }

    #[test]
    fn other_lines_are_passed_over() {
        assert_eq!(
            executable(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        assert_eq!(executable("warning: not JSON"), None);
    }
}
