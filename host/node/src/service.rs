//! The API's trait, carried out: each operation checked, done, and in the audit log before it is answered.

use async_trait::async_trait;
use dwcp_api::service::{
    Answer, ByteStream, Console, Page, PageRequest, RecordStream, Remembered, Versioned,
};
use dwcp_api::{Fault, Principal, Service};
use dwcp_control::Name;
use dwcp_control::records::{
    AuditCheckpoint, AuditRecord, Binding, Decision, Desired, DiskResize, Event, ForkRequest, Host,
    HostAdd, Image, MarketplaceItem, MemoryTarget, MigrateRequest, Migration, Operation, Plugin,
    PluginInstall, Policy, RestoreRequest, Snapshot, SnapshotCreate, Template, Vm, VmCreate,
    VmPhase, VmStats,
};
use serde_json::json;

use crate::errors::{conflict, internal, invalid, record, unavailable};
use crate::forks::not_a_template;
use crate::identity::{Came, Strangers};
use crate::node::Node;
use crate::peers;
use crate::running::runs;
use crate::state::{Kept, now_ms, object, page, versioned};
use crate::{consoles, create, guests, snapshots};

/// How long answers are kept under an idempotency key, ms.
pub(crate) const REMEMBER_MS: u64 = 24 * 3600 * 1000;

#[async_trait]
impl Service for Node {
    async fn authenticate(&self, api_key: &str) -> Option<Principal> {
        self.keys.is_admin(api_key).then(|| Principal {
            name: "key:admin".into(),
        })
    }

    async fn denied(&self, what: &str) {
        let this = self.this.upgrade();
        match self.keys.strangers.came(std::time::Instant::now()) {
            Came::Say(count) => self.audit_strangers(what, count).await,
            Came::First => {
                let what = what.to_owned();
                tokio::spawn(async move {
                    tokio::time::sleep(Strangers::SILENCE).await;
                    if let Some(node) = this {
                        let count = node.keys.strangers.waited(std::time::Instant::now());
                        node.audit_strangers(&what, count).await;
                    }
                });
            }
            Came::Counted => {}
        }
    }

    async fn recall(&self, who: &Principal, key: &str) -> Answer<Option<Remembered>> {
        let found = self.records.remembered.get(&remembered_key(who, key)).await;
        let fresh = |kept: &Kept| kept.time_ms + REMEMBER_MS > now_ms();
        Ok(found
            .map_err(record)?
            .map(|f| f.value)
            .filter(fresh)
            .map(|kept| kept.answer))
    }

    async fn remember(&self, who: &Principal, key: &str, answer: Remembered) -> Answer<()> {
        let kept = Kept {
            time_ms: now_ms(),
            answer,
        };
        let key = remembered_key(who, key);
        self.records
            .remembered
            .put(&key, &kept)
            .await
            .map_err(record)?;
        self.forget_answers().await
    }

    async fn host_this(&self) -> Answer<Host> {
        self.this_host_whole().await
    }

    async fn host_list(&self, request: PageRequest) -> Answer<Page<Host>> {
        let first = request.cursor.is_none();
        let peers = page(&self.records.peers, "", request, |found| found.value).await?;
        let looked = peers.items.iter().map(|peer| peers::look(self, peer));
        let mut items = futures::future::join_all(looked).await;
        if first {
            items.insert(0, self.this_host().await?);
        }
        Ok(Page {
            items,
            next_cursor: peers.next_cursor,
        })
    }

    async fn host_get(&self, name: &Name) -> Answer<Versioned<Host>> {
        if *name == self.config.name {
            return Ok(Versioned {
                value: self.this_host_whole().await?,
                revision: 0,
            });
        }
        let found = self
            .records
            .peers
            .get(name.as_str())
            .await
            .map_err(record)?;
        let found = found.ok_or_else(|| Fault::not_found(format!("host {name}")))?;
        Ok(Versioned {
            value: peers::look(self, &found.value).await,
            revision: found.revision.0,
        })
    }

    async fn host_add(&self, who: &Principal, host: HostAdd) -> Answer<Versioned<Host>> {
        let added = peers::add(self, &host).await;
        let at = format!("hosts/{}", host.name);
        self.audited(who, "host.add", &at, json!(host), added)
            .await?;
        self.host_get(&host.name).await
    }

