//! `dwcp migration`: how migrations go and went, and how a doubt is ended by hand.

use clap::Subcommand;
use dwcp_sdk::types::Migration;

use crate::context::Context;
use crate::{table, units};

/// Commands about migrations.
#[derive(Debug, Subcommand)]
pub enum MigrationCommand {
    /// List the migrations of the project, newest first
    List,
    /// Show a migration and its rounds
    Show {
        /// Its id
        id: String,
    },
    /// End a doubt by hand
    #[command(
        after_help = "A migration is in doubt when its source gave the machine away and does not know whether it
arrived. Name the host that will never run the machine again under this epoch, because you made sure of it
(it is switched off, or its disk is gone). If that is not true, the machine runs twice.

Example:
  dwcp migration resolve 0192f0c1-… --fenced right"
    )]
    Resolve {
        /// Its id
        id: String,
        /// The host that is fenced
        #[arg(long, value_name = "HOST")]
        fenced: String,
    },
}

/// Does it.
pub async fn run(context: &Context, command: MigrationCommand) -> anyhow::Result<()> {
    let (client, output, project) = (&context.client, context.output, &context.project);
    match command {
        MigrationCommand::List => {
            let migrations = client.migration_list(project).all().await?;
            let headings = [
                "ID",
                "MACHINE",
                "FROM",
                "TO",
                "PHASE",
                "ROUNDS",
                "ON THE WIRE",
                "PAUSE",
                "STARTED",
            ];
            output.list(&migrations, &headings, row)
        }
        MigrationCommand::Show { id } => {
            let migration = client.migration_get(project, &id).await?;
            output.object(&migration, facts)?;
            if !output.json() && !migration.rounds.is_empty() {
                output.text(&format!("\n{}", rounds(context, &migration)))?;
            }
            Ok(())
        }
        MigrationCommand::Resolve { id, fenced } => {
            let migration = client.migration_resolve(project, &id, &fenced).await?;
            let sentence = format!("The migration is {}: {fenced} is fenced", migration.phase);
            output.done(&migration, &sentence)
        }
    }
}

fn pause(migration: &Migration) -> String {
    let pause = migration.progress.pause_ms;
    pause.map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms"))
}

fn row(migration: &Migration) -> Vec<String> {
    vec![
        migration.id.clone(),
        migration.vm_name.clone(),
        migration.from.clone(),
        migration.to.clone(),
        migration.phase.to_string(),
        migration.rounds.len().to_string(),
        units::size(migration.progress.wire_bytes),
        pause(migration),
        units::moment(migration.started_ms),
    ]
}

fn facts(migration: &Migration) -> Vec<(&'static str, String)> {
    let progress = &migration.progress;
    let took = migration
        .ended_ms
        .map(|end| end.saturating_sub(migration.started_ms));
    vec![
        ("id", migration.id.clone()),
        ("machine", migration.vm_name.clone()),
        ("from", migration.from.clone()),
        ("to", migration.to.clone()),
        ("seen from", format!("its {}", migration.side)),
        ("phase", migration.phase.to_string()),
        ("reason", migration.reason.clone()),
        ("epoch", migration.epoch.to_string()),
        ("started", units::moment(migration.started_ms)),
        ("took", took.map(units::duration).unwrap_or_default()),
        ("on the wire", units::size(progress.wire_bytes)),
        ("goodput", units::rate(progress.rate_bytes_per_s)),
        (
            "dirty rate",
            format!("{:.0} pages/s", progress.dirty_pages_per_s),
        ),
        ("pause", pause(migration)),
    ]
}

fn rounds(context: &Context, migration: &Migration) -> String {
    let headings = [
        "ROUND",
        "PAGES",
        "ZERO",
        "ON THE WIRE",
        "TOOK",
        "DIRTY AFTER",
        "DECISION",
    ];
    let rows = migration.rounds.iter().map(|round| {
        vec![
            round.number.to_string(),
            round.pages.to_string(),
            round.zero_pages.to_string(),
            units::size(round.wire_bytes),
            units::duration(round.duration_ms),
            round.dirty_pages.to_string(),
            round.decision.clone(),
        ]
    });
    table::table(context.output.style, &headings, rows.collect())
}

/// What a migration came to, for the end of `dwcp vm migrate`.
pub fn totals(migration: &Migration) -> String {
    let took = migration
        .ended_ms
        .map_or(0, |end| end.saturating_sub(migration.started_ms));
    let style = crate::colour::Style::on(false);
    let facts = table::facts(
        style,
        &[
            ("  rounds", migration.rounds.len().to_string()),
            ("  on the wire", units::size(migration.progress.wire_bytes)),
            ("  pause", pause(migration)),
            ("  epoch", migration.epoch.to_string()),
        ],
    );
    format!(
        "{} moved from {} to {} in {}\n{facts}",
        migration.vm_name,
        migration.from,
        migration.to,
        units::duration(took),
    )
}
