//! Progress of long work on standard error: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use dwcp_sdk::types::{Migration, MigrationPhase, Operation};
use indicatif::{ProgressBar, ProgressStyle};

use crate::units;

/// How a transfer of bytes is shown.
const TRANSFER: &str = "{prefix} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
/// How a migration is shown.
const MIGRATION: &str = "{prefix} {bar:30} {msg}";

fn bar(template: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    // The templates are ours; a wrong one would show the default bar.
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar
}

/// Shows a transfer of bytes, either way.
pub fn transfer(label: &str) -> ProgressBar {
    let bar = bar(TRANSFER);
    bar.set_prefix(label.to_owned());
    bar
}

/// Shows that something is waited for.
pub fn waiting(what: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Shows a migration as it goes.
#[derive(Debug)]
pub struct MigrationBar {
    bar: ProgressBar,
    rounds_told: usize,
}

impl MigrationBar {
    /// Of a machine.
    pub fn new(name: &str) -> Self {
        let bar = bar(MIGRATION);
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        Self {
            bar,
            rounds_told: 0,
        }
    }

    /// Takes the next state.
    pub fn show(&mut self, operation: &Operation) {
        let Some(migration) = &operation.migration else {
            self.bar.set_message(operation.message.clone());
            return;
        };
        let progress = &migration.progress;
        self.bar.set_length(progress.pages_total.max(1));
        self.bar
            .set_position(progress.pages_sent.min(progress.pages_total));
        self.bar.set_message(sentence(migration));
        // Without a terminal each round that ended gets its line.
        let ended = migration.rounds.len();
        if self.bar.is_hidden() {
            for round in migration.rounds.iter().skip(self.rounds_told) {
                eprintln!(
                    "round {}: {} pages ({} zero), {} in {}, {} dirty; {}",
                    round.number,
                    round.pages,
                    round.zero_pages,
                    units::size(round.wire_bytes),
                    units::duration(round.duration_ms),
                    round.dirty_pages,
                    round.decision,
                );
            }
        }
        self.rounds_told = self.rounds_told.max(ended);
    }

    /// Clears the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn sentence(migration: &Migration) -> String {
    let progress = &migration.progress;
    match migration.phase {
        MigrationPhase::Copying => {
            let left = progress.remaining_ms.map_or_else(
                || "end not forecast yet".to_owned(),
                |ms| format!("{} left", units::duration(ms)),
            );
            format!(
                "round {}, {} sent at {}, {:.0} pages/s dirty, {left}",
                progress.round,
                units::size(progress.wire_bytes),
                units::rate(progress.rate_bytes_per_s),
                progress.dirty_pages_per_s,
            )
        }
        phase => phase.to_string(),
    }
}
