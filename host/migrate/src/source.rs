//! The source's side: one queue of work that every stream pulls from, so a slow stream simply takes less.
//!
//! A stream's thread takes a batch of dirty pages, copies them, encodes the copies, and sends the frames; each frame
//! is kept until it is acknowledged, and goes to another stream, byte for byte the same, when its own has died. A
//! frame's content thus never changes under its number, which is what lets the destination apply each exactly once.
//!
//! What always holds: a page's bit is cleared before the page is copied, so a later write is seen by the next round;
//! a round is done only when all of it is acknowledged; memory held for unacknowledged frames is bounded.
//! Must not know when the VM is paused, nor why a round is asked for.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_memory::{DirtyBitmap, MemoryView};
use dwcp_wire::frame::{self, Counts, Header, Kind};
use dwcp_wire::ladder::{BATCH_PAGES_MAX, Run};
use dwcp_wire::tls::{self, ClientConfig, TlsError, Use};

use crate::crew::{self, Crew, Left, lock};
use crate::cursor::Cursor;
use crate::events::{EventSink, Meter};
use crate::ledger::WINDOW;
use crate::protocol::{DEVICE_STATE_BYTES_MAX, Event, MoverConfig, Progress, RoundDone};
use crate::sender;

/// Bytes of unacknowledged frames over all streams: several times what 1 Gbit/s × 100 ms needs.
const UNACKED_BYTES_MAX: usize = 128 << 20;
/// The same for one stream.
const STREAM_UNACKED_BYTES_MAX: usize = 16 << 20;
/// A frame of device state carries this many bytes.
const STATE_PIECE_BYTES: usize = 256 << 10;
/// Least pages in a batch, if there are as many: smaller ones compress badly.
const BATCH_PAGES_MIN: usize = 16;

/// Why a side of a transfer could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificate or key are unusable.
    #[error("The transfer's certificate cannot be used")]
    Tls(#[from] TlsError),
    /// Memory, bitmap and configuration do not agree.
    #[error("The guest's memory is not of the configured size")]
    Size,
    /// The number of streams is out of range.
    #[error("A transfer has 1 to 64 streams")]
    Streams,
    /// Threads or descriptors could not be had.
    #[error("The mover could not be set up")]
    Io(#[from] std::io::Error),
}

/// A frame on its way, kept until it is acknowledged.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) sequence: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) pages: u64,
    pub(crate) kind: Kind,
}

/// What a stream's thread does next.
#[derive(Debug)]
pub(crate) enum Work {
    /// Send this frame.
    Send(Arc<Unit>),
    /// Copy and encode these pages, then call [`Shared::encoded`].
    Encode(Vec<Run>),
    /// Nothing now; there will be a call.
    Wait,
    /// Close the stream; the reason is for the peer.
    Close(Option<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Round,
    Final { ended: bool, flushed: bool },
    Done,
    Failed(String),
}

#[derive(Debug)]
struct Unacked {
    unit: Arc<Unit>,
    /// Who sends it; nobody while it waits to be sent again.
    holder: Option<usize>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    cursor: Cursor,
    /// Batches taken and not yet encoded.
    encoding: usize,
    /// Frames that wait for a stream.
    ready: VecDeque<Arc<Unit>>,
    unacked: BTreeMap<u64, Unacked>,
    /// Bytes unacknowledged, by stream.
    unacked_bytes: Vec<usize>,
    /// Frames given to streams and not yet all in their sockets.
    unwritten: usize,
    next_sequence: u64,
    counts: Counts,
    round: Round,
    meter: Meter,
}

/// The figures of the round that is running.
#[derive(Debug)]
struct Round {
    begun: Instant,
    total_pages: u64,
    wire_bytes_before: u64,
    acked_pages: u64,
    acked_zero_pages: u64,
    payload_bytes: u64,
}

/// What the handle and the streams' threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) crew: Crew,
    pub(crate) memory: MemoryView,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) transfer: u64,
    pub(crate) idle_timeout: Duration,
    pub(crate) wire_bytes: AtomicU64,
    bitmap: DirtyBitmap,
    state: Mutex<State>,
    events: EventSink,
}

