//! Snapshots of machines: taken, found, and removed.
//!
//! ```text
//! snapshots/ID/memory.snapshot    memory and devices, as the crate `dwcp-snapshot` says; of an incremental one, only
//!                                 what changed since its base
//!              memory.seal        that its memory was checked
//!              disk-NAME.FORMAT   what the machine had written to a disk; what lies below stays where it is
//! ```
//! What always holds: a snapshot that is recorded is whole and on the disk; its files never change; a directory without
//! a record is what was left half-way, and goes at the next start. Whatever happens, the machine goes on.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use dwcp_api::service::Answer;
use dwcp_control::Name;
use dwcp_control::records::{Snapshot, SnapshotCreate, Vm, VmPhase};
use dwcp_snapshot::{Disk, Draft};
use dwcp_store::{TypedError, Versioned};
use dwcp_vmm::protocol::SnapshotOrder;

use crate::errors::{conflict, impossible, internal, record};
use crate::events::Running;
use crate::forks::not_a_template;
use crate::hardware::own_file;
use crate::layers::{Below, memory_name, publish_memory};
use crate::node::Node;
use crate::sparse;
use crate::state::{now_ms, vm_id};
use crate::steps::step;

/// Room that stays free on the host's disk.
const ROOM_BYTES: u64 = 256 << 20;

/// Length of the longest file that a snapshot's memory becomes: with its table, manifest and device state.
pub(crate) fn file_bytes(memory_bytes: u64) -> u64 {
    memory_bytes + memory_bytes / 1024 + (64 << 20)
}

/// How the API, events and the audit log name a snapshot.
pub(crate) fn object(project: &Name, name: &Name) -> String {
    format!("projects/{project}/snapshots/{name}")
}

impl Node {
    pub(crate) fn snapshot_dir(&self, id: &str) -> PathBuf {
        self.config.dir("snapshots").join(id)
    }

    pub(crate) async fn find_snapshot(
        &self,
        project: &Name,
        name: &Name,
    ) -> Answer<Versioned<Snapshot>> {
        let key = vm_id(project, name);
        let found = self.records.snapshots.get(&key).await.map_err(record)?;
        found.ok_or_else(|| dwcp_api::Fault::not_found(format!("snapshot {name} in {project}")))
    }

    /// What can be refused before anything is begun.
    pub(crate) async fn check_snapshot(
        &self,
        project: &Name,
        request: &SnapshotCreate,
    ) -> Answer<Vm> {
        let vm = self.find_vm(project, &request.vm).await?.value;
        not_a_template(&vm)?;
        if vm.phase != VmPhase::Running {
            return Err(conflict(format!(
                "{} does not run here: a snapshot is taken of a running machine",
                vm.name
            )));
        }
        if vm.spec.hugepages {
            return Err(impossible(format!(
                "{}'s memory is of huge pages, of which this version of DWCP takes no snapshots",
                vm.name
            )));
        }
        let key = vm_id(project, &request.name);
        let found = self.records.snapshots.get(&key).await.map_err(record)?;
        match found {
            Some(_) => Err(exists(&request.name, project)),
            None => Ok(vm),
        }
    }

    /// Takes a snapshot. The machine stands still meanwhile, and goes on whatever comes of it.
    pub(crate) async fn take_snapshot(
        &self,
        vm_id: &str,
        request: &SnapshotCreate,
        running: &Running,
    ) -> Answer<String> {
        let name = &request.name;
        // One at a time on a host: the room that one takes is not free for another.
        let _room = self.snapshot_room.lock().await;
        // What this one is a change of must not go meanwhile.
        let _uses = self.snapshot_uses.read().await;
        self.memory_has_come(vm_id, |what| running.say(what))
            .await?;
        let life = self.life(vm_id);
        let life = life.lock().await;
        let vm = self.records.vm_by_id(vm_id).await.map_err(record)?;
        let Some(vm) = vm.filter(|vm| vm.phase == VmPhase::Running) else {
            return Err(conflict("The machine does not run any more"));
        };
        let permit = self.permit(&vm).await?;
        // Before it stands still: a snapshot that could not be kept, or gone on from, is none.
        self.check_snapshot(&vm.project, request).await?;
        self.check_height(&vm).await?;
        let below = match request.incremental {
            true => self.below_next(&vm).await?,
            false => None,
        };
        let id = uuid::Uuid::now_v7().to_string();
        let unfinished = Unfinished(Some(self.snapshot_dir(&id)));
        let taken = self
            .write_snapshot(&vm, &id, request, below.as_ref(), permit, running)
            .await?;
        // What is left to do takes nothing of the machine's.
        drop(life);
        let (dir, above) = (self.snapshot_dir(&id), self.config.dir("snapshots"));
        let (compressed, shown) = (request.compressed, running.clone());
        let finished = tokio::task::spawn_blocking(move || {
            finish(&dir, &above, taken.draft, compressed, &shown)
        });
        let (digest, stored_bytes) = finished.await.map_err(internal)??;
        let base = below.map(|below| below.base);
        let snapshot = Snapshot {
            id,
            project: vm.project.clone(),
            name: name.clone(),
            vm: vm.name.clone(),
            vm_id: vm.id.clone(),
            spec: vm.spec.clone(),
            origin: vm.origin.clone().filter(|_| has_own_disks(&vm)),
            base,
            compressed,
            digest,
            stored_bytes,
            pause_ms: taken.pause_ms,
            created_ms: now_ms(),
        };
        step("snapshot.finished").await;
        let key = crate::state::vm_id(&snapshot.project, name);
        // From here on the record says whether it is there: what is not recorded goes at the next start.
        unfinished.keep();
        match self.records.snapshots.create(&key, &snapshot).await {
            Ok(_) => {}
            Err(TypedError::Conflict(_)) => {
                drop(Unfinished(Some(self.snapshot_dir(&snapshot.id))));
                return Err(exists(name, &vm.project));
            }
            Err(error) => return Err(record(error)),
        }
        let sentence = format!(
            "{name} is taken of {}, which stood still for {:.0} ms{}",
            vm.name,
            snapshot.pause_ms,
            match (&snapshot.base, request.incremental) {
                (Some(base), _) => format!("; it holds what changed since {}", base.snapshot),
                (None, true) => "; it is full, and the next can be a change of it".into(),
                (None, false) => String::new(),
            }
        );
        let at = object(&vm.project, name);
        self.events
            .emit("snapshot.created", &at, sentence.clone())
            .await;
        Ok(sentence)
    }

