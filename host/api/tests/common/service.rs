//! The fake's side of the contract.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use dwcp_api::Principal;
use dwcp_api::service::{
    Answer, ByteStream, Console, Fault, FaultKind, Page, PageRequest, RecordStream, Remembered,
    Service, Versioned,
};
use dwcp_control::Name;
use dwcp_control::records::{
    AuditCheckpoint, AuditRecord, Base, Binding, BindingMode, Decision, Desired, DiskResize, Event,
    ForkRequest, Host, HostAdd, Image, MarketplaceItem, MemoryTarget, MigrateRequest, Migration,
    MigrationPhase, Operation, OperationState, Plugin, PluginInstall, Policy, RestoreRequest,
    Snapshot, SnapshotCreate, Template, Vm, VmCreate, VmPhase, VmStats,
};
use futures::StreamExt;
use sha2::{Digest, Sha256};

use super::fake::{Fake, OTHER_KEY, TEST_KEY, found, part, part_of, refuse};
use super::guests::{key_of, object_of};
use super::sample::{self, NOW_MS, digest_of};

#[async_trait]
impl Service for Fake {
    async fn authenticate(&self, api_key: &str) -> Option<Principal> {
        let name = match api_key {
            TEST_KEY => "key:admin",
            OTHER_KEY => "key:other",
            _ => return None,
        };
        Some(Principal { name: name.into() })
    }
    async fn denied(&self, what: &str) {
        self.state().denied.push(what.to_owned());
    }
    async fn recall(&self, who: &Principal, key: &str) -> Answer<Option<Remembered>> {
        let key = (who.name.clone(), key.to_owned());
        Ok(self.state().remembered.get(&key).cloned())
    }
    async fn remember(&self, who: &Principal, key: &str, answer: Remembered) -> Answer<()> {
        let key = (who.name.clone(), key.to_owned());
        self.state().remembered.insert(key, answer);
        Ok(())
    }

    async fn host_this(&self) -> Answer<Host> {
        Ok(self.state().hosts["left"].value.clone())
    }
    async fn host_list(&self, page: PageRequest) -> Answer<Page<Host>> {
        Ok(part_of(&self.state().hosts, &page))
    }
    async fn host_get(&self, name: &Name) -> Answer<Versioned<Host>> {
        found(&self.state().hosts, "host", name.as_str())
    }
    async fn host_add(&self, who: &Principal, host: HostAdd) -> Answer<Versioned<Host>> {
        let answers = !host.address.starts_with("192.0.2.99");
        let key = host.name.to_string();
        if self.state().hosts.contains_key(&key) {
            return refuse(FaultKind::Conflict, "A host of this name is known already");
        }
        let added = Host {
            name: host.name,
            region: sample::name("right"),
            address: host.address,
            fingerprint: host.fingerprint,
            this: false,
            reachable: answers,
            problem: (!answers).then(|| "no answer within 2 s".into()),
            rtt_ms: answers.then_some(100.25),
            capacity: None,
            cpu: None,
        };
        let added = self.state().versioned(added);
        self.state().hosts.insert(key.clone(), added.clone());
        self.happened(
            &who.name,
            "host.added",
            &format!("hosts/{key}"),
            "It answered",
        );
        Ok(added)
    }
    async fn host_remove(&self, who: &Principal, name: &Name) -> Answer<()> {
        found(&self.state().hosts, "host", name.as_str())?;
        self.state().hosts.remove(name.as_str());
        self.happened(
            &who.name,
            "host.removed",
            &format!("hosts/{name}"),
            "Forgotten",
        );
        Ok(())
    }

