//! `dwcp`: the command line of DWCP. A client of the API and nothing more.
//!
//! Tables are for people and JSON (`-o json`) for programs; what goes wrong is said on standard error. It ends with 0
//! when what was asked for happened, 1 when it did not, 2 when it was not understood.

// Help texts are doc comments, and a help text says `NAME[@VERSION]`, which is no link.
#![allow(rustdoc::broken_intra_doc_links)]

mod args;
mod colour;
mod commands;
mod config;
mod context;
mod failure;
mod oci;
mod output;
mod progress;
mod table;
mod units;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&error.into()),
    };
    let outcome = runtime.block_on(commands::run(cli));
    // Reading the terminal may still be under way in a thread; it ends with the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
