//! Templates, and the machines that are forks of them.
//!
//! ```text
//! running, paused --(seal)--> template ------> forks
//!                                |
//!                                +--(start, once no fork stands on its disks)--> running, from its disks
//! ```
//! What always holds: what is a template by its record never runs again as what it was; its memory is sealed and is the
//! launcher's, its device state is a file, and neither is written again; its disks are only read while a fork stands on
//! them. A fork is recorded before it runs, and what is recorded is brought to run, whoever dies meanwhile.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use dwcp_api::service::{Answer, Principal};
use dwcp_control::Name;
use dwcp_control::records::{Desired, ForkRequest, Origin, Vm, VmPhase};
use dwcp_launch::protocol::Child;
use futures::StreamExt;

use crate::capacity;
use crate::errors::{conflict, impossible, internal, invalid, record};
use crate::node::Node;
use crate::snapshots::has_own_disks;
use crate::state::{now_ms, object};
use crate::steps::step;

/// Most forks of one request.
const FORKS_MAX: u32 = 64;
/// How many are started at a time.
const AT_ONCE: usize = 8;
/// What a template's device state is called among its files.
const STATE: &str = "template.state";
/// Longest device state that is kept.
const STATE_BYTES_MAX: u64 = 16 << 20;
/// Why a template does not run.
const SEALED: &str = "it is a template: it stands still for ever, and forks are made of it";
/// What is left of a template when the launcher that had its memory is gone.
const GONE: &str = "it was a template, and its memory went with the launcher that kept it: no fork can be made of it any \
                    more, and it can be started from its disks once no fork stands on them";

impl Node {
    /// Makes forks of a template, up to their records; nothing runs yet. A machine that is none becomes one, if that is
    /// wanted. Answers the forks, and what policies warn of.
    pub(crate) async fn fork(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: &ForkRequest,
    ) -> Answer<(Vec<Vm>, Vec<String>)> {
        let count = request.count.unwrap_or(1);
        if !(1..=FORKS_MAX).contains(&count) {
            return Err(invalid(format!(
                "1 to {FORKS_MAX} forks are made at a time, not {count}"
            )));
        }
        if request.name.is_some() && count > 1 {
            return Err(invalid(
                "Only one fork can have the name that is given: leave out the name or the number",
            ));
        }
        let (_life, vm) = self.hold(project, name).await?;
        let vm = vm.value;
        may_be_forked(&vm, request.seal)?;
        let names = self.fork_names(&vm, request.name.as_ref(), count).await?;
        let warnings = self.check_forks(who, &vm, &names).await?;
        let template = match vm.phase {
            VmPhase::Template => vm,
            _ => self.make_template(vm).await?,
        };
        self.still_kept(&template).await?;
        let mut forks = Vec::new();
        for name in names {
            match self.record_fork(&template, name).await {
                Ok(fork) => forks.push(fork),
                Err(fault) => {
                    // All or none: nothing runs in any of them.
                    for fork in &forks {
                        let life = self.life(&fork.id);
                        let _life = life.lock().await;
                        if let Err(left) = self.remove(fork).await {
                            tracing::error!("fork {} stays: {left}", fork.name);
                        }
                    }
                    return Err(fault);
                }
            }
        }
        self.refill(&template.id);
        Ok((forks, warnings))
    }

    /// Starts forks that are recorded; answers what came of it.
    pub(crate) async fn start_forks(&self, template: Name, forks: Vec<Vm>) -> Answer<String> {
        let count = forks.len();
        let start = async |fork: Vm| match self.start(&fork.id).await {
            Ok(()) => None,
            Err(fault) => Some(format!("{}: {}", fork.name, fault.message)),
        };
        let started = futures::stream::iter(forks).map(start).buffered(AT_ONCE);
        let started: Vec<_> = started.collect().await;
        let mut failed = started.into_iter().flatten();
        match failed.next() {
            None if count == 1 => Ok(format!("A fork of {template} runs")),
            None => Ok(format!("{count} forks of {template} run")),
            Some(first) => Err(conflict(format!(
                "{} of {count} forks of {template} did not start; {first}",
                1 + failed.count()
            ))),
        }
    }

