//! Debian's cloud kernel, for guests that are ordinary Linux: downloaded and unpacked, never installed.
//!
//! What always holds: the folder handed out is whole (it is renamed into place), holds `vmlinuz`, `version` and
//! `modules/` (what `/lib/modules/VERSION` would hold), and stays until somebody deletes it.
//!
//! What it must not know: who boots it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{cache, packages};

/// The package that depends on the newest cloud kernel's own package.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Where the kernel is or will be.
pub fn folder() -> Result<PathBuf> {
    Ok(cache::directory()?.join("linux"))
}

/// True if the kernel is here already.
pub fn present() -> bool {
    folder().is_ok_and(|folder| folder.join("vmlinuz").is_file())
}

/// The folder with the kernel, fetched first if it is not here. Needs Debian's apt; not root.
pub fn ensure() -> Result<PathBuf> {
    let folder = folder()?;
    if present() {
        return Ok(folder);
    }
    let work = folder.with_extension(format!("new-{}", std::process::id()));
    let made = fetch(&work).and_then(|()| match fs::rename(&work, &folder) {
        Ok(()) => Ok(()),
        Err(_) if present() => Ok(()), // another run was faster
        Err(error) => {
            Err(error).with_context(|| format!("Cannot put the kernel at {}.", folder.display()))
        }
    });
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("Cannot remove {}.", work.display()))?;
    }
    made.map(|()| folder)
}

/// Downloads, unpacks and arranges the kernel in `work`.
fn fetch(work: &Path) -> Result<()> {
    let tree = work.join("tree");
    fs::create_dir_all(&tree).with_context(|| format!("Cannot make {}.", work.display()))?;
    let package = packages::with_fresh_lists(&kernel_package)?;
    eprintln!("    downloading {package}");
    packages::with_fresh_lists(&|| download(&package, work))?;
    let archive = only(work, |name| name.ends_with(".deb"))?;
    let unpacked = Command::new("dpkg")
        .arg("-x")
        .args([&archive, &tree])
        .status()
        .context("Cannot start dpkg.")?;
    if !unpacked.success() {
        bail!("dpkg -x {} failed.", archive.display());
    }
    let kernel = only(&tree.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let libraries = [tree.join("lib/modules"), tree.join("usr/lib/modules")]
        .into_iter()
        .find(|path| path.is_dir())
        .context("The kernel's package has no modules.")?;
    let modules = only(&libraries, |_| true)?;
    let version = modules
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    rename(&kernel, &work.join("vmlinuz"))?;
    rename(&modules, &work.join("modules"))?;
    fs::write(work.join("version"), version).context("Cannot note the kernel's version.")?;
    fs::remove_file(&archive).context("Cannot remove the kernel's archive.")?;
    fs::remove_dir_all(&tree).context("Cannot remove the rest of the kernel's package.")
}

/// The package that the meta-package depends on now.
fn kernel_package() -> Result<String> {
    let out = Command::new("apt-cache")
        .args(["depends", META_PACKAGE])
        .stdin(Stdio::null())
        .output()
        .context("Cannot start apt-cache: the kernel comes from Debian's archive.")?;
    dependency(&String::from_utf8_lossy(&out.stdout)).with_context(|| {
        format!("apt-cache names no kernel for {META_PACKAGE}; is Debian's archive reachable?")
    })
}

/// The kernel's package in the output of `apt-cache depends`.
fn dependency(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

fn download(package: &str, into: &Path) -> Result<()> {
    // As root, apt would fetch as its own user, who may not write to our folder.
    let out = Command::new("apt-get")
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", package])
        .current_dir(into)
        .stdin(Stdio::null())
        .output()
        .context("Cannot start apt-get.")?;
    if !out.status.success() {
        bail!(
            "apt-get download {package} failed: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}

/// The only entry of a folder whose name passes.
fn only(folder: &Path, passes: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(folder)
        .with_context(|| format!("The kernel's package has no {}.", folder.display()))?;
    let mut found = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| passes(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path());
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        _ => bail!("Expected one entry of its kind in {}.", folder.display()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("Cannot move {}.", from.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_package_is_found_in_apts_answer() {
        let answer = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-42-cloud-amd64\n";
        assert_eq!(
            dependency(answer).as_deref(),
            Some("linux-image-6.1.0-42-cloud-amd64")
        );
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }
}
