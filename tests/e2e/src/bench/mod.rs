//! The published targets, measured: one module a row, every figure printed as one line of JSON.
//!
//! What always holds: a figure that was not measured is absent, never zero; what is measured runs as in production,
//! with jail, seccomp, TLS, authentication and recording; beside each figure stand the host's steal while it was
//! measured and the load average before. Progress goes to standard error.
//!
//! It must never know who reads the figures.

mod call;
mod conditions;
mod figure;
mod firecracker;
mod launcher;
mod migration;
mod overhead;
mod start;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Parser;
use serde::Serialize;

use conditions::Watch;
pub use figure::Figure;

/// Measures rows of the published targets.
#[derive(Clone, Debug, Parser)]
#[command(name = "dwcp-bench", version)]
pub struct Arguments {
    /// The row to measure: its number or the name of one of its figures
    #[arg(required_unless_present = "list")]
    row: Option<String>,
    /// Print the rows that there are, as a JSON array, and measure nothing
    #[arg(long)]
    list: bool,
    /// A firecracker binary to measure beside ours, in the same run
    #[arg(long, value_name = "PATH")]
    firecracker: Option<PathBuf>,
}

/// A row, and what it measures.
#[derive(Clone, Copy, Debug, Serialize)]
struct Row {
    target: u32,
    what: &'static [&'static str],
}

const ROWS: &[Row] = &[
    Row {
        target: 1,
        what: &["start_ms", "start_bare_ms", "start_cpu_ms"],
    },
    Row {
        target: 2,
        what: &["overhead_mib"],
    },
    Row {
        target: 5,
        what: &["wire_mb", "total_s", "pause_ms"],
    },
    Row {
        target: 9,
        what: &["call_us"],
    },
    Row {
        target: 10,
        what: &["instantiate_us"],
    },
];

/// Does what the command line asks for; Ctrl-C ends it and leaves nothing behind.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.list {
        println!("{}", serde_json::to_string(ROWS)?);
        return Ok(());
    }
    let row = find(arguments.row.as_deref().unwrap_or_default())?;
    let mut interrupted =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let watch = Watch::start()?;
    // What is made is dropped, and so removed, whichever of these ends first.
    let measured = tokio::select! {
        measured = measure(row, &arguments) => measured?,
        _ = interrupted.recv() => bail!("Interrupted; everything that was made is gone again"),
        _ = terminated.recv() => bail!("Terminated; everything that was made is gone again"),
    };
    let seen = watch.end()?;
    for figure in measured {
        println!("{}", serde_json::to_string(&figure.under(seen))?);
    }
    Ok(())
}

fn find(asked: &str) -> anyhow::Result<Row> {
    let matches = |row: &&Row| row.target.to_string() == asked || row.what.contains(&asked);
    let found = ROWS.iter().find(matches).copied();
    found.with_context(|| format!("There is no row {asked}: --list shows those that there are"))
}

async fn measure(row: Row, arguments: &Arguments) -> anyhow::Result<Vec<Figure>> {
    match row.target {
        1 => start::measure(arguments.firecracker.clone()).await,
        2 => overhead::measure().await,
        5 => migration::measure().await,
        _ => call::measure(row.target).await,
    }
}

/// Says on standard error how far it is.
fn say(text: impl std::fmt::Display) {
    eprintln!("    {text}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_are_found_by_number_and_by_name() {
        assert_eq!(find("5").unwrap().target, 5);
        assert_eq!(find("pause_ms").unwrap().target, 5);
        assert!(find("").is_err());
        assert!(find("3").is_err());
    }

    #[test]
    fn no_name_stands_for_two_rows() {
        let names: Vec<_> = ROWS.iter().flat_map(|row| row.what).collect();
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(names.len(), distinct.len());
    }
}
