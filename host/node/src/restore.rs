//! Machines that go on from a snapshot instead of booting.
//!
//! What always holds: a machine's record names the snapshot that its disks stand on before its guest runs; a restore
//! that does not come to that leaves the machine, its memory aside, as it was; files of a snapshot are only read.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use dwcp_api::service::Answer;
use dwcp_control::Name;
use dwcp_control::records::{
    Desired, DiskSpec, Origin, Snapshot, Vm, VmCreate, VmId, VmPhase, VmSpec,
};
use dwcp_vmm::config::{Boot, CHAIN_FILES_MAX, DiskFormat};

use crate::errors::{conflict, impossible, internal, invalid, record};
use crate::forks::not_a_template;
use crate::hardware::own_file;
use crate::layers::open_memory;
use crate::node::Node;
use crate::snapshots::has_own_disks;
use crate::state::now_ms;
use crate::steps::step;

/// A snapshot or a template that disks stand on.
pub(crate) struct Lower {
    /// Where its files are.
    files: PathBuf,
    is_template: bool,
    /// What it stands on itself.
    origin: Option<Origin>,
    /// The machine that it is, or is of.
    pub id: VmId,
    /// What that machine is called.
    pub name: Name,
}

impl Lower {
    /// What one of the disks is in it.
    pub(crate) fn file(&self, disk: &DiskSpec) -> (PathBuf, DiskFormat) {
        let own = own_file(disk, self.origin.as_ref());
        let name = match self.is_template {
            true => own.name,
            false => own.kept_name,
        };
        (self.files.join(name), own.format)
    }
}

impl Node {
    /// What a machine's disks stand on, the newest first.
    pub(crate) async fn below(&self, vm: &Vm) -> Answer<Vec<Lower>> {
        self.all_below(&vm.project, vm.origin.clone()).await
    }

    async fn all_below(&self, project: &Name, mut origin: Option<Origin>) -> Answer<Vec<Lower>> {
        let mut below = Vec::new();
        while let Some(at) = origin.take() {
            let lower = match at.template {
                false => self.snapshot_below(project, &at).await?,
                true => self.template_below(&at).await?,
            };
            origin.clone_from(&lower.origin);
            below.push(lower);
        }
        Ok(below)
    }

    async fn snapshot_below(&self, project: &Name, at: &Origin) -> Answer<Lower> {
        let snapshot = self.find_snapshot(project, &at.snapshot).await?.value;
        if snapshot.id != at.snapshot_id {
            return Err(conflict(format!(
                "Snapshot {} is another one than its disks stand on",
                at.snapshot
            )));
        }
        Ok(Lower {
            files: self.snapshot_dir(&snapshot.id),
            is_template: false,
            id: snapshot.vm_id,
            name: snapshot.vm,
            origin: snapshot.origin,
        })
    }

    async fn template_below(&self, at: &Origin) -> Answer<Lower> {
        let template = self.records.vm_by_id(&at.snapshot_id).await;
        let template = template.map_err(record)?.ok_or_else(|| {
            conflict(format!(
                "Template {}, which its disks stand on, is gone",
                at.snapshot
            ))
        })?;
        if template.phase != VmPhase::Template {
            return Err(conflict(format!(
                "{}, which its disks stand on, is no template any more",
                template.name
            )));
        }
        Ok(Lower {
            files: self.vm_dir(&template.id),
            is_template: true,
            // What it stood on may be gone, if that has none of its disks.
            origin: template.origin.clone().filter(|_| has_own_disks(&template)),
            id: template.id,
            name: template.name,
        })
    }

    /// Whether a snapshot of a machine could be gone on from: its disks would stand on one file more.
    pub(crate) async fn check_height(&self, vm: &Vm) -> Answer<()> {
        if !has_own_disks(vm) {
            return Ok(());
        }
        let below = self.below(vm).await?.len();
        // The snapshot's own, one that is written, and the image below all.
        if below + 3 > CHAIN_FILES_MAX {
            return Err(impossible(format!(
                "{} stands on {below} snapshots already, and disks are at most {CHAIN_FILES_MAX} files on each other: \
                 nothing could go on from another one",
                vm.name
            )));
        }
        Ok(())
    }

