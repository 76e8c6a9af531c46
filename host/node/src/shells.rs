//! Processes that wait to become forks, a few for each template.
//!
//! What always holds: a shell has the identity, the directory, the disks and the addresses of the machine that it is to
//! be, so a fork waits for nothing but its records; a shell's directory has a mark in it until that machine is recorded,
//! so what a killed daemon left is known at the next start, and ended; a shell whose template is gone goes with it.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dwcp_api::service::Answer;
use dwcp_control::records::{NetworkSpec, Vm, VmPhase};
use dwcp_launch::protocol::CHILDREN_MAX;
use dwcp_vmm::config::Boot;

use crate::errors::{internal, record};
use crate::node::Node;

/// What a shell's process takes of the host's memory before it is a machine, bytes.
pub(crate) const SHELL_BYTES: u64 = 16 << 20;
/// Processes that the launcher can still start when no more shells are made.
const PROCESSES_SPARE: usize = 64;

/// The mark of a directory whose machine is not recorded yet.
pub(crate) fn mark(dir: &Path) -> PathBuf {
    dir.join("shell")
}

/// What is known of shells.
#[derive(Debug, Default)]
pub(crate) struct Shells {
    all: Mutex<HashMap<String, Shell>>,
    /// Templates whose shells are being made.
    refilling: Mutex<HashSet<String>>,
}

#[derive(Debug)]
struct Shell {
    /// The machine that it is to be.
    vm: Vm,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has addresses, and perhaps a process soon.
    Made,
    /// Its process waits.
    Waits,
    /// Its process waits, for a machine that is about to be recorded, or started.
    Taken,
}

impl Shells {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Shell>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refilling(&self) -> MutexGuard<'_, HashSet<String>> {
        self.refilling
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A machine that is to be.
    pub(crate) fn add(&self, vm: Vm) {
        let stage = Stage::Made;
        self.all().insert(vm.id.clone(), Shell { vm, stage });
    }

    /// Its process waits; whether it is still wanted.
    fn waits(&self, id: &str) -> bool {
        let mut all = self.all();
        let found = all.get_mut(id);
        found.map(|shell| shell.stage = Stage::Waits).is_some()
    }

    /// The machine has a record of its own now: one without a process is no shell any more.
    pub(crate) fn recorded(&self, id: &str) {
        self.all()
            .retain(|known, shell| known != id || shell.stage == Stage::Taken);
    }

    /// Whether a process waits for a machine that is recorded. It is that machine's from now on.
    pub(crate) fn claim(&self, id: &str) -> bool {
        self.all().remove(id).is_some()
    }

    /// The cards of all that are not recorded yet: nobody else gets their addresses.
    pub(crate) fn cards(&self) -> Vec<NetworkSpec> {
        let all = self.all();
        let cards = all.values().flat_map(|shell| shell.vm.spec.networks.iter());
        cards.cloned().collect()
    }

    /// Memory that the processes take which wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.all().len() as u64 * SHELL_BYTES
    }

    fn of(&self, template: &str, stage: Stage) -> Vec<String> {
        let all = self.all();
        let is_of = |shell: &Shell| {
            let origin = shell.vm.origin.as_ref();
            origin.is_some_and(|origin| origin.snapshot_id == template)
        };
        all.iter()
            .filter(|(_, shell)| is_of(shell) && shell.stage == stage)
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn take(&self, template: &str) -> Option<Vm> {
        let first = self.of(template, Stage::Waits).into_iter().next()?;
        let mut all = self.all();
        let shell = all.get_mut(&first)?;
        shell.stage = Stage::Taken;
        Some(shell.vm.clone())
    }
}

impl Node {
    /// A machine that is to be, whose process waits.
    pub(crate) async fn take_shell(&self, template: &str) -> Option<Vm> {
        while let Some(vm) = self.shells.take(template) {
            if self.vmm_listens(&vm.id) {
                return Some(vm);
            }
            // It has ended meanwhile.
            if let Err(fault) = self.discard_shell(&vm.id).await {
                tracing::warn!("shell {} is not removed: {fault}", vm.id);
            }
        }
        None
    }

