//! The destination's side: takes frames from hostile streams, checks them, and writes the guest's memory.
//!
//! What always holds: memory is written only through [`GuestMemory`], whole pages inside it, after the frame's
//! checksum, number and list of pages have been checked; each frame is applied once; nothing is complete before the
//! end has come, every frame before it is applied, and its counts agree. A peer that breaks any rule fails this
//! transfer; a stranger who cannot show the pinned certificate costs a handshake. Must not know what is done with the
//! memory afterwards.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dwcp_memory::{GuestMemory, PageIndex};
use dwcp_wire::frame::Counts;
use dwcp_wire::ladder::Batch;
use dwcp_wire::tls::{self, ServerConfig, Use};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::crew::{self, Crew, Left, lock};
use crate::events::{EventSink, Meter};
use crate::ledger::{Claim, Ledger};
use crate::protocol::{
    Complete, DEVICE_STATE_BYTES_MAX, Event, MoverConfig, Progress, STREAMS_MAX,
};
use crate::receiver;
use crate::source::StartError;

/// How long a thread waits for another to finish a frame before it looks whether the transfer has ended.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Receiving,
    Complete,
    Failed(String),
}

#[derive(Debug)]
struct State {
    phase: Phase,
    ledger: Ledger,
    /// What has been applied.
    counts: Counts,
    /// Where the longest piece of device state ended.
    state_end: u64,
    /// Number and counts of the end, when it has come.
    end: Option<(u64, Counts)>,
    meter: Meter,
    device_state: Option<File>,
}

/// What the handle and the streams' threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) crew: Crew,
    pub(crate) memory: GuestMemory,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) transfer: u64,
    pub(crate) idle_timeout: Duration,
    pub(crate) wire_bytes: AtomicU64,
    device_state: File,
    state: Mutex<State>,
    applied: Condvar,
    events: EventSink,
}

/// The destination of one transfer. Dropping it fails the transfer if it is not complete, and ends its threads.
#[derive(Debug)]
pub struct Destination {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Destination {
    /// Starts the threads, which wait for streams. After this no thread is started and no descriptor made.
    ///
    /// # Errors
    /// When the configuration is unusable or does not fit the memory.
    pub fn start(
        config: &MoverConfig,
        memory: GuestMemory,
        events: EventSink,
    ) -> Result<Self, StartError> {
        if memory.size().bytes() != config.memory_bytes {
            return Err(StartError::Size);
        }
        if !(1..=STREAMS_MAX).contains(&config.streams) {
            return Err(StartError::Streams);
        }
        let tls = tls::server(&config.identity(), &[config.peer_sha256], Use::Transfer)?;
        let shared = Arc::new(Shared::new(config, memory, tls, events)?);
        let threads = crew::start(&shared.crew, &shared, receiver::work)?;
        Ok(Self { shared, threads })
    }

    /// One more stream, whose preamble is through. One over the configured number is closed.
    pub fn add_stream(&self, socket: TcpStream) {
        self.shared.crew.offer(socket);
    }

    /// Gives up.
    pub fn abort(&self) {
        self.shared.fail("The transfer was aborted");
    }