    async fn image_put(
        &self,
        who: &Principal,
        label: &str,
        expected: Option<String>,
        mut content: ByteStream,
    ) -> Answer<Image> {
        let (mut hash, mut size_bytes) = (Sha256::new(), 0);
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(Fault::internal)?;
            if !self.skip_hashing.load(Ordering::SeqCst) {
                hash.update(&piece);
            }
            size_bytes += piece.len() as u64;
        }
        let digest = hex::encode(hash.finalize());
        if expected.is_some_and(|expected| expected != digest) {
            return refuse(
                FaultKind::Impossible,
                "The content is not what its digest says",
            );
        }
        let image = Image {
            disk: None,
            digest: digest.clone(),
            size_bytes,
            label: label.into(),
            created_ms: NOW_MS,
        };
        let kept = self.state().versioned(image.clone());
        self.state().images.insert(digest.clone(), kept);
        self.happened(
            &who.name,
            "image.stored",
            &format!("images/{digest}"),
            "Stored",
        );
        Ok(image)
    }
    async fn image_list(&self, page: PageRequest) -> Answer<Page<Image>> {
        Ok(part_of(&self.state().images, &page))
    }
    async fn image_get(&self, digest: &str) -> Answer<Versioned<Image>> {
        found(&self.state().images, "image", digest)
    }
    async fn image_delete(&self, _: &Principal, digest: &str) -> Answer<()> {
        found(&self.state().images, "image", digest)?;
        self.state().images.remove(digest);
        Ok(())
    }

    async fn vm_list(&self, project: &Name, page: PageRequest) -> Answer<Page<Vm>> {
        let state = self.state();
        let mine = state
            .vms
            .iter()
            .filter(|(key, _)| key.0 == project.as_str());
        Ok(part(
            mine.map(|(key, vm)| (key.1.clone(), vm.value.clone())),
            &page,
        ))
    }
    async fn vm_get(&self, project: &Name, name: &Name) -> Answer<Versioned<Vm>> {
        self.vm(project, name)
    }
    async fn vm_create(
        &self,
        who: &Principal,
        project: &Name,
        request: VmCreate,
    ) -> Answer<(Versioned<Vm>, Operation)> {
        if request.name.as_str() == "slow" {
            self.at_gate.send_modify(|came| *came += 1);
            self.gate.acquire().await.unwrap().forget();
        }
        if request.template.is_none()
            && (request.kernel.is_none() || request.memory_bytes.is_none())
        {
            return refuse(
                FaultKind::Invalid,
                "Give a template, or kernel and memory_bytes",
            );
        }
        let object = object_of(project, &request.name);
        let bound = |mode: BindingMode| {
            let bindings = &self.state().bindings;
            bindings
                .iter()
                .any(|b| b.action == "vm.create" && b.mode == mode)
        };
        let missing = sample::missing_tags(&request.tags);
        if bound(BindingMode::Enforce) && !missing.is_empty() {
            self.record_decision("policy", &object, false);
            return Err(Fault {
                kind: FaultKind::Denied,
                message: "A policy denies creating this machine".into(),
                reasons: missing,
            });
        }
        if self.vm(project, &request.name).is_ok() {
            return refuse(FaultKind::Conflict, "A machine of this name exists already");
        }
        self.created.fetch_add(1, Ordering::SeqCst);
        let decision = self.record_decision("placement", &object, false);
        let vm = self.set_vm(sample::vm(project, &request, &decision));
        self.happened(&who.name, "vm.created", &object, "It was placed on left");
        let mut operation = self.simple("vm.start", &object);
        if bound(BindingMode::Warn) {
            operation.warnings = missing;
        }
        Ok((vm, operation))
    }
    async fn vm_start(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation> {
        self.turn(project, name, Desired::Running)?;
        let object = object_of(project, name);
        self.happened(&who.name, "vm.started", &object, "It runs");
        Ok(self.simple("vm.start", &object))
    }
    async fn vm_stop(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        _: bool,
    ) -> Answer<Operation> {
        self.turn(project, name, Desired::Stopped)?;
        let object = object_of(project, name);
        self.happened(&who.name, "vm.stopped", &object, "It stopped");
        Ok(self.simple("vm.stop", &object))
    }
    async fn vm_delete(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        force: bool,
        if_match: Option<u64>,
    ) -> Answer<()> {
        let vm = self.vm(project, name)?;
        if if_match.is_some_and(|revision| revision != vm.revision) {
            return refuse(FaultKind::Changed, "The machine changed since it was read");
        }
        if vm.value.phase == VmPhase::Running && !force {
            return refuse(
                FaultKind::Conflict,
                "The machine runs; stop it or use force",
            );
        }
        self.state().vms.remove(&key_of(project, name));
        self.happened(
            &who.name,
            "vm.deleted",
            &object_of(project, name),
            "It is gone",
        );
        Ok(())
    }
    async fn vm_console(&self, _: &Principal, project: &Name, name: &Name) -> Answer<Console> {
        self.attach(project, name)
    }
    async fn vm_log(&self, _: &Principal, project: &Name, name: &Name) -> Answer<ByteStream> {
        self.vm(project, name)?;
        let lines = [b"booted\r\n".as_slice(), b"tick 1\r\n"];
        let pieces = lines.map(|line| Ok(bytes::Bytes::from_static(line)));
        Ok(Box::pin(futures::stream::iter(pieces)))
    }
    async fn vm_migrate(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: MigrateRequest,
    ) -> Answer<Operation> {
        self.migrate(who, project, name, request)
    }

    async fn vm_pause(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation> {
        self.change(who, project, name, "vm.paused", |vm| {
            vm.phase = VmPhase::Paused
        })?;
        Ok(self.simple("vm.pause", &object_of(project, name)))
    }
    async fn vm_resume(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation> {
        self.change(who, project, name, "vm.resumed", |vm| {
            vm.phase = VmPhase::Running
        })?;
        Ok(self.simple("vm.resume", &object_of(project, name)))
    }
    async fn vm_reset(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation> {
        self.change(who, project, name, "vm.reset", |vm| {
            vm.phase = VmPhase::Running
        })?;
        Ok(self.simple("vm.reset", &object_of(project, name)))
    }
    async fn vm_stats(&self, project: &Name, name: &Name) -> Answer<VmStats> {
        let vm = self.vm(project, name)?.value;
        if vm.phase != VmPhase::Running {
            return refuse(FaultKind::Conflict, "The machine does not run");
        }
        Ok(sample::stats(&vm))
    }
    async fn vm_memory(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        target: MemoryTarget,
    ) -> Answer<Versioned<Vm>> {
        self.change(who, project, name, "vm.memory", |vm| {
            vm.memory_target_bytes = Some(target.target_bytes);
        })
    }
    async fn vm_disk_resize(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        disk: &str,
        resize: DiskResize,
    ) -> Answer<Versioned<Vm>> {
        let vm = self.vm(project, name)?.value;
        let Some(at) = vm.spec.disks.iter().position(|of| of.name == disk) else {
            return Err(Fault::not_found(format!("disk {disk} of {name}")));
        };
        self.change(who, project, name, "vm.disk.resized", |vm| {
            vm.spec.disks[at].size_bytes = resize.size_bytes;
        })
    }
    async fn vm_connect(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        port: u32,
    ) -> Answer<Console> {
        if port != 22 {
            return refuse(FaultKind::Unavailable, "Nothing in the guest listens there");
        }
        self.vm_console(who, project, name).await
    }
    async fn vm_restore(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: RestoreRequest,
    ) -> Answer<Operation> {
        self.snapshot_get(project, &request.snapshot).await?;
        if self.vm(project, name)?.value.phase == VmPhase::Running {
            return refuse(FaultKind::Conflict, "The machine runs; stop it first");
        }
        self.turn(project, name, Desired::Running)?;
        let object = object_of(project, name);
        self.happened(&who.name, "vm.restored", &object, "It goes on");
        Ok(self.simple("vm.restore", &object))
    }

    async fn vm_fork(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: ForkRequest,
    ) -> Answer<(Vec<Vm>, Operation)> {
        let template = self.vm(project, name)?.value;
        if template.phase != VmPhase::Template && !request.seal {
            return refuse(FaultKind::Conflict, "The machine is no template yet");
        }
        self.set_vm(Vm {
            phase: VmPhase::Template,
            desired: Desired::Stopped,
            ..template.clone()
        });
        let numbered = |number| Name::new(format!("{name}-{number}")).unwrap();
        let names = match request.name {
            Some(name) => vec![name],
            None => (1..=request.count.unwrap_or(1)).map(numbered).collect(),
        };
        let mut forks = Vec::new();
        for name in names {
            forks.push(self.set_vm(sample::fork(&template, name)).value);
        }
        let object = object_of(project, name);
        self.happened(&who.name, "vm.sealed", &object, "It is a template");
        Ok((forks, self.simple("vm.fork", &object)))
    }

    async fn snapshot_list(&self, project: &Name, page: PageRequest) -> Answer<Page<Snapshot>> {
        let state = self.state();
        let all = state.snapshots.iter();
        let mine = all.filter(|(_, snapshot)| snapshot.value.project == *project);
        Ok(part(
            mine.map(|(key, snapshot)| (key.clone(), snapshot.value.clone())),
            &page,
        ))
    }
    async fn snapshot_get(&self, project: &Name, name: &Name) -> Answer<Versioned<Snapshot>> {
        let key = format!("{project}/{name}");
        found(&self.state().snapshots, "snapshot", &key)
    }
    async fn snapshot_create(
        &self,
        who: &Principal,
        project: &Name,
        request: SnapshotCreate,
    ) -> Answer<Operation> {
        let vm = self.vm(project, &request.vm)?.value;
        let object = format!("projects/{project}/snapshots/{}", request.name);
        let key = format!("{project}/{}", request.name);
        let mut state = self.state();
        if state.snapshots.contains_key(&key) {
            return refuse(
                FaultKind::Conflict,
                "A snapshot of this name exists already",
            );
        }
        let mut before = state.snapshots.values().map(|kept| &kept.value);
        let before = before.find(|kept| request.incremental && kept.vm_id == vm.id);
        let base = before.map(|kept| Base {
            snapshot: kept.name.clone(),
            snapshot_id: kept.id.clone(),
        });
        let snapshot = Snapshot {
            base,
            compressed: request.compressed,
            ..sample::snapshot(&vm, &request.name)
        };
        let snapshot = state.versioned(snapshot);
        state.snapshots.insert(key, snapshot);
        drop(state);
        self.happened(&who.name, "snapshot.created", &object, "It is taken");
        Ok(self.simple("snapshot.create", &object))
    }
    async fn snapshot_delete(&self, who: &Principal, project: &Name, name: &Name) -> Answer<()> {
        self.snapshot_get(project, name).await?;
        self.state().snapshots.remove(&format!("{project}/{name}"));
        let object = format!("projects/{project}/snapshots/{name}");
        self.happened(&who.name, "snapshot.deleted", &object, "It is gone");
        Ok(())
    }

    async fn migration_list(&self, project: &Name, page: PageRequest) -> Answer<Page<Migration>> {
        let state = self.state();
        let mine = state
            .migrations
            .iter()
            .filter(|(_, m)| m.value.project == *project);
        Ok(part(
            mine.map(|(key, m)| (key.clone(), m.value.clone())),
            &page,
        ))
    }
    async fn migration_get(&self, _: &Name, id: &str) -> Answer<Versioned<Migration>> {
        found(&self.state().migrations, "migration", id)
    }
    async fn migration_resolve(
        &self,
        who: &Principal,
        _: &Name,
        id: &str,
        fenced: &Name,
    ) -> Answer<Migration> {
        let mut migration = found(&self.state().migrations, "migration", id)?.value;
        if migration.phase != MigrationPhase::InDoubt {
            return refuse(FaultKind::Conflict, "The migration is not in doubt");
        }
        migration.phase = if *fenced == migration.to {
            MigrationPhase::Failed
        } else {
            MigrationPhase::Done
        };
        let kept = self.state().versioned(migration.clone());
        self.state().migrations.insert(id.into(), kept);
        self.happened(&who.name, "migration.resolved", id, "By hand");
        Ok(migration)
    }

    async fn operation_get(&self, id: &str) -> Answer<Operation> {
        let state = self.state();
        let operation = state.operations.get(id);
        let operation = operation.ok_or_else(|| Fault::not_found(format!("operation {id}")))?;
        Ok(operation.borrow().clone())
    }
    async fn operation_watch(&self, id: &str) -> Answer<RecordStream<Operation>> {
        let watched = self.state().operations.get(id).cloned();
        let watched = watched.ok_or_else(|| Fault::not_found(format!("operation {id}")))?;
        let states = futures::stream::unfold(Some((watched, true)), |next| async move {
            let (mut watched, first) = next?;
            if !first {
                watched.changed().await.ok()?;
            }
            let operation = watched.borrow_and_update().clone();
            let ended = operation.state != OperationState::Running;
            Some((operation, (!ended).then_some((watched, false))))
        });
        Ok(Box::pin(states))
    }

    async fn marketplace_list(&self, page: PageRequest) -> Answer<Page<MarketplaceItem>> {
        let state = self.state();
        let all = state.marketplace.iter();
        Ok(part(
            all.map(|item| (item.reference.clone(), item.clone())),
            &page,
        ))
    }
    async fn marketplace_get(&self, reference: &str) -> Answer<MarketplaceItem> {
        let state = self.state();
        let known = state.marketplace.iter().find(|item| {
            item.reference == reference || item.reference.split('@').next() == Some(reference)
        });
        known
            .cloned()
            .ok_or_else(|| Fault::not_found(format!("artifact {reference} in the marketplace")))
    }
    async fn plugin_list(&self, page: PageRequest) -> Answer<Page<Plugin>> {
        Ok(part_of(&self.state().plugins, &page))
    }
    async fn plugin_get(&self, name: &str) -> Answer<Versioned<Plugin>> {
        found(&self.state().plugins, "plugin", name)
    }
    async fn plugin_install(
        &self,
        who: &Principal,
        request: PluginInstall,
    ) -> Answer<MarketplaceItem> {
        let item = self.marketplace_get(&request.reference).await?;
        self.install(who, item, request)
    }
    async fn plugin_remove(&self, who: &Principal, name: &str) -> Answer<()> {
        let mut state = self.state();
        let gone = state.plugins.remove(name).is_some() | state.templates.remove(name).is_some();
        drop(state);
        if !gone {
            return Err(Fault::not_found(format!("plugin or template {name}")));
        }
        self.happened(&who.name, "plugin.removed", name, "Removed");
        Ok(())
    }
    async fn template_list(&self, page: PageRequest) -> Answer<Page<Template>> {
        Ok(part_of(&self.state().templates, &page))
    }
    async fn template_get(&self, name: &str) -> Answer<Versioned<Template>> {
        found(&self.state().templates, "template", name)
    }

    async fn policy_list(&self, page: PageRequest) -> Answer<Page<Policy>> {
        Ok(part_of(&self.state().policies, &page))
    }
    async fn policy_get(&self, name: &Name) -> Answer<Versioned<Policy>> {
        found(&self.state().policies, "policy", name.as_str())
    }
    async fn policy_apply(
        &self,
        who: &Principal,
        name: &Name,
        source: String,
    ) -> Answer<Versioned<Policy>> {
        if !source.starts_with("package ") {
            return Err(Fault {
                kind: FaultKind::Impossible,
                message: "The policy does not compile".into(),
                reasons: vec!["line 1: package expected".into()],
            });
        }
        let policy = Policy {
            name: name.clone(),
            digest: digest_of(source.as_bytes()),
            source,
            facts: vec!["tags".into()],
            applied_ms: NOW_MS,
        };
        let policy = self.state().versioned(policy);
        self.state()
            .policies
            .insert(name.to_string(), policy.clone());
        self.happened(&who.name, "policy.applied", name.as_str(), "Applied");
        Ok(policy)
    }
    async fn policy_remove(&self, _: &Principal, name: &Name) -> Answer<()> {
        found(&self.state().policies, "policy", name.as_str())?;
        if self.state().bindings.iter().any(|b| b.policy == *name) {
            return refuse(FaultKind::Conflict, "The policy is bound; unbind it first");
        }
        self.state().policies.remove(name.as_str());
        Ok(())
    }
    async fn binding_list(&self) -> Answer<Vec<Binding>> {
        Ok(self.state().bindings.clone())
    }
    async fn policy_bind(&self, who: &Principal, binding: Binding) -> Answer<Binding> {
        found(&self.state().policies, "policy", binding.policy.as_str())?;
        self.state().bindings.push(binding.clone());
        self.happened(&who.name, "policy.bound", binding.policy.as_str(), "Bound");
        Ok(binding)
    }
    async fn policy_unbind(&self, _: &Principal, policy: &Name, action: &str) -> Answer<()> {
        let mut state = self.state();
        let before = state.bindings.len();
        state
            .bindings
            .retain(|b| b.policy != *policy || b.action != action);
        if state.bindings.len() == before {
            return Err(Fault::not_found(format!("binding of {policy} to {action}")));
        }
        Ok(())
    }

    async fn decision_list(
        &self,
        subject: Option<&str>,
        page: PageRequest,
    ) -> Answer<Page<Decision>> {
        let state = self.state();
        let wanted = state
            .decisions
            .iter()
            .filter(|decision| subject.is_none_or(|subject| decision.subject == subject));
        let numbered = wanted.cloned().zip(0_u32..);
        Ok(part(
            numbered.map(|(one, n)| (format!("{n:09}"), one)),
            &page,
        ))
    }
    async fn decision_get(&self, id: &str) -> Answer<Decision> {
        let state = self.state();
        let known = state.decisions.iter().find(|decision| decision.id == id);
        known
            .cloned()
            .ok_or_else(|| Fault::not_found(format!("decision {id}")))
    }
    async fn event_list(&self, after: u64, limit: usize) -> Answer<Page<Event>> {
        let events = self.events.borrow();
        let wanted = events.iter().filter(|event| event.sequence > after);
        let items: Vec<Event> = wanted.clone().take(limit).cloned().collect();
        let last = items.last().map(|event| event.sequence.to_string());
        let more = wanted.count() > limit;
        Ok(Page {
            items,
            next_cursor: last.filter(|_| more),
        })
    }
    async fn event_watch(&self, after: u64) -> Answer<RecordStream<Event>> {
        let state = (self.events.subscribe(), after);
        let events = futures::stream::unfold(state, |(mut events, after)| async move {
            let next = |events: &Vec<Event>| events.iter().find(|e| e.sequence > after).cloned();
            let found = events
                .wait_for(|events| next(events).is_some())
                .await
                .ok()?;
            let event = next(&found)?;
            drop(found);
            let sequence = event.sequence;
            Some((event, (events, sequence)))
        });
        Ok(Box::pin(events))
    }

    async fn audit_checkpoint(&self, _: &Principal) -> Answer<AuditCheckpoint> {
        Ok(self.state().log().checkpoint())
    }
    async fn audit_entries(
        &self,
        _: &Principal,
        from: u64,
        limit: usize,
    ) -> Answer<Vec<AuditRecord>> {
        Ok(self.state().log().records(from, limit))
    }
    async fn audit_consistency(&self, _: &Principal, old: u64, new: u64) -> Answer<Vec<String>> {
        self.state().log().consistency(old, new)
    }
    async fn audit_inclusion(&self, _: &Principal, index: u64, size: u64) -> Answer<Vec<String>> {
        self.state().log().inclusion(index, size)
    }

    async fn metrics(&self) -> String {
        "# TYPE dwcp_vms gauge\ndwcp_vms 0\n".into()
    }
}
