//! The developer's commands: `cargo xtask demo|test|soak|plugins|bench|doctor`.
//!
//! What always holds: everything that a command needs it makes or installs itself, or it names exactly what is
//! missing; nothing is written outside the target directory and the cache directory (`$XDG_CACHE_HOME/dwcp`,
//! else `~/.cache/dwcp`), but for the pages of results that `soak` is asked to renew; a command ends with 0 only
//! if all that it promises truly happened.
//!
//! What it must not know: how a host works. It builds, prepares and starts; what it starts judges itself.

mod bench;
mod cache;
mod cargo;
mod demo;
mod doctor;
mod fuzz;
mod linux;
mod machine;
mod packages;
mod parts;
mod plugins;
mod runner;
mod soak;
mod steps;
mod summary;
mod test;
mod tiers;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The commands of a DWCP developer"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build everything, then show two hosts, plugins, policies and a live migration
    Demo(demo::Arguments),
    /// Run the tests, tier by tier
    Test(test::Arguments),
    /// Run what needs longer than `test`, and write its results where the book shows them
    Soak(soak::Arguments),
    /// Build, sign and lay out the bundled plugins and templates
    Plugins(PluginsArguments),
    /// Run the benchmarks of the published targets in a release build
    Bench(bench::Arguments),
    /// Say what this machine has, and what will be skipped on it
    Doctor,
}

#[derive(Debug, clap::Args)]
struct PluginsArguments {
    /// Where to write the marketplace (an OCI layout directory) instead of the target directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Plugins(arguments) => plugins_only(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Doctor => doctor::run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `cargo xtask plugins`.
fn plugins_only(arguments: &PluginsArguments) -> anyhow::Result<ExitCode> {
    let options = plugins::Options {
        out: arguments.out.clone(),
        ..Default::default()
    };
    let built = steps::step("Building plugins and templates", || {
        plugins::build(&options)
    })?;
    println!("{}", built.layout.display());
    Ok(ExitCode::SUCCESS)
}
