//! The default plugins as components.
//!
//! What always holds: a component imports nothing, so that it can be run without granting it anything.
//! The guests' target directory is thrown away when the compiler changes, which cargo does not notice by itself.
//!
//! What it must not know: how components are signed and handed on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use wit_component::ComponentEncoder;

use crate::cargo;
use crate::plugins::toolchain::{TARGET, Toolchain, clean};

/// A plugin, built.
pub struct Component {
    /// Its crate: `placement-default`.
    pub name: String,
    /// Its crate's version.
    pub version: String,
    /// The component.
    pub bytes: Vec<u8>,
    /// The interfaces that it exports.
    pub exports: Vec<String>,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    package_id: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// Builds every plugin of the workspace `plugins`.
pub fn build(toolchain: &Toolchain, cache: &Path, plugins: &Path) -> Result<Vec<Component>> {
    let target = cache.join("plugins-target");
    keep_or_wipe(&target, &toolchain.identity)?;
    let out = clean(&mut cargo::cargo())
        .args(["build", "--locked", "--release", "--target", TARGET])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(plugins)
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_TARGET_DIR", &target)
        .stderr(Stdio::inherit())
        .output()
        .context("Cannot start cargo.")?;
    ensure!(out.status.success(), "The plugins do not build.");
    let messages = String::from_utf8_lossy(&out.stdout);
    let mut components = Vec::new();
    for line in messages.lines() {
        components.extend(component(line, plugins)?);
    }
    components.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(components)
}

/// Writes them for people and tools that want the files.
pub fn write(components: &[Component], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("Cannot make {}.", folder.display()))?;
    for component in components {
        let file = folder.join(format!("{}.wasm", component.name));
        fs::write(&file, &component.bytes)
            .with_context(|| format!("Cannot write {}.", file.display()))?;
    }
    Ok(())
}

fn keep_or_wipe(target: &Path, identity: &str) -> Result<()> {
    let note = target.join("toolchain");
    if fs::read_to_string(&note).is_ok_and(|noted| noted == identity) {
        return Ok(());
    }
    if target.exists() {
        fs::remove_dir_all(target)
            .with_context(|| format!("Cannot remove {}.", target.display()))?;
    }
    fs::create_dir_all(target).with_context(|| format!("Cannot make {}.", target.display()))?;
    fs::write(&note, identity).with_context(|| format!("Cannot write {}.", note.display()))
}

/// The plugin that a message of cargo tells of, if it does.
fn component(line: &str, plugins: &Path) -> Result<Option<Component>> {
    let message: Message = serde_json::from_str(line).context("Cannot read cargo's messages.")?;
    let ours = message.reason == "compiler-artifact" && message.manifest_path.starts_with(plugins);
    let is_module = |file: &&PathBuf| file.extension().is_some_and(|end| end == "wasm");
    let module = message.filenames.iter().find(is_module);
    let (true, Some(module)) = (ours, module) else {
        return Ok(None);
    };
    let folder = message.manifest_path.parent().and_then(Path::file_name);
    let name = folder
        .context("A plugin has no folder.")?
        .to_string_lossy()
        .into_owned();
    let (_, id) = message
        .package_id
        .rsplit_once('#')
        .context("A package has no id.")?;
    let version = id
        .rsplit_once('@')
        .map_or(id, |(_, version)| version)
        .to_owned();
    let (bytes, exports) = encode(module).with_context(|| format!("{name} is no component."))?;
    Ok(Some(Component {
        name,
        version,
        bytes,
        exports,
    }))
}

/// Turns a core module into a component without imports; also names its exports.
fn encode(module: &Path) -> Result<(Vec<u8>, Vec<String>)> {
    let module = fs::read(module).with_context(|| format!("Cannot read {}.", module.display()))?;
    let bytes = ComponentEncoder::default()
        .validate(true)
        .module(&module)?
        .encode()?;
    let decoded = wit_component::decode(&bytes)?;
    let resolve = decoded.resolve();
    let (_, world) = resolve.worlds.iter().next().context("It has no world.")?;
    let names = |items: Vec<_>| -> Vec<String> {
        items
            .into_iter()
            .map(|key| resolve.name_world_key(key))
            .collect()
    };
    let imports = names(world.imports.keys().collect());
    ensure!(
        imports.is_empty(),
        "It imports {}; a default plugin is pure.",
        imports.join(", ")
    );
    Ok((bytes, names(world.exports.keys().collect())))
}
