//! Where things live that outlast a build: the cache directory, outside the clone.
//!
//! What always holds: the directory exists when its path is handed out, and deleting it costs time only.
//!
//! What it must not know: what is kept there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The cache directory: `$XDG_CACHE_HOME/dwcp`, else `~/.cache/dwcp`. Makes it when it is absent.
pub fn directory() -> Result<PathBuf> {
    let base = match (absolute("XDG_CACHE_HOME"), absolute("HOME")) {
        (Some(cache), _) => cache,
        (None, Some(home)) => home.join(".cache"),
        (None, None) => {
            bail!("Neither XDG_CACHE_HOME nor HOME names an absolute path; set one of them.")
        }
    };
    let directory = base.join("dwcp");
    fs::create_dir_all(&directory)
        .with_context(|| format!("Cannot make the cache directory {}.", directory.display()))?;
    Ok(directory)
}

/// The root of the clone that this program was built from.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The value of an environment variable, if it is an absolute path.
fn absolute(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}