/// The source of one transfer. Dropping it fails the transfer if it is not done, and ends its threads.
#[derive(Debug)]
pub struct Source {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Source {
    /// Starts the threads, which wait for streams. After this no thread is started and no descriptor made.
    ///
    /// # Errors
    /// When the configuration is unusable or does not fit the memory.
    pub fn start(
        config: &MoverConfig,
        memory: MemoryView,
        bitmap: DirtyBitmap,
        events: EventSink,
    ) -> Result<Self, StartError> {
        let size = memory.size();
        if size.bytes() != config.memory_bytes || bitmap.size() != size {
            return Err(StartError::Size);
        }
        if !(1..=crate::protocol::STREAMS_MAX).contains(&config.streams) {
            return Err(StartError::Streams);
        }
        let tls = tls::client(&config.identity(), &[config.peer_sha256], Use::Transfer)?;
        let streams = usize::from(config.streams);
        let shared = Arc::new(Shared {
            crew: Crew::new(config.streams, config.idle_timeout())?,
            memory,
            tls,
            transfer: config.transfer,
            idle_timeout: config.idle_timeout(),
            wire_bytes: AtomicU64::new(0),
            bitmap,
            state: Mutex::new(State {
                phase: Phase::Idle,
                cursor: Cursor::default(),
                encoding: 0,
                ready: VecDeque::new(),
                unacked: BTreeMap::new(),
                unacked_bytes: vec![0; streams],
                unwritten: 0,
                next_sequence: 1,
                counts: Counts::default(),
                round: Round::begin(0, 0),
                meter: Meter::new(),
            }),
            events,
        });
        let threads = crew::start(&shared.crew, &shared, sender::work)?;
        Ok(Self { shared, threads })
    }

    /// One more stream, whose preamble is through. One over the configured number is closed.
    pub fn add_stream(&self, socket: TcpStream) {
        self.shared.crew.offer(socket);
    }

    /// Sends every page whose bit is set.
    pub fn round(&self) {
        self.shared.begin(Phase::Round, &[]);
    }

