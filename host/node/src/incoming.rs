//! Receiving a machine: everything that could refuse it is settled first; it runs here only when all of it is here, the
//! commit has come, and "owned" is durable. See [`crate::outgoing`] for the exchange.
//!
//! A session that ends before that is a refusal: it is made durable, so that the source, when it asks, may run the
//! machine again.

use std::sync::Arc;
use std::time::Instant;

use dwcp_api::Fault;
use dwcp_api::Principal;
use dwcp_api::service::Answer;
use dwcp_control::ownership::{Outcome, Ownership};
use dwcp_control::records::{Migration, MigrationPhase, Side, Vm, VmPhase};
use dwcp_migrate::protocol::{Bytes, Event, MoverConfig};
use dwcp_store::{Compare, Txn};
use dwcp_vmm::config::Boot;
use dwcp_wire::tls::Fingerprint;
use futures::StreamExt;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::capacity;
use crate::errors::{chain, conflict, impossible, internal, record, unavailable};
use crate::images::IMAGE_BYTES_MAX;
use crate::node::Node;
use crate::outgoing::{begin, save};
use crate::peers::{IDLE, refused};
use crate::protocol::{Ask, Offer, Reply, SessionError, receive, send};
use crate::state::{Peer, VmKey, now_ms, object};
use crate::steps::step;
use crate::transfer::{IDLE_MS, Mover};

/// A machine that is being received.
struct Incoming {
    node: Arc<Node>,
    vm: Vm,
    offer: Offer,
    migration: Migration,
    /// Certificate and key made for this transfer.
    identity: (Vec<u8>, Vec<u8>),
    mover: Option<Mover>,
}

/// Serves the session on which a machine was offered, to its end.
pub(crate) async fn serve(
    node: &Arc<Node>,
    peer: &Peer,
    offer: Offer,
    mut stream: TlsStream<TcpStream>,
) -> Result<(), SessionError> {
    let mut incoming = match Incoming::accept(node, peer, offer).await {
        Ok(incoming) => incoming,
        Err(fault) => return send(&mut stream, &refused(&fault)).await,
    };
    let result = incoming.receive(&mut stream).await;
    if let Some(mover) = incoming.mover.take() {
        mover.end(node).await;
    }
    node.migration_ended(&incoming.vm.id).await;
    match result {
        Ok(()) => Ok(()),
        Err(fault) => {
            let outcome = incoming.give_up(&fault).await;
            // The source learns it now if it still listens, and when it asks otherwise.
            let reply = match outcome {
                Some(outcome) => Reply::Outcome {
                    epoch: incoming.migration.epoch,
                    outcome,
                },
                None => refused(&fault),
            };
            send(&mut stream, &reply).await
        }
    }
}

impl Incoming {
    /// Asks everything that could refuse, then agrees durably.
    async fn accept(node: &Arc<Node>, peer: &Peer, offer: Offer) -> Answer<Self> {
        crate::peers::check_id(&offer.vm.id)?;
        crate::peers::check_id(&offer.migration)?;
        let at = object(&offer.vm.project, &offer.vm.name);
        let who = Principal {
            name: format!("host:{}", peer.name),
        };
        let detail = serde_json::json!({ "vm": offer.vm.id, "migration": offer.migration });
        let id = offer.vm.id.clone();
        let accepted = match node.migration_begins(&id) {
            Ok(()) => {
                let accepted = Self::try_accept(node, peer, offer).await;
                if accepted.is_err() {
                    node.migration_ended(&id).await;
                }
                accepted
            }
            Err(fault) => Err(fault),
        };
        node.audited(&who, "vm.receive", &at, detail, accepted)
            .await
    }

