//! Network namespaces of one test's own, and what is done inside them with iproute2 and nft.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

/// Whether a test of networks can run; says so when it cannot.
pub fn can_run(test: &str) -> bool {
    let lacks = |program: &str| !std::path::Path::new(program).exists();
    if lacks("/usr/sbin/nft") || lacks("/dev/net/tun") {
        println!("SKIPPED {test}: networks need /dev/net/tun and the package nftables");
        return false;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        println!("SKIPPED {test}: namespaces are made by the package iproute2");
        return false;
    }
    super::can_run(test)
}

/// What the names of one test's links begin with; no other test of this machine has it.
pub fn prefix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut number = u64::from(std::process::id()) * 64 + u64::from(count);
    let mut text = String::from("t");
    while number > 0 {
        text.push(char::from(b'a' + (number % 26) as u8));
        number /= 26;
    }
    text
}

/// A namespace with its loopback up; removed when dropped, and all links in it.
pub struct Namespace {
    pub name: String,
    file: File,
}

impl Namespace {
    /// The run's name is part of it.
    pub fn new(run: &str, role: &str) -> Self {
        let name = format!("dwcp-{run}-{role}");
        run_program("ip", &["netns", "add", &name]);
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        let namespace = Self { name, file };
        namespace.run("ip", &["link", "set", "lo", "up"]);
        namespace
    }

    /// A pair of interfaces between two namespaces, each with its address.
    pub fn join(&self, other: &Self, link: [&str; 2], addresses: [&str; 2]) {
        let [ours, theirs] = link;
        let peer = ["peer", "name", theirs, "netns", &other.name];
        self.run(
            "ip",
            &[&["link", "add", ours, "type", "veth"], &peer[..]].concat(),
        );
        for (namespace, link, address) in
            [(self, ours, addresses[0]), (other, theirs, addresses[1])]
        {
            namespace.run("ip", &["address", "add", address, "dev", link]);
            namespace.run("ip", &["link", "set", link, "up"]);
        }
    }

    /// Runs `work` inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// A program that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let file = self.file.try_clone().unwrap();
        let mut command = Command::new(program);
        // SAFETY: setns is one system call, which is async-signal-safe; the closure owns the descriptor.
        unsafe {
            command.pre_exec(move || Ok(setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?));
        }
        command
    }

    /// Runs a program inside, which must succeed; answers what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        succeed(self.command(program).args(arguments))
    }

    /// All links, one a line.
    pub fn links(&self) -> String {
        self.run("ip", &["-o", "-d", "link", "show"])
    }

    /// All rules.
    pub fn rules(&self) -> String {
        self.run("/usr/sbin/nft", &["list", "ruleset"])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
    }
}

fn run_program(program: &str, arguments: &[&str]) {
    succeed(Command::new(program).args(arguments));
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}