    /// What the forks are to be called.
    async fn fork_names(
        &self,
        template: &Vm,
        wanted: Option<&Name>,
        count: u32,
    ) -> Answer<Vec<Name>> {
        if let Some(wanted) = wanted {
            return Ok(vec![wanted.clone()]);
        }
        let vms = self.vms().await?;
        let own = vms.iter().filter(|vm| vm.project == template.project);
        let taken: BTreeSet<_> = own.map(|vm| vm.name.as_str()).collect();
        let numbered = (1..=u32::MAX).map(|number| format!("{}-{number}", template.name));
        let free = numbered.filter(|name| !taken.contains(name.as_str()));
        free.take(count as usize)
            .map(|name| Name::new(name).map_err(|error| invalid(error.to_string())))
            .collect()
    }

    /// What can be refused before anything stands still for ever.
    async fn check_forks(&self, who: &Principal, vm: &Vm, names: &[Name]) -> Answer<Vec<String>> {
        for name in names {
            let key = crate::state::vm_id(&vm.project, name);
            if self.records.vms.get(&key).await.map_err(record)?.is_some() {
                return Err(conflict(format!(
                    "A virtual machine {name} exists in project {} already",
                    vm.project
                )));
            }
        }
        self.check_height(vm).await?;
        let mut now = self.capacity().await?;
        if vm.phase != VmPhase::Template {
            // It gives its processors up.
            let own = u32::from(vm.spec.vcpus);
            now.vcpus_used = now.vcpus_used.saturating_sub(own);
        }
        let (vcpus, memory) = (vm.spec.vcpus, vm.spec.memory_bytes);
        capacity::check_many(&now, &self.config, vcpus, memory, names.len() as u32)?;
        let cards = vm.spec.networks.iter();
        let networks: Vec<Name> = cards.map(|card| card.network.clone()).collect();
        self.check_addresses(&networks, names.len()).await?;
        let mut warnings = BTreeSet::new();
        for name in names {
            let policies = &self.policies;
            let warned = policies.check_create(who, &vm.project, name, &vm.spec, &networks);
            warnings.extend(warned.await?);
        }
        Ok(warnings.into_iter().collect())
    }

    /// Makes a machine a template. Until its record says so, it goes on as it was.
    async fn make_template(&self, vm: Vm) -> Answer<Vm> {
        if self.is_migrating(&vm.id) {
            return Err(conflict(format!(
                "A migration of {} is under way: it cannot become a template now",
                vm.name
            )));
        }
        let permit = self.permit(&vm).await?;
        let saved = self.stand_still(&vm).await;
        step("template.saved").await;
        if let Err(fault) = saved {
            // Also after a pause without an answer: it may have been carried out.
            let resumed = match vm.phase {
                VmPhase::Running => self.vmm(&vm.id, move |vmm| vmm.resume(permit)).await,
                _ => Ok(()),
            };
            if resumed.is_err() {
                self.unsettle(&vm.id);
            }
            return Err(fault);
        }
        let changed = self.records.change_vm(&vm.id, |vm| {
            vm.phase = VmPhase::Template;
            vm.desired = Desired::Stopped;
            vm.reason = SEALED.to_owned();
        });
        let template = match changed.await.map_err(record) {
            Ok(changed) => changed.ok_or_else(|| conflict("The machine was deleted meanwhile"))?,
            Err(fault) => {
                self.unsettle(&vm.id);
                return Err(fault);
            }
        };
        step("template.recorded").await;
        if let Err(fault) = self.launcher.seal(&template.id).await {
            self.unsettle(&template.id);
            return Err(fault);
        }
        let at = object(&template.project, &template.name);
        let message = format!(
            "{} is a template from now on: it stands still, and forks are made of it",
            template.name
        );
        self.events.emit("vm.sealed", &at, message).await;
        Ok(template)
    }

