//! `cargo xtask demo`: builds everything, then becomes the demonstration.
//!
//! What always holds: the demonstration replaces this process, so its exit code is the command's, and a Ctrl-C
//! reaches it alone.
//!
//! What it must not know: what is demonstrated.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::machine::{self, Kvm};
use crate::steps::step;
use crate::{cargo, linux, plugins, test};

/// Everything is passed on.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// Flags of the demonstration itself; `--help` lists them
    #[arg(
        value_name = "FLAGS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    flags: Vec<OsString>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let kvm = machine::kvm();
    let help = arguments
        .flags
        .iter()
        .any(|flag| flag == "--help" || flag == "-h");
    if !help {
        check(kvm, machine::root())?;
    }
    // With the examples, so that crates get the features that they have in `test` and are built once for both.
    let made = step("Building the programs", || {
        cargo::build(&["--workspace", "--bins", "--examples"])
    })?;
    let program = cargo::program(&made, "dwcp-demo")?;
    let mut command = Command::new(program);
    command.args(&arguments.flags);
    if let Some(folder) = program.parent() {
        command.env("DWCP_BIN_DIR", folder);
    }
    if !help {
        let built = step("Building plugins and templates", || {
            plugins::build(&plugins::Options::default())
        })?;
        command.envs(test::plugins_environment(&built));
    }
    if !help && kvm.runs_linux() {
        let folder = step(
            "Fetching Debian's cloud kernel for the guest",
            linux::ensure,
        )?;
        command.arg("--linux").arg(folder);
    }
    Err(command.exec()).with_context(|| format!("Cannot start {}.", program.display()))
}

/// One clear sentence where the demonstration cannot run.
fn check(kvm: Kvm, root: bool) -> Result<()> {
    match (root, kvm) {
        (false, _) => bail!(
            "The demonstration needs root, for network namespaces and the launcher: run it as root."
        ),
        (true, Kvm::None) => {
            bail!("The demonstration needs KVM, and /dev/kvm does not open on this machine.")
        }
        (true, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_one_sentence() {
        let said = check(Kvm::None, true).unwrap_err().to_string();
        assert!(said.contains("/dev/kvm") && said.matches(". ").count() == 0);
        assert!(
            check(Kvm::Svm, false)
                .unwrap_err()
                .to_string()
                .contains("root")
        );
        assert!(check(Kvm::Pvm, true).is_ok());
    }
}