    async fn write_snapshot(
        &self,
        vm: &Vm,
        id: &str,
        request: &SnapshotCreate,
        below: Option<&Below>,
        permit: u64,
        running: &Running,
    ) -> Answer<Taken> {
        let (from, dir) = (self.vm_dir(&vm.id), self.snapshot_dir(id));
        let files = own_files(vm, &from);
        // What is compressed is there twice for a while.
        let copies = 1 + u64::from(request.compressed);
        let memory_bytes = copies * file_bytes(vm.spec.memory_bytes);
        let needed = memory_bytes + stored(&files).map_err(internal)?;
        check_room(&self.config.state_dir, needed)?;
        std::fs::create_dir_all(&dir).map_err(internal)?;
        let opened = File::open(&dir).map_err(internal)?;
        let draft = Draft::create(opened.as_fd(), &memory_name()?).map_err(internal)?;
        let target = draft.file().try_clone().map_err(internal)?;
        let disks = vm.spec.disks.iter().map(|disk| Disk {
            device: disk.name.clone(),
            volume: format!("{}/{}", vm.id, disk.name),
            generation: 0,
            digest: None,
        });
        let order = SnapshotOrder {
            // The machine stands still for less, and what it gave is never unpacked by the daemon.
            compressed: false,
            base: below.map(|below| below.digest),
            keep_changes: request.incremental,
            disks: disks.collect(),
        };

        running.say(format!("{} is being paused", vm.name));
        let paused = self.vmm(&vm.id, |vmm| vmm.pause()).await;
        let began = Instant::now();
        let written = match paused {
            Ok(()) => {
                running.say(format!(
                    "{} stands still while its memory and its disks are written",
                    vm.name
                ));
                let memory = self.vmm(&vm.id, move |vmm| vmm.snapshot(target.as_fd(), order));
                let copied = tokio::task::spawn_blocking(move || copy_disks(&files, &dir));
                let (memory, copied) = tokio::join!(memory, copied);
                step("snapshot.written").await;
                copied.map_err(internal).and_then(|copied| {
                    copied.map_err(internal)?;
                    memory
                })
            }
            Err(fault) => Err(fault),
        };
        // Also after a pause without an answer: it may have been carried out.
        let resumed = self.vmm(&vm.id, move |vmm| vmm.resume(permit)).await;
        let pause_ms = began.elapsed().as_secs_f64() * 1000.0;
        if resumed.is_err() {
            self.unsettle(&vm.id);
        }
        written?;
        resumed?;
        running.say(format!("{} goes on; what was written is stored", vm.name));
        Ok(Taken { draft, pause_ms })
    }

