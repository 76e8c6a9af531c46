//! The published targets, measured: one module a row, every figure printed as one line of JSON.
//!
//! What always holds: a figure that was not measured is absent, never zero; what is measured runs as in production,
//! with jail, seccomp, TLS, authentication and recording; beside each figure stand the host's steal while it was
//! measured and the load average before. Progress goes to standard error.
//!
//! It must never know who reads the figures.

mod call;
mod conditions;
mod density;
mod figure;
mod firecracker;
mod fork;
mod io;
mod launcher;
mod machine;
mod migration;
mod output;
mod overhead;
mod rate;
mod restore;
mod start;
mod template;

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

/// A row, and what it measures. Rows from 20 on are not among the published targets: their figures are only stated.
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
        target: 3,
        what: &["restore_warm_ms", "restore_cold_ms"],
    },
    Row {
        target: 4,
        what: &["fork_p50_ms", "fork_p99_ms", "fork_cold_ms", "refill_ms"],
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
    Row {
        target: 20,
        what: &[
            "disk_us",
            "disk_p99_us",
            "disk_per_s",
            "disk_mb_s",
            "net_us",
            "net_p99_us",
            "net_mb_s",
        ],
    },
    Row {
        target: 21,
        what: &["starts_per_s", "starts_two_per_s"],
    },
    Row {
        target: 22,
        what: &["idle_fork_mib", "idle_fork_group_mib"],
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
    let firecracker = arguments.firecracker.as_deref();
    match row.target {
        1 => start::measure(firecracker).await,
        2 => overhead::measure(firecracker).await,
        3 => restore::measure(firecracker).await,
        4 => fork::measure(firecracker).await,
        5 => migration::measure().await,
        20 => io::measure(firecracker).await,
        21 => rate::measure(firecracker).await,
        22 => density::measure(firecracker).await,
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
        assert!(find("6").is_err());
    }

    #[test]
    fn no_name_stands_for_two_rows() {
        let names: Vec<_> = ROWS.iter().flat_map(|row| row.what).collect();
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(names.len(), distinct.len());
    }
}