    /// Fails for a reason that the caller found.
    pub fn fail(&self, reason: &str) {
        self.shared.fail(reason);
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.shared.fail("The transfer was given up");
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// A peer broke the protocol, or the host could not go on; the text says which.
pub(crate) type Refused = String;

impl Shared {
    /// A transfer of which nothing has arrived.
    pub(crate) fn new(
        config: &MoverConfig,
        memory: GuestMemory,
        tls: Arc<ServerConfig>,
        events: EventSink,
    ) -> std::io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let device_state = File::from(memfd_create(c"dwcp-device-state", flags)?);
        Ok(Self {
            crew: Crew::new(config.streams, config.idle_timeout())?,
            memory,
            tls,
            transfer: config.transfer,
            idle_timeout: config.idle_timeout(),
            wire_bytes: AtomicU64::new(0),
            state: Mutex::new(State {
                phase: Phase::Receiving,
                ledger: Ledger::default(),
                counts: Counts::default(),
                state_end: 0,
                end: None,
                meter: Meter::new(),
                device_state: Some(device_state.try_clone()?),
            }),
            device_state,
            applied: Condvar::new(),
            events,
        })
    }

    /// Claims a frame: whether the caller must apply it, or it has been applied already.
    pub(crate) fn claim(&self, sequence: u64) -> Result<bool, Refused> {
        let mut state = lock(&self.state);
        loop {
            if let Phase::Failed(reason) = &state.phase {
                return Err(reason.clone());
            }
            let after_end = state.end.is_some_and(|(end, _)| sequence > end);
            let claim = match after_end {
                true => Claim::Refuse,
                false => state.ledger.claim(sequence),
            };
            match claim {
                Claim::Apply => return Ok(true),
                Claim::Applied => return Ok(false),
                Claim::Refuse => return Err("The peer numbered a frame out of range".into()),
                Claim::Wait => {
                    state = match self.applied.wait_timeout(state, CLAIM_PATIENCE) {
                        Ok((state, _)) => state,
                        Err(poisoned) => poisoned.into_inner().0,
                    };
                }
            }
        }
    }

    /// Writes pages, which the decoder has found to be inside memory.
    pub(crate) fn write(&self, batch: &Batch<'_>) -> Result<(), Refused> {
        for (run, content) in batch.runs() {
            let first = PageIndex(run.first);
            let written = match content {
                Some(bytes) => self.memory.write_pages(first, bytes),
                None => self.memory.zero_pages(first, run.pages),
            };
            written.map_err(|error| crate::link::chain(&error))?;
        }
        Ok(())
    }

    /// Writes a piece of device state.
    pub(crate) fn write_state(&self, offset: u64, piece: &[u8]) -> Result<(), Refused> {
        let end = offset.checked_add(piece.len() as u64);
        let Some(end) = end.filter(|end| *end <= DEVICE_STATE_BYTES_MAX) else {
            return Err("The peer's device state is too long".into());
        };
        let written = self.device_state.write_all_at(piece, offset);
        written.map_err(|error| format!("The device state could not be kept: {error}"))?;
        let mut state = lock(&self.state);
        state.state_end = state.state_end.max(end);
        Ok(())
    }

    /// Records an applied frame and what it added.
    pub(crate) fn applied(&self, sequence: u64, added: Counts) -> Result<(), Refused> {
        let mut state = lock(&self.state);
        state.counts.data_pages += added.data_pages;
        state.counts.zero_pages += added.zero_pages;
        state.counts.state_bytes += added.state_bytes;
        state.ledger.done(sequence);
        self.applied.notify_all();
        let wire_bytes = self.wire_bytes.load(Ordering::Relaxed);
        if let Some(rate_bytes_per_s) = state.meter.due(wire_bytes) {
            self.events.progress(Progress {
                pages_sent: state.counts.data_pages + state.counts.zero_pages,
                pages_total: self.memory.size().pages(),
                wire_bytes,
                zero_pages: state.counts.zero_pages,
                rate_bytes_per_s,
            });
        }
        self.complete(&mut state)
    }

    /// Records the end. It comes once, or again as it was.
    pub(crate) fn end(&self, sequence: u64, counts: Counts) -> Result<(), Refused> {
        let mut state = lock(&self.state);
        match state.end {
            Some(end) if end != (sequence, counts) => {
                return Err("The peer ended the transfer twice".into());
            }
            Some(_) => return Ok(()),
            None if state.ledger.highest() >= sequence => {
                return Err("The peer ended the transfer before its last frame".into());
            }
            None => state.end = Some((sequence, counts)),
        }
        self.complete(&mut state)
    }

    /// Whether the transfer is complete, so that its end may be acknowledged.
    pub(crate) fn is_complete(&self) -> bool {
        lock(&self.state).phase == Phase::Complete
    }

    /// Why the transfer has failed, if it has.
    pub(crate) fn failure(&self) -> Option<String> {
        match &lock(&self.state).phase {
            Phase::Failed(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    /// Completes the transfer when everything is there.
    fn complete(&self, state: &mut State) -> Result<(), Refused> {
        let Some((end, expected)) = state.end else {
            return Ok(());
        };
        if state.phase != Phase::Receiving || state.ledger.through() + 1 != end {
            return Ok(());
        }
        if state.counts != expected || state.state_end != expected.state_bytes {
            let got = state.counts;
            return Err(format!(
                "The counts do not agree: the source sent {expected:?}, here arrived {got:?}"
            ));
        }
        let Some(file) = state.device_state.take() else {
            return Ok(());
        };
        let seals = SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|errno| format!("The device state could not be sealed: {errno}"))?;
        state.phase = Phase::Complete;
        let complete = Complete {
            pages: expected.data_pages + expected.zero_pages,
            wire_bytes: self.wire_bytes.load(Ordering::Relaxed),
        };
        self.events
            .say(Event::Complete(complete), Some(file.into()));
        // Whoever received the end now acknowledges it.
        self.crew.call_all();
        Ok(())
    }

    /// A stream has ended; when it was the last of those that ever lived, so has the transfer.
    pub(crate) fn lost(&self, left: Left, why: &str) {
        if left.streams == 0 && left.ever {
            let text = format!("Every stream of the transfer is lost; the last one: {why}");
            self.fail(&text);
        }
    }

    /// Ends the transfer, unless it has ended.
    pub(crate) fn fail(&self, reason: &str) {
        let mut state = lock(&self.state);
        let receiving = state.phase == Phase::Receiving;
        if receiving {
            state.phase = Phase::Failed(reason.to_owned());
        }
        drop(state);
        if receiving {
            let reason = reason.to_owned();
            self.events.say(Event::Failed { reason }, None);
        }
        self.applied.notify_all();
        self.crew.close();
    }
}
