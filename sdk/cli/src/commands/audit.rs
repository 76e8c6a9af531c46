//! `dwcp audit`: the audit log, and its proof against what this machine kept.
//!
//! The host is not trusted here: signatures, growth and every entry are checked on this machine, with the key and the
//! checkpoint that were kept at the visit before, in the profile's file under `~/.local/state/dwcp/audit/`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use dwcp_audit::{Checkpoint, Hash, Kept, Replay, StoredEntry, Verifier, VerifierKey};
use dwcp_sdk::types::AuditRecord;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::context::Context;
use crate::units;

/// Entries fetched at a time.
const BATCH: usize = 1_000;

/// Commands about the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List entries
    List(ListArgs),
    /// Prove that nothing was changed, removed or cut off since the last visit, and keep the new checkpoint
    #[command(
        after_help = "Every entry is read and the log's tree computed anew from them. The first visit trusts the key that the
host shows, and says so; later ones trust only that key."
    )]
    Verify,
}

/// Which entries.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Index of the first one; the newest ones if absent
    #[arg(long, value_name = "INDEX")]
    from: Option<u64>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    limit: u64,
}

/// What is kept of a host between two visits.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    key: String,
    kept: Kept,
}

/// What a verification found.
#[derive(Debug, Serialize)]
struct Verified {
    origin: String,
    entries: u64,
    root: String,
    new_entries: u64,
    first_visit: bool,
    key: String,
}

/// Does it.
pub async fn run(context: &Context, command: AuditCommand) -> anyhow::Result<()> {
    match command {
        AuditCommand::List(args) => list(context, args).await,
        AuditCommand::Verify => {
            let directory = config::directory("XDG_STATE_HOME", ".local/state")?.join("audit");
            let file = directory.join(format!("{}.json", context.profile));
            let verified = verify(context, &file).await?;
            context.output.done(&verified, &sentence(&verified, &file))
        }
    }
}

async fn list(context: &Context, args: ListArgs) -> anyhow::Result<()> {
    let from = match args.from {
        Some(from) => from,
        None => {
            let shown = context.client.audit_checkpoint().await?;
            let key = parse_key(&shown.key)?;
            let size = Checkpoint::open(&shown.note, &key)?.size;
            size.saturating_sub(args.limit)
        }
    };
    let limit = usize::try_from(args.limit).unwrap_or(BATCH);
    let entries = context.client.audit_entries(from, limit).await?;
    let headings = ["INDEX", "TIME", "WHO", "ACTION", "OBJECT", "OUTCOME"];
    context.output.list(&entries, &headings, row)
}

/// An entry as a row; one that cannot be read is shown as it is.
fn row(record: &AuditRecord) -> Vec<String> {
    let stored = stored(record.clone());
    let Ok(entry) = stored.entry() else {
        return vec![record.index.to_string(), record.entry.clone()];
    };
    let outcome = serde_json::to_value(entry.outcome).unwrap_or_default();
    vec![
        record.index.to_string(),
        units::moment(entry.time_ms),
        entry.principal,
        entry.action,
        entry.object,
        outcome.as_str().unwrap_or_default().to_owned(),
    ]
}

fn stored(record: AuditRecord) -> StoredEntry {
    StoredEntry {
        index: record.index,
        text: record.entry,
    }
}

fn parse_key(text: &str) -> anyhow::Result<VerifierKey> {
    text.parse()
        .map_err(|error| anyhow!("The host's audit key cannot be used: {error}"))
}

async fn verify(context: &Context, file: &Path) -> anyhow::Result<Verified> {
    let memory = recall(file)?;
    let shown = context.client.audit_checkpoint().await?;
    let trusted = match &memory {
        Some(memory) if memory.key != shown.key => bail!(
            "The audit log is signed by another key than at the last visit. If the host was made anew, remove {} to begin again; otherwise somebody replaced its log",
            file.display()
        ),
        Some(memory) => &memory.key,
        None => &shown.key,
    };
    let verifier = Verifier::new(parse_key(trusted)?);
    let new = verifier.checkpoint(&shown.note)?;
    let old = match &memory {
        Some(memory) => Some(verifier.checkpoint(&memory.kept.note)?),
        None => None,
    };
    if let Some(old) = &old {
        grown(context, &verifier, old, &new).await?;
    }
    let mut replay = Replay::from_start(old.clone());
    while replay.next_index() < new.size {
        let left = usize::try_from(new.size - replay.next_index()).unwrap_or(BATCH);
        let limit = left.min(BATCH);
        let entries = context
            .client
            .audit_entries(replay.next_index(), limit)
            .await?;
        if entries.is_empty() {
            break;
        }
        for record in entries.into_iter().take(limit) {
            replay.push(&stored(record))?;
        }
    }
    let kept = replay.finish(&verifier, &shown.note)?;
    let key = trusted.clone();
    remember(
        file,
        &Memory {
            key: key.clone(),
            kept,
        },
    )?;
    Ok(Verified {
        new_entries: new.size - old.as_ref().map_or(0, |old| old.size),
        first_visit: old.is_none(),
        origin: new.origin,
        entries: new.size,
        root: new.root.to_string(),
        key,
    })
}

/// Checks that the log begins with what it was at the last visit.
async fn grown(
    context: &Context,
    verifier: &Verifier,
    old: &Checkpoint,
    new: &Checkpoint,
) -> anyhow::Result<()> {
    let proof = if old.size > 0 && old.size < new.size {
        context.client.audit_consistency(old.size, new.size).await?
    } else {
        Vec::new()
    };
    let proof: Option<Vec<Hash>> = proof.iter().map(|hash| Hash::from_base64(hash)).collect();
    let proof =
        proof.ok_or_else(|| anyhow!("The host's proof of consistency is not made of hashes"))?;
    Ok(verifier.growth(old, new, &proof)?)
}

fn sentence(verified: &Verified, file: &Path) -> String {
    let Verified {
        origin, entries, ..
    } = verified;
    let visit = if verified.first_visit {
        format!(
            "This is the first visit: the key {} was taken on trust and is kept in {}",
            verified.key,
            file.display()
        )
    } else {
        format!(
            "{} entries are new since the last visit; nothing before them was touched",
            verified.new_entries
        )
    };
    format!(
        "The audit log of {origin} holds: {entries} entries, every one of them as it was signed\n{visit}"
    )
}

fn recall(file: &Path) -> anyhow::Result<Option<Memory>> {
    match std::fs::read(file) {
        Ok(bytes) => {
            let memory = serde_json::from_slice(&bytes);
            let damaged = || {
                format!(
                    "{} is damaged; restore it, or remove it to begin again",
                    file.display()
                )
            };
            memory.map(Some).with_context(damaged)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} could not be read", file.display())),
    }
}

/// Writes a file beside and puts it in place at once, so that a crash leaves the old one.
fn remember(file: &Path, memory: &Memory) -> anyhow::Result<()> {
    let told = || format!("{} could not be written", file.display());
    let directory = file.parent().map(Path::to_path_buf).unwrap_or_default();
    std::fs::create_dir_all(&directory).with_context(told)?;
    let beside: PathBuf = directory.join(format!(".{}.new", std::process::id()));
    let mut new = std::fs::File::create(&beside).with_context(told)?;
    new.write_all(&serde_json::to_vec_pretty(memory)?)
        .with_context(told)?;
    new.sync_all().with_context(told)?;
    std::fs::rename(&beside, file).with_context(told)
}
