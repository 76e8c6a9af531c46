//! What the API can do, as a trait: the routes call it, the node implements it, and tests put a small one in its place.

use std::collections::BTreeMap;
use std::pin::Pin;

use async_trait::async_trait;
use dwcp_control::names::Name;
use dwcp_control::records::{
    AuditCheckpoint, AuditRecord, Binding, Decision, DiskResize, Event, ForkRequest, Host, HostAdd,
    Image, MarketplaceItem, MemoryTarget, MigrateRequest, Migration, Operation, Plugin,
    PluginInstall, Policy, RestoreRequest, Snapshot, SnapshotCreate, Template, Vm, VmCreate,
    VmStats,
};
use futures::Stream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Bytes that come or go in pieces.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<bytes::Bytes>> + Send>>;
/// Records that come as they are made.
pub type RecordStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;
/// Answer of every operation.
pub type Answer<T> = Result<T, Fault>;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// What it is called in the audit log, such as `key:admin`.
    pub name: String,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What kind; it decides the HTTP status and the problem's `type`.
    pub kind: FaultKind,
    /// What happened and what to do about it, in a sentence.
    pub message: String,
    /// Single reasons, where there are several (a policy's denials, a template's problems).
    pub reasons: Vec<String>,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// 400: the request makes no sense.
    Invalid,
    /// 401: nobody known asks.
    Unauthenticated,
    /// 403: a policy denied it, with its reasons.
    Denied,
    /// 404: there is no such object.
    NotFound,
    /// 409: it exists already, or its state does not allow this now.
    Conflict,
    /// 412: it changed since the caller read it (`If-Match`).
    Changed,
    /// 413: it is too long.
    TooLarge,
    /// 422: it was understood and cannot be done (capacity, signature, capability).
    Impossible,
    /// 503: a part that is needed does not answer now; try again.
    Unavailable,
    /// 500: a fault of ours; the log has more.
    Internal,
}

impl Fault {
    /// A fault without single reasons.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            reasons: Vec::new(),
        }
    }

    /// 404, for an object that is named.
    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(FaultKind::NotFound, format!("There is no {what}"))
    }

    /// 500, with its cause.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Self::new(FaultKind::Internal, format!("The host failed: {cause}"))
    }
}