    /// Has a machine stand still, and keeps its device state.
    async fn stand_still(&self, vm: &Vm) -> Answer<()> {
        if vm.phase == VmPhase::Running {
            self.vmm(&vm.id, |vmm| vmm.pause()).await?;
        }
        let (state, bytes) = self.vmm(&vm.id, |vmm| vmm.save_template()).await?;
        let dir = self.vm_dir(&vm.id);
        let kept = tokio::task::spawn_blocking(move || keep_state(&dir, state, bytes));
        kept.await.map_err(internal)?.map_err(internal)
    }

    /// Brings a template to what its record says: no process, and sealed memory; or says that its memory is gone.
    pub(crate) async fn keep_template(&self, vm: &Vm, child: Option<Child>) -> Answer<()> {
        if child.is_some() {
            return self.launcher.seal(&vm.id).await;
        }
        if vm.reason == GONE {
            return Ok(());
        }
        self.drop_shells_of(&vm.id).await?;
        self.phase(&vm.id, VmPhase::Template, GONE).await?;
        let at = object(&vm.project, &vm.name);
        let message = format!("{}: {GONE}", vm.name);
        self.events.emit("vm.template-gone", &at, message).await;
        Ok(())
    }

    /// Says why no fork can be made of a template whose memory is gone.
    async fn still_kept(&self, template: &Vm) -> Answer<()> {
        let children = self.launcher.list().await?;
        let is_it = |child: &Child| child.id.as_str() == template.id;
        if children.iter().any(is_it) {
            // Done already, unless the host was cut off before.
            return self.launcher.seal(&template.id).await;
        }
        Err(impossible(format!("{}: {GONE}", template.name)))
    }

    /// Records a fork: one for which a process waits, if there is any.
    async fn record_fork(&self, template: &Vm, name: Name) -> Answer<Vm> {
        let waiting = self.take_shell(&template.id).await;
        let fork = match waiting {
            Some(fork) => fork,
            None => self.fork_of(template).await?,
        };
        let fork = Vm {
            name,
            created_ms: now_ms(),
            ..fork
        };
        match self.record_vm(&fork).await {
            Ok(_) => {
                self.shells.recorded(&fork.id);
                let mark = crate::shells::mark(&self.vm_dir(&fork.id));
                let _ = tokio::fs::remove_file(mark).await;
                Ok(fork)
            }
            Err(fault) => {
                self.discard_shell(&fork.id).await?;
                Err(fault)
            }
        }
    }

    /// What a fork of a template is, with addresses of its own, which are kept for it until it is recorded.
    pub(crate) async fn fork_of(&self, template: &Vm) -> Answer<Vm> {
        let id = uuid::Uuid::now_v7().to_string();
        let mut spec = template.spec.clone();
        let known = std::mem::take(&mut spec.networks);
        let networks: Vec<Name> = known.iter().map(|card| card.network.clone()).collect();
        let _addresses = self.addresses.lock().await;
        spec.networks = self.wish_networks(&id, &networks, &known).await?;
        let fork = Vm {
            id,
            name: template.name.clone(),
            spec,
            desired: Desired::Running,
            phase: VmPhase::Stopped,
            reason: "it was never started".into(),
            host: self.config.name.clone(),
            epoch: 1,
            created_ms: now_ms(),
            started_ms: 0,
            placement: None,
            origin: Some(Origin {
                snapshot: template.name.clone(),
                snapshot_id: template.id.clone(),
                restore: uuid::Uuid::now_v7().to_string(),
                template: true,
            }),
            ..template.clone()
        };
        self.shells.add(fork.clone());
        Ok(fork)
    }

    /// Starts a fork's process, unless one waits already, and makes it what its template was.
    pub(crate) async fn become_fork(&self, vm: &Vm, origin: &Origin) -> Answer<()> {
        let state = self.vm_dir(&origin.snapshot_id).join(STATE);
        let state = File::open(state).map_err(internal)?;
        if !(self.shells.claim(&vm.id) && self.vmm_listens(&vm.id)) {
            let boot = dwcp_vmm::config::Boot::Shell;
            self.spawn_vmm(vm, boot, Vec::new()).await?;
        }
        self.vmm(&vm.id, move |vmm| vmm.fork(state.as_fd())).await
    }