    async fn try_accept(node: &Arc<Node>, peer: &Peer, offer: Offer) -> Answer<Self> {
        let mut vm = offer.vm.clone();
        crate::vms::check(&vm.spec)?;
        if let Some(why) = crate::hardware::bound(&vm.spec) {
            return Err(impossible(format!("{} cannot come here: {why}", vm.name)));
        }
        if !(1..=dwcp_migrate::protocol::STREAMS_MAX).contains(&offer.streams) {
            return Err(crate::errors::invalid("A transfer has 1 to 64 streams"));
        }
        node.check_guest_cpu(&offer.cpu).await?;
        // Its next boot is told the whole baseline.
        node.check_baseline(vm.spec.cpu).await?;
        let warnings = node.policies.check_receive(&vm, peer).await?;
        let found = node.records.ownership.get(&vm.id).await.map_err(record)?;
        let held = found.as_ref().map(|found| &found.value);
        let epoch = Ownership::next_epoch(held, offer.epoch).map_err(crate::errors::forbidden)?;
        let expecting = Ownership::expect(held, epoch, peer.name.clone(), offer.migration.clone())
            .map_err(crate::errors::forbidden)?;
        vm.phase = VmPhase::Incoming;
        vm.reason = format!("it comes from {}", peer.name);
        vm.host = node.config.name.clone();
        vm.epoch = epoch;
        vm.started_ms = 0;
        // It comes as it runs, whatever it once went on from.
        vm.origin = None;
        let unchanged = match &found {
            Some(found) => Compare::unchanged(node.records.ownership.key(&vm.id), found.revision),
            None => Compare::absent(node.records.ownership.key(&vm.id)),
        };
        promise(node, &vm, &expecting, unchanged).await?;
        let at = object(&vm.project, &vm.name);
        node.warned("vm.receive", &at, &warnings).await;
        let migration = begin(
            offer.migration.clone(),
            &vm,
            peer.name.clone(),
            node.config.name.clone(),
            Side::Destination,
            epoch,
        );
        save(node, &migration).await?;
        let identity = crate::identity::transfer_identity().map_err(internal)?;
        step("destination.accepted").await;
        Ok(Self {
            node: node.clone(),
            vm,
            offer,
            migration,
            identity,
            mover: None,
        })
    }

    async fn receive(&mut self, stream: &mut TlsStream<TcpStream>) -> Answer<()> {
        let accepted = Reply::Accepted {
            epoch: self.migration.epoch,
            certificate_sha256: Fingerprint::of(&self.identity.0).to_string(),
            missing: self.missing(),
        };
        send(stream, &accepted).await.map_err(broken)?;
        loop {
            let ask = tokio::time::timeout(IDLE, receive(stream)).await;
            match ask
                .map_err(|_| broken(SessionError::Deadline))?
                .map_err(broken)?
            {
                Ask::Image {
                    digest,
                    label,
                    size_bytes,
                } => self.image(stream, &digest, &label, size_bytes).await?,
                Ask::Prepare => break,
                Ask::Abort { reason } => return Err(unavailable(reason)),
                _ => return Err(broken(SessionError::Unexpected)),
            }
        }
        self.prepare().await?;
        step("destination.prepared").await;
        send(stream, &Reply::Done).await.map_err(broken)?;
        self.until_taken(stream).await
    }

    fn missing(&self) -> Vec<String> {
        let images = std::iter::once(&self.vm.spec.kernel).chain(&self.vm.spec.initrd);
        images
            .filter(|digest| !self.node.images.has(digest))
            .cloned()
            .collect()
    }

