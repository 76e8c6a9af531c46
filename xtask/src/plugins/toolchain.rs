//! A Rust compiler with a standard library for `wasm32-unknown-unknown`.
//!
//! What always holds: the installed compiler is taken when it has that library, and never changed; otherwise one
//! is put together in the cache directory from Debian's packages `rustc-web` and `rust-web-src`, its standard
//! library built once. A half-made one is never used: it is renamed into place when it is whole.
//!
//! What it must not know: what is compiled with it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, machine, packages};

/// The target of every plugin.
pub const TARGET: &str = "wasm32-unknown-unknown";

const HOST: &str = "x86_64-unknown-linux-gnu";
const ALTERNATIVE: &str =
    "Or add the library to the installed compiler: `rustup target add wasm32-unknown-unknown`.";

/// A compiler, and what tells it from others.
pub struct Toolchain {
    /// Its `rustc`.
    pub rustc: PathBuf,
    /// Changes when the compiler does.
    pub identity: String,
}

/// The compiler to use, put together first if need be.
pub fn ensure(cache: &Path) -> Result<Toolchain> {
    let rustc = match installed() {
        Some(rustc) => rustc,
        None => {
            let prefix = prefix(cache);
            if !prefix.join("rustc").is_file() {
                make(&prefix)?;
            }
            prefix.join("rustc")
        }
    };
    let version = output(Command::new(&rustc).arg("-vV"))?;
    let identity = format!("{}\n{version}", rustc.display());
    Ok(Toolchain { rustc, identity })
}

/// For people: which compiler that is or will be.
pub fn state(cache: &Path) -> String {
    if let Some(rustc) = installed() {
        return format!("{} has {TARGET}", rustc.display());
    }
    if prefix(cache).join("rustc").is_file() {
        return format!("put together in {}", prefix(cache).display());
    }
    if machine::on_path("apt-get").is_some() && machine::on_path("dpkg-deb").is_some() {
        return "will be put together from Debian's rustc-web (150 MB to download, 600 MB on disk)"
            .into();
    }
    format!("missing: run `rustup target add {TARGET}`")
}

fn prefix(cache: &Path) -> PathBuf {
    cache.join("wasm-toolchain")
}

/// The installed compiler, if it has the library.
fn installed() -> Option<PathBuf> {
    let rustc = std::env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"])).ok()?;
    let library = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(TARGET)
        .join("lib");
    library.is_dir().then_some(rustc)
}

/// Puts a compiler together at `prefix`.
fn make(prefix: &Path) -> Result<()> {
    for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
        ensure!(
            machine::on_path(tool).is_some(),
            "Plugins need Rust's standard library for {TARGET}, which the installed compiler lacks, and there is \
             no {tool} to fetch Debian's with. Run `rustup target add {TARGET}`."
        );
    }
    let work = prefix.with_extension(format!("new-{}", std::process::id()));
    let made = assemble(&work).and_then(|()| {
        if prefix.exists() {
            fs::remove_dir_all(prefix).context("Cannot remove a half-made toolchain.")?;
        }
        fs::rename(&work, prefix).context("Cannot put the toolchain in place.")
    });
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("Cannot remove {}.", work.display()))?;
    }
    made.with_context(|| format!("The compiler for plugins cannot be put together. {ALTERNATIVE}"))
}

fn assemble(work: &Path) -> Result<()> {
    let archives = work.join("archives");
    fs::create_dir_all(&archives).with_context(|| format!("Cannot make {}.", work.display()))?;
    let wanted = packages::with_fresh_lists(&debian_packages)?;
    eprintln!("    downloading Debian's compiler for WebAssembly (150 MB, once)");
    packages::with_fresh_lists(&|| download(&wanted, &archives))?;
    eprintln!("    unpacking it");
    unpack(&archives, work)?;
    fs::remove_dir_all(&archives).context("Cannot remove the packages.")?;
    arrange(work)?;
    eprintln!("    building its standard library (once)");
    build_library(work)
}

/// The packages: the compiler, its host library and LLVM, a linker, and the library's source.
fn debian_packages() -> Result<Vec<String>> {
    let library = dependency("libstd-rust-web-dev", "libstd-rust-web-")?;
    let llvm = dependency(&library, "libllvm")?;
    let linker = format!("lld-{}", llvm.trim_start_matches("libllvm"));
    let fixed = [
        "rustc-web",
        "libstd-rust-web-dev",
        "rust-web-src",
        "libz3-4",
        "libedit2",
    ];
    let mut packages: Vec<String> = fixed.map(str::to_owned).to_vec();
    packages.extend([library, llvm, linker]);
    Ok(packages)
}

/// The first dependency of `package` whose name begins so.
fn dependency(package: &str, begin: &str) -> Result<String> {
    let listed = output(Command::new("apt-cache").args(["depends", package]))?;
    let found = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(begin));
    let missing = || format!("Debian's package {package} is not to be had here.");
    found.map(str::to_owned).with_context(missing)
}

