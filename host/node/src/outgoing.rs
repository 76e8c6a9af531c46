//! Sending a machine away: prepared, copied while it runs, handed over.
//!
//! ```text
//! Offer → Accepted      capacity, policy, processor, images: whatever could refuse does so now
//! Image …               what the destination lacks
//! Prepare → Done        a VMM and a mover wait there
//! rounds                movers send dirty pages; `convergence` decides after each
//! pause, last round     the mover sends the rest; meanwhile "given to DEST, epoch n" becomes durable
//! Commit → Took         behind the last data; the source's machine is now a forwarding address
//! ```
//! Before the commit is sent, any failure leaves the machine running here. After it, only the destination's answer
//! decides; until then the machine is in doubt and paused, and the destination is asked again and again.

use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use dwcp_api::Fault;
use dwcp_api::service::Answer;
use dwcp_control::convergence::{self, Limits, Next};
use dwcp_control::ownership::{Outcome, Ownership};
use dwcp_control::records::{Migration, MigrationPhase, Progress, Round, Side, Vm, VmPhase};
use dwcp_migrate::protocol::{Bytes, Event, MoverConfig, RoundDone};
use dwcp_wire::tls::Fingerprint;
use futures::FutureExt;

use crate::errors::{internal, record, unavailable};
use crate::events::Running;
use crate::node::Node;
use crate::peers::{self, Session, session_fault};
use crate::protocol::{Ask, Offer, Reply, SessionError};
use crate::state::{Peer, newest_first, now_ms, object};
use crate::steps::step;
use crate::transfer::{IDLE_MS, Mover};

/// Rounds kept in a migration's record.
const ROUNDS_KEPT: usize = 64;

/// A migration away from this host, under way.
pub(crate) struct Outgoing {
    node: Arc<Node>,
    vm: Vm,
    peer: Peer,
    migration: Migration,
    running: Running,
    streams: u8,
    pause_ms: u64,
    /// When the guest was paused.
    paused: Option<Instant>,
}

/// How far a migration had come when it failed.
enum Failed {
    /// No commit was sent: the machine stays here.
    Before(Fault),
    /// The commit was sent and not answered.
    InDoubt(Fault),
    /// The destination answered that it will never run it.
    Refused { epoch: u64, fault: Fault },
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self::Before(fault)
    }
}

impl Outgoing {
    pub(crate) fn new(
        node: Arc<Node>,
        vm: Vm,
        peer: Peer,
        migration: Migration,
        running: Running,
        streams: Option<u8>,
        pause_ms: Option<u64>,
    ) -> Self {
        Self {
            node,
            vm,
            peer,
            migration,
            running,
            // Enough to fill a long link past the losses of one stream, few enough to be fair.
            streams: streams.unwrap_or(4),
            pause_ms: pause_ms.unwrap_or(300),
            paused: None,
        }
    }

