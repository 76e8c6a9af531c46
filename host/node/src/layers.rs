//! Snapshots whose memory lies in several files: an incremental one, and what it is a change of.
//!
//! What always holds: a snapshot's base is recorded in its project as long as the snapshot is; a chain ends with a full
//! one after [`LAYERS_MAX`] at most.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_api::service::Answer;
use dwcp_control::records::{Base, Snapshot as SnapshotRecord, Vm};
use dwcp_snapshot::{
    CHUNK_BYTES, Draft, Encoding, Snapshot, SnapshotDigest, SnapshotName, recode, seal,
};

use crate::errors::{chain, conflict, impossible, internal, record};
use crate::events::Running;
use crate::node::Node;

/// Most snapshots that one stands on, itself included: after so many, the next one is full.
const LAYERS_MAX: usize = 16;
/// How often it is looked whether memory has come.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What the memory's file is called.
const MEMORY: &str = "memory";

/// What a snapshot of a machine can be a change of.
pub(crate) struct Below {
    pub base: Base,
    pub digest: SnapshotDigest,
}

impl Node {
    /// What a snapshot of a running machine can be a change of: its process must know what changed since, and the files
    /// must be there.
    pub(crate) async fn below_next(&self, vm: &Vm) -> Answer<Option<Below>> {
        let status = self.vmm(&vm.id, |vmm| vmm.status()).await?;
        let Some(digest) = status.changes_since else {
            return Ok(None);
        };
        let text = digest.to_string();
        let all = self.records.all(&self.records.snapshots).await;
        let all = all.map_err(record)?.into_iter().map(|found| found.value);
        let mut known = all.filter(|known| known.project == vm.project && known.digest == text);
        let Some(known) = known.next() else {
            return Ok(None);
        };
        if self.layers(&known).await?.len() >= LAYERS_MAX {
            return Ok(None);
        }
        let base = Base {
            snapshot: known.name,
            snapshot_id: known.id,
        };
        Ok(Some(Below { base, digest }))
    }

    /// A snapshot and those that its memory is a change of, the newest first.
    async fn layers(&self, snapshot: &SnapshotRecord) -> Answer<Vec<SnapshotRecord>> {
        let mut layers = vec![snapshot.clone()];
        let mut base = snapshot.base.clone();
        while let Some(at) = base.take() {
            let below = self.find_snapshot(&snapshot.project, &at.snapshot).await?;
            let below = below.value;
            if below.id != at.snapshot_id || layers.len() == LAYERS_MAX {
                return Err(conflict(format!(
                    "Snapshot {} holds changes of another one than {}: use one that is full",
                    snapshot.name, at.snapshot
                )));
            }
            base.clone_from(&below.base);
            layers.push(below);
        }
        Ok(layers)
    }

    /// Where the files of a snapshot's memory are, the newest first.
    pub(crate) async fn layer_dirs(&self, snapshot: &SnapshotRecord) -> Answer<Vec<PathBuf>> {
        let layers = self.layers(snapshot).await?;
        let dirs = layers.iter().map(|layer| self.snapshot_dir(&layer.id));
        Ok(dirs.collect())
    }

    /// Waits until all of a machine's memory is there, which may be coming from a compressed snapshot.
    pub(crate) async fn memory_has_come(&self, id: &str, say: impl Fn(String)) -> Answer<()> {
        loop {
            let status = self.vmm(id, |vmm| vmm.status()).await?;
            if status.missing_chunks == 0 {
                return Ok(());
            }
            let mib = status.missing_chunks * (CHUNK_BYTES as u64 >> 20);
            say(format!(
                "waiting for its memory: {mib} MiB are still to come from its snapshot"
            ));
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// The name of the memory's file, as the format takes it.
pub(crate) fn memory_name() -> Answer<SnapshotName> {
    MEMORY.parse().map_err(internal)
}

/// Opens the memory of a snapshot: its files. What will be mapped is checked, by its seal or now; what will not be, is
/// checked when it comes.
pub(crate) fn open_memory(dirs: &[PathBuf]) -> Answer<Vec<File>> {
    let damaged = |error: dwcp_snapshot::ReadError| {
        impossible(format!("The snapshot cannot be used: {}", chain(&error)))
    };
    let memory = memory_name()?;
    let open = |dir: &PathBuf| {
        let opened = File::open(dir).map_err(internal)?;
        let snapshot = dwcp_snapshot::open(opened.as_fd(), &memory).map_err(damaged)?;
        Ok((opened, snapshot))
    };
    let layers = dirs.iter().map(open).collect::<Answer<Vec<_>>>()?;
    let is_raw = |(_, layer): &(File, Snapshot)| layer.encoding() == Encoding::Raw;
    if layers.iter().all(is_raw) {
        for (dir, layer) in &layers {
            seal::ensure(dir.as_fd(), &memory, layer, &mut |_| {
                ControlFlow::Continue(())
            })
            .map_err(damaged)?;
        }
    }
    let files = layers.iter().map(|(_, layer)| layer.file().try_clone());
    files.collect::<std::io::Result<_>>().map_err(internal)
}

/// Publishes the memory that was written into a draft, compressed if that is wanted, and checks it; answers its digest.
pub(crate) fn publish_memory(
    dir: &Path,
    draft: Draft,
    is_to_be_compressed: bool,
    running: &Running,
) -> Answer<SnapshotDigest> {
    let fault = |error: &dyn std::error::Error| internal(std::io::Error::other(chain(error)));
    let opened = File::open(dir).map_err(internal)?;
    let memory = memory_name()?;
    let mut snapshot = draft.publish().map_err(|error| fault(&error))?;
    if is_to_be_compressed {
        let draft = Draft::create(opened.as_fd(), &memory).map_err(|error| fault(&error))?;
        let mut told = 0;
        let show = &mut |progress: dwcp_snapshot::Progress| {
            let percent = progress.chunks_done * 100 / progress.chunks.max(1);
            if percent > told {
                told = percent;
                running.say(format!("compressing what was written, {percent} %"));
            }
            ControlFlow::Continue(())
        };
        // Every page is checked against what was written when it is read here.
        recode(&snapshot, Encoding::Zstd, draft.file(), show).map_err(|error| fault(&error))?;
        snapshot = draft.publish().map_err(|error| fault(&error))?;
    }
    running.say("checking what was written");
    seal::ensure(opened.as_fd(), &memory, &snapshot, &mut |_| {
        ControlFlow::Continue(())
    })
    .map_err(|error| fault(&error))?;
    Ok(snapshot.digest())
}
