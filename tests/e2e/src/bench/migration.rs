//! Row 5: a live migration over an emulated WAN, everything on as in production.
//!
//! Each run has hosts, link and machine of its own, so that nothing learned before helps. Bytes are those of all IP
//! packets that the link carried, both directions; the pause is what the guest saw; a run counts only if the guest's
//! own memory check passes afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dwcp_guest::Tick;
use dwcp_sdk::types::{MigrateRequest, MigrationPhase, VmCreate, VmPhase};
use dwcp_wan::{Queue, Settings};

use super::figure::Figure;
use super::say;
use crate::bed::{Bed, BedOptions};
use crate::host::TestHost;
use crate::memory_check::whole_pass;
use crate::programs::Programs;

const RUNS: usize = 3;
const PROJECT: &str = "default";
const NAME: &str = "worker";
const LINK: Settings = Settings {
    rate_mbit: 100.0,
    rtt_ms: 100.0,
    loss: 0.0,
    queue: Queue::Ms(200.0),
};
/// As in the command line below.
const FILL_MIB: u32 = 256;
const CMDLINE: &str = "mix=reference fill_mib=256 ws_mib=32 rate=2000";
/// How long the guest may take to fill its memory, the migration to end, the guest to be heard of afterwards.
const DEADLINE: Duration = Duration::from_secs(300);
/// Ticks before the migration begins: the guest works evenly then.
const TICKS_BEFORE: usize = 3;
/// Ticks on the destination that can tell of the pause. It is the first, or the second where the first was already being
/// written when the guest stopped.
const TICKS_OF_PAUSE: usize = 2;
const NOTE: &str = "1 GiB, 1 vCPU, 256 MiB filled by the reference mix, 32 MiB written at 2,000 pages/s; 100 Mbit/s, 100 ms, queue 200 ms; all IP \
                    bytes both ways; without disk and card";

/// One migration.
#[derive(Clone, Copy, Debug)]
struct Moved {
    wire_mb: f64,
    total_s: f64,
    pause_ms: f64,
}

pub async fn measure() -> anyhow::Result<Vec<Figure>> {
    let programs = Programs::find()?;
    let mut runs = Vec::new();
    for number in 1..=RUNS {
        let moved = one(&programs)
            .await
            .with_context(|| format!("Run {number}"))?;
        say(format!(
            "run {number}: {:.1} MB on the wire, {:.1} s, pause {:.0} ms",
            moved.wire_mb, moved.total_s, moved.pause_ms
        ));
        runs.push(moved);
    }
    let figure = |what, unit, goal, of: fn(&Moved) -> f64| {
        let values: Vec<f64> = runs.iter().map(of).collect();
        let figure = Figure::of(5, what, &values, unit, goal)?;
        anyhow::Ok(
            figure
                .without("QEMU", "this row runs no reference yet")
                .noted(NOTE),
        )
    };
    Ok(vec![
        figure("wire_mb", "MB", "<= 86", |run| run.wire_mb)?,
        figure("total_s", "s", "<= 8", |run| run.total_s)?,
        figure("pause_ms", "ms", "<= 150", |run| run.pause_ms)?,
    ])
}

async fn one(programs: &Programs) -> anyhow::Result<Moved> {
    let options = BedOptions {
        link: LINK,
        steps: [None, None],
        config: Default::default(),
    };
    let mut bed = Bed::start(programs, Bed::run_id()?, &options).await?;
    let client = bed.left().client().clone();
    let image = client.image_put("guest", dwcp_guest::elf()).await?;
    let request = VmCreate {
        kernel: Some(image.digest),
        cmdline: Some(CMDLINE.into()),
        memory_bytes: Some(1 << 30),
        vcpus: Some(1),
        ..VmCreate::new(NAME)
    };
    let created = client.vm_create(PROJECT, &request).await?;
    client.operation_wait(&created.operation.id).await?;
    let vm = created.vm.id;
    ticks(bed.left(), &vm, |seen| seen.len() >= TICKS_BEFORE).await?;

    bed.link()?.reset_stats()?;
    let began = Instant::now();
    let operation = client
        .vm_migrate(PROJECT, NAME, &MigrateRequest::to("right"))
        .await?;
    let ended = tokio::time::timeout(DEADLINE, client.operation_wait(&operation.id))
        .await
        .context("The migration does not end")??;
    let total_s = began.elapsed().as_secs_f64();
    // What is still under way belongs to it.
    tokio::time::sleep(LINK.delay() * 2).await;
    let wire_mb = bed.link()?.stats()?.bytes() as f64 / 1e6;

    let migration = ended
        .migration
        .context("The operation carries no migration")?;
    ensure!(
        migration.phase == MigrationPhase::Done,
        "The migration ended as {:?}: {}",
        migration.phase,
        migration.reason
    );
    let there = bed.right().client().vm_get(PROJECT, NAME).await?;
    ensure!(there.phase == VmPhase::Running, "It does not run there");
    for round in &migration.rounds {
        say(format!(
            "round {}: {} pages ({} of zeros), {:.1} MB, {:.1} s",
            round.number,
            round.pages,
            round.zero_pages,
            round.wire_bytes as f64 / 1e6,
            round.duration_ms as f64 / 1000.0,
        ));
    }
    // The guest has checked here every page that it wrote there, and told of its pause.
    let seen = ticks(bed.right(), &vm, |seen| {
        let through = match (seen.first(), seen.last()) {
            (Some(first), Some(last)) => whole_pass(first, last, FILL_MIB),
            _ => false,
        };
        seen.len() >= TICKS_OF_PAUSE.max(4) && through
    })
    .await?;
    let pauses = seen.iter().take(TICKS_OF_PAUSE).map(|tick| tick.gap_us);
    let pause_us = pauses.max().context("The guest told nothing")?;
    Ok(Moved {
        wire_mb,
        total_s,
        pause_ms: pause_us as f64 / 1000.0,
    })
}

/// What the guest told on this host, once that is enough. Fails if it found its memory other than it wrote it.
async fn ticks(
    host: &TestHost,
    vm: &str,
    enough: impl Fn(&[Tick]) -> bool,
) -> anyhow::Result<Vec<Tick>> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let log = host.serial_log(vm);
        // Only whole lines: the last one may still be on its way.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let seen: Vec<Tick> = whole.lines().filter_map(Tick::parse).collect();
        if let Some(bad) = seen.iter().find(|tick| tick.bad > 0) {
            bail!("The guest's memory check failed: {bad:?}");
        }
        if enough(&seen) {
            return Ok(seen);
        }
        ensure!(
            Instant::now() < deadline,
            "The guest on {} is not heard of: {log}",
            host.name()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