    async fn image(
        &self,
        stream: &mut TlsStream<TcpStream>,
        digest: &str,
        label: &str,
        size_bytes: u64,
    ) -> Answer<()> {
        if !self.missing().iter().any(|wanted| wanted == digest) || size_bytes > IMAGE_BYTES_MAX {
            return Err(broken(SessionError::Unexpected));
        }
        // The content is read through a channel, so that storing it does not borrow the session.
        let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<bytes::Bytes>>(4);
        let content = Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver).fuse());
        let reading = async {
            let mut left = size_bytes;
            let mut piece = vec![0; 256 << 10];
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                let read = tokio::time::timeout(IDLE, stream.read(&mut piece[..want])).await;
                let got =
                    read.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
                if got == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                left -= got as u64;
                let piece = bytes::Bytes::copy_from_slice(&piece[..got]);
                if sender.send(Ok(piece)).await.is_err() {
                    return Err(std::io::Error::other("the content was refused"));
                }
            }
            drop(sender);
            Ok(())
        };
        let storing = self.node.images.put(label, Some(digest), content);
        let (read, stored) = tokio::join!(reading, storing);
        let image = stored?;
        read.map_err(|error: std::io::Error| broken(error.into()))?;
        self.node.record_image(&image).await?;
        send(stream, &Reply::Done).await.map_err(broken)
    }

    /// Makes the process that waits for the machine, and the mover that fills its memory.
    async fn prepare(&mut self) -> Answer<()> {
        self.node
            .spawn_vmm(&self.vm, Boot::Incoming, Vec::new())
            .await?;
        let config = MoverConfig {
            transfer: self.offer.transfer,
            side: dwcp_migrate::protocol::Side::Destination,
            memory_bytes: self.vm.spec.memory_bytes,
            hosts: Vec::new(),
            certificate: Bytes(self.identity.0.clone()),
            key: Bytes(self.identity.1.clone()),
            peer_sha256: self.offer.certificate_sha256.parse().map_err(internal)?,
            streams: self.offer.streams,
            idle_timeout_ms: IDLE_MS,
        };
        let mover = Mover::start(&self.node, &self.migration.id, &self.vm.id, config).await?;
        self.mover = Some(mover);
        self.migration.phase = MigrationPhase::Copying;
        save(&self.node, &self.migration).await
    }

    /// Waits for the last of the data and for the commit, in whichever order they come, and takes the machine.
    async fn until_taken(&mut self, stream: &mut TlsStream<TcpStream>) -> Answer<()> {
        let (mut loaded, mut committed) = (false, None);
        let (mut reader, mut writer) = tokio::io::split(stream);
        // Read in a task's place: a message half read must not be dropped when the mover speaks first.
        let commit = receive::<Ask>(&mut reader);
        tokio::pin!(commit);
        // The commit comes right behind the last data; a source that never sends it is refused, and may ask.
        let patience = tokio::time::sleep(IDLE);
        tokio::pin!(patience);
        while !(loaded && committed.is_some()) {
            let Some(mover) = self.mover.as_mut() else {
                return Err(unavailable("The mover is gone"));
            };
            tokio::select! {
                () = &mut patience, if loaded => return Err(broken(SessionError::Deadline)),
                said = &mut commit, if committed.is_none() => match said.map_err(broken)? {
                    Ask::Commit { epoch } if epoch == self.migration.epoch => {
                        committed = Some(Instant::now());
                        step("destination.committed").await;
                    }
                    Ask::Abort { reason } => return Err(unavailable(reason)),
                    _ => return Err(broken(SessionError::Unexpected)),
                },
                said = mover.next(), if !loaded => match said? {
                    (Event::Progress(progress), _) => {
                        let shown = &mut self.migration.progress;
                        shown.pages_sent = progress.pages_sent;
                        shown.pages_total = progress.pages_total;
                        shown.wire_bytes = progress.wire_bytes;
                        shown.rate_bytes_per_s = progress.rate_bytes_per_s as f64;
                    }
                    (Event::Complete(complete), Some(state)) => {
                        self.migration.progress.wire_bytes = complete.wire_bytes;
                        step("destination.complete").await;
                        self.node
                            .vmm(&self.vm.id, move |vmm| {
                                use std::os::fd::AsFd;
                                vmm.load(state.as_fd())
                            })
                            .await?;
                        loaded = true;
                        patience.as_mut().reset(tokio::time::Instant::now() + IDLE);
                    }
                    (other, _) => return Err(unavailable(format!("The mover said {other:?}"))),
                },
            }
        }
        {
            // Whoever deals with the end of its process, or answers what became of it, waits until its record says that
            // it runs: "taken" is told to nobody while it may still turn out that it never ran.
            let life = self.node.life(&self.vm.id);
            let _life = life.lock().await;
            self.take().await?;
            self.node
                .now_running(&self.vm, self.migration.epoch)
                .await?;
        }
        self.migration.progress.pause_ms = committed.map(|at| at.elapsed().as_secs_f64() * 1000.0);
        let took = Reply::Took {
            epoch: self.migration.epoch,
        };
        // A source that does not hear this asks; the answer is durable.
        let _ = send(&mut writer, &took).await;
        self.taken().await
    }

    /// "Owned" becomes durable, and then the guest runs.
    async fn take(&self) -> Answer<()> {
        let (epoch, by) = (self.migration.epoch, &self.migration.id);
        let before = self.node.ownership(&self.vm.id).await?;
        let before = before.map_or(0, |held| held.took());
        // The process that holds the machine must be there before the source's copy is worth nothing.
        self.node.vmm(&self.vm.id, |vmm| vmm.status()).await?;
        self.node
            .own(&self.vm.id, |held| match held {
                Some(held) => held.take(epoch, by),
                None => Ownership::Refused { next: 0, took: 0 }.take(epoch, by),
            })
            .await?;
        step("destination.took").await;
        if let Err(fault) = self.node.vmm(&self.vm.id, |vmm| vmm.status()).await {
            // It ended before it was ever told to run, and the source was told nothing: the source's copy is the one.
            self.node
                .own(&self.vm.id, |held| match held {
                    Some(held) => held.never_ran(epoch, before),
                    None => Ownership::Refused { next: 0, took: 0 }.never_ran(epoch, before),
                })
                .await?;
            return Err(fault);
        }
        self.node.vmm(&self.vm.id, move |vmm| vmm.run(epoch)).await
    }

    async fn taken(&mut self) -> Answer<()> {
        self.migration.phase = MigrationPhase::Done;
        self.migration.ended_ms = Some(now_ms());
        save(&self.node, &self.migration).await?;
        step("destination.running").await;
        let at = object(&self.vm.project, &self.vm.name);
        let message = format!(
            "{} came from {} and runs here under epoch {}",
            self.vm.name, self.migration.from, self.migration.epoch
        );
        self.node.events.emit("vm.arrived", &at, message).await;
        Ok(())
    }

    /// Refuses durably and cleans up, unless the machine was taken after all.
    async fn give_up(&mut self, fault: &Fault) -> Option<Outcome> {
        let epoch = self.migration.epoch;
        let refusing = self
            .node
            .own(&self.vm.id, |held| Ownership::refuse(held, epoch))
            .await;
        let held = self.node.ownership(&self.vm.id).await.ok()?;
        let outcome = Ownership::outcome(held.as_ref(), epoch);
        match outcome {
            Outcome::Took => {
                // It is ours, and something failed after that: the keeper brings it to what the store says.
                tracing::warn!("{} was taken, and then: {fault}", self.vm.name);
            }
            _ => {
                self.migration.phase = MigrationPhase::Failed;
                self.migration.reason.clone_from(&fault.message);
                self.migration.ended_ms = Some(now_ms());
                if let Err(fault) = save(&self.node, &self.migration).await {
                    tracing::error!("the end of a migration is not stored: {fault}");
                }
                forget(&self.node, &self.vm.id).await;
            }
        }
        refusing.ok().map(|_| outcome)
    }
}

