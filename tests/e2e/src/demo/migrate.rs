//! Step 6: the live migration, watched from outside and from inside the guest.

use anyhow::{Context, ensure};
use dwcp_guest::Tick;
use dwcp_sdk::types::{MigrateRequest, Migration, MigrationPhase, VmPhase};
use indicatif::{ProgressBar, ProgressStyle};

use super::machine::{NAME, PROJECT, watch};
use super::say;
use crate::bed::Bed;
use crate::memory_check::whole_pass;

/// What a migration came to.
#[derive(Clone, Debug)]
pub struct Moved {
    /// From the request to the answer that the destination runs it, s.
    pub total_s: f64,
    /// Every byte that the link carried, both directions, IP packets, MB.
    pub wire_mb: f64,
    /// The longest pause that the guest saw, ms.
    pub guest_pause_ms: f64,
    /// From pause to the destination's answer, as the source saw it, ms.
    pub host_pause_ms: f64,
    /// Rounds of copying before the hand-over.
    pub rounds: usize,
}

pub(crate) async fn migrate(bed: &mut Bed, fill_mib: u32) -> anyhow::Result<Moved> {
    bed.link()?.reset_stats()?;
    let client = bed.left().client().clone();
    let began = std::time::Instant::now();
    let request = MigrateRequest::to("right");
    let operation = client.vm_migrate(PROJECT, NAME, &request).await?;
    let bar = bar();
    let ended = client
        .operation_watch(&operation.id, |state| {
            if let Some(migration) = &state.migration {
                show(&bar, migration);
            }
        })
        .await;
    let total_s = began.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let migration = ended?
        .migration
        .context("The operation carries no migration")?;
    ensure!(
        migration.phase == MigrationPhase::Done,
        "The migration ended as {:?}: {}",
        migration.phase,
        migration.reason
    );
    let carried = bed.link()?.stats()?;
    for round in &migration.rounds {
        say::line(format!(
            "round {}: {} pages ({} of zeros), {}, {:.1} s, {} dirty after it",
            round.number,
            round.pages,
            round.zero_pages,
            say::bytes(round.wire_bytes),
            round.duration_ms as f64 / 1000.0,
            round.dirty_pages
        ));
    }
    if let Some(last) = migration.rounds.last() {
        say::line(format!("→ {}", last.decision));
    }
    check_owners(bed).await?;
    let guest_pause_ms = check_guest(bed, fill_mib).await?;
    let moved = Moved {
        total_s,
        wire_mb: (carried.left_to_right.bytes + carried.right_to_left.bytes) as f64 / 1e6,
        guest_pause_ms,
        host_pause_ms: migration.progress.pause_ms.unwrap_or_default(),
        rounds: migration.rounds.len(),
    };
    say::done(format!(
        "moved in {:.1} s, {:.1} MB on the wire (every IP packet, both ways)",
        moved.total_s, moved.wire_mb
    ));
    say::done(format!(
        "pause {:.0} ms as the guest saw it ({:.0} ms from pause to answer at the source)",
        moved.guest_pause_ms, moved.host_pause_ms
    ));
    Ok(moved)
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("      {bar:32} {msg}") {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, migration: &Migration) {
    let progress = &migration.progress;
    bar.set_length(progress.pages_total);
    bar.set_position(progress.pages_sent);
    let left = progress.remaining_ms.map_or(String::new(), |ms| {
        format!(", about {:.0} s left", ms as f64 / 1000.0)
    });
    bar.set_message(format!(
        "{} round {}, {}, {:.1} MB/s, {:.0} dirty pages/s{left}",
        migration.phase.as_str(),
        progress.round,
        say::bytes(progress.wire_bytes),
        progress.rate_bytes_per_s / 1e6,
        progress.dirty_pages_per_s
    ));
}

/// The machine is on the right, and only there.
async fn check_owners(bed: &Bed) -> anyhow::Result<()> {
    let here = bed.left().client().vm_get(PROJECT, NAME).await?;
    let there = bed.right().client().vm_get(PROJECT, NAME).await?;
    ensure!(
        here.phase == VmPhase::Moved && there.phase == VmPhase::Running,
        "After the migration it is {} on left and {} on right",
        here.phase.as_str(),
        there.phase.as_str()
    );
    ensure!(
        there.epoch > 1,
        "It runs on right under epoch {}, the one that it had on left",
        there.epoch
    );
    say::done(format!(
        "{NAME} runs on right under epoch {}, and left forwards to it",
        there.epoch
    ));
    Ok(())
}

/// The guest's own words after the move: its longest pause, and whether its memory is as it wrote it.
async fn check_guest(bed: &Bed, fill_mib: u32) -> anyhow::Result<f64> {
    let (mut longest_us, mut ticks, mut checked) = (0, 0, None::<Tick>);
    let mut through = false;
    watch(bed.right(), |line| {
        let Some(tick) = Tick::parse(line) else {
            return Ok(false);
        };
        ensure!(tick.bad == 0, "The guest's memory check failed: {line}");
        // The first line on this side covers the pause.
        longest_us = longest_us.max(tick.gap_us);
        ticks += 1;
        let first = *checked.get_or_insert(tick);
        through = whole_pass(&first, &tick, fill_mib);
        Ok(ticks >= 4 && through)
    })
    .await?;
    say::done("the guest's own memory check passes on right, over all that it filled");
    Ok(longest_us as f64 / 1000.0)
}
