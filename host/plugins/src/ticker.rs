//! The one thread that advances the engine's epoch, by which running plugins notice that their time is up.
//!
//! Always: while a call runs, the epoch advances about every [`TICK_MS`]; while none runs, the thread sleeps.
//! Never: knowledge of how long a call may take; that is decided where the epoch is noticed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};
use wasmtime::Engine;

/// Time between two epochs, in milliseconds: how finely call time is measured.
pub(crate) const TICK_MS: u64 = 5;

#[derive(Debug, Default)]
struct Shared {
    running: AtomicUsize,
    parked: AtomicBool,
    stop: AtomicBool,
}

/// Owner of the thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: thread::Thread,
}

impl Ticker {
    /// Starts the thread for `engine`.
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Ticker> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let engine = engine.weak();
        let handle = thread::Builder::new()
            .name("plugin-epoch".into())
            .spawn(move || {
                while !theirs.stop.load(SeqCst) {
                    if theirs.running.load(SeqCst) == 0 {
                        theirs.parked.store(true, SeqCst);
                        // Looked at again after saying so: a call that began in between has either seen `parked`
                        // and wakes us, or is seen here.
                        if theirs.running.load(SeqCst) == 0 && !theirs.stop.load(SeqCst) {
                            thread::park();
                        }
                        theirs.parked.store(false, SeqCst);
                        continue;
                    }
                    thread::sleep(Duration::from_millis(TICK_MS));
                    match engine.upgrade() {
                        Some(engine) => engine.increment_epoch(),
                        None => return,
                    }
                }
            })?;
        Ok(Ticker {
            shared,
            thread: handle.thread().clone(),
        })
    }

    /// Says that a call runs until the returned guard is dropped.
    pub(crate) fn run(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, SeqCst);
        if self.shared.parked.load(SeqCst) {
            self.thread.unpark();
        }
        Running(&self.shared)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.thread.unpark();
    }
}

/// One running call.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}