    /// Sends every page whose bit is set, then the device state, then the end.
    pub fn finish(&self, device_state: &[u8]) {
        let phase = Phase::Final {
            ended: false,
            flushed: false,
        };
        self.shared.begin(phase, device_state);
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

impl Drop for Source {
    fn drop(&mut self) {
        self.shared.fail("The transfer was given up");
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Round {
    fn begin(total_pages: u64, wire_bytes_before: u64) -> Self {
        Self {
            begun: Instant::now(),
            total_pages,
            wire_bytes_before,
            acked_pages: 0,
            acked_zero_pages: 0,
            payload_bytes: 0,
        }
    }
}

impl Shared {
    fn begin(&self, phase: Phase, device_state: &[u8]) {
        let mut state = lock(&self.state);
        match state.phase {
            Phase::Idle => {}
            Phase::Failed(_) => return,
            _ => {
                drop(state);
                return self.fail("The daemon asked for a round out of turn");
            }
        }
        if device_state.len() as u64 > DEVICE_STATE_BYTES_MAX {
            drop(state);
            return self.fail("The device state is too long to be sent");
        }
        state.phase = phase;
        state.cursor = Cursor::default();
        // What was written since the last round is counted as this one's: the handshakes, and each pulse.
        let before = state.round.wire_bytes_before;
        state.round = Round::begin(self.bitmap.count(), before);
        state.counts.state_bytes += device_state.len() as u64;
        for (index, piece) in device_state.chunks(STATE_PIECE_BYTES).enumerate() {
            let offset = (index * STATE_PIECE_BYTES) as u64;
            let mut bytes = frame::open(piece.len());
            bytes.extend_from_slice(piece);
            self.enqueue(&mut state, Kind::DeviceState, offset, bytes);
        }
        // A round may have nothing to send.
        self.advance(&mut state);
        drop(state);
        self.crew.call_all();
    }

    /// Numbers and queues a frame that carries no pages.
    fn enqueue(&self, state: &mut State, kind: Kind, offset: u64, mut bytes: Vec<u8>) {
        let sequence = state.next_sequence;
        state.next_sequence += 1;
        let header = Header {
            kind,
            transfer: self.transfer,
            sequence,
            offset,
        };
        frame::seal(&mut bytes, &header);
        state.round.payload_bytes += bytes.len() as u64;
        let unit = Arc::new(Unit {
            sequence,
            bytes,
            pages: 0,
            kind,
        });
        state.ready.push_back(Arc::clone(&unit));
        state
            .unacked
            .insert(sequence, Unacked { unit, holder: None });
    }

    /// What `member` does next.
    pub(crate) fn next_work(&self, member: usize) -> Work {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        match &state.phase {
            Phase::Done => return Work::Close(None),
            Phase::Failed(reason) => return Work::Close(Some(reason.clone())),
            Phase::Idle => return Work::Wait,
            Phase::Round | Phase::Final { .. } => {}
        }
        let limit = STREAM_UNACKED_BYTES_MAX.min(UNACKED_BYTES_MAX / state.unacked_bytes.len());
        if state.unacked_bytes[member] >= limit {
            return Work::Wait;
        }
        if let Some(work) = state.resend(member) {
            return work;
        }
        if state.window_is_full() {
            return Work::Wait;
        }
        let left = state.round.total_pages.saturating_sub(state.cursor.taken());
        let share = left / (2 * self.crew.live().max(1) as u64);
        let pages = (share as usize).clamp(BATCH_PAGES_MIN, BATCH_PAGES_MAX);
        let runs = state.cursor.take(&self.bitmap, pages);
        if !runs.is_empty() {
            state.encoding += 1;
            return Work::Encode(runs);
        }
        // The pass is over, and whoever finds that out ends it.
        let calls = self.advance(state);
        let work = state.resend(member).unwrap_or(Work::Wait);
        drop(guard);
        if calls {
            self.crew.call_all();
        }
        work
    }

    /// Whether `member`'s stream has something unacknowledged.
    pub(crate) fn owes(&self, member: usize) -> bool {
        lock(&self.state).unacked_bytes[member] > 0
    }

    /// More pages for a batch that has turned out to be mostly zeros: after the ones before, at most `pages`.
    pub(crate) fn more_pages(&self, pages: usize) -> Vec<Run> {
        lock(&self.state).cursor.take(&self.bitmap, pages)
    }

    /// Numbers for `frames` frames of one batch.
    pub(crate) fn reserve(&self, frames: u64) -> u64 {
        let mut state = lock(&self.state);
        let first = state.next_sequence;
        state.next_sequence += frames;
        first
    }

    /// A batch is encoded; all its frames are `member`'s to send.
    pub(crate) fn encoded(&self, member: usize, units: &[Arc<Unit>]) {
        let mut state = lock(&self.state);
        state.encoding -= 1;
        for unit in units {
            state.round.payload_bytes += unit.bytes.len() as u64;
            match unit.kind {
                Kind::ZeroRuns => state.counts.zero_pages += unit.pages,
                _ => state.counts.data_pages += unit.pages,
            }
            let unacked = Unacked {
                unit: Arc::clone(unit),
                holder: None,
            };
            state.unacked.insert(unit.sequence, unacked);
            state.hold(unit, member);
        }
        if self.advance(&mut state) {
            drop(state);
            self.crew.call_all();
        }
    }

    /// `frames` of a stream's frames are now wholly in its socket.
    pub(crate) fn written(&self, frames: usize) {
        let mut state = lock(&self.state);
        state.unwritten = state.unwritten.saturating_sub(frames);
        self.advance(&mut state);
    }

    /// The destination has applied these. Numbers that are not outstanding are ignored: they were sent twice.
    pub(crate) fn acked(&self, sequences: impl Iterator<Item = u64>) -> Result<(), &'static str> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let was_full = state.window_is_full();
        let before = state.unacked.len();
        for sequence in sequences {
            if sequence == 0 || sequence >= state.next_sequence {
                return Err("The peer acknowledged a frame that was never sent");
            }
            let Some(Unacked { unit, holder }) = state.unacked.remove(&sequence) else {
                continue;
            };
            match holder {
                Some(holder) => state.unacked_bytes[holder] -= unit.bytes.len(),
                // It waits to be sent again, for nothing: the acknowledgement only came late.
                None => state.ready.retain(|ready| ready.sequence != sequence),
            }
            state.round.acked_pages += unit.pages;
            if unit.kind == Kind::ZeroRuns {
                state.round.acked_zero_pages += unit.pages;
            }
        }
        if self.advance(state) || was_full {
            drop(guard);
            self.crew.call_all();
            return Ok(());
        }
        if state.unacked.len() == before {
            return Ok(());
        }
        let wire_bytes = self.wire_bytes.load(Ordering::Relaxed);
        if let Some(rate_bytes_per_s) = state.meter.due(wire_bytes) {
            self.events.progress(Progress {
                pages_sent: state.round.acked_pages,
                pages_total: state.round.total_pages,
                wire_bytes: wire_bytes - state.round.wire_bytes_before,
                zero_pages: state.round.acked_zero_pages,
                rate_bytes_per_s,
            });
        }
        Ok(())
    }

    /// `member`'s stream has died with `unwritten` frames not wholly in its socket; what it held goes to the others.
    pub(crate) fn lost(&self, member: usize, unwritten: usize, left: Left, why: &str) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        state.unwritten = state.unwritten.saturating_sub(unwritten);
        state.unacked_bytes[member] = 0;
        for unacked in state.unacked.values_mut().rev() {
            if unacked.holder == Some(member) {
                unacked.holder = None;
                state.ready.push_front(Arc::clone(&unacked.unit));
            }
        }
        let over = matches!(state.phase, Phase::Done | Phase::Failed(_));
        drop(guard);
        if left.streams == 0 && !over {
            let text = format!("Every stream of the transfer is lost; the last one: {why}");
            return self.fail(&text);
        }
        self.crew.call_all();
    }

    /// Ends the transfer, unless it has ended.
    pub(crate) fn fail(&self, reason: &str) {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Done | Phase::Failed(_)) {
            drop(state);
            self.crew.close();
            return;
        }
        state.phase = Phase::Failed(reason.to_owned());
        state.ready.clear();
        state.unacked.clear();
        drop(state);
        let reason = reason.to_owned();
        self.events.say(Event::Failed { reason }, None);
        self.crew.close();
    }

    /// Takes the steps that have become due. Returns whether the streams must be called.
    fn advance(&self, state: &mut State) -> bool {
        let (last, ended, flushed) = match state.phase {
            Phase::Round => (false, true, true),
            Phase::Final { ended, flushed } => (true, ended, flushed),
            Phase::Idle | Phase::Done | Phase::Failed(_) => return false,
        };
        if state.encoding > 0 || !state.cursor.is_spent(&self.bitmap) {
            return false;
        }
        if !ended {
            let mut bytes = frame::open(0);
            bytes.extend_from_slice(&state.counts.encode());
            self.enqueue(state, Kind::End, 0, bytes);
            state.phase = Phase::Final {
                ended: true,
                flushed: false,
            };
            return true;
        }
        let written = state.ready.is_empty() && state.unwritten == 0;
        if !flushed && (written || state.unacked.is_empty()) {
            state.phase = Phase::Final {
                ended: true,
                flushed: true,
            };
            self.events.say(Event::Flushed, None);
        }
        if !state.unacked.is_empty() {
            return false;
        }
        let wire_bytes = self.wire_bytes.load(Ordering::Relaxed);
        let round = &mut state.round;
        let done = RoundDone {
            pages: round.acked_pages,
            zero_pages: round.acked_zero_pages,
            payload_bytes: round.payload_bytes,
            wire_bytes: wire_bytes - round.wire_bytes_before,
            duration_ms: round.begun.elapsed().as_millis() as u64,
        };
        round.wire_bytes_before = wire_bytes;
        state.phase = if last { Phase::Done } else { Phase::Idle };
        self.events.say(Event::RoundDone(done), None);
        if last {
            self.crew.close();
        }
        last
    }
}

impl State {
    /// A frame that waits for a stream, if there is one, to be sent by `member`.
    fn resend(&mut self, member: usize) -> Option<Work> {
        let unit = self.ready.pop_front()?;
        self.hold(&unit, member);
        Some(Work::Send(unit))
    }

    /// Whether the oldest unacknowledged frame is so old that the destination would refuse much newer ones.
    fn window_is_full(&self) -> bool {
        let oldest = self.unacked.first_key_value();
        oldest.is_some_and(|(oldest, _)| self.next_sequence - oldest >= WINDOW / 2)
    }

    fn hold(&mut self, unit: &Arc<Unit>, member: usize) {
        if let Some(unacked) = self.unacked.get_mut(&unit.sequence) {
            unacked.holder = Some(member);
            self.unacked_bytes[member] += unit.bytes.len();
            self.unwritten += 1;
        }
    }
}