    /// What a machine is to go on from, if its disks are not too many files by then.
    async fn origin_in(&self, snapshot: &Snapshot) -> Answer<Origin> {
        let origin = Origin {
            snapshot: snapshot.name.clone(),
            snapshot_id: snapshot.id.clone(),
            restore: uuid::Uuid::now_v7().to_string(),
            template: false,
        };
        let below = self
            .all_below(&snapshot.project, Some(origin.clone()))
            .await?;
        // Its own file, and the image below all.
        let files = below.len() + 2;
        if files > CHAIN_FILES_MAX && !snapshot.spec.disks.is_empty() {
            return Err(impossible(format!(
                "Snapshot {} was taken of a machine that stood on {} others: disks of {files} files are more than the \
                 {CHAIN_FILES_MAX} that a machine may have; go on from an earlier snapshot",
                snapshot.name,
                below.len() - 1
            )));
        }
        Ok(origin)
    }

    /// What a new machine from a snapshot is.
    pub(crate) async fn machine_of(
        &self,
        project: &Name,
        name: &Name,
        request: &VmCreate,
    ) -> Answer<(VmSpec, Origin)> {
        if let Some(field) = beyond_name(request)? {
            return Err(invalid(format!(
                "A machine from a snapshot is what that one's was: only its name, restart policy and tags can be given, \
                 not {field}"
            )));
        }
        let snapshot = self.find_snapshot(project, name).await?.value;
        let mut spec = snapshot.spec.clone();
        spec.restart = request.restart.unwrap_or(spec.restart);
        spec.tags.extend(request.tags.clone());
        let origin = self.origin_in(&snapshot).await?;
        Ok((spec, origin))
    }

    /// What can be refused before a restore is begun.
    pub(crate) async fn check_restore(
        &self,
        project: &Name,
        vm: &Name,
        snapshot: &Name,
    ) -> Answer<Vm> {
        let vm = self.find_vm(project, vm).await?.value;
        let snapshot = self.find_snapshot(project, snapshot).await?.value;
        if snapshot.vm_id != vm.id {
            return Err(conflict(format!(
                "Snapshot {} is of another machine ({}): `dwcp vm create NAME --snapshot {}` makes a new one from it",
                snapshot.name, snapshot.vm, snapshot.name
            )));
        }
        restorable(&vm)?;
        self.permit(&vm).await?;
        Ok(vm)
    }

    /// Lets a machine that does not run go on from a snapshot of it.
    pub(crate) async fn restore(&self, id: &str, snapshot: &Name) -> Answer<String> {
        let _uses = self.snapshot_uses.read().await;
        let life = self.life(id);
        let _life = life.lock().await;
        let Some(before) = self.records.vm_by_id(id).await.map_err(record)? else {
            return Err(conflict("The machine was deleted meanwhile"));
        };
        restorable(&before)?;
        let snapshot = self.find_snapshot(&before.project, snapshot).await?.value;
        if self.is_migrating(id) || snapshot.vm_id != before.id {
            return Err(conflict("The machine changed meanwhile"));
        }
        // Whoever finds it half-way is not to start it from its disks.
        self.records
            .change_vm(id, |vm| vm.desired = Desired::Stopped)
            .await
            .map_err(record)?;
        let mut vm = before.clone();
        let restored = match self.origin_in(&snapshot).await {
            Ok(origin) => {
                vm.origin = Some(origin);
                vm.started_ms = 0;
                self.start_as(&before, &vm).await
            }
            Err(fault) => Err(fault),
        };
        if let Err(fault) = restored {
            // Nothing was changed, so it is wanted as it was.
            let wanted = before.desired;
            let back = |now: &mut Vm| {
                if now.origin == before.origin {
                    now.desired = wanted;
                }
            };
            self.records.change_vm(id, back).await.map_err(record)?;
            return Err(fault);
        }
        self.remove_old_disks(&vm);
        let at = crate::state::object(&vm.project, &vm.name);
        let message = format!(
            "{} went back to {}: what its disks held until then is gone",
            vm.name, snapshot.name
        );
        self.events.emit("vm.restored", &at, message).await;
        Ok(format!("{} goes on from {}", vm.name, snapshot.name))
    }

