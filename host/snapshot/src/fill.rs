//! Guest memory filled while the guest runs: from a compressed chain, or from one that is too slow to be mapped.
//!
//! ```text
//! VMM                                       filler (a process of its own, confined like a mover)
//!  make userfaultfd, watch memory            open the chain
//!  hand over: userfaultfd, addresses  ---->  wake all, then until all has come:
//!  run the guest                               a fault: bring its chunk, and go on from there
//!  (a vCPU touches a missing page, waits)      no fault: bring the next chunk
//!                                            end watching
//!  learn that all has come, close     <----  say so
//! ```
//!
//! What always holds: every chunk is checked against its digest before a page of it enters; a page that is there is never
//! overwritten; what has come is kept in a bitmap that outlives the filler, so another one goes on where this one
//! ended. The filler needs no access to the guest's memory but the userfaultfd. If a chunk is damaged, whoever waits for
//! it goes on waiting, and the VM must be ended: it never sees zeros in the place of its memory.
//!
//! As long as pages are missing, memory must not be read by another way than through the VMM's mapping: a memfd
//! shows zeros where nothing has come yet.

use std::ops::ControlFlow;

use dwcp_memory::{DirtyBitmap, FaultChannel, HostMap, MemoryError, PageIndex};

use crate::chain::ChunkContent;
use crate::mask::{ChunkIndex, PageChoice};
use crate::{Chain, Progress, ReadError};

/// Most ranges that are watched: each may cost two more mappings.
const RANGES_MAX: usize = 8192;

/// Why memory could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The snapshot is damaged or cannot be read: the VM must be ended.
    #[error("The rest of the guest's memory cannot be had")]
    Read(#[from] ReadError),
    /// The memory of another VM.
    #[error("The snapshot has {snapshot} bytes of memory, the VM {memory}")]
    OtherSize {
        /// In the snapshot.
        snapshot: u64,
        /// The VM's.
        memory: u64,
    },
    /// Pages could not be put in place. Also when the VMM has ended.
    #[error("Pages could not be put in place: has the VM ended?")]
    Memory(#[from] MemoryError),
    /// The callback said so; another filler can go on.
    #[error("Filling was stopped")]
    Stopped,
}

/// Begins to watch the memory that a chain fills. For the VMM, before the guest runs; the rest is zeros already.
pub fn watch(chain: &Chain, faults: &FaultChannel, hosts: &HostMap) -> Result<(), FillError> {
    check_size(chain, hosts)?;
    for (first, pages) in ranges(chain) {
        faults.watch(hosts, first, pages)?;
    }
    Ok(())
}

/// Brings all memory of a chain, what is touched first.
#[derive(Debug)]
pub struct Filler<'a> {
    chain: &'a Chain,
    faults: &'a FaultChannel,
    hosts: &'a HostMap,
    arrived: &'a DirtyBitmap,
    content: ChunkContent,
    /// Chunks of which nothing is missing.
    is_done: Vec<bool>,
    /// Where to go on when nobody waits.
    next: usize,
    progress: Progress,
}

impl<'a> Filler<'a> {
    /// A filler for memory that is being watched. `arrived` has the pages that came before; it belongs to the VM, and all
    /// its fillers share it.
    pub fn new(
        chain: &'a Chain,
        faults: &'a FaultChannel,
        hosts: &'a HostMap,
        arrived: &'a DirtyBitmap,
    ) -> Result<Self, FillError> {
        check_size(chain, hosts)?;
        let size = chain.size();
        let missing = |chunk| chain.filled(chunk).without(arrived.mask(chunk));
        let is_done: Vec<bool> = ChunkIndex::all(size)
            .map(|chunk| missing(chunk).is_empty())
            .collect();
        Ok(Self {
            chain,
            faults,
            hosts,
            arrived,
            content: ChunkContent::new().map_err(ReadError::from)?,
            progress: Progress {
                chunks_done: is_done.iter().filter(|done| **done).count() as u64,
                chunks: is_done.len() as u64,
                bytes: 0,
            },
            is_done,
            next: 0,
        })
    }

