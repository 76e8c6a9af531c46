//! The longer of the API's operations, each up to where its work goes on by itself.

use std::sync::Arc;

use dwcp_api::service::Answer;
use dwcp_api::{Fault, FaultKind, Principal, Service};
use dwcp_audit::Outcome;
use dwcp_control::Name;
use dwcp_control::ownership::Ownership;
use dwcp_control::records::{
    Desired, Image, MigrateRequest, MigrationPhase, Operation, Plugin, Side, Template, Vm, VmPhase,
};
use serde_json::json;

use crate::errors::{conflict, invalid, record, unavailable};
use crate::events::Running;
use crate::forks::not_a_template;
use crate::node::Node;
use crate::outgoing::{self, Outgoing};
use crate::peers;
use crate::service::REMEMBER_MS;
use crate::state::{now_ms, object};

/// Answers kept under idempotency keys at most.
const REMEMBERED_MAX: usize = 10_000;

impl Node {
    /// Notes requests of nobody known; one entry may stand for several.
    pub(crate) async fn audit_strangers(&self, what: &str, count: u64) {
        let detail = json!({ "why": what, "requests": count });
        let noted = self.audit("nobody", "api.authenticate", "api", Outcome::Denied, detail);
        // They are refused anyway; why it is not noted is in the daemon's log.
        let _ = noted.await;
    }

    /// Tells everybody who follows the events what policies warned the one who asked of.
    pub(crate) async fn warned(&self, action: &str, at: &str, warnings: &[String]) {
        if !warnings.is_empty() {
            let message = format!("{action}: {}", warnings.join("; "));
            self.events.emit("policy.warned", at, message).await;
        }
    }

    pub(crate) async fn begin_start(&self, vm: &Vm, warnings: Vec<String>) -> Answer<Operation> {
        let at = object(&vm.project, &vm.name);
        let begun = self
            .operations
            .begin_warned("vm.start", &at, "starting", warnings);
        let (operation, running) = begun.await?;
        let (node, id) = (self.arc()?, vm.id.clone());
        tokio::spawn(async move {
            let started = node.start(&id).await.map(|()| "Running".to_owned());
            running.end(&started).await;
        });
        Ok(operation)
    }

    /// What every change of a running machine begins with; what is refused then is told by its operation.
    pub(crate) async fn begin_turn(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        action: &str,
    ) -> Answer<((Operation, Running), Arc<Self>, String)> {
        let at = object(project, name);
        let found = self.find_vm(project, name).await;
        let found = self.audited(who, action, &at, json!({}), found).await?;
        let begun = self.operations.begin(action, &at, "beginning").await?;
        Ok((begun, self.arc()?, found.value.id))
    }

    /// Removes a peer that no machine is on its way to.
    pub(crate) async fn forget_host(&self, name: &Name) -> Answer<()> {
        for vm in self.vms().await? {
            if let Some(Ownership::Given { to, .. }) = self.ownership(&vm.id).await?
                && to == *name
            {
                return Err(conflict(format!(
                    "{} was given to {name} and its answer is missing: resolve that first (`dwcp migration resolve`)",
                    vm.name
                )));
            }
        }
        let there = self.records.peers.delete(name.as_str()).await;
        if there.map_err(record)? {
            Ok(())
        } else {
            Err(Fault::not_found(format!("host {name}")))
        }
    }

    pub(crate) async fn delete_vm(
        &self,
        project: &Name,
        name: &Name,
        force: bool,
        if_match: Option<u64>,
    ) -> Answer<()> {
        let (_life, found) = self.hold(project, name).await?;
        if if_match.is_some_and(|revision| revision != found.revision.0) {
            return Err(Fault::new(
                FaultKind::Changed,
                format!("{name} changed since you read it: read it again"),
            ));
        }
        match found.value.phase {
            VmPhase::Stopped | VmPhase::Crashed | VmPhase::Moved => {}
            VmPhase::Template => {
                self.end_template(&found.value).await?;
            }
            VmPhase::Running | VmPhase::Paused | VmPhase::Starting if force => {}
            VmPhase::Running | VmPhase::Paused | VmPhase::Starting => {
                return Err(conflict(format!(
                    "{name} runs: stop it first, or use force"
                )));
            }
            VmPhase::Migrating | VmPhase::Incoming | VmPhase::InDoubt => {
                return Err(conflict(format!(
                    "{name} is between two hosts: delete it when that has ended"
                )));
            }
        }
        self.remove(&found.value).await
    }

