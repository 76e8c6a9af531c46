//! `dwcp snapshot`: what is kept of machines at one moment.

use clap::Subcommand;
use dwcp_sdk::types::{Snapshot, SnapshotCreate};

use super::vm::wait;
use crate::context::Context;
use crate::units;

/// Commands about snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of a running machine: memory, devices and disks
    #[command(
        after_help = "The machine stands still while its memory and disks are written, and goes on afterwards.

Examples:
  dwcp snapshot create before-upgrade --of web
  dwcp snapshot create tuesday --of web --incremental
  dwcp vm stop web && dwcp vm restore web before-upgrade
  dwcp vm create web2 --snapshot before-upgrade"
    )]
    Create {
        /// What it is called, unique in the project
        name: String,
        /// The machine
        #[arg(long = "of", value_name = "VM")]
        vm: String,
        /// Write only the memory that changed since the machine's last snapshot, if that one was taken
        /// with --incremental too (else all of it); from now on the host logs what changes
        #[arg(long)]
        incremental: bool,
        /// Compress the memory when the machine has gone on
        #[arg(long)]
        compress: bool,
    },
    /// List the snapshots of the project
    List {
        /// Only those of this machine
        #[arg(long = "of", value_name = "VM")]
        vm: Option<String>,
    },
    /// Show a snapshot
    Show {
        /// Its name
        name: String,
    },
    /// Delete a snapshot for ever
    #[command(visible_alias = "rm")]
    Delete {
        /// Its name
        name: String,
    },
}

/// Does it.
pub async fn run(context: &Context, command: SnapshotCommand) -> anyhow::Result<()> {
    let (client, output, project) = (&context.client, context.output, &context.project);
    match command {
        SnapshotCommand::Create {
            name,
            vm,
            incremental,
            compress,
        } => {
            let request = SnapshotCreate {
                incremental,
                compressed: compress,
                ..SnapshotCreate::new(&name, &vm)
            };
            let operation = client.snapshot_create(project, &request).await?;
            wait(context, &operation, "taking a snapshot").await?;
            let snapshot = client.snapshot_get(project, &name).await?;
            let since = match (&snapshot.base, incremental) {
                (Some(base), _) => format!(", what changed since {}", base.snapshot),
                (None, true) => ", full, and the next can be a change of it".into(),
                (None, false) => String::new(),
            };
            let sentence = format!(
                "{name} is taken: {} on the host{since}; {vm} stood still for {:.0} ms",
                units::size(snapshot.stored_bytes),
                snapshot.pause_ms
            );
            output.done(&snapshot, &sentence)
        }
        SnapshotCommand::List { vm } => {
            let mut snapshots = client.snapshot_list(project).all().await?;
            snapshots.retain(|snapshot| vm.as_ref().is_none_or(|vm| *vm == snapshot.vm));
            let headings = ["NAME", "OF", "MEMORY", "STORED", "SINCE", "PAUSE", "TAKEN"];
            output.list(&snapshots, &headings, row)
        }
        SnapshotCommand::Show { name } => {
            output.object(&client.snapshot_get(project, &name).await?, facts)
        }
        SnapshotCommand::Delete { name } => {
            client.snapshot_delete(project, &name).await?;
            output.gone(&format!("{name} is gone"))
        }
    }
}

fn stored(snapshot: &Snapshot) -> String {
    let size = units::size(snapshot.stored_bytes);
    match snapshot.compressed {
        true => format!("{size}, memory compressed"),
        false => size,
    }
}

fn row(snapshot: &Snapshot) -> Vec<String> {
    let base = snapshot.base.as_ref();
    vec![
        snapshot.name.clone(),
        snapshot.vm.clone(),
        units::size(snapshot.spec.memory_bytes),
        units::size(snapshot.stored_bytes),
        base.map_or("-".into(), |base| base.snapshot.clone()),
        format!("{:.0} ms", snapshot.pause_ms),
        units::moment(snapshot.created_ms),
    ]
}

fn facts(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let disks = snapshot.spec.disks.iter().map(|disk| disk.name.as_str());
    let origin = snapshot.origin.as_ref();
    let base = snapshot.base.as_ref();
    vec![
        ("name", snapshot.name.clone()),
        ("project", snapshot.project.clone()),
        ("id", snapshot.id.clone()),
        ("of", snapshot.vm.clone()),
        ("memory", units::size(snapshot.spec.memory_bytes)),
        ("vcpus", snapshot.spec.vcpus.to_string()),
        ("disks", disks.collect::<Vec<_>>().join(", ")),
        (
            "stands on",
            origin.map_or(String::new(), |origin| origin.snapshot.clone()),
        ),
        (
            "changes since",
            base.map_or(String::new(), |base| base.snapshot.clone()),
        ),
        ("stored", stored(snapshot)),
        ("pause", format!("{:.0} ms", snapshot.pause_ms)),
        ("digest", snapshot.digest.clone()),
        ("taken", units::moment(snapshot.created_ms)),
    ]
}
