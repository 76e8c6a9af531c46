//! A VMM that its guest has taken over, with what `dwcpd` gives to one, and what must come of its attempts.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{DEADLINE, Launcher, MEMORY_BYTES, StandIn, id};

/// What a VM has in its directory, and its VMM.
pub struct Rogue {
    pub vmm: StandIn,
    pub directory: tempfile::TempDir,
}

impl Rogue {
    pub fn start(launcher: &Launcher, name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("control")).unwrap();
        let create = |file| File::create_new(directory.path().join(file)).unwrap();
        let log = create("log");
        drop(create("kernel"));
        let kernel = File::open(directory.path().join("kernel")).unwrap();
        let vmm = StandIn::start(|ours| {
            let given = [listener.as_fd(), log.as_fd(), kernel.as_fd(), ours];
            launcher
                .client()
                .spawn_vmm(&id(name), MEMORY_BYTES, json!({}), &given)
        });
        Self {
            vmm: vmm.unwrap(),
            directory,
        }
    }

    pub fn report(&mut self, order: &str) -> BTreeMap<String, Value> {
        let answer = self.vmm.ask(&format!("rogue {order}"));
        serde_json::from_value(answer).unwrap()
    }

    pub fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Gives an order, and connects to the control socket meanwhile.
    pub fn connected<T>(&mut self, what: &str, then: impl FnOnce(UnixStream) -> T) -> T {
        let peer = UnixStream::connect(self.directory.path().join("control")).unwrap();
        peer.set_read_timeout(Some(DEADLINE)).unwrap();
        // The connection is there already: it waits to be accepted.
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| self.report(&format!("listener {what}")));
            let answer = then(peer);
            let _ = asked.join().unwrap();
            answer
        })
    }
}

/// Every attempt must have come out as one of the words of its line, and no line may be without its attempt.
#[track_caller]
pub fn expect(mut report: BTreeMap<String, Value>, lines: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (attempt, allowed) in lines {
        let found = report.remove(*attempt).unwrap_or(Value::Null);
        let found = found
            .as_str()
            .map_or_else(|| found.to_string(), str::to_owned);
        if !allowed.split('|').any(|one| one == found) {
            wrong.push(format!("{attempt}: {found} instead of {allowed}"));
        }
    }
    wrong.extend(
        report
            .keys()
            .map(|attempt| format!("{attempt}: not expected")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A launcher, a VMM gone bad, and another one. That the launcher and the other go on is seen at the end.
pub fn with_rogue(launcher: Launcher, test: impl FnOnce(&Launcher, &mut Rogue, &StandIn)) {
    let mut other = launcher.vmm("vm-2");
    other.ask("poke 2 7");
    let mut rogue = Rogue::start(&launcher, "vm-1");
    test(&launcher, &mut rogue, &other);
    assert_eq!(other.ask("peek 2"), 7);
    let children = launcher.client().list().unwrap();
    let alive = children.iter().find(|child| child.id == id("vm-2"));
    assert!(alive.unwrap().is_running());
}