    async fn host_remove(&self, who: &Principal, name: &Name) -> Answer<()> {
        let removed = self.forget_host(name).await;
        let at = format!("hosts/{name}");
        self.audited(who, "host.remove", &at, json!({}), removed)
            .await
    }

    async fn image_put(
        &self,
        who: &Principal,
        label: &str,
        expected: Option<String>,
        content: ByteStream,
    ) -> Answer<Image> {
        let taken = self.images.put(label, expected.as_deref(), content).await;
        let detail = json!({ "label": label });
        let image = match taken {
            Ok(image) => image,
            Err(fault) => {
                let refused = Err(fault);
                return self
                    .audited(who, "image.add", "images", detail, refused)
                    .await;
            }
        };
        // A client that leaves now has sent everything: what follows is done whole, whoever still waits for it.
        let (node, who) = (self.arc()?, who.clone());
        let kept = tokio::spawn(async move {
            let at = format!("images/{}", image.digest);
            let kept = node.keep_image(image).await;
            node.audited(&who, "image.add", &at, detail, kept).await
        });
        kept.await.map_err(internal)?
    }

    async fn image_list(&self, request: PageRequest) -> Answer<Page<Image>> {
        page(&self.records.images, "", request, |found| found.value).await
    }

    async fn image_get(&self, digest: &str) -> Answer<Versioned<Image>> {
        self.images.path(digest)?;
        let found = self.records.images.get(digest).await.map_err(record)?;
        found
            .map(versioned)
            .ok_or_else(|| Fault::not_found(format!("image {digest}")))
    }

    async fn image_delete(&self, who: &Principal, digest: &str) -> Answer<()> {
        let deleted = self.delete_image(digest).await;
        let at = format!("images/{digest}");
        self.audited(who, "image.remove", &at, json!({}), deleted)
            .await
    }

    async fn vm_list(&self, project: &Name, request: PageRequest) -> Answer<Page<Vm>> {
        let prefix = format!("{project}/");
        page(&self.records.vms, &prefix, request, |found| found.value).await
    }

    async fn vm_get(&self, project: &Name, name: &Name) -> Answer<Versioned<Vm>> {
        Ok(versioned(self.find_vm(project, name).await?))
    }

    async fn vm_create(
        &self,
        who: &Principal,
        project: &Name,
        request: VmCreate,
    ) -> Answer<(Versioned<Vm>, Operation)> {
        let at = object(project, &request.name);
        let detail = create::described(&request);
        let start = request.start;
        let created = create::create(self, who, project, request).await;
        let (created, warnings) = self.audited(who, "vm.create", &at, detail, created).await?;
        let message = format!("{} exists on {}", created.name, self.config.name);
        self.events.emit("vm.created", &at, message).await;
        self.warned("vm.create", &at, &warnings).await;
        let operation = if start {
            self.begin_start(&created, warnings).await?
        } else {
            let begun = self
                .operations
                .begin_warned("vm.create", &at, "created", warnings)
                .await?;
            begun.1.end(&Ok("Created".into())).await;
            self.operations.get(&begun.0.id).await?
        };
        let found = self.find_vm(project, &created.name).await?;
        Ok((versioned(found), operation))
    }