    pub(crate) async fn delete_image(&self, digest: &str) -> Answer<()> {
        let _alone = self.image_changes.lock().await;
        // No machine is recorded between the look at who uses it and its end.
        let _promise = self.promise.lock().await;
        let found = self.records.images.get(digest).await.map_err(record)?;
        if found.is_none() {
            return Err(Fault::not_found(format!("image {digest}")));
        }
        let uses = |spec: &dwcp_control::records::VmSpec| {
            let is_disk =
                |disk: &dwcp_control::records::DiskSpec| disk.image.as_deref() == Some(digest);
            spec.kernel == digest
                || spec.initrd.as_deref() == Some(digest)
                || spec.disks.iter().any(is_disk)
        };
        let vms = self.vms().await?;
        if let Some(user) = vms
            .iter()
            .find(|vm| vm.phase != VmPhase::Moved && uses(&vm.spec))
        {
            return Err(conflict(format!(
                "Virtual machine {} in project {} uses it",
                user.name, user.project
            )));
        }
        let templates = self.records.all(&self.records.templates).await;
        let used = |t: &Template| {
            t.kernel.as_deref() == Some(digest) || t.initrd.as_deref() == Some(digest)
        };
        if let Some(user) = templates.map_err(record)?.iter().find(|t| used(&t.value)) {
            return Err(conflict(format!("Template {} uses it", user.value.name)));
        }
        let snapshots = self.records.all(&self.records.snapshots).await;
        let snapshots = snapshots.map_err(record)?;
        if let Some(user) = snapshots.iter().find(|kept| uses(&kept.value.spec)) {
            return Err(conflict(format!(
                "Snapshot {} in project {} uses it",
                user.value.name, user.value.project
            )));
        }
        let images = self.records.all(&self.records.images).await;
        let boots = |disk: &dwcp_control::records::DiskImage| {
            [&disk.kernel, &disk.initrd].contains(&&Some(digest.to_owned()))
        };
        let images = images.map_err(record)?;
        let is_user = |image: &Image| image.disk.as_ref().is_some_and(boots);
        if let Some(user) = images.iter().find(|image| is_user(&image.value)) {
            return Err(conflict(format!(
                "Image {} ({}) boots it: delete that one first",
                user.value.label, user.id
            )));
        }
        self.records.images.delete(digest).await.map_err(record)?;
        self.images.delete(digest).await
    }

    pub(crate) async fn begin_migration(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: &MigrateRequest,
    ) -> Answer<Operation> {
        let vm = self.find_vm(project, name).await?.value;
        if request.to == self.config.name {
            return Err(conflict(format!("{name} is on {} already", request.to)));
        }
        if request.streams.is_some_and(|n| !(1..=64).contains(&n)) {
            return Err(invalid("A migration has 1 to 64 streams"));
        }
        let peer = peers::find(self, &request.to).await?;
        self.permit(&vm).await?;
        let warnings = self.policies.check_migrate(who, &vm, &peer).await?;
        {
            // Whoever sets the phase has the migration: a second one finds it set.
            let (_life, now) = self.hold(project, name).await?;
            let now = now.value;
            not_a_template(&now)?;
            if now.phase != VmPhase::Running {
                return Err(conflict(format!(
                    "Only a running machine is migrated live, and {name} is {:?}",
                    now.phase
                )));
            }
            if now.desired != Desired::Running {
                return Err(conflict(format!("{name} is being stopped")));
            }
            // From here on the keeper leaves it to the migration, which ends before this is taken back.
            self.migration_begins(&vm.id)?;
            self.phase(
                &vm.id,
                VmPhase::Migrating,
                &format!("it goes to {}", peer.name),
            )
            .await?;
        }
        let id = vm.id.clone();
        let started = self.spawn_migration(vm, peer, request, warnings).await;
        if started.is_err() {
            // Nothing was begun: the keeper takes it back from "migrating".
            self.migration_ended(&id).await;
        }
        started
    }

