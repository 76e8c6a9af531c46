//! The commands, one file per concern. Each holds its part of the command line and does what it says.

pub mod audit;
pub mod completion;
pub mod console;
pub mod decision;
pub mod event;
pub mod fork;
pub mod host;
pub mod image;
pub mod migration;
pub mod plugin;
pub mod policy;
pub mod running;
pub mod snapshot;
pub mod template;
pub mod vm;

use crate::args::{Cli, Command};
use crate::context::Context;
use crate::output::Output;

/// Does what the command line says.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    let context = || Context::new(&cli.global);
    match cli.command {
        Command::Host(command) => host::run(&context()?, command).await,
        Command::Image(command) => image::run(&context()?, command).await,
        Command::Vm(command) => vm::run(&context()?, command).await,
        Command::Snapshot(command) => snapshot::run(&context()?, command).await,
        Command::Migration(command) => migration::run(&context()?, command).await,
        Command::Plugin(command) => plugin::run(&context()?, command).await,
        Command::Template(command) => template::run(&context()?, command).await,
        Command::Policy(command) => policy::run(&context()?, command).await,
        Command::Decision(command) => decision::run(&context()?, command).await,
        Command::Event(command) => event::run(&context()?, command).await,
        Command::Audit(command) => audit::run(&context()?, command).await,
        Command::Completion(args) => completion::run(&args),
        Command::Version => {
            let version = concat!("dwcp ", env!("CARGO_PKG_VERSION"), "\n");
            Ok(Output::new(cli.global.output).text(version)?)
        }
    }
}
