//! What a run leaves on the machine: looked for by its id, and by the launchers that it started.
//!
//! What always holds: only what this run made is looked at. What belongs to a launcher (its processes, its control
//! groups) does not carry the run's id itself, so launchers are noted while they live ([`Traces::note`]).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use dwcp_wan::RunId;

use crate::bed::{Bed, outside_interface};

/// How deep control groups are looked for.
const GROUPS_DEPTH_MAX: usize = 8;
/// The kernel takes namespaces and their interfaces apart in its own time. Generous: nothing is measured with it.
const DEADLINE: Duration = Duration::from_secs(60);

/// The traces of one run.
#[derive(Debug)]
pub struct Traces {
    run: RunId,
    launchers: BTreeSet<u32>,
    /// Processes that launchers of this run started: id and start time, which together are never used twice.
    children: BTreeSet<(u32, u64)>,
}

impl Traces {
    /// Nothing is noted yet.
    pub fn of(run: RunId) -> Self {
        Self {
            run,
            launchers: BTreeSet::new(),
            children: BTreeSet::new(),
        }
    }

    /// Notes the launchers of this run that live now, and what they started.
    pub fn note(&mut self) {
        let is_one = |process: &Process| {
            self.is_named(&process.command) && process.command.contains("dwcp-launch")
        };
        let found: Vec<_> = processes().into_iter().filter(is_one).collect();
        // A launcher's closer has its name: it is one of those that launchers started.
        let is_closer = |process: &Process| found.iter().any(|other| other.id == process.parent);
        let launchers = found.iter().filter(|process| !is_closer(process));
        let launchers: Vec<u32> = launchers.map(|process| process.id).collect();
        self.launchers.extend(launchers);
        for process in processes() {
            if self.launchers.contains(&process.parent) {
                self.children.insert((process.id, process.started));
            }
        }
    }

    /// How many launchers were noted.
    pub fn launchers(&self) -> usize {
        self.launchers.len()
    }

    /// How many of their processes were noted.
    pub fn children(&self) -> usize {
        self.children.len()
    }

    /// Everything of this run that is there now, one line each.
    pub fn look(&self) -> Vec<String> {
        let mut found = Vec::new();
        for process in processes() {
            let known = self.children.contains(&(process.id, process.started));
            if known || self.is_named(&process.command) {
                found.push(format!("process {} ({})", process.id, process.command));
            }
        }
        for name in names(Path::new("/run/netns")) {
            if self.is_named(&name) {
                found.push(format!("namespace {name}"));
            }
        }
        for side in 0..2 {
            let name = outside_interface(&self.run, side);
            if Path::new("/sys/class/net").join(&name).exists() {
                found.push(format!("interface {name}"));
            }
        }
        groups(Path::new("/sys/fs/cgroup"), 0, &mut |group| {
            let name = group.file_name().unwrap_or_default().to_string_lossy();
            let launcher = name.strip_prefix("dwcp-launch.").map(str::parse::<u32>);
            if matches!(launcher, Some(Ok(id)) if self.launchers.contains(&id)) {
                found.push(format!("control group {}", group.display()));
            }
        });
        let dir = Bed::run_dir(&self.run);
        if dir.exists() {
            found.push(format!("directory {}", dir.display()));
        }
        found
    }

    /// Waits until nothing of this run is there any more; fails with what stays.
    pub fn gone(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = self.look();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "Run {} left behind: {}",
                self.run.as_str(),
                left.join("; ")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether a text names something of this run, and not of one whose id only begins alike.
    fn is_named(&self, text: &str) -> bool {
        let name = format!("dwcp-{}", self.run.as_str());
        text.match_indices(&name)
            .any(|(at, _)| matches!(text.as_bytes().get(at + name.len()), Some(b'/' | b'-')))
    }
}

struct Process {
    id: u32,
    parent: u32,
    started: u64,
    command: String,
}

/// The processes of this machine; those that end meanwhile are left out.
fn processes() -> Vec<Process> {
    let process = |name: String| {
        let id = name.parse().ok()?;
        let dir = PathBuf::from("/proc").join(&name);
        let command = fs::read(dir.join("cmdline")).ok()?;
        let stat = fs::read_to_string(dir.join("stat")).ok()?;
        // proc(5): the name, in brackets, may hold anything; after it come state, parent, and as the 22nd the start.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if fields.first() == Some(&"Z") {
            return None;
        }
        Some(Process {
            id,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
            command: String::from_utf8_lossy(&command).replace('\0', " "),
        })
    };
    names(Path::new("/proc"))
        .into_iter()
        .filter_map(process)
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn groups(dir: &Path, depth: usize, look: &mut impl FnMut(&Path)) {
    if depth > GROUPS_DEPTH_MAX {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            look(&entry.path());
            groups(&entry.path(), depth + 1, look);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_this_run_is_looked_for() {
        let traces = Traces::of(RunId::new("1f-0").unwrap());
        for own in ["/tmp/dwcp-1f-0/left/launch.sock", "dwcp-1f-0-left"] {
            assert!(traces.is_named(own), "{own}");
        }
        for other in ["dwcp-1f-01-left", "/tmp/dwcp-1f/x", "dwcp-21f-0-left", ""] {
            assert!(!traces.is_named(other), "{other}");
        }
    }

    #[test]
    fn what_is_there_is_found() {
        let run = RunId::new(&format!("t{:x}", std::process::id())).unwrap();
        let dir = Bed::run_dir(&run);
        fs::create_dir_all(&dir).unwrap();
        let mut sleeper = std::process::Command::new("sh")
            .args(["-c", "read x", "dwcp-launch"])
            .arg(dir.join("launch.sock"))
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut traces = Traces::of(run);
        let deadline = Instant::now() + DEADLINE;
        while traces.launchers() == 0 {
            assert!(Instant::now() < deadline);
            traces.note();
        }
        let found = traces.look();
        assert_eq!(found.len(), 2, "{found:?}");
        drop(sleeper.stdin.take());
        sleeper.wait().unwrap();
        fs::remove_dir_all(&dir).unwrap();
        traces.gone().unwrap();
    }
}
