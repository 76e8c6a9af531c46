//! Debian packages that a command needs.
//!
//! What always holds: only packages that are missing are installed, without what they merely recommend, and
//! only by root on a machine with apt; anyone else is told the exact command.
//!
//! What it must not know: what the packages are for.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::machine;

/// What the nested tier needs: an emulated machine, and the makings of an initramfs.
pub const NESTED: [&str; 3] = ["qemu-system-x86", "busybox-static", "cpio"];

/// What other tests need: makers of disk images and file systems, rules for networks, a registry, and an emulated machine
/// beside which our guest's drivers are tested.
pub const TESTS: [&str; 13] = [
    "busybox-static",
    "qemu-system-x86",
    "qemu-utils",
    "e2fsprogs",
    "xfsprogs",
    "btrfs-progs",
    "dosfstools",
    "mtools",
    "fdisk",
    "nftables",
    "iproute2",
    "docker-registry",
    "skopeo",
];

/// Those of `wanted` that are not installed. On a machine without dpkg: those whose program is not on `PATH`.
pub fn missing<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    let have = |package: &str| match machine::on_path("dpkg-query") {
        Some(dpkg) => Command::new(dpkg)
            .args(["-W", "-f=${Status}", package])
            .stderr(Stdio::null())
            .output()
            .is_ok_and(|found| found.stdout.ends_with(b"ok installed")),
        None => machine::on_path(program(package)).is_some(),
    };
    wanted
        .iter()
        .copied()
        .filter(|package| !have(package))
        .collect()
}

/// Installs what is missing of `wanted`, or says which command does.
pub fn ensure(wanted: &[&str]) -> Result<()> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !machine::root() || machine::on_path("apt-get").is_none() {
        bail!(
            "Missing: {list}. Install them, on Debian with: apt-get install --no-install-recommends {list}"
        );
    }
    eprintln!("    installing {list}");
    with_fresh_lists(&|| install(&missing))
        .with_context(|| format!("Cannot install {list}; try: apt-get install {list}"))
}

/// Runs `work`, and once more after `apt-get update` if it fails: a fresh machine has no package lists.
pub fn with_fresh_lists<T>(work: &dyn Fn() -> Result<T>) -> Result<T> {
    match work() {
        Ok(done) => Ok(done),
        Err(_) => {
            apt(&["update", "-q"])?;
            work()
        }
    }
}

/// Runs `apt-get` without questions, its messages shown only if it fails.
pub fn apt(arguments: &[&str]) -> Result<()> {
    let out = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("Cannot start apt-get.")?;
    if !out.status.success() {
        bail!(
            "apt-get {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

/// The program by which a package is known where dpkg is not.
fn program(package: &str) -> &str {
    match package {
        "qemu-system-x86" => "qemu-system-x86_64",
        "busybox-static" => "busybox",
        "qemu-utils" => "qemu-img",
        "e2fsprogs" => "mkfs.ext4",
        "xfsprogs" => "mkfs.xfs",
        "btrfs-progs" => "mkfs.btrfs",
        "dosfstools" => "mkfs.vfat",
        "mtools" => "mcopy",
        "fdisk" => "sfdisk",
        "nftables" => "nft",
        "iproute2" => "ip",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where dpkg knows a package, its program is on the path too.
    #[test]
    fn every_package_has_its_program() {
        if machine::on_path("dpkg-query").is_none() {
            println!("SKIPPED every_package_has_its_program: there is no dpkg-query");
            return;
        }
        let all = [&NESTED[..], &TESTS].concat();
        let missing = missing(&all);
        for package in all.iter().filter(|package| !missing.contains(package)) {
            let program = program(package);
            assert!(machine::on_path(program).is_some(), "{package}: {program}");
        }
    }
}
