//! What a build was made from, as one digest, so that an unchanged one is not repeated.
//!
//! What always holds: two builds with the same stamp were made from the same bytes by the same toolchain.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dwcp_marketplace::Digest;

/// Raised when the way of building changes, so that older results are not taken.
const RECIPE: u32 = 1;

/// The folders of the clone that plugins and templates are made from.
const SOURCES: [&str; 3] = ["wit", "plugins", "marketplace/templates"];

/// Most files that a build is made from; a build directory that strayed in is found by it.
const FILE_LIMIT: usize = 10_000;

/// The digest of all that a build is made from.
pub struct Stamp(String);

impl Stamp {
    /// Reads all sources and the guest.
    pub fn of(toolchain: &str, root: &Path, guest: &Path) -> Result<Self> {
        let mut files = vec![guest.to_path_buf()];
        for source in SOURCES {
            collect(&root.join(source), &mut files)?;
        }
        files.sort();
        let mut account = format!("recipe {RECIPE}\n{toolchain}\n");
        for file in files {
            let bytes =
                fs::read(&file).with_context(|| format!("Cannot read {}.", file.display()))?;
            account += &format!("{} {}\n", file.display(), Digest::of(&bytes));
        }
        Ok(Self(Digest::of(account.as_bytes()).to_string()))
    }

    /// Whether the last build that wrote `file` had this stamp.
    pub fn is_in(&self, file: &Path) -> bool {
        fs::read_to_string(file).is_ok_and(|text| text == self.0)
    }

    /// Notes that a build with this stamp is done.
    pub fn write(&self, file: &Path) -> Result<()> {
        fs::write(file, &self.0).with_context(|| format!("Cannot write {}.", file.display()))
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("Cannot read {}.", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("Cannot read {}.", folder.display()))?;
        let path = entry.path();
        // A `target` is what a native `cargo test` of the plugins leaves.
        if path.is_dir() && entry.file_name() != "target" {
            collect(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
        anyhow::ensure!(
            files.len() <= FILE_LIMIT,
            "There are more than {FILE_LIMIT} files in {}; remove what does not belong there.",
            folder.display()
        );
    }
    Ok(())
}