    /// What stands on a template's disks, or is to go on from its memory, as a refusal says it.
    async fn stands_on(&self, template: &Vm) -> Answer<Option<String>> {
        let is_on = |origin: &Option<Origin>| {
            let origin = origin.as_ref().filter(|origin| origin.template);
            origin.is_some_and(|origin| origin.snapshot_id == template.id)
        };
        let vms = self.vms().await?;
        let needs = |vm: &&Vm| is_on(&vm.origin) && (has_own_disks(vm) || vm.started_ms == 0);
        if let Some(user) = vms.iter().find(needs) {
            return Ok(Some(format!("fork {}", user.name)));
        }
        let snapshots = self.records.all(&self.records.snapshots).await;
        let snapshots = snapshots.map_err(record)?;
        let user = snapshots.iter().find(|kept| is_on(&kept.value.origin));
        Ok(user.map(|kept| format!("snapshot {}", kept.value.name)))
    }

    /// Refuses to let a template go while something stands on it.
    pub(crate) async fn nothing_stands_on(&self, template: &Vm) -> Answer<()> {
        match self.stands_on(template).await? {
            None => Ok(()),
            Some(user) => Err(conflict(format!(
                "{} is a template on which {user} stands: delete that first",
                template.name
            ))),
        }
    }

    /// Makes a template a machine that does not run, if nothing stands on it. The caller holds its life.
    pub(crate) async fn end_template(&self, template: &Vm) -> Answer<()> {
        let Ok(_alone) = self.snapshot_uses.try_write() else {
            return Err(conflict(
                "A snapshot is being taken, or gone on from, which may stand on it: try again when that has ended",
            ));
        };
        self.nothing_stands_on(template).await?;
        self.drop_shells_of(&template.id).await?;
        let why = "it was a template, whose memory was given up";
        self.phase(&template.id, VmPhase::Stopped, why).await?;
        // Those that were just being made when the others went.
        self.drop_shells_of(&template.id).await?;
        self.launcher.end(&template.id).await
    }
}

/// Says what to do about a machine that is a template.
pub(crate) fn not_a_template(vm: &Vm) -> Answer<()> {
    if vm.phase != VmPhase::Template {
        return Ok(());
    }
    Err(conflict(format!(
        "{} is a template, which never runs again: `dwcp vm fork {}` makes machines that go on from it",
        vm.name, vm.name
    )))
}

fn may_be_forked(vm: &Vm, seal: bool) -> Answer<()> {
    if vm.spec.hugepages {
        return Err(conflict(format!(
            "{}'s memory is of huge pages, of which no forks are made in this version of DWCP",
            vm.name
        )));
    }
    match vm.phase {
        VmPhase::Running | VmPhase::Paused if vm.desired == Desired::Stopped => Err(conflict(
            format!("{} is being stopped: start it again first", vm.name),
        )),
        VmPhase::Template => Ok(()),
        VmPhase::Running | VmPhase::Paused if seal => Ok(()),
        VmPhase::Running | VmPhase::Paused => Err(conflict(format!(
            "{} is no template yet. As one it stands still for ever: its memory is sealed, its disks stay as they are for \
             its forks, and its guest goes on in them only. `dwcp vm fork {} --seal` makes it one; to keep it running, \
             take a snapshot and make machines from that",
            vm.name, vm.name
        ))),
        _ => Err(conflict(format!(
            "{} does not run, so there is nothing that a fork could go on from: start it first",
            vm.name
        ))),
    }
}

/// Keeps a device state: it is whole and on the disk when this returns.
fn keep_state(dir: &Path, state: OwnedFd, bytes: u64) -> std::io::Result<()> {
    let too_long = || std::io::Error::other("The device state is longer than any can be");
    let mut content = Vec::new();
    let mut reader = File::from(state);
    std::io::Seek::rewind(&mut reader)?;
    reader.take(STATE_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > STATE_BYTES_MAX || content.len() as u64 != bytes {
        return Err(too_long());
    }
    let (path, new): (PathBuf, PathBuf) = (dir.join(STATE), dir.join("template.new"));
    std::fs::write(&new, content)?;
    File::open(&new)?.sync_all()?;
    std::fs::rename(&new, &path)?;
    File::open(dir)?.sync_all()
}
