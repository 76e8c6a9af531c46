//! What a nested run needs of this machine, and where that is.
//!
//! What always holds: what `cargo xtask test` would install or download, but did not, is a reason to skip; what a build
//! makes, but did not, is a failure.
//!
//! What it must not know: what is booted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use dwcp_e2e::programs;

/// What comes from outside the tree.
#[derive(Debug)]
pub struct Needs {
    /// QEMU for x86-64.
    pub qemu: PathBuf,
    /// A static busybox.
    pub busybox: Vec<u8>,
    /// Debian's cloud kernel: `vmlinuz`, `version`, `modules/`.
    pub linux: PathBuf,
}

impl Needs {
    /// Finds all of it, or says what is missing.
    pub fn find() -> Result<Self, String> {
        let qemu = on_path("qemu-system-x86_64")
            .ok_or("no qemu-system-x86_64 (Debian's package qemu-system-x86)")?;
        let busybox = on_path("busybox")
            .and_then(|path| fs::read(path).ok())
            .filter(|bytes| is_static(bytes))
            .ok_or("no static busybox (Debian's package busybox-static)")?;
        let linux = linux().filter(|folder| folder.join("vmlinuz").is_file());
        let linux = linux
            .ok_or("no kernel: DWCP_LINUX_DIR names none, and `cargo xtask test --only nested`, which fetches one, has not")?;
        Ok(Self {
            qemu,
            busybox,
            linux,
        })
    }

    /// The kernel's release.
    pub fn release(&self) -> anyhow::Result<String> {
        let text = fs::read_to_string(self.linux.join("version"))?;
        Ok(text.trim().to_owned())
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.linux.join("vmlinuz")
    }

    /// One of the kernel's modules, by its path below `kernel/`.
    pub fn module(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let path = self.linux.join("modules/kernel").join(path);
        fs::read(&path).with_context(|| path.display().to_string())
    }
}

/// A program of ours by its path where programs are built, without what only a debugger reads; `scratch` is a directory
/// for what is made on the way.
pub fn program(path: &str, scratch: &Path) -> anyhow::Result<Vec<u8>> {
    let built = programs::directory()?.join(path);
    ensure!(
        built.is_file(),
        "{} is not built: run `cargo build --workspace --bins --examples`",
        built.display()
    );
    let slim = scratch.join(built.file_name().context("A program has a name")?);
    let stripped = Command::new("strip")
        .arg("-o")
        .args([&slim, &built])
        .status();
    // A machine without `strip` boots a larger initramfs.
    let smaller = stripped.is_ok_and(|status| status.success());
    let bytes = fs::read(if smaller { &slim } else { &built })?;
    ensure!(
        is_static(&bytes),
        "{} is not a static program: an initramfs has no libraries for it",
        built.display()
    );
    Ok(bytes)
}

/// The folder that `cargo xtask test` says, or the one in which it keeps the kernel.
fn linux() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    std::env::var_os("DWCP_LINUX_DIR")
        .map(PathBuf::from)
        .or_else(|| Some(absolute("XDG_CACHE_HOME")?.join("dwcp/linux")))
        .or_else(|| Some(absolute("HOME")?.join(".cache/dwcp/linux")))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// True of a 64-bit ELF program that asks for no interpreter, which is what loads libraries.
fn is_static(elf: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let field = |at: usize| {
        elf.get(at..at + 2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
    };
    let Some((start, size, count)) = elf
        .get(32..40)
        .and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?) as usize))
        .and_then(|start| Some((start, usize::from(field(54)?), usize::from(field(56)?))))
    else {
        return false;
    };
    let interpreted = (0..count).any(|n| {
        elf.get(start + n * size..)
            .is_some_and(|header| header.starts_with(&INTERPRETER.to_le_bytes()))
    });
    elf.starts_with(b"\x7fELF\x02") && !interpreted
}
