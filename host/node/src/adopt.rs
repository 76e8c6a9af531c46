//! The keeper: what the store says and what the launcher has are brought together, at the start and whenever something
//! ended out of turn.
//!
//! Nothing lives only in the memory of the daemon, so this is also what a crash at any moment comes to. A machine that a
//! migration of this process is moving is left to that migration, and looked after when it has ended.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use dwcp_api::service::Answer;
use dwcp_control::ownership::{Outcome, Ownership};
use dwcp_control::records::{Desired, MigrationPhase, RestartPolicy, Side, Vm, VmPhase};
use dwcp_launch::protocol::{Child, ChildKind};
use dwcp_vmm::protocol::Phase;
use futures::StreamExt;

use crate::errors::record;
use crate::node::Node;
use crate::peers;
use crate::protocol::{Ask, Reply};
use crate::restarts::{RESTARTS_MAX, Restarts};
use crate::state::{now_ms, object};
use crate::vms::{FORCED, verdict, was_killed};

/// How often machines between two hosts are looked after.
const KEEP: Duration = Duration::from_millis(500);
/// Rounds of the keeper between two looks at what can be dropped.
const ROUNDS_TO_TIDY: u32 = 600;
/// How many machines are looked after at a time.
const AT_ONCE: usize = 16;
/// Longest wait after a start that the host could not do, as a power of two of seconds.
const FAILURES_EXPONENT_MAX: u32 = 6;
/// Why a machine does not run that was being restored when its host went.
const CUT_OFF: &str = "what was to start it was cut off: it is as it was before";
/// Migrations and operations whose records are kept.
const RECORDS_MAX: usize = 1_000;