fn download(wanted: &[String], into: &Path) -> Result<()> {
    let out = Command::new("apt-get")
        .args(["download", "-qq"])
        .args(wanted)
        .current_dir(into)
        .stdin(Stdio::null())
        .output()
        .context("Cannot start apt-get.")?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("apt-get download failed: {}", said.trim());
    }
    Ok(())
}

fn unpack(archives: &Path, into: &Path) -> Result<()> {
    for entry in fs::read_dir(archives).context("Cannot read the packages.")? {
        let archive = entry.context("Cannot read the packages.")?.path();
        let is_source = archive
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("rust-web-src_"));
        // The source package holds the whole compiler; only the libraries are wanted of it.
        let script = if is_source {
            r#"dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --wildcards './usr/src/rustc-*/library/*'"#
        } else {
            r#"dpkg-deb -x "$1" "$2""#
        };
        let done = Command::new("sh")
            .args(["-ec", script, "unpack"])
            .args([&archive, into])
            .status()
            .context("Cannot start sh.")?;
        ensure!(done.success(), "Cannot unpack {}.", archive.display());
    }
    Ok(())
}

/// Links source and linker to where the compiler looks, and writes the script that starts it. All paths are
/// relative, so that the whole can be renamed.
fn arrange(root: &Path) -> Result<()> {
    let script = "#!/bin/sh\n\
        here=$(dirname \"$(readlink -f \"$0\")\")\n\
        export LD_LIBRARY_PATH=\"$here/usr/lib/x86_64-linux-gnu\"\n\
        exec \"$here/usr/bin/rustc\" \"$@\"\n";
    let starter = root.join("rustc");
    fs::write(&starter, script).context("Cannot write the compiler's starter.")?;
    fs::set_permissions(&starter, fs::Permissions::from_mode(0o755))
        .context("Cannot make the compiler's starter a program.")?;
    let rustlib = root.join("usr/lib/rustlib");
    let tools = rustlib.join(HOST).join("bin");
    fs::create_dir_all(rustlib.join("src")).context("Cannot make the source folder.")?;
    fs::create_dir_all(&tools).context("Cannot make the folder of tools.")?;
    let source = only(&root.join("usr/src"), "rustc-")?;
    let llvm = only(&root.join("usr/lib"), "llvm-")?;
    link(&format!("../../../src/{source}"), &rustlib.join("src/rust"))?;
    link(&format!("../../../{llvm}/bin/lld"), &tools.join("rust-lld"))
}

fn link(to: &str, at: &Path) -> Result<()> {
    if at.is_symlink() {
        fs::remove_file(at).with_context(|| format!("Cannot replace {}.", at.display()))?;
    }
    symlink(to, at).with_context(|| format!("Cannot link {}.", at.display()))?;
    ensure!(
        at.exists(),
        "{} leads nowhere; Debian's packages changed.",
        at.display()
    );
    Ok(())
}

/// The one entry of `folder` whose name begins so.
fn only(folder: &Path, begin: &str) -> Result<String> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("Cannot read {}.", folder.display()))?;
    let mut names = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(begin));
    let missing = || format!("There is no {begin}* in {}.", folder.display());
    names.next().with_context(missing)
}

/// Builds the standard library and puts it where the compiler looks.
fn build_library(root: &Path) -> Result<()> {
    let work = root.join("library");
    fs::create_dir_all(work.join("src")).context("Cannot make a folder to build in.")?;
    fs::write(work.join("src/lib.rs"), "").context("Cannot write an empty crate.")?;
    let manifest = "[package]\nname = \"library\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\
        [profile.release]\nopt-level = \"s\"\ncodegen-units = 1\n[workspace]\n";
    fs::write(work.join("Cargo.toml"), manifest).context("Cannot write an empty crate.")?;
    // Bitcode, or plugins cannot be optimised together with it.
    let built = clean(&mut cargo::cargo())
        .args(["build", "-q", "--release", "--target", TARGET])
        .args(["-Z", "build-std=std,panic_abort"])
        .current_dir(&work)
        .env("RUSTC", root.join("rustc"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .env("CARGO_TARGET_DIR", work.join("target"))
        .status()
        .context("Cannot start cargo.")?;
    ensure!(built.success(), "The standard library does not build.");
    let made = work.join("target").join(TARGET).join("release/deps");
    let library = root.join("usr/lib/rustlib").join(TARGET).join("lib");
    fs::create_dir_all(&library).context("Cannot make the library's folder.")?;
    for entry in fs::read_dir(&made).context("Cannot read the library.")? {
        let path = entry.context("Cannot read the library.")?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if name.ends_with(".rlib") && !name.starts_with("liblibrary-") {
            fs::copy(&path, library.join(name)).with_context(|| format!("Cannot copy {name}."))?;
        }
    }
    fs::remove_dir_all(&work).context("Cannot remove the build folder.")
}

/// Takes away what a surrounding cargo or user set for the host's build.
pub fn clean(command: &mut Command) -> &mut Command {
    for name in [
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    command
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("Cannot start {program}."))?;
    ensure!(out.status.success(), "{program} ended with {}.", out.status);
    String::from_utf8(out.stdout).with_context(|| format!("{program} did not answer in UTF-8."))
}