    /// Carries it out to its end, whatever that is.
    pub(crate) async fn run(mut self) {
        let mut mover = None;
        let outcome = AssertUnwindSafe(self.carry_out(&mut mover))
            .catch_unwind()
            .await;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(_) => Err(self.after_panic().await),
        };
        // The mover goes first: nothing reads the memory any more when the machine goes on or its process ends.
        if let Some(mover) = mover {
            mover.end(&self.node).await;
        }
        let outcome = match outcome {
            Ok(()) => self.took().await,
            Err(Failed::Before(fault)) => self.stays(fault).await,
            Err(Failed::InDoubt(fault)) => self.doubt(fault).await,
            Err(Failed::Refused { epoch, fault }) => {
                self.node.migration_ended(&self.vm.id).await;
                match self.node.answered(&self.vm, epoch, Outcome::Refused).await {
                    Ok(()) => Err(fault),
                    Err(other) => Err(other),
                }
            }
        };
        self.running.end(&outcome).await;
        self.node.migration_ended(&self.vm.id).await;
    }

    /// A bug of ours ended the work: how far it had come, the store knows.
    async fn after_panic(&self) -> Failed {
        let fault = Fault::internal("the migration's own code failed; the log has more");
        match self.node.ownership(&self.vm.id).await {
            Ok(Some(Ownership::Owned { .. })) => Failed::Before(fault),
            _ => Failed::InDoubt(fault),
        }
    }

    async fn carry_out(&mut self, mover: &mut Option<Mover>) -> Result<(), Failed> {
        let (mut session, epoch, mut config) = self.prepare().await?;
        self.migration.epoch = epoch;
        step("source.prepared").await;
        let node = self.node.clone();
        let status = node.vmm(&self.vm.id, |vmm| vmm.status()).await?;
        config.hosts = status.private_at;
        let started = Mover::start(&node, &self.migration.id, &self.vm.id, config).await?;
        let mover = mover.insert(started);
        self.connect_streams(mover).await?;
        self.phase(MigrationPhase::Copying).await?;
        self.copy(mover, session.rtt_ms).await?;
        self.hand_over(mover, &mut session, epoch).await
    }

    /// Everything that can refuse is asked before the guest feels anything.
    async fn prepare(&mut self) -> Answer<(Session, u64, MoverConfig)> {
        if let Some(why) = crate::hardware::bound(&self.vm.spec) {
            return Err(crate::errors::impossible(format!(
                "{} cannot move: {why}",
                self.vm.name
            )));
        }
        let peer = self.peer.clone();
        let fault = |error| session_fault(&peer.name, error);
        self.say(format!("asking {}", peer.name));
        let mut session = peers::connect(&self.node, peer.address, &peer.fingerprint)
            .await
            .map_err(fault)?;
        let (certificate, key) = crate::identity::transfer_identity().map_err(internal)?;
        let mut number = [0; 8];
        getrandom::fill(&mut number).map_err(internal)?;
        let transfer = u64::from_le_bytes(number) | 1;
        let held = self.node.ownership(&self.vm.id).await?;
        let offer = Offer {
            migration: self.migration.id.clone(),
            transfer,
            vm: self.vm.clone(),
            epoch: held.map_or(self.vm.epoch, |held| held.epoch()),
            certificate_sha256: Fingerprint::of(&certificate).to_string(),
            streams: self.streams,
            cpu: self.node.told_cpu(&self.vm.id).await?,
        };
        let reply = session.ask(&Ask::Offer(Box::new(offer))).await;
        let Reply::Accepted {
            epoch,
            certificate_sha256,
            missing,
        } = reply.map_err(fault)?
        else {
            return Err(fault(SessionError::Unexpected));
        };
        step("source.accepted").await;
        for digest in &missing {
            let short: String = digest.chars().take(12).collect();
            self.say(format!("sending image {short}"));
            self.send_image(&mut session, digest).await?;
        }
        session.ask(&Ask::Prepare).await.map_err(fault)?;
        let config = MoverConfig {
            transfer,
            side: dwcp_migrate::protocol::Side::Source,
            memory_bytes: self.vm.spec.memory_bytes,
            hosts: Vec::new(),
            certificate: Bytes(certificate),
            key: Bytes(key),
            peer_sha256: certificate_sha256.parse().map_err(internal)?,
            streams: self.streams,
            idle_timeout_ms: IDLE_MS,
        };
        Ok((session, epoch, config))
    }

    async fn send_image(&self, session: &mut Session, digest: &str) -> Answer<()> {
        let wanted = [Some(&self.vm.spec.kernel), self.vm.spec.initrd.as_ref()];
        if !wanted.contains(&Some(&digest.to_owned())) {
            return Err(unavailable(format!(
                "{} asked for an image that is not of this machine",
                self.peer.name
            )));
        }
        let file = self.node.images.open_image(digest)?;
        let size_bytes = file.metadata().map_err(internal)?.len();
        let label = self.node.records.images.get(digest).await.map_err(record)?;
        let ask = Ask::Image {
            digest: digest.to_owned(),
            label: label.map_or(String::new(), |image| image.value.label),
            size_bytes,
        };
        let sent = async {
            crate::protocol::send(&mut session.stream, &ask).await?;
            let mut file = tokio::fs::File::from_std(file);
            tokio::io::copy(&mut file, &mut session.stream).await?;
            tokio::io::AsyncWriteExt::flush(&mut session.stream).await?;
            session.reply().await
        };
        sent.await
            .map(drop)
            .map_err(|error| session_fault(&self.peer.name, error))
    }

    async fn connect_streams(&self, mover: &Mover) -> Answer<()> {
        let transfer = mover.transfer();
        for number in 0..u16::from(self.streams) {
            let socket = peers::stream(self.peer.address, transfer, number).await?;
            mover.client.add_stream(socket).map_err(internal)?;
        }
        Ok(())
    }

    /// Copies memory, round by round, until what is left fits the pause.
    async fn copy(&mut self, mover: &mut Mover, rtt_ms: f64) -> Answer<()> {
        let id = self.vm.id.clone();
        let node = self.node.clone();
        node.memory_has_come(&id, |what| self.running.say(what))
            .await?;
        node.vmm(&id, |vmm| vmm.dirty_start()).await?;
        let limits = Limits {
            pause_ms: self.pause_ms,
            rtt_ms,
        };
        loop {
            self.migration.progress.round += 1;
            self.say(format!("copying, round {}", self.migration.progress.round));
            mover.client.round().map_err(internal)?;
            let done = self.round(mover).await?;
            let dirty = self.node.vmm(&id, |vmm| vmm.dirty_harvest()).await?;
            let next = self.record_round(&done, dirty, limits);
            self.save().await?;
            step("source.round").await;
            match next {
                Next::Copy { .. } => {}
                Next::HandOver { .. } => return Ok(()),
            }
        }
    }

    /// Waits until a round is acknowledged, showing how it goes.
    async fn round(&mut self, mover: &mut Mover) -> Answer<RoundDone> {
        loop {
            match mover.next().await?.0 {
                Event::Progress(progress) => self.show(&progress),
                Event::RoundDone(done) => return Ok(done),
                other => return Err(unavailable(format!("The mover said {other:?} in a round"))),
            }
        }
    }

    fn show(&mut self, seen: &dwcp_migrate::protocol::Progress) {
        let left = seen.pages_total.saturating_sub(seen.pages_sent);
        let content = seen.pages_sent.saturating_sub(seen.zero_pages);
        let progress = &mut self.migration.progress;
        progress.pages_sent = seen.pages_sent;
        progress.pages_total = seen.pages_total;
        progress.wire_bytes = seen.wire_bytes;
        progress.rate_bytes_per_s = seen.rate_bytes_per_s as f64;
        // Bytes that a page took so far in this round give the pages a second of the rate.
        let round_bytes = seen
            .wire_bytes
            .saturating_sub(self.migration.rounds.iter().map(|r| r.wire_bytes).sum());
        let per_page = round_bytes as f64 / content.max(1) as f64;
        let pages_per_s = progress.rate_bytes_per_s / per_page.max(1.0);
        progress.remaining_ms =
            convergence::remaining_ms(left, progress.dirty_pages_per_s, pages_per_s);
        self.running.show(&self.migration);
    }

    fn record_round(&mut self, done: &RoundDone, dirty: u64, limits: Limits) -> Next {
        let number = self.migration.progress.round;
        let round = Round {
            number,
            pages: done.pages,
            zero_pages: done.zero_pages,
            wire_bytes: done.wire_bytes,
            duration_ms: done.duration_ms,
            dirty_pages: dirty,
            decision: String::new(),
        };
        let rounds = &mut self.migration.rounds;
        if rounds.len() == ROUNDS_KEPT {
            rounds.remove(0);
        }
        rounds.push(round);
        let next = convergence::decide(rounds, limits);
        let (Next::Copy { why } | Next::HandOver { why, .. }) = &next;
        let what = match next {
            Next::Copy { .. } => "copy again",
            Next::HandOver { .. } => "hand over",
        };
        if let Some(last) = rounds.last_mut() {
            last.decision = format!("{what}: {why}");
        }
        let progress = &mut self.migration.progress;
        progress.dirty_pages_per_s = dirty as f64 * 1000.0 / done.duration_ms.max(1) as f64;
        self.running.show(&self.migration);
        next
    }

    /// Pauses the guest, sends the rest, and gives the machine away.
    async fn hand_over(
        &mut self,
        mover: &mut Mover,
        session: &mut Session,
        epoch: u64,
    ) -> Result<(), Failed> {
        let id = self.vm.id.clone();
        self.migration.phase = MigrationPhase::Handover;
        self.migration.progress.round += 1;
        self.say("handing over");
        step("source.pausing").await;
        self.paused = Some(Instant::now());
        self.node.vmm(&id, |vmm| vmm.pause()).await?;
        let state = self
            .node
            .vmm(&id, |vmm| {
                vmm.dirty_harvest()?;
                Ok(vmm.save()?.0)
            })
            .await?;
        step("source.paused").await;
        let flushed = self.last_round(mover, state);
        let given = self.give(epoch);
        let (flushed, given) = tokio::join!(flushed, given);
        given?;
        if let Err(fault) = flushed {
            return Err(self.withdraw(fault).await);
        }
        step("source.given").await;
        let commit = crate::protocol::send(&mut session.stream, &Ask::Commit { epoch }).await;
        step("source.committed").await;
        let answer = match commit {
            Ok(()) => session.reply().await,
            Err(error) => Err(error),
        };
        step("source.answered").await;
        let to = &self.peer.name;
        match answer {
            Ok(Reply::Took { epoch: took }) if took == epoch => Ok(()),
            Ok(Reply::Outcome {
                epoch: answered,
                outcome: Outcome::Refused,
            }) if answered == epoch => Err(Failed::Refused {
                epoch,
                fault: unavailable(format!("{to} could not take it; it goes on here")),
            }),
            Ok(_) => Err(Failed::InDoubt(session_fault(to, SessionError::Unexpected))),
            Err(error) => Err(Failed::InDoubt(session_fault(to, error))),
        }
    }

    async fn last_round(&self, mover: &mut Mover, state: OwnedFd) -> Answer<()> {
        mover.client.finish(state).map_err(internal)?;
        loop {
            match mover.next().await?.0 {
                Event::Flushed => return Ok(()),
                Event::Progress(_) => {}
                other => return Err(unavailable(format!("The mover said {other:?} at the end"))),
            }
        }
    }

    async fn give(&self, epoch: u64) -> Answer<()> {
        let (to, migration) = (&self.peer.name, &self.migration.id);
        self.node
            .own(&self.vm.id, |held| match held {
                Some(held) => held.give(epoch, to.clone(), migration.clone()),
                None => Ownership::Refused { next: 0, took: 0 }.give(
                    epoch,
                    to.clone(),
                    migration.clone(),
                ),
            })
            .await?;
        Ok(())
    }

    /// No commit was sent, and this very process knows it: the machine is taken back without asking.
    async fn withdraw(&self, fault: Fault) -> Failed {
        let withdrawn = self
            .node
            .own(&self.vm.id, |held| match held {
                Some(held) => held.withdraw(),
                None => Ownership::Refused { next: 0, took: 0 }.withdraw(),
            })
            .await;
        match withdrawn {
            Ok(_) => Failed::Before(fault),
            Err(other) => Failed::InDoubt(other),
        }
    }

    /// The destination runs it.
    async fn took(&mut self) -> Answer<String> {
        let pause_ms = self.paused.map(|at| at.elapsed().as_secs_f64() * 1000.0);
        self.migration.progress.pause_ms = pause_ms;
        let epoch = self.migration.epoch;
        self.migration.phase = MigrationPhase::Done;
        self.migration.ended_ms = Some(now_ms());
        self.node.answered(&self.vm, epoch, Outcome::Took).await?;
        self.save().await?;
        let message = format!("{} runs on {}", self.vm.name, self.peer.name);
        Ok(message)
    }

    /// It did not happen; the guest goes on here.
    async fn stays(&mut self, fault: Fault) -> Answer<String> {
        // The guest first: it may be paused.
        self.node.migration_ended(&self.vm.id).await;
        self.finish(MigrationPhase::Failed, &fault).await;
        Err(fault)
    }

    /// The commit is out and nobody answered.
    async fn doubt(&mut self, fault: Fault) -> Answer<String> {
        let why = format!(
            "it was given to {} and the answer is missing ({fault}); {} is being asked",
            self.peer.name, self.peer.name
        );
        // The record first: as soon as the machine is in doubt it may be settled, and the record ended.
        self.finish(MigrationPhase::InDoubt, &fault).await;
        self.node.phase(&self.vm.id, VmPhase::InDoubt, &why).await?;
        Err(unavailable(format!("In doubt: {why}")))
    }

    async fn finish(&mut self, phase: MigrationPhase, fault: &Fault) {
        self.migration.phase = phase;
        self.migration.reason.clone_from(&fault.message);
        if phase.ended() {
            self.migration.ended_ms = Some(now_ms());
        }
        let at = object(&self.vm.project, &self.vm.name);
        let kind = match phase {
            MigrationPhase::InDoubt => "migration.in-doubt",
            _ => "migration.failed",
        };
        self.node
            .events
            .emit(kind, &at, fault.message.clone())
            .await;
        if let Err(fault) = self.save().await {
            tracing::error!("the end of a migration is not stored: {fault}");
        }
    }

    async fn phase(&mut self, phase: MigrationPhase) -> Answer<()> {
        self.migration.phase = phase;
        self.save().await
    }

    fn say(&self, message: impl Into<String>) {
        self.running.say(message);
        self.running.show(&self.migration);
    }

    async fn save(&self) -> Answer<()> {
        save(&self.node, &self.migration).await?;
        self.running.show(&self.migration);
        Ok(())
    }
}

/// Keeps a migration's record.
pub(crate) async fn save(node: &Node, migration: &Migration) -> Answer<()> {
    node.records
        .migrations
        .put(&key(migration), migration)
        .await
        .map(drop)
        .map_err(record)
}

fn key(migration: &Migration) -> String {
    let id = newest_first(migration.started_ms, &migration.id);
    format!("{}/{id}", migration.project)
}

/// A new migration's record.
pub(crate) fn begin(
    id: String,
    vm: &Vm,
    from: dwcp_control::Name,
    to: dwcp_control::Name,
    side: Side,
    epoch: u64,
) -> Migration {
    Migration {
        id,
        vm: vm.id.clone(),
        project: vm.project.clone(),
        vm_name: vm.name.clone(),
        from,
        to,
        side,
        phase: MigrationPhase::Preparing,
        reason: String::new(),
        epoch,
        started_ms: now_ms(),
        ended_ms: None,
        progress: Progress::default(),
        rounds: Vec::new(),
    }
}
