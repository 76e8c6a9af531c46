//! A node: its parts, how it starts, and the small things that all of them do.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dwcp_api::Fault;
use dwcp_api::service::Answer;
use dwcp_audit::AuditLog;
use dwcp_control::Name;
use dwcp_control::ownership::{Forbidden, Ownership};
use dwcp_control::records::{Capacity, Host, Vm};
use dwcp_store::{RedbStore, Store, TypedError, Versioned};
use dwcp_vmm::client::VmmClient;

use crate::auditing;
use crate::capacity;
use crate::config::NodeConfig;
use crate::decide::Decider;
use crate::errors::{NodeError, chain, conflict, forbidden, internal, record, unavailable};
use crate::events::{Events, Operations};
use crate::identity::{FirstStart, HostKeys};
use crate::images::Images;
use crate::launcher::Launcher;
use crate::peers::{self, Heard};
use crate::policies::Policies;
use crate::restarts::Restarts;
use crate::shells::Shells;
use crate::state::Records;
use crate::transfer::Transfers;

/// One host, with everything it needs to carry out what is asked of it.
#[derive(Debug)]
pub struct Node {
    pub(crate) this: Weak<Self>,
    pub(crate) config: NodeConfig,
    pub(crate) keys: HostKeys,
    pub(crate) records: Records,
    pub(crate) events: Arc<Events>,
    pub(crate) operations: Arc<Operations>,
    pub(crate) launcher: Launcher,
    pub(crate) images: Images,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) decider: Decider,
    pub(crate) policies: Policies,
    pub(crate) transfers: Transfers,
    /// What the other hosts last said of themselves.
    pub(crate) heard: Mutex<HashMap<Name, Heard>>,
    /// Machines that a migration of this process is moving now, away or here: the keeper leaves them to it.
    migrating: Mutex<HashSet<String>>,
    /// Machines that were not brought to what the store says yet: the keeper goes on with them.
    pub(crate) unsettled: Mutex<HashSet<String>>,
    /// Held while a snapshot is written: the room that it takes is not free for another.
    pub(crate) snapshot_room: tokio::sync::Mutex<()>,
    /// How machines that are started again have ended lately.
    pub(crate) restarts: Mutex<HashMap<String, Restarts>>,
    /// Sessions that other hosts may open.
    pub(crate) sessions: Arc<tokio::sync::Semaphore>,
    /// Held while capacity is looked at and promised, so that two requests cannot be promised the same.
    pub(crate) promise: tokio::sync::Mutex<()>,
    /// Held while an image is looked into and recorded, or deleted: one reader at a time, and no file goes from under a
    /// record.
    pub(crate) image_changes: tokio::sync::Mutex<()>,
    /// Held, shared, while a machine is made to go on from a snapshot; alone while one is deleted.
    pub(crate) snapshot_uses: tokio::sync::RwLock<()>,
    /// Processes that wait to become forks.
    pub(crate) shells: Shells,
    /// Held while addresses are chosen, until the machine that gets them is recorded.
    pub(crate) addresses: tokio::sync::Mutex<()>,
    /// All that a guest can be told of its CPU here, once that is known.
    pub(crate) cpu: tokio::sync::OnceCell<dwcp_snapshot::Cpu>,
    /// Serialises starts, stops and ends of one machine.
    life: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// How long a request waits for what else is done with its machine.
const SOON: std::time::Duration = std::time::Duration::from_secs(10);
/// Longest part of what a process that serves a guest says that is passed on.
const WORDS_MAX: usize = 500;

/// What a process that serves a guest says, as it may stand in a record: the guest may have taken that over.
fn plain(words: &str) -> String {
    let printable = |letter: char| if letter.is_control() { ' ' } else { letter };
    words.chars().take(WORDS_MAX).map(printable).collect()
}

