//! Where the built programs and the bundled marketplace are.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
    marketplace: PathBuf,
}

impl Programs {
    /// Those that `DWCP_BIN_DIR` names, or that lie where this program was built; the marketplace that
    /// `DWCP_MARKETPLACE` names, or that of this tree.
    pub fn find() -> anyhow::Result<Self> {
        let dir = directory()?;
        let marketplace = match std::env::var_os("DWCP_MARKETPLACE") {
            Some(dir) => PathBuf::from(dir),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/marketplace"),
        };
        for name in [
            "dwcpd",
            "dwcp-launch",
            "dwcp-vmm",
            "dwcp-mover",
            "dwcp-image",
            "dwcp-wan",
            "dwcp",
        ] {
            ensure!(
                dir.join(name).exists(),
                "{name} is not built in {}: run `cargo build --workspace --bins`",
                dir.display()
            );
        }
        ensure!(
            marketplace.join("oci-layout").exists(),
            "There is no marketplace in {}: run `cargo xtask plugins`",
            marketplace.display()
        );
        Ok(Self { dir, marketplace })
    }

    /// One program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The bundled marketplace.
    pub fn marketplace(&self) -> &Path {
        &self.marketplace
    }
}

/// Where programs are: `DWCP_BIN_DIR`, or where this program was built. Examples are in its folder `examples`.
pub fn directory() -> anyhow::Result<PathBuf> {
    match std::env::var_os("DWCP_BIN_DIR") {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => beside_this_program(),
    }
}

fn beside_this_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let dir = program.parent().context("A program lies in a directory")?;
    // Test programs lie one directory deeper.
    if dir.ends_with("deps") {
        Ok(dir.parent().unwrap_or(dir).to_owned())
    } else {
        Ok(dir.to_owned())
    }
}
