//! The threads of a mover: a fixed crew, started before the process gives up the right to start any, each serving one
//! stream at a time.
//!
//! Always holds: no more streams are served at once than the crew has members; sockets that nobody is free for wait
//! in a queue of the same length, and beyond that are closed. Must not know what a stream carries.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A lock is never held across code that can panic, so a poisoned one is still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a member of the crew does next.
#[derive(Debug)]
pub(crate) enum Assignment {
    /// Serve this stream.
    Serve(TcpStream),
    /// No stream has come for too long; the transfer has failed.
    Unused,
    /// Go home.
    Leave,
}

#[derive(Debug, Default)]
struct Streams {
    waiting: VecDeque<TcpStream>,
    connecting: usize,
    live: usize,
    ever: bool,
    closed: bool,
}

/// What the members share.
#[derive(Debug)]
pub(crate) struct Crew {
    streams: Mutex<Streams>,
    arrived: Condvar,
    calls: Vec<EventFd>,
    started: Instant,
    patience: Duration,
}

/// What is left when a stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Streams that live, connect, or wait to be served.
    pub(crate) streams: usize,
    /// Whether any stream has ever lived.
    pub(crate) ever: bool,
}

impl Crew {
    /// For `members` threads; without a first stream within `patience` the transfer is [`Assignment::Unused`].
    pub(crate) fn new(members: u8, patience: Duration) -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let calls = (0..members).map(|_| EventFd::from_flags(flags));
        Ok(Self {
            streams: Mutex::default(),
            arrived: Condvar::new(),
            calls: calls.collect::<Result<_, _>>()?,
            started: Instant::now(),
            patience,
        })
    }

    /// How many members there are.
    pub(crate) fn members(&self) -> usize {
        self.calls.len()
    }

    /// Hands over a socket; one too many is closed.
    pub(crate) fn offer(&self, socket: TcpStream) {
        let mut streams = lock(&self.streams);
        if !streams.closed && streams.waiting.len() < self.members() {
            streams.waiting.push_back(socket);
            self.arrived.notify_one();
        }
    }

    /// Waits for something to do.
    pub(crate) fn next(&self) -> Assignment {
        let mut streams = lock(&self.streams);
        loop {
            if streams.closed {
                return Assignment::Leave;
            }
            if let Some(socket) = streams.waiting.pop_front() {
                streams.connecting += 1;
                return Assignment::Serve(socket);
            }
            let left = self.patience.saturating_sub(self.started.elapsed());
            let unused = !streams.ever && streams.connecting == 0;
            if unused && left.is_zero() {
                return Assignment::Unused;
            }
            let wait = if streams.ever { self.patience } else { left };
            let wait = wait.max(Duration::from_millis(1));
            streams = match self.arrived.wait_timeout(streams, wait) {
                Ok((streams, _)) => streams,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// A stream's handshake is done. Returns how many live now.
    pub(crate) fn established(&self) -> usize {
        let mut streams = lock(&self.streams);
        streams.connecting = streams.connecting.saturating_sub(1);
        streams.live += 1;
        streams.ever = true;
        streams.live
    }

    /// A stream has ended, after or before it was established.
    pub(crate) fn ended(&self, established: bool) -> Left {
        let mut streams = lock(&self.streams);
        let counter = match established {
            true => &mut streams.live,
            false => &mut streams.connecting,
        };
        *counter = counter.saturating_sub(1);
        Left {
            streams: streams.live + streams.connecting + streams.waiting.len(),
            ever: streams.ever,
        }
    }

    /// How many streams live.
    pub(crate) fn live(&self) -> usize {
        lock(&self.streams).live
    }

    /// No further stream is served; members leave when theirs ends.
    pub(crate) fn close(&self) {
        let mut streams = lock(&self.streams);
        streams.closed = true;
        streams.waiting.clear();
        self.arrived.notify_all();
        drop(streams);
        self.call_all();
    }

    /// Whether [`Crew::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.streams).closed
    }

    /// Wakes every member that waits for its socket.
    pub(crate) fn call_all(&self) {
        for call in &self.calls {
            // It can only fail when it is readable already.
            let _ = call.write(1);
        }
    }

    /// What becomes readable when `member` is called.
    pub(crate) fn call(&self, member: usize) -> Option<BorrowedFd<'_>> {
        self.calls.get(member).map(|call| call.as_fd())
    }

    /// Takes note of a call.
    pub(crate) fn heard(&self, member: usize) {
        if let Some(call) = self.calls.get(member) {
            // It can only fail when there was no call.
            let _ = call.read();
        }
    }
}

/// Starts one thread a member, and returns when all of them run (a thread that only starts when its process is
/// already confined would be denied the calls that starting takes).
pub(crate) fn start<T, F>(
    crew: &Crew,
    shared: &Arc<T>,
    work: F,
) -> std::io::Result<Vec<JoinHandle<()>>>
where
    T: Send + Sync + 'static,
    F: Fn(&T, usize) + Clone + Send + 'static,
{
    let running = Arc::new(Barrier::new(crew.members() + 1));
    let mut threads = Vec::with_capacity(crew.members());
    for member in 0..crew.members() {
        let (shared, work, at_start) = (Arc::clone(shared), work.clone(), Arc::clone(&running));
        let builder = std::thread::Builder::new().name(format!("stream-{member}"));
        // A thread that cannot be started leaves the others at the barrier; the process gives up and ends.
        threads.push(builder.spawn(move || {
            at_start.wait();
            work(&shared, member);
        })?);
    }
    running.wait();
    Ok(threads)
}