/// An object and the revision under which it was read (its `ETag`).
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned<T> {
    /// The object.
    pub value: T,
    /// Its revision.
    pub revision: u64,
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Where the page before ended; from the beginning if absent.
    pub cursor: Option<String>,
    /// Most objects, 1 to 1,000.
    pub limit: usize,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The objects.
    pub items: Vec<T>,
    /// Give this as `cursor` for the next part; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// An answer kept under an `Idempotency-Key`, so that a repeated request is answered and not repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// SHA-256 of method, path and body: the same key for another request is refused.
    pub request: String,
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: serde_json::Value,
    /// Headers that belong to the answer (`etag`, `location`), lower-case.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// A console: bytes of the guest's serial line, both ways.
pub struct Console {
    /// From the guest; what it printed before comes first.
    pub output: ByteStream,
    /// To the guest. Bounded; a full channel means that the guest does not read.
    pub input: tokio::sync::mpsc::Sender<bytes::Bytes>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

/// Everything that the API can do.
///
/// Mutations are durable (and in the audit log) before they are answered. Operations that go on afterwards return an
/// [`Operation`]. Lists are in the order of their cursor.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Who an API key belongs to; `None` if nobody.
    async fn authenticate(&self, api_key: &str) -> Option<Principal>;
    /// Told of every request that is refused because nobody known asks; `what` says what was wrong with it. It is
    /// answered when this returns. Such requests cost their sender nothing, so they may be counted and noted together.
    async fn denied(&self, what: &str);
    /// The answer kept under an idempotency key of this principal.
    async fn recall(&self, who: &Principal, key: &str) -> Answer<Option<Remembered>>;
    /// Keeps an answer under an idempotency key, for a day.
    async fn remember(&self, who: &Principal, key: &str, answer: Remembered) -> Answer<()>;

    /// This host.
    async fn host_this(&self) -> Answer<Host>;
    /// This host and those it was introduced to.
    async fn host_list(&self, page: PageRequest) -> Answer<Page<Host>>;
    /// One of them.
    async fn host_get(&self, name: &Name) -> Answer<Versioned<Host>>;
    /// Introduces one; answers once it was reached and its fingerprint checked, or says that it was not.
    async fn host_add(&self, who: &Principal, host: HostAdd) -> Answer<Versioned<Host>>;
    /// Forgets one.
    async fn host_remove(&self, who: &Principal, name: &Name) -> Answer<()>;

    /// Stores content; the same content is stored once. `expected` is a digest to check it against.
    async fn image_put(
        &self,
        who: &Principal,
        label: &str,
        expected: Option<String>,
        content: ByteStream,
    ) -> Answer<Image>;
    /// Stored content.
    async fn image_list(&self, page: PageRequest) -> Answer<Page<Image>>;
    /// One, by digest.
    async fn image_get(&self, digest: &str) -> Answer<Versioned<Image>>;
    /// Deletes one; refused while a machine or template uses it.
    async fn image_delete(&self, who: &Principal, digest: &str) -> Answer<()>;

    /// Machines of a project.
    async fn vm_list(&self, project: &Name, page: PageRequest) -> Answer<Page<Vm>>;
    /// One, by name.
    async fn vm_get(&self, project: &Name, name: &Name) -> Answer<Versioned<Vm>>;
    /// Creates one: template expanded, policies asked, host chosen, capacity reserved; then started if wanted.
    async fn vm_create(
        &self,
        who: &Principal,
        project: &Name,
        request: VmCreate,
    ) -> Answer<(Versioned<Vm>, Operation)>;
    /// Starts one.
    async fn vm_start(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation>;
    /// Stops one: by the power button, or at once if `force`.
    async fn vm_stop(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        force: bool,
    ) -> Answer<Operation>;
    /// Deletes one that does not run (or runs, if `force`). `if_match` is the revision that the caller read.
    async fn vm_delete(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        force: bool,
        if_match: Option<u64>,
    ) -> Answer<()>;
    /// Stops its virtual CPUs until it is resumed.
    async fn vm_pause(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation>;
    /// Lets one that is paused go on.
    async fn vm_resume(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation>;
    /// Ends its process and starts it anew, as a reset button does.
    async fn vm_reset(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Operation>;
    /// What it has done since it was started.
    async fn vm_stats(&self, project: &Name, name: &Name) -> Answer<VmStats>;
    /// Asks its guest to make do with less memory, or gives it back.
    async fn vm_memory(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        target: MemoryTarget,
    ) -> Answer<Versioned<Vm>>;
    /// Makes one of its disks longer, whether it runs or not.
    async fn vm_disk_resize(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        disk: &str,
        resize: DiskResize,
    ) -> Answer<Versioned<Vm>>;
    /// Connects to a port that a program in its guest listens on (vsock).
    async fn vm_connect(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        port: u32,
    ) -> Answer<Console>;
    /// Attaches to its console.
    async fn vm_console(&self, who: &Principal, project: &Name, name: &Name) -> Answer<Console>;
    /// What it printed on its serial line (the last part is kept).
    async fn vm_log(&self, who: &Principal, project: &Name, name: &Name) -> Answer<ByteStream>;
    /// Moves it to another host while it runs. The operation carries the migration.
    async fn vm_migrate(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: MigrateRequest,
    ) -> Answer<Operation>;

    /// Lets one that does not run go on from a snapshot of it.
    async fn vm_restore(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: RestoreRequest,
    ) -> Answer<Operation>;

    /// Makes forks of a template, or of one that becomes a template by it; the operation starts them.
    async fn vm_fork(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: ForkRequest,
    ) -> Answer<(Vec<Vm>, Operation)>;

    /// Snapshots of a project.
    async fn snapshot_list(&self, project: &Name, page: PageRequest) -> Answer<Page<Snapshot>>;
    /// One, by name.
    async fn snapshot_get(&self, project: &Name, name: &Name) -> Answer<Versioned<Snapshot>>;
    /// Takes one of a running machine; it exists when the operation is done.
    async fn snapshot_create(
        &self,
        who: &Principal,
        project: &Name,
        request: SnapshotCreate,
    ) -> Answer<Operation>;
    /// Deletes one; refused while disks stand on it.
    async fn snapshot_delete(&self, who: &Principal, project: &Name, name: &Name) -> Answer<()>;

    /// Migrations from and to this host, of a project, newest first.
    async fn migration_list(&self, project: &Name, page: PageRequest) -> Answer<Page<Migration>>;
    /// One.
    async fn migration_get(&self, project: &Name, id: &str) -> Answer<Versioned<Migration>>;
    /// Ends a doubt by hand: `fenced` names the host that will never run the machine under this epoch.
    async fn migration_resolve(
        &self,
        who: &Principal,
        project: &Name,
        id: &str,
        fenced: &Name,
    ) -> Answer<Migration>;

    /// One operation.
    async fn operation_get(&self, id: &str) -> Answer<Operation>;
    /// Its states as they change, the current one first, until it ends.
    async fn operation_watch(&self, id: &str) -> Answer<RecordStream<Operation>>;

    /// What the configured marketplace holds.
    async fn marketplace_list(&self, page: PageRequest) -> Answer<Page<MarketplaceItem>>;
    /// One artifact of it, by `publisher/name[@version]`.
    async fn marketplace_get(&self, reference: &str) -> Answer<MarketplaceItem>;
    /// Installed plugins.
    async fn plugin_list(&self, page: PageRequest) -> Answer<Page<Plugin>>;
    /// One, by `publisher/name`.
    async fn plugin_get(&self, name: &str) -> Answer<Versioned<Plugin>>;
    /// Installs a plugin or a template, signature checked, capabilities granted.
    async fn plugin_install(
        &self,
        who: &Principal,
        request: PluginInstall,
    ) -> Answer<MarketplaceItem>;
    /// Removes one (a plugin or a template).
    async fn plugin_remove(&self, who: &Principal, name: &str) -> Answer<()>;

    /// Installed templates.
    async fn template_list(&self, page: PageRequest) -> Answer<Page<Template>>;
    /// One, by `publisher/name`.
    async fn template_get(&self, name: &str) -> Answer<Versioned<Template>>;

    /// Policies.
    async fn policy_list(&self, page: PageRequest) -> Answer<Page<Policy>>;
    /// One, by name.
    async fn policy_get(&self, name: &Name) -> Answer<Versioned<Policy>>;
    /// Stores a policy, or a new version of it; a broken one is refused while the old one stays in force.
    async fn policy_apply(
        &self,
        who: &Principal,
        name: &Name,
        source: String,
    ) -> Answer<Versioned<Policy>>;
    /// Removes one; refused while it is bound.
    async fn policy_remove(&self, who: &Principal, name: &Name) -> Answer<()>;
    /// Where policies act.
    async fn binding_list(&self) -> Answer<Vec<Binding>>;
    /// Binds one: from the next request on it is asked.
    async fn policy_bind(&self, who: &Principal, binding: Binding) -> Answer<Binding>;
    /// Unbinds it from an action.
    async fn policy_unbind(&self, who: &Principal, policy: &Name, action: &str) -> Answer<()>;

    /// Recorded decisions, newest first; of one subject (an object path) if given.
    async fn decision_list(
        &self,
        subject: Option<&str>,
        page: PageRequest,
    ) -> Answer<Page<Decision>>;
    /// One, by its identity.
    async fn decision_get(&self, id: &str) -> Answer<Decision>;
    /// Events after a sequence number, oldest first; the cursor is the last one's sequence number, in decimal.
    async fn event_list(&self, after: u64, limit: usize) -> Answer<Page<Event>>;
    /// Events after a sequence number, as they happen.
    async fn event_watch(&self, after: u64) -> Answer<RecordStream<Event>>;

    /// The newest signed checkpoint, and the key to check it with.
    async fn audit_checkpoint(&self, who: &Principal) -> Answer<AuditCheckpoint>;
    /// Entries from an index on.
    async fn audit_entries(
        &self,
        who: &Principal,
        from: u64,
        limit: usize,
    ) -> Answer<Vec<AuditRecord>>;
    /// Consistency proof between two sizes, hashes in base64.
    async fn audit_consistency(&self, who: &Principal, old: u64, new: u64) -> Answer<Vec<String>>;
    /// Inclusion proof of an entry in a tree of a size, hashes in base64.
    async fn audit_inclusion(&self, who: &Principal, index: u64, size: u64) -> Answer<Vec<String>>;

    /// Measurements in the Prometheus text format.
    async fn metrics(&self) -> String;
}