    /// Ends a shell, and removes what was made for it.
    pub(crate) async fn discard_shell(&self, id: &str) -> Answer<()> {
        self.launcher.end(id).await?;
        self.shells.claim(id);
        match tokio::fs::remove_dir_all(self.vm_dir(id)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(internal(error)),
            _ => Ok(()),
        }
    }

    /// Ends all that wait for a template, and lets those go that are just being made.
    pub(crate) async fn drop_shells_of(&self, template: &str) -> Answer<()> {
        for id in self.shells.of(template, Stage::Made) {
            self.shells.claim(&id);
        }
        for id in self.shells.of(template, Stage::Waits) {
            self.discard_shell(&id).await?;
        }
        Ok(())
    }

    /// At the start: whatever waited for the daemon before this one.
    pub(crate) async fn drop_old_shells(&self) -> Answer<()> {
        for entry in std::fs::read_dir(self.config.dir("vms")).map_err(internal)? {
            let entry = entry.map_err(internal)?;
            let Some(id) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            if !mark(&entry.path()).exists() {
                continue;
            }
            match self.records.vm_by_id(&id).await.map_err(record)? {
                Some(_) => std::fs::remove_file(mark(&entry.path())).map_err(internal)?,
                None => self.discard_shell(&id).await?,
            }
        }
        Ok(())
    }

    /// At the start: shells for every template.
    pub(crate) async fn refill_all(&self) {
        for vm in self.vms().await.unwrap_or_default() {
            if vm.phase == VmPhase::Template {
                self.refill(&vm.id);
            }
        }
    }

    /// Makes as many shells for a template as there are to be, in the background.
    pub(crate) fn refill(&self, template: &str) {
        let Ok(node) = self.arc() else { return };
        let template = template.to_owned();
        if !self.shells.refilling().insert(template.clone()) {
            return;
        }
        tokio::spawn(async move {
            loop {
                let added = node.add_shell(&template).await;
                if matches!(added, Ok(true)) {
                    continue;
                }
                node.shells.refilling().remove(&template);
                if let Err(fault) = added {
                    tracing::warn!("no shell is made for template {template}: {fault}");
                    return;
                }
                // Whoever took one after the last look found this at work.
                let is_short = node.wants_shell(&template).await.unwrap_or(false);
                if !is_short || !node.shells.refilling().insert(template.clone()) {
                    return;
                }
            }
        });
    }

    async fn wants_shell(&self, template: &str) -> Answer<bool> {
        let waiting = self.shells.of(template, Stage::Waits).len();
        if waiting >= self.config.fork_shells as usize || !self.is_template(template).await? {
            return Ok(false);
        }
        let children = self.launcher.list().await?;
        let is_kept = children.iter().any(|child| child.id.as_str() == template);
        Ok(is_kept && children.len() + PROCESSES_SPARE < CHILDREN_MAX)
    }

    async fn is_template(&self, id: &str) -> Answer<bool> {
        let vm = self.records.vm_by_id(id).await.map_err(record)?;
        Ok(vm.is_some_and(|vm| vm.phase == VmPhase::Template))
    }

    /// Makes one more shell, if there are too few; whether there may be more to do.
    async fn add_shell(&self, template: &str) -> Answer<bool> {
        if !self.wants_shell(template).await? {
            return Ok(false);
        }
        let Some(vm) = self.records.vm_by_id(template).await.map_err(record)? else {
            return Ok(false);
        };
        let shell = self.fork_of(&vm).await?;
        let made = self.make_shell(&shell).await;
        // A template that went meanwhile knows nothing of it.
        let is_wanted =
            made.is_ok() && self.shells.waits(&shell.id) && self.is_template(template).await?;
        if !is_wanted {
            self.discard_shell(&shell.id).await?;
        }
        made.map(|()| is_wanted)
    }

    async fn make_shell(&self, shell: &Vm) -> Answer<()> {
        let dir = self.vm_dir(&shell.id);
        tokio::fs::create_dir_all(&dir).await.map_err(internal)?;
        std::fs::File::create(mark(&dir)).map_err(internal)?;
        self.spawn_vmm(shell, Boot::Shell, Vec::new()).await
    }
}