    /// Serves faults, and fills the rest meanwhile, until all has come. `progress` is called after each chunk and may
    /// stop it; then another filler must go on before long, because a guest may be waiting.
    pub fn run(
        &mut self,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), FillError> {
        // Whoever waits for a filler that is gone asks again.
        for (first, pages) in ranges(self.chain) {
            self.faults.wake(self.hosts, first, pages)?;
        }
        loop {
            while let Some(address) = self.faults.next()? {
                self.answer(address)?;
            }
            let Some(chunk) = self.next_missing() else {
                break;
            };
            self.bring(chunk)?;
            if progress(self.progress).is_break() {
                return Err(FillError::Stopped);
            }
        }
        // Faults may have brought the last chunks.
        let _ = progress(self.progress);
        for (first, pages) in ranges(self.chain) {
            self.faults.release(self.hosts, first, pages)?;
        }
        Ok(())
    }

    /// Somebody waits at an address.
    fn answer(&mut self, address: u64) -> Result<(), FillError> {
        let Some(page) = self.hosts.page_at(address) else {
            return Ok(());
        };
        let chunk = ChunkIndex::of(page);
        self.bring(chunk)?;
        // What is touched next is most likely near.
        self.next = chunk.0 as usize;
        // One that is there stays, and whoever waits goes on. One that is not there holds nothing, or has come before
        // and was given up by the guest: it would be asked for again and again.
        self.faults.zero(self.hosts, page, 1)?;
        Ok(())
    }

    fn bring(&mut self, chunk: ChunkIndex) -> Result<(), FillError> {
        let Some(is_done) = self.is_done.get_mut(chunk.0 as usize) else {
            return Ok(());
        };
        if *is_done {
            return Ok(());
        }
        self.chain.load(chunk, &mut self.content)?;
        let missing = self.content.filled().without(self.arrived.mask(chunk));
        for (first, count) in missing.runs() {
            let page = PageIndex(chunk.first_page().0 + first);
            let bytes = self.content.run(first, count);
            self.faults.copy(self.hosts, page, bytes)?;
            self.arrived.set_range(page, count);
            self.progress.bytes += bytes.len() as u64;
        }
        *is_done = true;
        self.progress.chunks_done += 1;
        Ok(())
    }

    /// The next chunk of which something is missing, from where the last fault was, round to there.
    fn next_missing(&mut self) -> Option<ChunkIndex> {
        let (before, after) = self.is_done.split_at(self.next.min(self.is_done.len()));
        let ahead = after.iter().position(|done| !done);
        let found = match ahead {
            Some(at) => self.next + at,
            None => before.iter().position(|done| !done)?,
        };
        self.next = found;
        Some(ChunkIndex(found as u64))
    }
}

fn check_size(chain: &Chain, hosts: &HostMap) -> Result<(), FillError> {
    if chain.size() == hosts.size() {
        return Ok(());
    }
    Err(FillError::OtherSize {
        snapshot: chain.size().bytes(),
        memory: hosts.size().bytes(),
    })
}

/// The chunks that hold anything, neighbours joined: first page and number of pages. All as one if they are too many.
fn ranges(chain: &Chain) -> Vec<(PageIndex, u64)> {
    let size = chain.size();
    let mut ranges: Vec<(PageIndex, u64)> = Vec::new();
    for chunk in ChunkIndex::all(size) {
        if chain.filled(chunk).is_empty() {
            continue;
        }
        let (first, pages) = (chunk.first_page(), chunk.pages(size).count());
        if let Some((start, length)) = ranges.last_mut()
            && start.0 + *length == first.0
        {
            *length += pages;
            continue;
        }
        if ranges.len() == RANGES_MAX {
            return vec![(PageIndex(0), size.pages())];
        }
        ranges.push((first, pages));
    }
    ranges
}
