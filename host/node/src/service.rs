//! The API's trait, carried out: each operation checked, done, and in the audit log before it is answered.

use std::sync::Arc;

use async_trait::async_trait;
use dwcp_api::service::{
    Answer, ByteStream, Console, Page, PageRequest, RecordStream, Remembered, Versioned,
};
use dwcp_api::{Fault, FaultKind, Principal, Service};
use dwcp_audit::Outcome;
use dwcp_control::Name;
use dwcp_control::ownership::Ownership;
use dwcp_control::records::{
    AuditCheckpoint, AuditRecord, Binding, Decision, Desired, Event, Host, HostAdd, Image,
    MarketplaceItem, MigrateRequest, Migration, MigrationPhase, Operation, Plugin, PluginInstall,
    Policy, Side, Template, Vm, VmCreate, VmPhase,
};
use futures::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::create;
use crate::errors::{conflict, internal, invalid, record};
use crate::identity::{Came, Strangers};
use crate::node::Node;
use crate::outgoing::{self, Outgoing};
use crate::peers;
use crate::state::{Kept, now_ms, object, page, versioned};

/// How long answers are kept under an idempotency key, ms.
const REMEMBER_MS: u64 = 24 * 3600 * 1000;
/// Answers kept at most.
const REMEMBERED_MAX: usize = 10_000;

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
        self.this_host().await
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
                value: self.this_host().await?,
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
        let removed = async {
            let vms = self.vms().await?;
            for vm in vms {
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
        };
        let at = format!("hosts/{name}");
        let removed = removed.await;
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
        let stored = async {
            let image = self.images.put(label, expected.as_deref(), content).await?;
            let kept = self.records.images.put(&image.digest, &image).await;
            kept.map_err(record)?;
            Ok(image)
        };
        let stored = stored.await;
        let at = stored
            .as_ref()
            .map_or("images".into(), |i: &Image| format!("images/{}", i.digest));
        self.audited(who, "image.add", &at, json!({ "label": label }), stored)
            .await
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
        let detail = json!(request);
        let start = request.start;
        let created = create::create(self, who, project, request).await;
        let created = self.audited(who, "vm.create", &at, detail, created).await?;
        let message = format!("{} exists on {}", created.name, self.config.name);
        self.events.emit("vm.created", &at, message).await;
        let operation = if start {
            self.begin_start(&created).await?
        } else {
            let begun = self.operations.begin("vm.create", &at, "created").await?;
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
            self.records
                .change_vm(&vm.id, |vm| vm.desired = Desired::Running)
                .await
                .map_err(record)?;
            Ok(vm)
        };
        let at = object(project, name);
        let checked = checked.await;
        let vm = self
            .audited(who, "vm.start", &at, json!({}), checked)
            .await?;
        self.begin_start(&vm).await
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
            match vm.phase {
                VmPhase::Running | VmPhase::Starting => Ok(vm),
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
        let node = self.arc();
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

    async fn vm_console(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Console> {
        let vm = self.find_vm(project, name).await?.value;
        let at = object(project, name);
        let attached = self.vmm(&vm.id, |vmm| vmm.console()).await;
        let socket = self
            .audited(who, "vm.console", &at, json!({}), attached)
            .await?;
        socket.set_nonblocking(true).map_err(internal)?;
        let socket = tokio::net::UnixStream::from_std(socket).map_err(internal)?;
        Ok(console(socket))
    }

    async fn vm_log(&self, who: &Principal, project: &Name, name: &Name) -> Answer<ByteStream> {
        let vm = self.find_vm(project, name).await?.value;
        let path = self.vm_dir(&vm.id).join("serial.log");
        let opened = match tokio::fs::File::open(path).await {
            Ok(file) => Ok(pieces(file)),
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
        let Some(subject) = subject else {
            return page(&self.records.decisions, "", request, |found| found.value).await;
        };
        // Decisions are kept by time; of one subject they are few among a bounded number.
        let mut items = Vec::new();
        let mut cursor = request.cursor;
        loop {
            let part = PageRequest {
                cursor: cursor.clone(),
                limit: 500,
            };
            let found = page(&self.records.decisions, "", part, |f| (f.id, f.value)).await?;
            for (id, decision) in found.items {
                if decision.subject == subject {
                    items.push(decision);
                    if items.len() == request.limit {
                        return Ok(Page {
                            items,
                            next_cursor: Some(id),
                        });
                    }
                }
            }
            cursor = found.next_cursor;
            if cursor.is_none() {
                return Ok(Page {
                    items,
                    next_cursor: None,
                });
            }
        }
    }

    async fn decision_get(&self, id: &str) -> Answer<Decision> {
        let found = crate::decide::find(&self.records, id).await;
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

/// Both ways of a console. Dropping its output ends it, whatever the guest has not read by then.
fn console(socket: tokio::net::UnixStream) -> Console {
    let (reader, mut writer) = socket.into_split();
    let (input, mut typed) = tokio::sync::mpsc::channel::<bytes::Bytes>(64);
    let writing = tokio::spawn(async move {
        while let Some(bytes) = typed.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let writing = Ends(writing);
    let output = pieces(reader).map(move |piece| {
        let _writing = &writing;
        piece
    });
    Console {
        output: Box::pin(output),
        input,
    }
}

/// A task that ends when this is dropped.
struct Ends(tokio::task::JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is read, in pieces, as it comes.
fn pieces(reader: impl tokio::io::AsyncRead + Send + Unpin + 'static) -> ByteStream {
    Box::pin(futures::stream::unfold(reader, |mut reader| async move {
        let mut piece = vec![0; 64 << 10];
        match reader.read(&mut piece).await {
            Ok(0) => None,
            Ok(got) => {
                piece.truncate(got);
                Some((Ok(bytes::Bytes::from(piece)), reader))
            }
            Err(error) => Some((Err(error), reader)),
        }
    }))
}

impl Node {
    /// Notes requests of nobody known; one entry may stand for several.
    async fn audit_strangers(&self, what: &str, count: u64) {
        let detail = json!({ "why": what, "requests": count });
        let noted = self.audit("nobody", "api.authenticate", "api", Outcome::Denied, detail);
        // They are refused anyway; why it is not noted is in the daemon's log.
        let _ = noted.await;
    }

    async fn begin_start(&self, vm: &Vm) -> Answer<Operation> {
        let at = object(&vm.project, &vm.name);
        let (operation, running) = self.operations.begin("vm.start", &at, "starting").await?;
        let (node, id) = (self.arc(), vm.id.clone());
        tokio::spawn(async move {
            let started = node.start(&id).await.map(|()| "Running".to_owned());
            running.end(&started).await;
        });
        Ok(operation)
    }

    async fn delete_vm(
        &self,
        project: &Name,
        name: &Name,
        force: bool,
        if_match: Option<u64>,
    ) -> Answer<()> {
        let found = self.find_vm(project, name).await?;
        if if_match.is_some_and(|revision| revision != found.revision.0) {
            return Err(Fault::new(
                FaultKind::Changed,
                format!("{name} changed since you read it: read it again"),
            ));
        }
        match found.value.phase {
            VmPhase::Stopped | VmPhase::Crashed | VmPhase::Moved => {}
            VmPhase::Running | VmPhase::Starting if force => {}
            VmPhase::Running | VmPhase::Starting => {
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

    async fn delete_image(&self, digest: &str) -> Answer<()> {
        let found = self.records.images.get(digest).await.map_err(record)?;
        if found.is_none() {
            return Err(Fault::not_found(format!("image {digest}")));
        }
        let uses = |spec: &dwcp_control::records::VmSpec| {
            spec.kernel == digest || spec.initrd.as_deref() == Some(digest)
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
        self.records.images.delete(digest).await.map_err(record)?;
        self.images.delete(digest).await
    }

    async fn begin_migration(
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
        self.policies.check_migrate(who, &vm, &peer).await?;
        {
            // Whoever sets the phase has the migration: a second one finds it set.
            let life = self.life(&vm.id);
            let _life = life.lock().await;
            let now = self.find_vm(project, name).await?.value;
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
        let started = self.spawn_migration(vm, peer, request).await;
        if started.is_err() {
            // Nothing was begun: the keeper takes it back from "migrating".
            self.migration_ended(&id).await;
        }
        started
    }

    async fn spawn_migration(
        &self,
        vm: Vm,
        peer: crate::state::Peer,
        request: &MigrateRequest,
    ) -> Answer<Operation> {
        let id = uuid::Uuid::now_v7().to_string();
        let (from, to) = (self.config.name.clone(), peer.name.clone());
        let migration = outgoing::begin(id, &vm, from, to, Side::Source, vm.epoch);
        outgoing::save(self, &migration).await?;
        let at = object(&vm.project, &vm.name);
        let message = format!("preparing to send {} to {}", vm.name, peer.name);
        let (_, running) = self.operations.begin("vm.migrate", &at, &message).await?;
        running.show(&migration);
        let operation = self.operations.get(running.id()).await?;
        self.events.emit("migration.started", &at, message).await;
        let outgoing = Outgoing::new(
            self.arc(),
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

    async fn resolve_doubt(&self, project: &Name, id: &str, fenced: &Name) -> Answer<()> {
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

    fn with_usage(&self, mut plugin: Plugin) -> Plugin {
        (plugin.calls, plugin.faults) = self.decider.usage(&plugin.digest);
        plugin
    }

    /// Drops answers whose day is over, and the oldest beyond what is kept.
    async fn forget_answers(&self) -> Answer<()> {
        // Looked at now and then: a key's hash decides, so that no counter has to live anywhere.
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
    pub(crate) fn arc(&self) -> Arc<Self> {
        // The node is only ever made inside an `Arc` (`Node::open`), which holds this reference to itself.
        self.this
            .upgrade()
            .unwrap_or_else(|| unreachable!("a node that answers is alive"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn a_console_whose_reader_left_ends_though_the_guest_reads_nothing() {
        let (ours, mut guest) = tokio::net::UnixStream::pair().unwrap();
        let Console { output, input } = console(ours);
        let piece = bytes::Bytes::from(vec![0; 64 << 10]);
        // Until neither the socket nor the queue takes any more.
        let short = std::time::Duration::from_millis(200);
        while let Ok(sent) = tokio::time::timeout(short, input.send(piece.clone())).await {
            sent.unwrap();
        }
        drop(output);
        input.closed().await;
        let mut rest = Vec::new();
        guest.read_to_end(&mut rest).await.unwrap();
        assert!(!rest.is_empty());
    }
}
