//! Where each kind of record lies in the store, and the few reads and writes that several rooms share.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_api::service::{Answer, Page, PageRequest, Remembered};
use dwcp_api::{Fault, service};
use dwcp_control::names::Name;
use dwcp_control::ownership::Ownership;
use dwcp_control::records::{
    Binding, Decision, Event, Host, Image, Migration, Operation, Plugin, Policy, Snapshot,
    Template, Vm,
};
use dwcp_store::{Store, Typed, TypedError, Versioned};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::cards::KeptNetwork;
use crate::errors::record;

/// Milliseconds since the Unix epoch, now.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

/// A key that sorts newest first.
pub(crate) fn newest_first(time_ms: u64, id: &str) -> String {
    format!("{:016x}-{id}", u64::MAX - time_ms)
}

/// A peer as it was introduced.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub name: Name,
    pub address: std::net::SocketAddr,
    pub fingerprint: String,
    /// As last heard.
    pub region: Name,
}

/// Which machine an id is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VmKey {
    pub project: Name,
    pub name: Name,
}

impl VmKey {
    pub(crate) fn id(&self) -> String {
        vm_id(&self.project, &self.name)
    }

    /// How events, decisions and the audit log name it.
    pub(crate) fn object(&self) -> String {
        object(&self.project, &self.name)
    }
}

/// The key of a machine's record.
pub(crate) fn vm_id(project: &Name, name: &Name) -> String {
    format!("{project}/{name}")
}

/// How events, decisions and the audit log name a machine.
pub(crate) fn object(project: &Name, name: &Name) -> String {
    format!("projects/{project}/vms/{name}")
}

/// All records of a host.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    pub store: Arc<dyn Store>,
    pub vms: Typed<Vm>,
    pub vm_keys: Typed<VmKey>,
    pub ownership: Typed<Ownership>,
    pub snapshots: Typed<Snapshot>,
    pub images: Typed<Image>,
    pub networks: Typed<KeptNetwork>,
    pub peers: Typed<Peer>,
    pub migrations: Typed<Migration>,
    pub operations: Typed<Operation>,
    pub plugins: Typed<Plugin>,
    pub templates: Typed<Template>,
    pub policies: Typed<Policy>,
    pub bindings: Typed<Binding>,
    pub decisions: Typed<Decision>,
    pub events: Typed<Event>,
    pub remembered: Typed<Kept>,
}

/// An answer kept under an idempotency key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub time_ms: u64,
    pub answer: Remembered,
}

impl Records {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            vms: Typed::new(store.clone(), "vm/"),
            vm_keys: Typed::new(store.clone(), "vm-id/"),
            ownership: Typed::new(store.clone(), "ownership/"),
            snapshots: Typed::new(store.clone(), "snapshot/"),
            images: Typed::new(store.clone(), "image/"),
            networks: Typed::new(store.clone(), "network/"),
            peers: Typed::new(store.clone(), "peer/"),
            migrations: Typed::new(store.clone(), "migration/"),
            operations: Typed::new(store.clone(), "operation/"),
            plugins: Typed::new(store.clone(), "plugin/"),
            templates: Typed::new(store.clone(), "template/"),
            policies: Typed::new(store.clone(), "policy/"),
            bindings: Typed::new(store.clone(), "binding/"),
            decisions: Typed::new(store.clone(), "decision/"),
            events: Typed::new(store.clone(), "event/"),
            remembered: Typed::new(store.clone(), "idempotency/"),
            store,
        }
    }

    /// A machine by its id, if this host knows it.
    pub(crate) async fn vm_by_id(&self, id: &str) -> Result<Option<Vm>, TypedError> {
        let Some(key) = self.vm_keys.get(id).await? else {
            return Ok(None);
        };
        let vm = self.vms.get(&key.value.id()).await?;
        Ok(vm.map(|v| v.value).filter(|vm| vm.id == id))
    }

    /// All of one kind. For the few kinds whose number is bounded by what a host can hold.
    pub(crate) async fn all<T: Serialize + DeserializeOwned>(
        &self,
        kind: &Typed<T>,
    ) -> Result<Vec<Versioned<T>>, TypedError> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = kind.list(after.as_deref(), 500, None).await?;
            after = page.records.last().map(|r| r.id.clone());
            all.extend(page.records);
            if !page.more || after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Changes a machine's record, whatever else changes it meanwhile.
    pub(crate) async fn change_vm(
        &self,
        id: &str,
        change: impl Fn(&mut Vm),
    ) -> Result<Option<Vm>, TypedError> {
        loop {
            let Some(key) = self.vm_keys.get(id).await? else {
                return Ok(None);
            };
            let Some(found) = self.vms.get(&key.value.id()).await? else {
                return Ok(None);
            };
            let mut vm = found.value;
            if vm.id != id {
                return Ok(None);
            }
            change(&mut vm);
            match self.vms.update(&found.id, &vm, found.revision).await {
                Ok(_) => return Ok(Some(vm)),
                Err(TypedError::Conflict(_)) => {}
                Err(other) => return Err(other),
            }
        }
    }
}

/// A page of a list whose keys begin with `prefix`, as an answer of the API.
pub(crate) async fn page<T, U>(
    kind: &Typed<T>,
    prefix: &str,
    request: PageRequest,
    show: impl Fn(Versioned<T>) -> U,
) -> Answer<Page<U>>
where
    T: Serialize + DeserializeOwned,
{
    // `~` is above every character of a name, so that a prefix's first page begins right before its first key.
    let start = match &request.cursor {
        Some(cursor) if cursor.starts_with(prefix) => cursor.clone(),
        Some(_) => {
            return Err(Fault::new(
                service_kind_invalid(),
                "The cursor is not of this list: begin without one",
            ));
        }
        None => prefix.to_owned(),
    };
    let after = (!start.is_empty()).then_some(start.as_str());
    let page = kind
        .list(after, request.limit, None)
        .await
        .map_err(record)?;
    let mut more = page.more;
    let mut items = Vec::new();
    let mut last = None;
    for found in page.records {
        if !found.id.starts_with(prefix) {
            more = false;
            break;
        }
        last = Some(found.id.clone());
        items.push(show(found));
    }
    Ok(Page {
        items,
        next_cursor: last.filter(|_| more),
    })
}

fn service_kind_invalid() -> dwcp_api::FaultKind {
    dwcp_api::FaultKind::Invalid
}

/// A record with its revision, as an answer of the API.
pub(crate) fn versioned<T>(found: Versioned<T>) -> service::Versioned<T> {
    service::Versioned {
        value: found.value,
        revision: found.revision.0,
    }
}

/// A peer as the API shows it before it was asked how it is.
pub(crate) fn peer_host(peer: &Peer) -> Host {
    Host {
        name: peer.name.clone(),
        region: peer.region.clone(),
        address: peer.address.to_string(),
        fingerprint: peer.fingerprint.clone(),
        this: false,
        reachable: false,
        problem: None,
        rtt_ms: None,
        capacity: None,
        cpu: None,
    }
}