/// Promises capacity and writes record and expectation in one transaction.
async fn promise(
    node: &Node,
    vm: &Vm,
    expecting: &Ownership,
    ownership_unchanged: Compare,
) -> Answer<()> {
    let _promise = node.promise.lock().await;
    let key = VmKey {
        project: vm.project.clone(),
        name: vm.name.clone(),
    };
    let there = node.records.vms.get(&key.id()).await.map_err(record)?;
    if let Some(there) = &there
        && !(there.value.id == vm.id
            && matches!(there.value.phase, VmPhase::Moved | VmPhase::Incoming))
    {
        return Err(conflict(format!(
            "Project {} has another machine {} here",
            vm.project, vm.name
        )));
    }
    let capacity = node.capacity().await?;
    capacity::check(&capacity, &node.config, vm.spec.vcpus, vm.spec.memory_bytes)?;
    let record_unchanged = match &there {
        Some(there) => Compare::unchanged(node.records.vms.key(&key.id()), there.revision),
        None => Compare::absent(node.records.vms.key(&key.id())),
    };
    let txn = Txn::new()
        .when(ownership_unchanged)
        .when(record_unchanged)
        .then(node.records.vms.put_op(&key.id(), vm).map_err(record)?)
        .then(node.records.vm_keys.put_op(&vm.id, &key).map_err(record)?)
        .then(
            node.records
                .ownership
                .put_op(&vm.id, expecting)
                .map_err(record)?,
        );
    let outcome = node.records.store.transact(txn).await;
    if outcome.map_err(|error| record(error.into()))?.succeeded {
        Ok(())
    } else {
        Err(conflict(
            "The machine's record changed meanwhile: offer it again",
        ))
    }
}

/// Removes what was made for a machine that does not come: its process and its record. Done also when it runs here.
pub(crate) async fn forget(node: &Node, id: &str) {
    let forgetting = async {
        let held = node.ownership(id).await?;
        if !matches!(held, Some(Ownership::Refused { .. })) {
            return Ok(());
        }
        node.launcher.end(id).await?;
        if let Some(vm) = node.records.vm_by_id(id).await.map_err(record)?
            && vm.phase == VmPhase::Incoming
        {
            let key = VmKey {
                project: vm.project,
                name: vm.name,
            };
            node.records.vms.delete(&key.id()).await.map_err(record)?;
            node.records.vm_keys.delete(id).await.map_err(record)?;
            let message = format!("{} did not arrive", key.name);
            node.events
                .emit("vm.not-arrived", &key.object(), message)
                .await;
        }
        let _ = tokio::fs::remove_dir_all(node.vm_dir(id)).await;
        Ok::<_, Fault>(())
    };
    if let Err(fault) = forgetting.await {
        tracing::error!("what was made for {id} is not removed: {fault}");
    }
}

fn broken(error: SessionError) -> Fault {
    unavailable(format!("The source: {}", chain(&error)))
}