impl Node {
    /// Opens everything, finds again what was running, and begins to serve other hosts. What it returns beside the
    /// node is told once, at the first start.
    pub async fn open(config: NodeConfig) -> Result<(Arc<Self>, Option<FirstStart>), NodeError> {
        let state = |path: PathBuf| move |source| NodeError::State { path, source };
        std::fs::create_dir_all(&config.state_dir).map_err(state(config.state_dir.clone()))?;
        let (keys, first) = HostKeys::open(
            &config.dir("identity"),
            config.name.as_str(),
            config.api_listen.ip(),
        )?;
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(config.dir("store.redb"))?);
        let records = Records::new(store);
        let images = Images::open(config.dir("images")).map_err(state(config.dir("images")))?;
        std::fs::create_dir_all(config.dir("vms")).map_err(state(config.dir("vms")))?;
        let audit = auditing::open(&config, &keys)?;
        let launcher = Launcher::open(config.launch_socket.clone())
            .await
            .map_err(|source| NodeError::Launcher {
                path: config.launch_socket.clone(),
                source,
            })?;
        let decider = Decider::open(&config, records.clone()).await?;
        let policies = Policies::open(&decider, &records).await?;
        let events = Arc::new(Events::open(records.clone()).await?);
        let operations = Operations::open(records.clone()).await?;
        let node = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            events,
            operations,
            config,
            keys,
            records,
            launcher,
            images,
            audit,
            decider,
            policies,
            transfers: Transfers::default(),
            heard: Mutex::default(),
            migrating: Mutex::default(),
            unsettled: Mutex::default(),
            snapshot_room: tokio::sync::Mutex::new(()),
            restarts: Mutex::default(),
            sessions: Arc::new(tokio::sync::Semaphore::new(peers::SESSIONS_MAX)),
            promise: tokio::sync::Mutex::new(()),
            image_changes: tokio::sync::Mutex::new(()),
            snapshot_uses: tokio::sync::RwLock::new(()),
            shells: Shells::default(),
            addresses: tokio::sync::Mutex::new(()),
            cpu: tokio::sync::OnceCell::new(),
            life: Mutex::new(HashMap::new()),
        });
        // Exits are listened for before the launcher is asked who lives, so that none falls between.
        let exits = node.launcher.exits();
        if let Err(fault) = node.drop_unrecorded_images().await {
            tracing::error!("images are not looked through: {fault}");
        }
        if let Err(fault) = node.drop_unrecorded_snapshots().await {
            tracing::error!("snapshots are not looked through: {fault}");
        }
        node.adopt().await;
        node.refill_all().await;
        node.clone().follow_exits(exits);
        peers::listen(&node).await?;
        node.clone().keep();
        node.clone().watch_devices();
        peers::follow(node.clone());
        Ok((node, first))
    }

    /// The keys that the daemon needs: TLS for the API, the authority for its clients.
    pub fn keys(&self) -> &HostKeys {
        &self.keys
    }

    /// The directory of a machine.
    pub(crate) fn vm_dir(&self, id: &str) -> PathBuf {
        self.config.dir("vms").join(id)
    }

    /// The lock under which one machine is started, stopped or ended.
    pub(crate) fn life(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        if life.len() > 4096 {
            life.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        life.entry(id.to_owned()).or_default().clone()
    }

    /// The same for who cannot wait for long: something else that takes its time is told.
    pub(crate) async fn life_soon(&self, id: &str) -> Answer<tokio::sync::OwnedMutexGuard<()>> {
        let held = self.life(id).lock_owned();
        tokio::time::timeout(SOON, held).await.map_err(|_| {
            conflict(
                "Something that takes long is being done with the machine, such as a snapshot: try again when that has \
                 ended",
            )
        })
    }

    /// Holds a machine's life, found by its name; answers it as it is now that nobody else changes it.
    pub(crate) async fn hold(
        &self,
        project: &Name,
        name: &Name,
    ) -> Answer<(tokio::sync::OwnedMutexGuard<()>, Versioned<Vm>)> {
        let id = self.find_vm(project, name).await?.value.id;
        let life = self.life_soon(&id).await?;
        let found = self.find_vm(project, name).await?;
        if found.value.id != id {
            return Err(conflict(format!(
                "{name} was deleted and made anew meanwhile"
            )));
        }
        Ok((life, found))
    }

    /// What was done with a machine has failed half-way, perhaps: the keeper is to look after it.
    pub(crate) fn unsettle(&self, id: &str) {
        let unsettled = self.unsettled.lock();
        let mut unsettled = unsettled.unwrap_or_else(PoisonError::into_inner);
        unsettled.insert(id.to_owned());
    }

    /// A migration of this machine begins in this process, unless one is moving it already.
    pub(crate) fn migration_begins(&self, id: &str) -> Answer<()> {
        if self.migrating().insert(id.to_owned()) {
            Ok(())
        } else {
            Err(conflict(
                "A migration is moving that machine already: wait until it has ended",
            ))
        }
    }

    /// It has ended: what it left is brought to what the store says.
    pub(crate) async fn migration_ended(&self, id: &str) {
        self.migrating().remove(id);
        self.look_after(id).await;
    }

    /// Whether a migration of this process is moving this machine.
    pub(crate) fn is_migrating(&self, id: &str) -> bool {
        self.migrating().contains(id)
    }

    fn migrating(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.migrating
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the VMM of a machine, on a thread of the blocking pool.
    pub(crate) async fn vmm<T: Send + 'static>(
        &self,
        id: &str,
        ask: impl FnOnce(&mut VmmClient) -> Result<T, dwcp_vmm::client::ClientError> + Send + 'static,
    ) -> Answer<T> {
        let socket = self.vm_dir(id).join("vmm.sock");
        let asked = move || ask(&mut VmmClient::connect(socket)?);
        match tokio::task::spawn_blocking(asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(unavailable(format!(
                "The virtual machine monitor: {}",
                plain(&chain(&error))
            ))),
            Err(error) => Err(internal(error)),
        }
    }

    /// Whether the process of a machine is there: its socket lives exactly as long, and takes connections also when the
    /// process is too busy to answer.
    pub(crate) fn vmm_listens(&self, id: &str) -> bool {
        let socket = self.vm_dir(id).join("vmm.sock");
        let refused = |error: std::io::Error| {
            use std::io::ErrorKind;
            matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            )
        };
        !dwcp_vmm::client::connect(&socket).is_err_and(refused)
    }

    /// What this host durably knows of who owns a machine.
    pub(crate) async fn ownership(&self, id: &str) -> Answer<Option<Ownership>> {
        let found = self.records.ownership.get(id).await.map_err(record)?;
        Ok(found.map(|found| found.value))
    }

    /// Makes one step of the hand-over, durably: whoever changes the record first wins, and the other is told.
    pub(crate) async fn own(
        &self,
        id: &str,
        step: impl Fn(Option<&Ownership>) -> Result<Ownership, Forbidden>,
    ) -> Answer<Ownership> {
        loop {
            let found = self.records.ownership.get(id).await.map_err(record)?;
            let next = step(found.as_ref().map(|f| &f.value)).map_err(forbidden)?;
            let written = match &found {
                Some(found) if found.value == next => return Ok(next),
                Some(found) => {
                    self.records
                        .ownership
                        .update(id, &next, found.revision)
                        .await
                }
                None => self.records.ownership.create(id, &next).await,
            };
            match written {
                Ok(_) => return Ok(next),
                Err(TypedError::Conflict(_)) => {}
                Err(other) => return Err(record(other)),
            }
        }
    }

    /// What the other hosts last said of themselves, by name.
    pub(crate) fn heard(&self) -> Vec<(Name, Heard)> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = heard.iter().map(|(n, h)| (n.clone(), h.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// All machines that this host has a record of.
    pub(crate) async fn vms(&self) -> Answer<Vec<Vm>> {
        let all = self.records.all(&self.records.vms).await.map_err(record)?;
        Ok(all.into_iter().map(|found| found.value).collect())
    }

    /// What this host can hold and holds.
    pub(crate) async fn capacity(&self) -> Answer<Capacity> {
        let vms = self.vms().await?;
        let mut capacity = capacity::with(capacity::total(&self.config), &vms);
        capacity.memory_used_bytes += self.shells.bytes();
        Ok(capacity)
    }

    /// This host as the API shows it.
    pub(crate) async fn this_host(&self) -> Answer<Host> {
        Ok(Host {
            name: self.config.name.clone(),
            region: self.config.region.clone(),
            address: self.config.peer_listen.to_string(),
            fingerprint: self.keys.fingerprint(),
            this: true,
            reachable: true,
            problem: None,
            rtt_ms: None,
            capacity: Some(self.capacity().await?),
            cpu: None,
        })
    }

    /// The same, with its CPU, if that can be told.
    pub(crate) async fn this_host_whole(&self) -> Answer<Host> {
        let mut host = self.this_host().await?;
        match self.host_cpu().await {
            Ok(cpu) => host.cpu = Some(cpu),
            Err(fault) => tracing::warn!("what CPU guests can have is not known: {fault}"),
        }
        Ok(host)
    }

    /// Checks a name of a machine against the store.
    pub(crate) async fn find_vm(
        &self,
        project: &Name,
        name: &Name,
    ) -> Answer<dwcp_store::Versioned<Vm>> {
        let id = crate::state::vm_id(project, name);
        let found = self.records.vms.get(&id).await.map_err(record)?;
        found.ok_or_else(|| {
            Fault::not_found(format!(
                "virtual machine {name} in project {project} on {}",
                self.config.name
            ))
        })
    }
}
