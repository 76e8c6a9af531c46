//! The published targets as a program: what `cargo xtask bench` runs, built for release.

use std::process::ExitCode;

use clap::Parser;
use dwcp_e2e::bench;

#[tokio::main]
async fn main() -> ExitCode {
    match bench::run(bench::Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Not measured: {error:#}");
            ExitCode::FAILURE
        }
    }
}