    pub(crate) async fn spawn_migration(
        &self,
        vm: Vm,
        peer: crate::state::Peer,
        request: &MigrateRequest,
        warnings: Vec<String>,
    ) -> Answer<Operation> {
        let id = uuid::Uuid::now_v7().to_string();
        let (from, to) = (self.config.name.clone(), peer.name.clone());
        let migration = outgoing::begin(id, &vm, from, to, Side::Source, vm.epoch);
        outgoing::save(self, &migration).await?;
        let at = object(&vm.project, &vm.name);
        let message = format!("preparing to send {} to {}", vm.name, peer.name);
        self.warned("vm.migrate", &at, &warnings).await;
        let begun = self
            .operations
            .begin_warned("vm.migrate", &at, &message, warnings);
        let (_, running) = begun.await?;
        running.show(&migration);
        let operation = self.operations.get(running.id()).await?;
        self.events.emit("migration.started", &at, message).await;
        let outgoing = Outgoing::new(
            self.arc()?,
            vm,
            peer,
            migration,
            running,
            request.streams,
            request.pause_ms,
        );
        tokio::spawn(outgoing.run());
        Ok(operation)
    }

    pub(crate) async fn resolve_doubt(
        &self,
        project: &Name,
        id: &str,
        fenced: &Name,
    ) -> Answer<()> {
        let migration = self.migration_get(project, id).await?.value;
        if migration.phase != MigrationPhase::InDoubt || migration.side != Side::Source {
            return Err(conflict(
                "That migration is not in doubt here: there is nothing to resolve",
            ));
        }
        let Some(vm) = self.records.vm_by_id(&migration.vm).await.map_err(record)? else {
            return Err(conflict("The machine was deleted meanwhile"));
        };
        let there = *fenced == migration.to;
        if !there && *fenced != migration.from {
            return Err(invalid(format!(
                "Name the host that is fenced: {} or {}",
                migration.from, migration.to
            )));
        }
        let settled = self
            .own(&vm.id, |held| {
                let unknown = Ownership::Refused { next: 0, took: 0 };
                let held = held.unwrap_or(&unknown);
                if there {
                    held.destination_is_fenced(&migration.id)
                } else {
                    held.source_is_fenced(&migration.id)
                }
            })
            .await?;
        self.settled(&vm, &settled).await
    }

    pub(crate) fn with_usage(&self, mut plugin: Plugin) -> Plugin {
        (plugin.calls, plugin.faults) = self.decider.usage(&plugin.digest);
        plugin
    }

    /// Drops answers whose day is over, and the oldest beyond what is kept.
    pub(crate) async fn forget_answers(&self) -> Answer<()> {
        // Looked at now and then: the clock decides, so that no counter has to live anywhere.
        if !now_ms().is_multiple_of(64) {
            return Ok(());
        }
        let all = self.records.all(&self.records.remembered).await;
        let mut all = all.map_err(record)?;
        all.sort_by_key(|found| std::cmp::Reverse(found.value.time_ms));
        let old = now_ms().saturating_sub(REMEMBER_MS);
        for (n, found) in all.iter().enumerate() {
            if n >= REMEMBERED_MAX || found.value.time_ms < old {
                self.records
                    .remembered
                    .delete(&found.id)
                    .await
                    .map_err(record)?;
            }
        }
        Ok(())
    }

    /// This node, for work that outlives the request.
    pub(crate) fn arc(&self) -> Answer<Arc<Self>> {
        let ending = || unavailable("The daemon is ending");
        self.this.upgrade().ok_or_else(ending)
    }
}