    async fn vm_start(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation> {
        let checked = async {
            let vm = self.find_vm(project, name).await?.value;
            self.permit(&vm).await?;
            // Whoever restores it counts on it not being wanted meanwhile.
            let (_life, vm) = self.hold(project, name).await?;
            let vm = vm.value;
            if vm.phase == VmPhase::Template {
                self.end_template(&vm).await?;
            }
            self.records
                .change_vm(&vm.id, |vm| vm.desired = Desired::Running)
                .await
                .map_err(record)?;
            // Whatever it did before: somebody wants to try anew.
            self.forgive(&vm.id);
            Ok(vm)
        };
        let at = object(project, name);
        let checked = checked.await;
        let vm = self
            .audited(who, "vm.start", &at, json!({}), checked)
            .await?;
        self.begin_start(&vm, Vec::new()).await
    }

    async fn vm_stop(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        force: bool,
    ) -> Answer<Operation> {
        let checked = async {
            let vm = self.find_vm(project, name).await?.value;
            not_a_template(&vm)?;
            match vm.phase {
                VmPhase::Running | VmPhase::Paused | VmPhase::Starting => Ok(vm),
                VmPhase::Crashed if vm.desired == Desired::Running => Ok(vm),
                VmPhase::Stopped => Ok(vm),
                VmPhase::Migrating => Err(conflict(format!(
                    "{name} is being migrated: stop it when that has ended"
                ))),
                _ => Err(conflict(format!("{name} does not run here: {}", vm.reason))),
            }
        };
        let at = object(project, name);
        let checked = checked.await;
        let vm = self
            .audited(who, "vm.stop", &at, json!({ "force": force }), checked)
            .await?;
        let (operation, running) = self.operations.begin("vm.stop", &at, "stopping").await?;
        // One that is wanted waits for its turn.
        if vm.phase == VmPhase::Stopped && vm.desired == Desired::Stopped {
            running.end(&Ok("It did not run".into())).await;
            return self.operations.get(&operation.id).await;
        }
        let node = self.arc()?;
        tokio::spawn(async move { running.end(&node.stop(&vm.id, force).await).await });
        Ok(operation)
    }

    async fn vm_delete(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        force: bool,
        if_match: Option<u64>,
    ) -> Answer<()> {
        let deleted = self.delete_vm(project, name, force, if_match).await;
        let at = object(project, name);
        let deleted = self
            .audited(who, "vm.delete", &at, json!({ "force": force }), deleted)
            .await;
        if deleted.is_ok() {
            self.events
                .emit("vm.deleted", &at, format!("{name} is deleted"))
                .await;
        }
        deleted
    }

    async fn vm_pause(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation> {
        let begun = self.begin_turn(who, project, name, "vm.pause").await?;
        let ((operation, running), node, id) = begun;
        tokio::spawn(async move { running.end(&node.pause(&id).await).await });
        Ok(operation)
    }

    async fn vm_resume(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation> {
        let begun = self.begin_turn(who, project, name, "vm.resume").await?;
        let ((operation, running), node, id) = begun;
        tokio::spawn(async move { running.end(&node.resume(&id).await).await });
        Ok(operation)
    }

    async fn vm_reset(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation> {
        let begun = self.begin_turn(who, project, name, "vm.reset").await?;
        let ((operation, running), node, id) = begun;
        tokio::spawn(async move { running.end(&node.reset(&id).await).await });
        Ok(operation)
    }

    async fn vm_stats(&self, project: &Name, name: &Name) -> Answer<VmStats> {
        self.stats(project, name).await
    }

    async fn vm_memory(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        target: MemoryTarget,
    ) -> Answer<Versioned<Vm>> {
        let changed = self.set_memory(project, name, &target).await;
        let at = object(project, name);
        let changed = self
            .audited(who, "vm.memory", &at, json!(target), changed)
            .await;
        changed.map(versioned)
    }

    async fn vm_disk_resize(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        disk: &str,
        resize: DiskResize,
    ) -> Answer<Versioned<Vm>> {
        let changed = self.resize_disk(project, name, disk, &resize).await;
        let at = object(project, name);
        let detail = json!({ "disk": disk, "size_bytes": resize.size_bytes });
        let changed = self.audited(who, "vm.disk.resize", &at, detail, changed);
        changed.await.map(versioned)
    }

    async fn vm_connect(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        port: u32,
    ) -> Answer<Console> {
        let vm = self.find_vm(project, name).await?.value;
        runs(&vm)?;
        let connected = guests::connect(&self.vm_dir(&vm.id), port).await;
        let connected = connected.map_err(|error| {
            unavailable(format!(
                "Nothing in the guest of {name} accepts connections on vsock port {port} ({error})"
            ))
        });
        let at = object(project, name);
        let detail = json!({ "port": port });
        let stream = self
            .audited(who, "vm.connect", &at, detail, connected)
            .await?;
        Ok(consoles::attach(stream))
    }

    async fn vm_console(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Console> {
        let vm = self.find_vm(project, name).await?.value;
        let at = object(project, name);
        if vm.phase != VmPhase::Paused {
            runs(&vm)?;
        }
        let attached = self.vmm(&vm.id, |vmm| vmm.console()).await;
        let socket = self
            .audited(who, "vm.console", &at, json!({}), attached)
            .await?;
        socket.set_nonblocking(true).map_err(internal)?;
        let socket = tokio::net::UnixStream::from_std(socket).map_err(internal)?;
        Ok(consoles::attach(socket))
    }

    async fn vm_log(&self, who: &Principal, project: &Name, name: &Name) -> Answer<ByteStream> {
        let vm = self.find_vm(project, name).await?.value;
        let path = self.vm_dir(&vm.id).join("serial.log");
        let opened = match tokio::fs::File::open(path).await {
            Ok(file) => Ok(consoles::pieces(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Fault::not_found(
                format!("log of {name} here: it has not run on {}", self.config.name),
            )),
            Err(error) => Err(internal(error)),
        };
        // What a machine prints may be anything, so reading it is noted as attaching to it is.
        let at = object(project, name);
        self.audited(who, "vm.log", &at, json!({}), opened).await
    }

    async fn vm_migrate(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: MigrateRequest,
    ) -> Answer<Operation> {
        let at = object(project, name);
        let begun = self.begin_migration(who, project, name, &request).await;
        self.audited(who, "vm.migrate", &at, json!(request), begun)
            .await
    }

    async fn vm_restore(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: RestoreRequest,
    ) -> Answer<Operation> {
        let at = object(project, name);
        let checked = self.check_restore(project, name, &request.snapshot).await;
        let vm = self
            .audited(who, "vm.restore", &at, json!(request), checked)
            .await?;
        let begun = self.operations.begin("vm.restore", &at, "restoring").await;
        let (operation, running) = begun?;
        let node = self.arc()?;
        tokio::spawn(async move {
            running
                .end(&node.restore(&vm.id, &request.snapshot).await)
                .await;
        });
        Ok(operation)
    }

    async fn vm_fork(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: ForkRequest,
    ) -> Answer<(Vec<Vm>, Operation)> {
        let at = object(project, name);
        let made = self.fork(who, project, name, &request).await;
        let made = self.audited(who, "vm.fork", &at, json!(request), made);
        let (forks, warnings) = made.await?;
        for fork in &forks {
            let message = format!("{} is a fork of {name}", fork.name);
            let at = object(project, &fork.name);
            self.events.emit("vm.created", &at, message).await;
        }
        self.warned("vm.fork", &at, &warnings).await;
        let begun = self
            .operations
            .begin_warned("vm.fork", &at, "starting", warnings);
        let (operation, running) = begun.await?;
        let (node, name, started) = (self.arc()?, name.clone(), forks.clone());
        tokio::spawn(async move { running.end(&node.start_forks(name, started).await).await });
        Ok((forks, operation))
    }

    async fn snapshot_list(&self, project: &Name, request: PageRequest) -> Answer<Page<Snapshot>> {
        let prefix = format!("{project}/");
        page(&self.records.snapshots, &prefix, request, |found| {
            found.value
        })
        .await
    }

    async fn snapshot_get(&self, project: &Name, name: &Name) -> Answer<Versioned<Snapshot>> {
        Ok(versioned(self.find_snapshot(project, name).await?))
    }

    async fn snapshot_create(
        &self,
        who: &Principal,
        project: &Name,
        request: SnapshotCreate,
    ) -> Answer<Operation> {
        let at = snapshots::object(project, &request.name);
        let checked = self.check_snapshot(project, &request).await;
        let vm = self
            .audited(who, "snapshot.create", &at, json!(request), checked)
            .await?;
        let begun = self.operations.begin("snapshot.create", &at, "beginning");
        let (operation, running) = begun.await?;
        let node = self.arc()?;
        tokio::spawn(async move {
            let taken = node.take_snapshot(&vm.id, &request, &running).await;
            running.end(&taken).await;
        });
        Ok(operation)
    }

    async fn snapshot_delete(&self, who: &Principal, project: &Name, name: &Name) -> Answer<()> {
        let deleted = self.delete_snapshot(project, name).await;
        let at = snapshots::object(project, name);
        if deleted.is_ok() {
            let message = format!("{name} is deleted");
            self.events.emit("snapshot.deleted", &at, message).await;
        }
        self.audited(who, "snapshot.delete", &at, json!({}), deleted)
            .await
    }

    async fn migration_list(
        &self,
        project: &Name,
        request: PageRequest,
    ) -> Answer<Page<Migration>> {
        let prefix = format!("{project}/");
        page(&self.records.migrations, &prefix, request, |f| f.value).await
    }

    async fn migration_get(&self, project: &Name, id: &str) -> Answer<Versioned<Migration>> {
        let prefix = format!("{project}/");
        let mut cursor = None;
        loop {
            let part = PageRequest { cursor, limit: 100 };
            let part = page(&self.records.migrations, &prefix, part, |found| found).await?;
            let mut found = part.items.into_iter();
            if let Some(found) = found.find(|found| found.value.id == id) {
                return Ok(versioned(found));
            }
            cursor = part.next_cursor;
            if cursor.is_none() {
                let what = format!("migration {id} in project {project}");
                return Err(Fault::not_found(what));
            }
        }
    }

    async fn migration_resolve(
        &self,
        who: &Principal,
        project: &Name,
        id: &str,
        fenced: &Name,
    ) -> Answer<Migration> {
        let at = format!("projects/{project}/migrations/{id}");
        let resolved = self.resolve_doubt(project, id, fenced).await;
        self.audited(
            who,
            "migration.resolve",
            &at,
            json!({ "fenced": fenced }),
            resolved,
        )
        .await?;
        Ok(self.migration_get(project, id).await?.value)
    }

    async fn operation_get(&self, id: &str) -> Answer<Operation> {
        self.operations.get(id).await
    }

    async fn operation_watch(&self, id: &str) -> Answer<RecordStream<Operation>> {
        self.operations.watch(id).await
    }

    async fn marketplace_list(&self, request: PageRequest) -> Answer<Page<MarketplaceItem>> {
        self.market_list(request).await
    }

    async fn marketplace_get(&self, reference: &str) -> Answer<MarketplaceItem> {
        self.market_get(reference).await
    }

    async fn plugin_list(&self, request: PageRequest) -> Answer<Page<Plugin>> {
        page(&self.records.plugins, "", request, |found| {
            self.with_usage(found.value)
        })
        .await
    }

    async fn plugin_get(&self, name: &str) -> Answer<Versioned<Plugin>> {
        let found = self.records.plugins.get(name).await.map_err(record)?;
        let found = found.ok_or_else(|| Fault::not_found(format!("plugin {name}")))?;
        let revision = found.revision.0;
        Ok(Versioned {
            value: self.with_usage(found.value),
            revision,
        })
    }

    async fn plugin_install(
        &self,
        who: &Principal,
        request: PluginInstall,
    ) -> Answer<MarketplaceItem> {
        let installed = self.install(&request).await;
        let at = format!("plugins/{}", request.reference);
        let detail = match &installed {
            Ok(item) => json!({ "digest": item.digest, "capabilities": item.capabilities }),
            Err(_) => json!(request),
        };
        let installed = self
            .audited(who, "plugin.install", &at, detail, installed)
            .await;
        if let Ok(item) = &installed {
            let message = format!("{} is installed", item.reference);
            self.events.emit("plugin.installed", &at, message).await;
        }
        installed
    }

    async fn plugin_remove(&self, who: &Principal, name: &str) -> Answer<()> {
        let removed = self.uninstall(name).await;
        let at = format!("plugins/{name}");
        self.audited(who, "plugin.remove", &at, json!({}), removed)
            .await
    }

    async fn template_list(&self, request: PageRequest) -> Answer<Page<Template>> {
        page(&self.records.templates, "", request, |found| found.value).await
    }

    async fn template_get(&self, name: &str) -> Answer<Versioned<Template>> {
        let found = self.records.templates.get(name).await.map_err(record)?;
        found
            .map(versioned)
            .ok_or_else(|| Fault::not_found(format!("template {name}: install it first")))
    }

    async fn policy_list(&self, request: PageRequest) -> Answer<Page<Policy>> {
        page(&self.records.policies, "", request, |found| found.value).await
    }

    async fn policy_get(&self, name: &Name) -> Answer<Versioned<Policy>> {
        let found = self.records.policies.get(name.as_str()).await;
        found
            .map_err(record)?
            .map(versioned)
            .ok_or_else(|| Fault::not_found(format!("policy {name}")))
    }

    async fn policy_apply(
        &self,
        who: &Principal,
        name: &Name,
        source: String,
    ) -> Answer<Versioned<Policy>> {
        let applied = self.policies.apply(self, name, source).await;
        let at = format!("policies/{name}");
        let detail = match &applied {
            Ok(policy) => json!({ "digest": policy.value.digest }),
            Err(_) => json!({}),
        };
        self.audited(who, "policy.apply", &at, detail, applied)
            .await
            .map(versioned)
    }

    async fn policy_remove(&self, who: &Principal, name: &Name) -> Answer<()> {
        let removed = self.policies.remove(self, name).await;
        let at = format!("policies/{name}");
        self.audited(who, "policy.remove", &at, json!({}), removed)
            .await
    }

    async fn binding_list(&self) -> Answer<Vec<Binding>> {
        let all = self.records.all(&self.records.bindings).await;
        Ok(all.map_err(record)?.into_iter().map(|f| f.value).collect())
    }

    async fn policy_bind(&self, who: &Principal, binding: Binding) -> Answer<Binding> {
        let done = self.policies.bind(self, &binding).await;
        let at = format!("policies/{}", binding.policy);
        self.audited(who, "policy.bind", &at, json!(binding), done)
            .await?;
        let message = format!("policy {} acts on {}", binding.policy, binding.action);
        self.events.emit("policy.bound", &at, message).await;
        Ok(binding)
    }

    async fn policy_unbind(&self, who: &Principal, policy: &Name, action: &str) -> Answer<()> {
        let done = self.policies.unbind(self, policy, action).await;
        let at = format!("policies/{policy}");
        self.audited(who, "policy.unbind", &at, json!({ "action": action }), done)
            .await
    }

    async fn decision_list(
        &self,
        subject: Option<&str>,
        request: PageRequest,
    ) -> Answer<Page<Decision>> {
        crate::decisions::list(&self.records, subject, request).await
    }

    async fn decision_get(&self, id: &str) -> Answer<Decision> {
        let found = crate::decisions::find(&self.records, id).await;
        found
            .map_err(record)?
            .ok_or_else(|| Fault::not_found(format!("decision {id}")))
    }

    async fn event_list(&self, after: u64, limit: usize) -> Answer<Page<Event>> {
        let (items, more) = self.events.list(after, limit).await?;
        let next_cursor = items
            .last()
            .map(|e| e.sequence.to_string())
            .filter(|_| more);
        Ok(Page { items, next_cursor })
    }

    async fn event_watch(&self, after: u64) -> Answer<RecordStream<Event>> {
        Ok(self.events.watch(after))
    }

    async fn audit_checkpoint(&self, _who: &Principal) -> Answer<AuditCheckpoint> {
        Ok(AuditCheckpoint {
            note: self.audit.checkpoint(),
            key: self.audit.verifier().to_string(),
        })
    }

    async fn audit_entries(
        &self,
        _who: &Principal,
        from: u64,
        limit: usize,
    ) -> Answer<Vec<AuditRecord>> {
        let log = self.audit.clone();
        let read = tokio::task::spawn_blocking(move || log.entries(from, limit)).await;
        let entries = read.map_err(internal)?.map_err(read_fault)?;
        Ok(entries
            .entries
            .into_iter()
            .map(|entry| AuditRecord {
                index: entry.index,
                entry: entry.text,
            })
            .collect())
    }

    async fn audit_consistency(&self, _who: &Principal, old: u64, new: u64) -> Answer<Vec<String>> {
        let log = self.audit.clone();
        let read = tokio::task::spawn_blocking(move || log.consistency_proof(old, new)).await;
        let hashes = read.map_err(internal)?.map_err(read_fault)?;
        Ok(hashes.iter().map(ToString::to_string).collect())
    }

    async fn audit_inclusion(
        &self,
        _who: &Principal,
        index: u64,
        size: u64,
    ) -> Answer<Vec<String>> {
        let log = self.audit.clone();
        let read = tokio::task::spawn_blocking(move || log.inclusion_proof(index, size)).await;
        let hashes = read.map_err(internal)?.map_err(read_fault)?;
        Ok(hashes.iter().map(ToString::to_string).collect())
    }

    async fn metrics(&self) -> String {
        crate::metrics::text(self).await
    }
}

fn read_fault(error: dwcp_audit::ReadError) -> Fault {
    match error {
        dwcp_audit::ReadError::BeyondEnd { .. } | dwcp_audit::ReadError::Invalid(_) => {
            invalid(error.to_string())
        }
        other => internal(other),
    }
}

fn remembered_key(who: &Principal, key: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(format!("{}\n{key}", who.name)))
}