    /// Starts a machine's process as what a snapshot holds, and lets it run. Its record changes in between: from then on
    /// its disks are those that stand on the snapshot.
    pub(crate) async fn go_on_from(&self, vm: &Vm, origin: &Origin, permit: u64) -> Answer<()> {
        match origin.template {
            true => self.become_fork(vm, origin).await?,
            false => self.become_snapshot(vm, origin).await?,
        }
        self.lengthen_all(vm).await?;
        step("restore.loaded").await;
        let now = now_ms();
        let changed = self.records.change_vm(&vm.id, |record| {
            record.origin = Some(origin.clone());
            record.desired = Desired::Running;
            record.started_ms = now;
        });
        changed.await.map_err(record)?;
        step("restore.recorded").await;
        self.vmm(&vm.id, move |vmm| vmm.run(permit)).await
    }

    async fn become_snapshot(&self, vm: &Vm, origin: &Origin) -> Answer<()> {
        let snapshot = self
            .find_snapshot(&vm.project, &origin.snapshot)
            .await?
            .value;
        if snapshot.id != origin.snapshot_id {
            return Err(conflict("The snapshot is gone"));
        }
        let dirs = self.layer_dirs(&snapshot).await?;
        let memory = tokio::task::spawn_blocking(move || open_memory(&dirs));
        let memory = memory.await.map_err(internal)??;
        self.spawn_vmm(vm, Boot::Shell, Vec::new()).await?;
        self.vmm(&vm.id, move |vmm| {
            let layers: Vec<BorrowedFd<'_>> = memory.iter().map(AsFd::as_fd).collect();
            vmm.restore(&layers)
        })
        .await
    }

    /// Removes the files that were made for a restore that failed.
    pub(crate) fn remove_disks_of(&self, vm: &Vm) {
        let dir = self.vm_dir(&vm.id);
        for disk in vm.spec.disks.iter().filter(|disk| !disk.read_only) {
            let _ = std::fs::remove_file(dir.join(own_file(disk, vm.origin.as_ref()).name));
        }
    }

    /// Removes what the machine's disks were before it was restored.
    fn remove_old_disks(&self, vm: &Vm) {
        let dir = self.vm_dir(&vm.id);
        let kept: Vec<_> = vm
            .spec
            .disks
            .iter()
            .map(|disk| own_file(disk, vm.origin.as_ref()).name)
            .collect();
        let Ok(entries) = std::fs::read_dir(&dir) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_disk = name.as_encoded_bytes().starts_with(b"disk-");
            if is_disk && !kept.iter().any(|kept| *kept.as_str() == *name) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// What a request gives that a snapshot decides.
fn beyond_name(request: &VmCreate) -> Answer<Option<String>> {
    let given = serde_json::to_value(request).map_err(internal)?;
    let own = ["name", "snapshot", "restart", "tags", "start"];
    let is_given = |value: &serde_json::Value| {
        !value.is_null() && value.as_object().is_none_or(|map| !map.is_empty())
    };
    let fields = given.as_object().into_iter().flatten();
    let beyond = fields.filter(|(name, value)| !own.contains(&name.as_str()) && is_given(value));
    Ok(beyond.map(|(name, _)| name.clone()).next())
}

fn restorable(vm: &Vm) -> Answer<()> {
    not_a_template(vm)?;
    match vm.phase {
        VmPhase::Stopped | VmPhase::Crashed => Ok(()),
        VmPhase::Running | VmPhase::Paused | VmPhase::Starting => Err(conflict(format!(
            "{} runs: stop it first, for what it does now is lost by going back",
            vm.name
        ))),
        _ => Err(conflict(format!(
            "{} cannot be restored here: {}",
            vm.name, vm.reason
        ))),
    }
}
