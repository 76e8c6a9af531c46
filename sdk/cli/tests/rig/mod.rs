//! Runs the real `dwcp` against a host in memory, in a home directory of its own.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../../../host/api/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{Served, TEST_KEY, served};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A home directory with a profile of a served host.
pub struct Rig {
    pub served: Served,
    pub home: tempfile::TempDir,
}

/// What a command did.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Its output, if it went well.
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }
    /// Its complaint, if it did not.
    pub fn bad(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self.err
    }
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.good()).unwrap()
    }
}

pub async fn rig() -> Rig {
    let rig = Rig {
        served: served().await,
        home: tempfile::tempdir().unwrap(),
    };
    rig.write_profile(&rig.served, TEST_KEY);
    rig
}

impl Rig {
    pub fn write_profile(&self, served: &Served, key: &str) {
        let directory = self.home.path().join(".config/dwcp");
        std::fs::create_dir_all(&directory).unwrap();
        let text = format!(
            "current = \"default\"\n\n[profiles.default]\naddress = \"{}\"\nca = \"\"\"{}\"\"\"\nkey = \"{key}\"\n",
            served.url(),
            served.ca_pem,
        );
        std::fs::write(directory.join("config.toml"), text).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("COLUMNS", "100")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args)).await
    }

    /// Runs a command line split at spaces.
    pub async fn line(&self, line: &str) -> Ran {
        let args: Vec<&str> = line.split(' ').collect();
        self.run(&args).await
    }

    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

pub async fn ran(mut command: Command) -> Ran {
    let output = command.output().await.unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub async fn type_in(child: &mut tokio::process::Child, text: &str) {
    let stdin = child.stdin.as_mut().unwrap();
    stdin.write_all(text.as_bytes()).await.unwrap();
    stdin.flush().await.unwrap();
}

/// Compares with a file beside the tests; `UPDATE_GOLDEN=1` writes it.
pub fn golden(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    if kept != text {
        let at = kept.lines().zip(text.lines()).position(|(a, b)| a != b);
        let line = at.unwrap_or(kept.lines().count().min(text.lines().count()));
        panic!(
            "{} differs at line {}:\nkept: {:?}\nnow:  {:?}\nlook at the difference after UPDATE_GOLDEN=1",
            file.display(),
            line + 1,
            kept.lines().nth(line),
            text.lines().nth(line),
        );
    }
}

/// Replaces what differs from run to run.
pub fn settled(text: &str, rig: &Rig) -> String {
    let text = text.replace(&rig.home.path().display().to_string(), "HOME");
    let mut settled = String::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        if let Some(candidate) = rest.get(..36).filter(|candidate| is_uuid(candidate)) {
            settled.push_str("00000000-0000-0000-0000-000000000000");
            rest = &rest[candidate.len()..];
        } else {
            let next = rest.chars().next().unwrap();
            settled.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    settled
}

fn is_uuid(text: &str) -> bool {
    text.bytes().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}
