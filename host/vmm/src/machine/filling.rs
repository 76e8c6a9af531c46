//! A shell's memory brought from a snapshot that cannot be mapped, while its guest runs.
//!
//! ```text
//! event loop                                   filler: a thread of its own, confined before it listens
//!   watch memory                                 |
//!   the chain of files ------------------------->|  until all has come: what is touched first, then the rest
//!   load the device state, run the guest         |
//! ```
//!
//! What always holds: each chunk is checked against its digest before a page of it enters. One that is damaged, or
//! cannot be read, ends the process: its guest never sees anything else than its memory, and the last words say why.
//! The userfaultfd stays open until all has come, and longer than any part of this process runs.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use dwcp_jail::{ConfineError, Kind, LastWords};
use dwcp_memory::{DirtyBitmap, FaultChannel, GuestMemory, HostMap, MemoryError};
use dwcp_snapshot::fill::{FillError, Filler, watch};
use dwcp_snapshot::{Chain, ChunkIndex};

use crate::filters;

/// Enough for unpacking a chunk, debug builds included.
const STACK_BYTES: usize = 512 << 10;

/// Why a shell's memory cannot be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillingError {
    /// There is no userfaultfd here.
    #[error(
        "This host has no /dev/userfaultfd, by which memory comes from a compressed snapshot: restore one that is not \
         compressed"
    )]
    NoFaults(#[source] Arc<MemoryError>),
    /// The thread could not be started.
    #[error("The thread that fills memory could not be started")]
    Start(#[source] std::io::Error),
    /// The thread could not give up its system calls.
    #[error("The thread that fills memory could not be confined")]
    Confine(#[source] ConfineError),
    /// The thread is gone.
    #[error("The thread that fills memory does not answer")]
    Silent,
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The snapshot, or the userfaultfd.
    #[error(transparent)]
    Fill(#[from] FillError),
}

/// The filler, seen from the event loop.
#[derive(Debug)]
pub(super) struct Filling {
    faults: Result<Arc<FaultChannel>, Arc<MemoryError>>,
    hosts: HostMap,
    orders: SyncSender<Chain>,
    missing_chunks: Arc<AtomicU64>,
}

/// What the filler's thread has.
struct Work {
    faults: Arc<FaultChannel>,
    hosts: HostMap,
    arrived: DirtyBitmap,
    orders: Receiver<Chain>,
    missing_chunks: Arc<AtomicU64>,
    last_words: LastWords,
}

impl Filling {
    /// Gets ready for memory that is private and of zeros; returns when the thread is confined. `device` is
    /// `/dev/userfaultfd`; without, no memory can be filled, which is said when it is asked for.
    pub fn prepare(
        device: OwnedFd,
        memory: &GuestMemory,
        last_words: LastWords,
    ) -> Result<Self, FillingError> {
        let size = memory.size();
        let (sender, orders) = sync_channel(1);
        let filling = Self {
            faults: FaultChannel::create(Some(File::from(device).as_fd()))
                .map(Arc::new)
                .map_err(Arc::new),
            hosts: memory.host_map()?,
            orders: sender,
            missing_chunks: Arc::default(),
        };
        let Ok(faults) = &filling.faults else {
            return Ok(filling);
        };
        let work = Work {
            faults: Arc::clone(faults),
            hosts: filling.hosts.clone(),
            arrived: DirtyBitmap::map(DirtyBitmap::create(size)?, size)?,
            orders,
            missing_chunks: Arc::clone(&filling.missing_chunks),
            last_words,
        };
        let (ready, confined) = sync_channel(1);
        std::thread::Builder::new()
            .name("filler".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let result = filters::confine_filler(last_words);
                let is_confined = result.is_ok();
                if ready.send(result).is_ok() && is_confined {
                    work.carry_out();
                }
            })
            .map_err(FillingError::Start)?;
        let confined = confined.recv().map_err(|_| FillingError::Silent)?;
        confined.map_err(FillingError::Confine)?;
        Ok(filling)
    }

    /// Begins to bring memory: from when this returns, whoever touches a page that has not come waits for it.
    pub fn begin(&self, chain: Chain) -> Result<(), FillingError> {
        let faults = self.faults.as_ref().map_err(Arc::clone);
        let faults = faults.map_err(FillingError::NoFaults)?;
        watch(&chain, faults, &self.hosts)?;
        let chunks = ChunkIndex::count(chain.size());
        self.missing_chunks.store(chunks, Ordering::SeqCst);
        let given = self.orders.try_send(chain);
        given.map_err(|_| FillingError::Silent)
    }

    /// Chunks that have not come; none if no memory is being filled.
    pub fn missing_chunks(&self) -> u64 {
        self.missing_chunks.load(Ordering::SeqCst)
    }
}

impl Work {
    /// Waits for a chain, which may never come, and brings its memory.
    fn carry_out(self) {
        let Ok(chain) = self.orders.recv() else {
            return;
        };
        let show = |missing| self.missing_chunks.store(missing, Ordering::SeqCst);
        let filler = Filler::new(&chain, &self.faults, &self.hosts, &self.arrived);
        let filled = filler.and_then(|mut filler| {
            filler.run(&mut |progress| {
                // The last one is not there before nobody is held back any more.
                show((progress.chunks - progress.chunks_done).max(1));
                ControlFlow::Continue(())
            })
        });
        match filled {
            Ok(()) => show(0),
            Err(error) => {
                // Not by way of the event loop: it may be waiting for a page, too.
                let text = crate::process::sentence(&error);
                self.last_words.say(Kind::Error, &text);
                std::process::exit(1);
            }
        }
    }
}
