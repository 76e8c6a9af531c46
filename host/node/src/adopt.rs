//! After a start: what the store says and what the launcher has are brought together.
//!
//! Nothing lived only in the memory of the daemon that ended, so this is also what a crash at any moment comes to.

use std::sync::Arc;
use std::time::Duration;

use dwcp_api::service::Answer;
use dwcp_control::ownership::{Outcome, Ownership};
use dwcp_control::records::{Desired, MigrationPhase, RestartPolicy, Side, Vm, VmPhase};
use dwcp_launch::protocol::{Child, ChildKind};
use dwcp_vmm::protocol::Phase;

use crate::errors::record;
use crate::node::Node;
use crate::peers;
use crate::protocol::{Ask, Reply};
use crate::state::{now_ms, object};

impl Node {
    /// Brings every machine and migration to what the store allows.
    pub(crate) async fn adopt(&self) {
        if let Err(fault) = self.try_adopt().await {
            tracing::error!("not everything is found again: {fault}");
        }
    }

    async fn try_adopt(&self) -> Answer<()> {
        let children = self.launcher.list().await?;
        for mover in children.iter().filter(|c| c.kind == ChildKind::Mover) {
            self.launcher.end(mover.id.as_str()).await?;
        }
        let vms = self.vms().await?;
        for vm in &vms {
            let child = children.iter().find(|c| c.id.as_str() == vm.id);
            if let Err(fault) = self.adopt_vm(vm, child).await {
                tracing::error!("{} is not found again: {fault}", vm.name);
            }
        }
        for child in children.iter().filter(|c| c.kind == ChildKind::Vmm) {
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

    async fn adopt_vm(&self, vm: &Vm, child: Option<&Child>) -> Answer<()> {
        let running = child.is_some_and(Child::is_running);
        match self.ownership(&vm.id).await? {
            Some(Ownership::Owned { epoch }) => self.adopt_owned(vm, epoch, child).await,
            Some(Ownership::Given { .. }) => {
                let why = "it was given away, and whether it arrived is not known yet";
                self.phase(&vm.id, VmPhase::InDoubt, why).await
            }
            Some(Ownership::Moved { to, .. }) => {
                if running {
                    self.launcher.end(&vm.id).await?;
                }
                if vm.phase != VmPhase::Moved {
                    self.moved(vm, &to).await?;
                }
                Ok(())
            }
            Some(held @ (Ownership::Expecting { .. } | Ownership::Refused { .. })) => {
                let epoch = held.epoch();
                self.own(&vm.id, |held| Ownership::refuse(held, epoch))
                    .await?;
                crate::incoming::forget(self, &vm.id).await;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A machine that this host owns: whatever its process was about to do, it runs if it should.
    async fn adopt_owned(&self, vm: &Vm, epoch: u64, child: Option<&Child>) -> Answer<()> {
        let wanted = vm.desired == Desired::Running;
        match child {
            Some(child) if child.is_running() => {
                let status = self.vmm(&vm.id, |vmm| vmm.status()).await?;
                match status.phase {
                    Phase::Running => {}
                    Phase::Paused => self.vmm(&vm.id, move |vmm| vmm.resume(epoch)).await?,
                    Phase::Idle | Phase::Loaded => {
                        self.vmm(&vm.id, move |vmm| vmm.run(epoch)).await?;
                    }
                }
                let _ = self.vmm(&vm.id, |vmm| vmm.dirty_stop()).await;
                self.now_running(vm, epoch).await
            }
            Some(ended) => self.vmm_exited(ended).await,
            None if wanted && vm.phase == VmPhase::Starting => self.start(&vm.id).await,
            None if wanted && !matches!(vm.phase, VmPhase::Stopped | VmPhase::Crashed) => {
                self.phase(&vm.id, VmPhase::Running, "").await?;
                let why = "its process was gone when the daemon started";
                self.ended(&vm.id, VmPhase::Crashed, why).await?;
                if vm.spec.restart == RestartPolicy::OnCrash {
                    self.start(&vm.id).await?;
                }
                Ok(())
            }
            None => Ok(()),
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

    /// Asks, for as long as the daemon runs, the destinations of machines that were given away without an answer.
    pub(crate) fn settle_doubts(self: Arc<Self>) {
        tokio::spawn(async move {
            loop {
                match self.vms().await {
                    Ok(vms) => {
                        for vm in vms.iter().filter(|vm| vm.phase == VmPhase::InDoubt) {
                            if let Err(fault) = self.settle(vm).await {
                                tracing::debug!("{} stays in doubt: {fault}", vm.name);
                            }
                        }
                    }
                    Err(fault) => tracing::error!("doubts cannot be looked for: {fault}"),
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }

    async fn settle(&self, vm: &Vm) -> Answer<()> {
        let Some(Ownership::Given { next, to, .. }) = self.ownership(&vm.id).await? else {
            // Settled meanwhile: by the migration itself, or by hand.
            return Ok(());
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
            Ownership::Owned { epoch } => {
                self.back(vm, *epoch).await?;
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

    /// A machine that was paused for a hand-over that did not happen goes on here.
    pub(crate) async fn back(&self, vm: &Vm, epoch: u64) -> Answer<()> {
        let at = object(&vm.project, &vm.name);
        let resumed = async {
            let status = self.vmm(&vm.id, |vmm| vmm.status()).await?;
            if status.phase == Phase::Paused {
                self.vmm(&vm.id, move |vmm| vmm.resume(epoch)).await?;
            }
            let _ = self.vmm(&vm.id, |vmm| vmm.dirty_stop()).await;
            self.now_running(vm, epoch).await
        };
        match resumed.await {
            Ok(()) => {
                let message = format!("{} goes on here under epoch {epoch}", vm.name);
                self.events.emit("vm.resumed", &at, message).await;
                Ok(())
            }
            Err(fault) => {
                // Its process did not live through the doubt: that is a crash of the guest, and told as one.
                self.phase(&vm.id, VmPhase::Running, "").await?;
                self.launcher.end(&vm.id).await?;
                let why = format!("its process ended while it was in doubt ({fault})");
                self.ended(&vm.id, VmPhase::Crashed, &why).await?;
                if vm.desired == Desired::Running && vm.spec.restart == RestartPolicy::OnCrash {
                    self.start(&vm.id).await?;
                }
                Ok(())
            }
        }
    }
}