    /// Deletes a snapshot that nothing stands on.
    pub(crate) async fn delete_snapshot(&self, project: &Name, name: &Name) -> Answer<()> {
        let Ok(_alone) = self.snapshot_uses.try_write() else {
            return Err(conflict(
                "A snapshot is being taken, or a machine made to go on from one: try again when that has ended",
            ));
        };
        let snapshot = self.find_snapshot(project, name).await?.value;
        let stands_on = |origin: &Option<dwcp_control::records::Origin>| {
            origin
                .as_ref()
                .is_some_and(|origin| origin.snapshot_id == snapshot.id)
        };
        let vms = self.vms().await?;
        let user = vms.iter().find(|vm| stands_on(&vm.origin));
        if let Some(user) = user.filter(|vm| has_own_disks(vm) || vm.started_ms == 0) {
            return Err(conflict(format!(
                "Machine {} stands on it: its disks hold only what changed since",
                user.name
            )));
        }
        let all = self.records.all(&self.records.snapshots).await;
        let all = all.map_err(record)?;
        if let Some(user) = all.iter().find(|other| stands_on(&other.value.origin)) {
            return Err(conflict(format!(
                "Snapshot {} stands on it: delete that one first",
                user.value.name
            )));
        }
        let holds_changes = |other: &Snapshot| {
            let base = other.base.as_ref();
            base.is_some_and(|base| base.snapshot_id == snapshot.id)
        };
        if let Some(user) = all.iter().find(|other| holds_changes(&other.value)) {
            return Err(conflict(format!(
                "Snapshot {} holds only what changed since {name}: delete that one first",
                user.value.name
            )));
        }
        let key = vm_id(project, name);
        self.records.snapshots.delete(&key).await.map_err(record)?;
        match tokio::fs::remove_dir_all(self.snapshot_dir(&snapshot.id)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(internal(error)),
            _ => Ok(()),
        }
    }

    /// At the start: what was being taken when the host went is no snapshot.
    pub(crate) async fn drop_unrecorded_snapshots(&self) -> Answer<()> {
        let above = self.config.dir("snapshots");
        std::fs::create_dir_all(&above).map_err(internal)?;
        let all = self.records.all(&self.records.snapshots).await;
        let all = all.map_err(record)?;
        for entry in std::fs::read_dir(above).map_err(internal)? {
            let entry = entry.map_err(internal)?;
            let name = entry.file_name();
            if !all.iter().any(|known| *known.value.id == *name) {
                tracing::warn!("snapshot {} was never finished", name.display());
                std::fs::remove_dir_all(entry.path()).map_err(internal)?;
            }
        }
        Ok(())
    }
}

/// What was written while the machine stood still.
struct Taken {
    draft: Draft,
    pause_ms: f64,
}

/// A directory that goes unless it is kept.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

fn exists(name: &Name, project: &Name) -> dwcp_api::Fault {
    conflict(format!(
        "A snapshot {name} exists in project {project} already"
    ))
}

/// Whether a machine has disks that it writes to.
pub(crate) fn has_own_disks(vm: &Vm) -> bool {
    vm.spec.disks.iter().any(|disk| !disk.read_only)
}

/// The files that a machine's disks are written to, with the names that they have in a snapshot.
fn own_files(vm: &Vm, dir: &Path) -> Vec<(PathBuf, String)> {
    let written = vm.spec.disks.iter().filter(|disk| !disk.read_only);
    let names = written.map(|disk| {
        let kept = own_file(disk, vm.origin.as_ref()).kept_name;
        (dir.join(own_file(disk, vm.origin.as_ref()).name), kept)
    });
    names.collect()
}

fn stored(files: &[(PathBuf, String)]) -> std::io::Result<u64> {
    let sizes = files.iter().map(|(path, _)| path.metadata());
    sizes
        .map(|about| about.map(|about| about.blocks() * 512))
        .sum()
}

fn check_room(dir: &Path, needed: u64) -> Answer<()> {
    let about = nix::sys::statvfs::statvfs(dir).map_err(internal)?;
    let free = about.blocks_available() * about.fragment_size();
    if free < needed + ROOM_BYTES {
        return Err(impossible(format!(
            "The snapshot may need {} MiB, and {} MiB are free on the host's disk, of which {} MiB are kept",
            needed >> 20,
            free >> 20,
            ROOM_BYTES >> 20
        )));
    }
    Ok(())
}

/// Copies what the machine wrote. It stands still, and its process has given everything to the kernel.
fn copy_disks(files: &[(PathBuf, String)], dir: &Path) -> std::io::Result<()> {
    for (path, name) in files {
        let to = File::options()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(dir.join(name))?;
        sparse::copy(&File::open(path)?, &to)?;
    }
    Ok(())
}

/// Makes everything durable, and checks what a process that serves a guest has written.
fn finish(
    dir: &Path,
    above: &Path,
    draft: Draft,
    compressed: bool,
    running: &Running,
) -> Answer<(String, u64)> {
    for entry in std::fs::read_dir(dir).map_err(internal)? {
        let path = entry.map_err(internal)?.path();
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(internal)?;
    }
    let digest = publish_memory(dir, draft, compressed, running)?;
    for directory in [dir, above] {
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(internal)?;
    }
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).map_err(internal)? {
        let about = entry.and_then(|entry| entry.metadata()).map_err(internal)?;
        bytes += about.blocks() * 512;
    }
    Ok((digest.to_string(), bytes))
}
