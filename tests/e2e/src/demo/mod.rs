//! The demonstration: two hosts, plugins, a policy, a machine, and its live migration, each step really done and its
//! result shown. It succeeds only if all of it truly happened.

mod machine;
mod migrate;
mod say;
mod setup;

use anyhow::Context;
use clap::Parser;
use dwcp_wan::{Queue, Settings};

use crate::bed::{Bed, BedOptions};
use crate::programs::Programs;

pub use migrate::Moved;

/// Shows two hosts, plugins, a policy, and a live migration over an emulated WAN.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo xtask demo", version)]
pub struct Arguments {
    /// Rate of the link between the hosts, Mbit/s
    #[arg(long, default_value_t = 100.0)]
    pub rate_mbit: f64,
    /// Round trip of the link, ms
    #[arg(long, default_value_t = 100.0)]
    pub rtt_ms: f64,
    /// Share of packets that the link loses, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    pub loss: f64,
    /// Memory of the machine, MiB
    #[arg(long, default_value_t = 512)]
    pub memory_mib: u32,
    /// Memory that its guest fills, MiB
    #[arg(long, default_value_t = 256)]
    pub fill_mib: u32,
    /// Memory that its guest keeps writing to, MiB
    #[arg(long, default_value_t = 32)]
    pub working_set_mib: u32,
    /// Pages that its guest writes each second
    #[arg(long, default_value_t = 2000)]
    pub dirty_pages: u32,
    /// Boot the `vmlinuz` in this directory instead of the template's own guest (needs KVM with hardware behind it)
    #[arg(long, value_name = "DIR")]
    pub linux: Option<std::path::PathBuf>,
    /// Keep both hosts running at the end, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
}

/// What `--keep` says at the end.
pub const KEPT: &str = "Both hosts run on until Ctrl-C.";

/// Runs the demonstration; Ctrl-C ends it at any point and leaves nothing behind.
pub async fn run(arguments: Arguments) -> anyhow::Result<Moved> {
    let mut interrupted =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    // What is made is dropped, and so removed, whichever of these ends first.
    let keep = arguments.keep;
    let (bed, moved) = tokio::select! {
        done = show(arguments) => done?,
        _ = interrupted.recv() => anyhow::bail!("Interrupted; everything that was made is gone again"),
        _ = terminated.recv() => anyhow::bail!("Terminated; everything that was made is gone again"),
    };
    if keep {
        // All of it happened: to end this is no failure.
        say::line(KEPT);
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    }
    drop(bed);
    Ok(moved)
}

async fn show(arguments: Arguments) -> anyhow::Result<(Bed, Moved)> {
    let programs = Programs::find()?;
    let link = Settings {
        rate_mbit: arguments.rate_mbit,
        rtt_ms: arguments.rtt_ms,
        loss: arguments.loss,
        queue: Queue::Ms(200.0),
    }
    .checked()?;
    say::step(
        1,
        "Two hosts, each a region of its own, joined by an emulated WAN",
    );
    let options = BedOptions {
        link,
        steps: [None, None],
        config: Default::default(),
    };
    let mut bed = Bed::start(&programs, Bed::run_id()?, &options).await?;
    setup::show_hosts(&bed, &arguments).await?;
    say::step(2, "Plugins and a template from the bundled marketplace");
    setup::install(&bed).await?;
    say::step(3, "A policy in Rego, and what it refuses");
    setup::policy(&bed).await?;
    say::step(4, "A machine from the template");
    machine::create(&bed, &arguments).await?;
    say::step(5, "Its console");
    machine::console(&bed).await?;
    say::step(6, "Its live migration from left to right");
    let moved = migrate::migrate(&mut bed, arguments.fill_mib).await?;
    say::step(7, "What was recorded of all this");
    machine::records(&bed).await.context("The records")?;
    say::further(&bed, &programs);
    Ok((bed, moved))
}
