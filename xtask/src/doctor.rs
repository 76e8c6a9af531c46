//! `cargo xtask doctor`: what this machine has, and what will be skipped on it.
//!
//! What always holds: it changes nothing; each line that says something is missing also says what to do.
//!
//! What it must not know: how anything is installed.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::machine::{self, Kvm};
use crate::{cache, linux, packages, plugins};

/// Disk that a cold build of everything takes, with the wasm toolchain, in MiB.
const DISK_NEEDED_MIB: u64 = 12 * 1024;

/// Memory below which a build on two cores may be killed, in MiB.
const MEMORY_NEEDED_MIB: u64 = 4 * 1024;

/// What is known after looking.
struct Found {
    kvm: Kvm,
    root: bool,
    /// Packages that the tier nested needs.
    missing_nested: Vec<&'static str>,
    /// Packages that other tests need.
    missing_tests: Vec<&'static str>,
    apt: bool,
    linux: bool,
}

impl Found {
    fn look() -> Self {
        Self {
            kvm: machine::kvm(),
            root: machine::root(),
            missing_nested: packages::missing(&packages::NESTED),
            missing_tests: packages::missing(&packages::TESTS),
            apt: machine::on_path("apt-get").is_some(),
            linux: linux::present(),
        }
    }

    /// Whether `cargo xtask test` installs what is missing.
    fn can_install(&self) -> bool {
        self.root && self.apt
    }

    /// All packages that are missing.
    fn missing(&self) -> Vec<&'static str> {
        let mut missing = [&self.missing_nested[..], &self.missing_tests].concat();
        missing.sort_unstable();
        missing.dedup();
        missing
    }
}

/// Why the tier nested cannot run here; nothing where it should.
pub fn nested_skipped() -> Vec<String> {
    nested(&Found::look())
}

/// Why tests that need tools cannot run here; nothing where they should.
pub fn tools_skipped() -> Vec<String> {
    tools(&Found::look())
}

/// Runs the command.
pub fn run() -> Result<ExitCode> {
    let cache = cache::directory()?;
    let found = Found::look();
    let (total, available) = machine::memory_mib();
    say("machine", &machine::one_line());
    say("KVM", &found.kvm.to_string());
    say("root", yes(found.root));
    say("userfaultfd", yes(machine::userfaultfd()));
    say(
        "memory",
        &format!(
            "{total} MiB, {available} MiB available{}",
            low(available, MEMORY_NEEDED_MIB)
        ),
    );
    if let Some(free) = machine::free_disk_mib(&cache) {
        say(
            "disk",
            &format!(
                "{free} MiB free at {}{}",
                cache.display(),
                low(free, DISK_NEEDED_MIB)
            ),
        );
    }
    say("Rust", &version("rustc"));
    say("C compiler", &compiler());
    say("wasm toolchain", &plugins::toolchain_state());
    say("apt", yes(found.apt));
    say("packages", &packages_state(&found));
    say(
        "Debian kernel",
        if found.linux {
            "fetched"
        } else {
            "not fetched yet"
        },
    );
    let skipped = skipped(&found);
    if skipped.is_empty() {
        println!("\nNothing will be skipped here.");
    } else {
        println!("\nSkipped here:");
        for one in skipped {
            println!("  {one}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What will not run on this machine, and why.
fn skipped(found: &Found) -> Vec<String> {
    let mut skipped = Vec::new();
    if !found.root {
        skipped.push("demo, and the tiers kvm and faults: they need root".into());
    }
    if found.kvm == Kvm::None {
        skipped.push("demo, and the tiers kvm and faults: /dev/kvm does not open".into());
    }
    skipped.extend(tools(found));
    skipped.extend(nested(found));
    skipped
}

fn nested(found: &Found) -> Vec<String> {
    let mut skipped = Vec::new();
    if !found.missing_nested.is_empty() && !found.can_install() {
        skipped.push(format!(
            "the tier nested: install {}",
            found.missing_nested.join(", ")
        ));
    }
    if !found.linux && !found.apt {
        skipped.push("the tier nested: Debian's kernel comes by apt-get, which is not here".into());
    }
    skipped
}

fn tools(found: &Found) -> Vec<String> {
    if found.missing_tests.is_empty() || found.can_install() {
        return Vec::new();
    }
    let list = found.missing_tests.join(", ");
    vec![format!(
        "tests of images, networks and our guest's drivers that need them: install {list}"
    )]
}

fn packages_state(found: &Found) -> String {
    let missing = found.missing();
    if missing.is_empty() {
        return "all there".into();
    }
    let list = missing.join(" ");
    if found.can_install() {
        format!("{list}: will be installed by `cargo xtask test`")
    } else {
        format!("missing: {list} (apt-get install --no-install-recommends {list})")
    }
}

fn compiler() -> String {
    match machine::on_path("cc") {
        Some(path) => path.display().to_string(),
        None => "missing: zstd and ring need one (apt-get install build-essential)".into(),
    }
}

fn version(program: &str) -> String {
    Command::new(program)
        .arg("--version")
        .output()
        .ok()
        .filter(|out| out.status.success())
        .map_or_else(
            || "missing".into(),
            |out| String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        )
}

fn low(have: u64, needed: u64) -> String {
    if have < needed {
        format!(" (a cold build wants {needed} MiB)")
    } else {
        String::new()
    }
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

fn say(what: &str, value: &str) {
    println!("{what:<16}{value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare() -> Found {
        Found {
            kvm: Kvm::None,
            root: false,
            missing_nested: vec!["busybox-static", "cpio"],
            missing_tests: vec!["busybox-static", "nftables"],
            apt: false,
            linux: false,
        }
    }

    #[test]
    fn a_machine_with_everything_skips_nothing() {
        let found = Found {
            kvm: Kvm::Pvm,
            root: true,
            apt: true,
            ..bare()
        };
        assert_eq!(skipped(&found), Vec::<String>::new());
        assert_eq!(nested(&found), Vec::<String>::new());
    }

    #[test]
    fn a_bare_machine_is_told_each_reason() {
        let said = skipped(&bare()).join("\n");
        for reason in [
            "need root",
            "/dev/kvm",
            "nested: install busybox-static, cpio\n",
            "networks and our guest's drivers that need them: install busybox-static, nftables\n",
            "apt-get",
        ] {
            assert!(said.contains(reason), "{said}");
        }
        let list = packages_state(&bare());
        assert!(
            list.contains("missing: busybox-static cpio nftables ("),
            "{list}"
        );
    }

    /// A failure of the tier's preparation is not excused by a package that it does not need.
    #[test]
    fn nested_is_not_skipped_for_what_other_tests_need() {
        let found = Found {
            missing_nested: Vec::new(),
            linux: true,
            ..bare()
        };
        assert_eq!(nested(&found), Vec::<String>::new());
        assert_eq!(tools(&found).len(), 1);
    }
}