impl Node {
    /// At the start: everything is looked after, until the launcher has answered.
    pub(crate) async fn adopt(&self) {
        while let Err(fault) = self.try_adopt().await {
            tracing::error!("what was running is not found again yet: {fault}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn try_adopt(&self) -> Answer<()> {
        let mut children = self.launcher.list().await?;
        // Nobody waits for these any more: who did was the daemon before this one.
        let forlorn = |child: &&Child| {
            matches!(child.kind, ChildKind::Mover | ChildKind::Reader)
                || child.id.as_str() == crate::cpu::PROBE
        };
        for child in children.iter().filter(forlorn) {
            self.launcher.end(child.id.as_str()).await?;
        }
        self.drop_old_shells().await?;
        children = self.launcher.list().await?;
        let vms = self.vms().await?;
        self.look_after_these(&vms).await;
        let vmms = children.iter().filter(|c| c.kind == ChildKind::Vmm);
        for child in vmms.filter(|child| !forlorn(child)) {
            if !vms.iter().any(|vm| vm.id == child.id.as_str()) {
                let message = format!(
                    "the launcher has a process {} (pid {}) of a machine that is not in the store: it is left alone",
                    child.id, child.pid
                );
                self.events
                    .emit("host.unknown-process", "host", message)
                    .await;
            }
        }
        self.adopt_migrations().await
    }

    /// Looks after every machine.
    pub(crate) async fn look_after_all(&self) {
        match self.vms().await {
            Ok(vms) => self.look_after_these(&vms).await,
            Err(fault) => tracing::error!("machines cannot be looked after: {fault}"),
        }
    }

    /// Several at a time: one whose process does not answer keeps no other waiting.
    async fn look_after_these(&self, vms: &[Vm]) {
        futures::stream::iter(vms)
            .for_each_concurrent(AT_ONCE, |vm| self.look_after(&vm.id))
            .await;
    }

    /// A launcher that ends takes its children with it: machines whose processes do not listen any more have crashed, and
    /// are told so now, not only when a launcher is there again to ask.
    pub(crate) async fn launcher_is_gone(&self) {
        let vms = match self.vms().await {
            Ok(vms) => vms,
            Err(fault) => return tracing::error!("machines cannot be looked after: {fault}"),
        };
        let here = |vm: &&Vm| matches!(vm.phase, VmPhase::Running | VmPhase::Paused);
        for vm in vms.iter().filter(here) {
            // Whoever has it finds out; this is told again and again.
            let life = self.life(&vm.id);
            let Ok(_life) = life.try_lock() else { continue };
            if self.is_migrating(&vm.id) || self.vmm_listens(&vm.id) {
                continue;
            }
            let why = "the launcher ended, and its process with it";
            if let Err(fault) = self.ended(&vm.id, VmPhase::Crashed, why).await {
                tracing::error!("machine {} is not recorded as crashed: {fault}", vm.id);
            }
        }
    }

    /// Brings one machine to what the store allows. What fails is tried again by the keeper.
    pub(crate) async fn look_after(&self, id: &str) {
        let unsettled = || {
            self.unsettled
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        match self.try_look_after(id).await {
            Ok(()) => drop(unsettled().remove(id)),
            Err(fault) => {
                if unsettled().insert(id.to_owned()) {
                    tracing::warn!("machine {id} cannot be looked after yet: {fault}");
                }
            }
        }
    }

    async fn try_look_after(&self, id: &str) -> Answer<()> {
        let life = self.life(id);
        let _life = life.lock().await;
        if self.is_migrating(id) {
            return Ok(());
        }
        let Some(vm) = self.records.vm_by_id(id).await.map_err(record)? else {
            return self.launcher.forget(id).await;
        };
        match self.ownership(id).await? {
            Some(Ownership::Owned { epoch }) => {
                let children = self.launcher.list().await?;
                let child = children.into_iter().find(|c| c.id.as_str() == id);
                self.look_after_owned(&vm, epoch, child).await
            }
            Some(Ownership::Given { .. }) if vm.phase != VmPhase::InDoubt => {
                let why = "it was given away, and whether it arrived is not known yet";
                self.phase(id, VmPhase::InDoubt, why).await
            }
            Some(Ownership::Moved { to, .. }) if vm.phase != VmPhase::Moved => {
                self.moved(&vm, &to).await
            }
            Some(held @ (Ownership::Expecting { .. } | Ownership::Refused { .. })) => {
                let epoch = held.epoch();
                self.own(id, |held| Ownership::refuse(held, epoch)).await?;
                crate::incoming::forget(self, id).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A machine that this host owns: whatever was about to happen to it, it runs if it should.
    async fn look_after_owned(&self, vm: &Vm, epoch: u64, child: Option<Child>) -> Answer<()> {
        let wanted = vm.desired == Desired::Running;
        if vm.phase == VmPhase::Template {
            return self.keep_template(vm, child).await;
        }
        match child {
            Some(child) if child.is_running() => {
                let status = self.vmm(&vm.id, |vmm| vmm.status()).await?;
                match status.phase {
                    Phase::Running => {}
                    Phase::Paused if vm.phase == VmPhase::Paused => {
                        self.listen_to_guest(&vm.id).await;
                        return Ok(());
                    }
                    Phase::Paused => {
                        self.vmm(&vm.id, move |vmm| vmm.resume(epoch)).await?;
                        let at = object(&vm.project, &vm.name);
                        let message = format!("{} goes on here under epoch {epoch}", vm.name);
                        self.events.emit("vm.resumed", &at, message).await;
                    }
                    // What was being restored is nothing that the store knows of yet.
                    Phase::Idle | Phase::Loaded if !wanted => {
                        self.launcher.end(&vm.id).await?;
                        return self.phase(&vm.id, VmPhase::Stopped, CUT_OFF).await;
                    }
                    Phase::Idle if vm.origin.is_some() && vm.started_ms == 0 => {
                        self.launcher.end(&vm.id).await?;
                        return self.start_held(&vm.id).await;
                    }
                    Phase::Idle | Phase::Loaded => {
                        self.vmm(&vm.id, move |vmm| vmm.run(epoch)).await?;
                    }
                }
                self.listen_to_guest(&vm.id).await;
                if vm.phase != VmPhase::Running {
                    let _ = self.vmm(&vm.id, |vmm| vmm.dirty_stop()).await;
                    self.now_running(vm, epoch).await?;
                }
                Ok(())
            }
            Some(ended) => {
                let (phase, reason) = verdict(&ended.state);
                match phase {
                    VmPhase::Starting if wanted => {
                        self.phase(&vm.id, phase, &reason).await?;
                        let at = object(&vm.project, &vm.name);
                        let message = format!("{}: {reason}, and is started again", vm.name);
                        self.events.emit("vm.reset", &at, message).await;
                    }
                    VmPhase::Starting => self.ended(&vm.id, VmPhase::Stopped, &reason).await?,
                    VmPhase::Stopped if wanted && vm.spec.restart == RestartPolicy::Always => {
                        self.phase(&vm.id, VmPhase::Starting, &reason).await?;
                        let at = object(&vm.project, &vm.name);
                        let message = format!("{}: {reason}, and is started again", vm.name);
                        self.events.emit("vm.stopped", &at, message).await;
                    }
                    // A forced stop ends the process first, and may find this done.
                    VmPhase::Crashed if !wanted && was_killed(&ended.state) => {
                        self.ended(&vm.id, VmPhase::Stopped, FORCED).await?;
                    }
                    _ => self.ended(&vm.id, phase, &reason).await?,
                }
                self.launcher.forget(&vm.id).await?;
                self.start_again(&vm.id, phase == VmPhase::Starting).await
            }
            None => match vm.phase {
                VmPhase::Running | VmPhase::Paused if !wanted => {
                    self.ended(&vm.id, VmPhase::Stopped, FORCED).await
                }
                VmPhase::Running
                | VmPhase::Paused
                | VmPhase::Migrating
                | VmPhase::InDoubt
                | VmPhase::Incoming => {
                    let why = "its process is gone, and the launcher does not know why";
                    self.ended(&vm.id, VmPhase::Crashed, why).await?;
                    self.start_again(&vm.id, false).await
                }
                VmPhase::Starting | VmPhase::Stopped if wanted => self.start_held(&vm.id).await,
                VmPhase::Starting => self.phase(&vm.id, VmPhase::Stopped, CUT_OFF).await,
                VmPhase::Crashed if wanted => self.start_again(&vm.id, false).await,
                _ => Ok(()),
            },
        }
    }

    /// Starts a machine again that reset itself, or that ended otherwise and is to be started again by its policy: that
    /// one is given up when it has ended too often in a row.
    async fn start_again(&self, id: &str, is_reset: bool) -> Answer<()> {
        let Some(vm) = self.records.vm_by_id(id).await.map_err(record)? else {
            return Ok(());
        };
        let is_down = |vm: &Vm| match vm.phase {
            VmPhase::Starting => true,
            VmPhase::Crashed => vm.spec.restart != RestartPolicy::Never,
            _ => false,
        };
        let wanted = vm.desired == Desired::Running && is_down(&vm);
        if !wanted {
            return Ok(());
        }
        let (node, id) = (self.arc()?, id.to_owned());
        tokio::spawn(async move {
            let mut failures = 0;
            loop {
                if !is_reset && node.restarts_of(&id, |restarts| restarts.is_hopeless(now_ms())) {
                    return node.give_up(&id).await;
                }
                tokio::time::sleep(node.restarts_of(&id, |restarts| restarts.next(now_ms()))).await;
                let still = node.records.vm_by_id(&id).await.ok().flatten();
                let still = still.is_some_and(|vm| is_down(&vm) && vm.desired == Desired::Running);
                if !still {
                    return;
                }
                match node.start(&id).await {
                    Ok(()) => return,
                    Err(fault) => {
                        tracing::error!("machine {id} is not started again yet: {fault}");
                        node.restarts_of(&id, Restarts::undo);
                        let wait = Duration::from_secs(1 << failures);
                        failures = (failures + 1).min(FAILURES_EXPONENT_MAX);
                        tokio::time::sleep(wait).await;
                    }
                }
            }
        });
        Ok(())
    }

    fn restarts_of<T>(&self, id: &str, look: impl FnOnce(&mut Restarts) -> T) -> T {
        let restarts = self.restarts.lock();
        let mut restarts = restarts.unwrap_or_else(PoisonError::into_inner);
        look(restarts.entry(id.to_owned()).or_default())
    }

    /// How a machine has ended lately does not matter any more.
    pub(crate) fn forgive(&self, id: &str) {
        let restarts = self.restarts.lock();
        restarts.unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// A machine that does nothing but end is not wanted any more, until its owner starts it.
    async fn give_up(&self, id: &str) {
        let life = self.life(id);
        let _life = life.lock().await;
        // Its owner may have started it meanwhile.
        if !self.restarts_of(id, |restarts| restarts.is_hopeless(now_ms())) {
            return;
        }
        let why = format!("started {RESTARTS_MAX} times in a row, and given up");
        let changed = self.records.change_vm(id, |vm| {
            vm.desired = Desired::Stopped;
            if vm.phase == VmPhase::Starting {
                vm.phase = VmPhase::Stopped;
            }
            vm.reason = format!("{} ({why})", vm.reason);
        });
        match changed.await {
            Ok(Some(vm)) => {
                let at = object(&vm.project, &vm.name);
                let message = format!("{} is not started again: {}", vm.name, vm.reason);
                self.events.emit("vm.given-up", &at, message).await;
            }
            Ok(None) => {}
            Err(error) => tracing::error!("that {id} is given up is not stored: {error}"),
        }
    }

    /// Notes that a machine runs here under an epoch.
    pub(crate) async fn now_running(&self, vm: &Vm, epoch: u64) -> Answer<()> {
        let (host, now) = (self.config.name.clone(), now_ms());
        self.records
            .change_vm(&vm.id, |vm| {
                vm.phase = VmPhase::Running;
                vm.reason.clear();
                vm.host.clone_from(&host);
                vm.epoch = epoch;
                if vm.started_ms == 0 {
                    vm.started_ms = now;
                }
            })
            .await
            .map_err(record)?;
        Ok(())
    }

    /// Notes that a machine lives elsewhere now; its record stays as a forwarding address.
    pub(crate) async fn moved(&self, vm: &Vm, to: &dwcp_control::Name) -> Answer<()> {
        self.launcher.end(&vm.id).await?;
        self.records
            .change_vm(&vm.id, |vm| {
                vm.phase = VmPhase::Moved;
                vm.reason = format!("it lives on {to}");
                vm.host = to.clone();
            })
            .await
            .map_err(record)?;
        let at = object(&vm.project, &vm.name);
        self.events
            .emit("vm.moved", &at, format!("{} lives on {to} now", vm.name))
            .await;
        match tokio::fs::remove_file(self.vm_dir(&vm.id).join("vmm.sock")).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(crate::errors::internal(error))
            }
            _ => Ok(()),
        }
    }

    async fn adopt_migrations(&self) -> Answer<()> {
        let all = self.records.all(&self.records.migrations).await;
        for found in all.map_err(record)? {
            let mut migration = found.value;
            if migration.phase.ended() {
                continue;
            }
            let held = self.ownership(&migration.vm).await?;
            let (phase, reason) = match (migration.side, held) {
                (Side::Source, Some(Ownership::Given { .. })) => (
                    MigrationPhase::InDoubt,
                    "the daemon ended during the hand-over; the destination is being asked",
                ),
                (Side::Source, Some(Ownership::Moved { epoch, .. }))
                    if epoch == migration.epoch =>
                {
                    (MigrationPhase::Done, "")
                }
                (Side::Destination, Some(Ownership::Owned { epoch }))
                    if epoch == migration.epoch =>
                {
                    (MigrationPhase::Done, "")
                }
                _ => (
                    MigrationPhase::Failed,
                    "the daemon ended while it was under way",
                ),
            };
            migration.phase = phase;
            migration.reason = reason.into();
            if phase.ended() {
                migration.ended_ms = Some(now_ms());
            }
            self.records
                .migrations
                .put(&found.id, &migration)
                .await
                .map_err(record)?;
        }
        Ok(())
    }

    /// For as long as the daemon runs: destinations of machines that were given away without an answer are asked, and
    /// what a migration left half-way is looked after.
    pub(crate) fn keep(self: Arc<Self>) {
        tokio::spawn(async move {
            let mut round = 0u32;
            loop {
                self.settle_rest().await;
                match self.vms().await {
                    Ok(vms) => {
                        for vm in vms.iter().filter(|vm| !self.is_migrating(&vm.id)) {
                            self.keep_one(vm).await;
                        }
                    }
                    Err(fault) => tracing::error!("machines cannot be looked after: {fault}"),
                }
                round += 1;
                if round.is_multiple_of(ROUNDS_TO_TIDY) {
                    self.tidy().await;
                }
                tokio::time::sleep(KEEP).await;
            }
        });
    }

    /// Goes on with machines that could not be looked after, where nobody is at them.
    async fn settle_rest(&self) {
        let rest: Vec<String> = {
            let unsettled = self.unsettled.lock();
            let unsettled = unsettled.unwrap_or_else(PoisonError::into_inner);
            unsettled.iter().cloned().collect()
        };
        let is_free = |id: &String| self.life(id).try_lock().is_ok();
        futures::stream::iter(rest.into_iter().filter(is_free))
            .for_each_concurrent(AT_ONCE, async |id| self.look_after(&id).await)
            .await;
    }

    async fn keep_one(&self, vm: &Vm) {
        match vm.phase {
            VmPhase::InDoubt => {
                if let Err(fault) = self.settle(vm).await {
                    tracing::debug!("{} stays in doubt: {fault}", vm.name);
                }
            }
            VmPhase::Migrating | VmPhase::Incoming => self.look_after(&vm.id).await,
            _ => {}
        }
    }

    /// Drops the oldest records of what has ended, beyond those that are kept.
    async fn tidy(&self) {
        let operations = self.records.all(&self.records.operations).await;
        let operations = operations.unwrap_or_default();
        // Their identities grow with time: the first are the oldest.
        let excess = operations.len().saturating_sub(RECORDS_MAX);
        for old in operations.iter().take(excess) {
            if old.value.ended_ms.is_some() {
                let _ = self.records.operations.delete(&old.id).await;
            }
        }
        let migrations = self.records.all(&self.records.migrations).await;
        let mut migrations = migrations.unwrap_or_default();
        migrations.sort_by_key(|found| std::cmp::Reverse(found.value.started_ms));
        for old in migrations.iter().skip(RECORDS_MAX) {
            if old.value.phase.ended() {
                let _ = self.records.migrations.delete(&old.id).await;
            }
        }
    }

    async fn settle(&self, vm: &Vm) -> Answer<()> {
        let (next, to) = match self.ownership(&vm.id).await? {
            Some(Ownership::Given { next, to, .. }) => (next, to),
            // Settled, but what that means was not carried out yet.
            Some(settled) => return self.settled(vm, &settled).await,
            None => return Ok(()),
        };
        let peer = peers::find(self, &to).await?;
        let fault = |error| peers::session_fault(&to, error);
        let mut session = peers::connect(self, peer.address, &peer.fingerprint)
            .await
            .map_err(fault)?;
        let ask = Ask::Outcome {
            vm: vm.id.clone(),
            epoch: next,
        };
        match session.ask(&ask).await.map_err(fault)? {
            Reply::Outcome { epoch, outcome } => self.answered(vm, epoch, outcome).await,
            _ => Ok(()),
        }
    }

    /// The destination has said what became of an epoch.
    pub(crate) async fn answered(&self, vm: &Vm, epoch: u64, outcome: Outcome) -> Answer<()> {
        let settled = self
            .own(&vm.id, |held| match held {
                Some(held) => held.answered(epoch, outcome),
                None => Ownership::Refused { next: 0, took: 0 }.answered(epoch, outcome),
            })
            .await?;
        self.settled(vm, &settled).await
    }

    /// Carries out what a settled doubt means: the machine lives there, or runs here again.
    pub(crate) async fn settled(&self, vm: &Vm, settled: &Ownership) -> Answer<()> {
        let (phase, reason) = match settled {
            Ownership::Moved { to, .. } => {
                self.moved(vm, to).await?;
                (MigrationPhase::Done, String::new())
            }
            Ownership::Owned { .. } => {
                self.try_look_after(&vm.id).await?;
                let why = "the destination never ran it and never will; it runs here as before";
                (MigrationPhase::Failed, why.to_owned())
            }
            _ => return Ok(()),
        };
        let all = self.records.all(&self.records.migrations).await;
        for found in all.map_err(record)? {
            let mut migration = found.value;
            if migration.vm == vm.id && !migration.phase.ended() {
                migration.phase = phase;
                migration.reason.clone_from(&reason);
                migration.ended_ms = Some(now_ms());
                self.records
                    .migrations
                    .put(&found.id, &migration)
                    .await
                    .map_err(record)?;
            }
        }
        Ok(())
    }
}
