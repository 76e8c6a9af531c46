//! Builds the default plugins and templates, and the bundled marketplace that holds them.
//!
//! What always holds: what is handed out is whole, signed, and made from what the clone holds now; when nothing
//! changed since the last time, nothing is built. Toolchain, signing key and the guests' target directory live
//! in the cache directory, outside the clone; the key is this machine's own and for development only.
//!
//! What it must not know: what a plugin decides.
//!
//! ```text
//! toolchain   a rustc that has a standard library for wasm32-unknown-unknown
//! components  plugins/*  ->  core modules  ->  components without imports
//! bundle      components and templates  ->  a signed OCI layout
//! ```

mod bundle;
mod components;
mod stamp;
mod toolchain;

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result};
use dwcp_marketplace::{Layout, TrustedKey};

use crate::cache;
use stamp::Stamp;

/// What to build, and where to.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Where to write the marketplace; `marketplace` in the target directory if none is given.
    pub out: Option<PathBuf>,
    /// The kernel of the template `dwcp/worker`; our test guest, built first, if none is given.
    pub guest_elf: Option<PathBuf>,
}

/// What was built.
#[derive(Debug)]
pub struct Built {
    /// The marketplace, an OCI image layout directory. Its file `cosign.pub` is the key that signed it.
    pub layout: PathBuf,
    /// The components as files, `NAME.wasm`.
    pub components: PathBuf,
}

/// The name of the public key inside the layout directory.
const PUBLIC_KEY: &str = "cosign.pub";

/// Builds what changed.
pub fn build(options: &Options) -> Result<Built> {
    let cache = cache::directory()?;
    let target = target_directory();
    let layout = options
        .out
        .clone()
        .unwrap_or_else(|| target.join("marketplace"));
    // One build at a time: they share the toolchain, the key and the guests' target directory.
    let turn = File::create(cache.join("plugins.lock")).context("Cannot make the build lock.")?;
    if turn.try_lock().is_err() {
        eprintln!("    waiting for another build of plugins");
        turn.lock().context("Cannot take the build lock.")?;
    }

    let toolchain = toolchain::ensure(&cache)?;
    let guest = match &options.guest_elf {
        Some(path) => path.clone(),
        None => bundle::guest_elf()?,
    };
    let folder = target.join("plugins");
    let built = Built {
        layout: layout.clone(),
        components: folder.clone(),
    };
    let root = cache::workspace();
    let stamp = Stamp::of(&toolchain.identity, &root, &guest)?;
    let stamp_file = layout.with_extension("stamp");
    if stamp.is_in(&stamp_file) && is_whole(&layout) {
        return Ok(built);
    }
    let components = components::build(&toolchain, &cache, &root.join("plugins"))?;
    components::write(&components, &folder)?;
    let key = bundle::development_key(&cache)?;
    bundle::write(&layout, &components, &guest, &key)?;
    stamp.write(&stamp_file)?;
    Ok(built)
}

/// For `doctor`: which toolchain builds plugins here.
pub fn toolchain_state() -> String {
    match cache::directory() {
        Ok(cache) => toolchain::state(&cache),
        Err(error) => error.to_string(),
    }
}

/// Cargo's target directory: what the user set, else `target` in the clone.
fn target_directory() -> PathBuf {
    let root = cache::workspace();
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(set) => root.join(set),
        None => root.join("target"),
    }
}

/// Whether everything in the layout can be read and is signed by the key beside it.
fn is_whole(root: &PathBuf) -> bool {
    let look = || -> Result<()> {
        let pem = fs::read_to_string(root.join(PUBLIC_KEY))?;
        let key = TrustedKey::from_pem(PUBLIC_KEY, &pem)?;
        let layout = Layout::open(root)?;
        for reference in layout.list()? {
            let artifact = layout.resolve(&reference)?;
            layout.verify(&artifact, std::slice::from_ref(&key))?;
            for layer in &artifact.layers {
                layout.copy(layer, &mut std::io::sink())?;
            }
        }
        Ok(())
    };
    look().is_ok()
}
