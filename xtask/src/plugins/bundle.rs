//! The bundled marketplace: components and templates, signed, in an OCI layout.
//!
//! What always holds: a layout is replaced whole; everything in it is signed by this machine's development key,
//! whose public half lies beside it.
//!
//! What it must not know: how a component came to be.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use dwcp_marketplace::{Draft, DraftKind, DraftLayer, Layout, Reference, SigningKey, media};
use serde::Deserialize;

use crate::plugins::PUBLIC_KEY;
use crate::plugins::components::Component;
use crate::{cache, cargo};

const PUBLISHER: &str = "dwcp";
const LICENSE: &str = "Apache-2.0";

/// World and summary of each default plugin.
const PLUGINS: [(&str, &str, &str); 3] = [
    (
        "placement-default",
        "dwcp:placement/placement@0.1.0",
        "Chooses hosts by latency, cost, capacity, affinity and regional policy, and says why.",
    ),
    (
        "policy-rego",
        "dwcp:policy/policy@0.1.0",
        "Evaluates policies written in Rego.",
    ),
    (
        "template-default",
        "dwcp:template/template@0.1.0",
        "Expands template documents in TOML or JSON.",
    ),
];

/// This machine's key for signing what it builds, made the first time.
pub fn development_key(cache: &Path) -> Result<SigningKey> {
    let file = cache.join("cosign.key");
    match fs::read_to_string(&file) {
        Ok(pem) => {
            let unreadable = || format!("Remove {} to have a new one made.", file.display());
            return SigningKey::from_pem(&pem).with_context(unreadable);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("Cannot read {}.", file.display()));
        }
    }
    let key = SigningKey::generate()?;
    let beside = file.with_extension(format!("new-{}", std::process::id()));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut opened| opened.write_all(key.to_pem().unwrap_or_default().as_bytes()))
        .and_then(|()| fs::rename(&beside, &file))
        .with_context(|| format!("Cannot write {}.", file.display()))?;
    Ok(key)
}

/// Writes the marketplace at `root`, in place of the one before.
pub fn write(root: &Path, components: &[Component], guest: &Path, key: &SigningKey) -> Result<()> {
    let work = root.with_extension(format!("new-{}", std::process::id()));
    let layout = Layout::create(&work)?;
    fs::write(work.join(PUBLIC_KEY), key.public_pem()?)
        .with_context(|| format!("Cannot write {PUBLIC_KEY}."))?;
    for component in components {
        let artifact = layout.publish(&plugin(component)?)?;
        layout.sign(&artifact, key)?;
    }
    let artifact = layout.publish(&worker(guest)?)?;
    layout.sign(&artifact, key)?;
    if root.exists() {
        // Only what is a marketplace is replaced: `--out` may name anything.
        Layout::open(root).with_context(|| format!("{} is in the way.", root.display()))?;
        fs::remove_dir_all(root).with_context(|| format!("Cannot remove {}.", root.display()))?;
    }
    fs::rename(&work, root).with_context(|| format!("Cannot put {} in place.", root.display()))
}

fn plugin(component: &Component) -> Result<Draft> {
    let known = PLUGINS.iter().find(|(name, ..)| *name == component.name);
    let Some((name, world, summary)) = known else {
        bail!(
            "The plugin {} is not in the list of the bundle; add it there.",
            component.name
        );
    };
    Ok(Draft {
        reference: Reference::new(PUBLISHER, name, &component.version)?,
        summary: (*summary).to_owned(),
        license: LICENSE.to_owned(),
        kind: DraftKind::Plugin {
            world: (*world).to_owned(),
            exports: component.exports.clone(),
            imports: Vec::new(),
        },
        layers: vec![DraftLayer {
            title: format!("{name}.wasm"),
            media_type: media::WASM.to_owned(),
            bytes: component.bytes.clone(),
        }],
    })
}

/// The template `dwcp/worker`: our test guest.
fn worker(guest: &Path) -> Result<Draft> {
    let document = cache::workspace().join("marketplace/templates/worker.toml");
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("Cannot read {}.", path.display()));
    let layer = |title: &str, media_type: &str, bytes| DraftLayer {
        title: title.to_owned(),
        media_type: media_type.to_owned(),
        bytes,
    };
    Ok(Draft {
        reference: Reference::new(PUBLISHER, "worker", env!("CARGO_PKG_VERSION"))?,
        summary: "A small guest that fills memory, works on it, and checks it.".to_owned(),
        license: LICENSE.to_owned(),
        kind: DraftKind::Template {
            expander: format!("{PUBLISHER}/template-default").parse()?,
        },
        layers: vec![
            layer("worker.toml", media::TEMPLATE_TOML, read(&document)?),
            layer("kernel", media::KERNEL, read(guest)?),
        ],
    })
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    package_id: String,
    #[serde(default)]
    out_dir: PathBuf,
}

/// Builds our test guest and says where it is.
pub fn guest_elf() -> Result<PathBuf> {
    let out = cargo::cargo()
        .args(["build", "--locked", "--quiet", "--package", "dwcp-guest"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("Cannot start cargo.")?;
    ensure!(out.status.success(), "The test guest does not build.");
    let messages = String::from_utf8_lossy(&out.stdout);
    let made = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .find(|message| {
            message.reason == "build-script-executed" && message.package_id.contains("/tests/guest")
        });
    let made = made.context("Cargo did not say where the test guest is.")?;
    Ok(made.out_dir.join("guest.elf"))
}
