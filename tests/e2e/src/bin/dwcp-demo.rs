//! The demonstration as a program: what `cargo xtask demo` becomes when everything is built.

use std::process::ExitCode;

use clap::Parser;
use dwcp_e2e::demo;

#[tokio::main]
async fn main() -> ExitCode {
    match demo::run(demo::Arguments::parse()).await {
        Ok(_) => {
            println!("\nAll of it happened.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nThe demonstration failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
