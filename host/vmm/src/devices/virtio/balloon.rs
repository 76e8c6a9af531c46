//! A balloon (virtio 1.3, 5.5): the guest gives pages up that the operator asks for, and tells of pages that it does
//! not use (free-page reporting). Either way their memory goes back to the host, and they read as zeros afterwards.
//!
//! The queue for reporting is number 4 by the specification, and number 2 for drivers that count only the queues that
//! there are, as Linux does. Both numbers serve it; nothing else could be meant.
//!
//! Pages are given back in runs, whole ones only. What a driver takes back needs nothing of the device: it is there
//! once it is touched. A driver gives up pages that it uses at its own loss only.

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dwcp_jail::{Condition, allow};
use dwcp_memory::vm_memory::GuestAddress;
use dwcp_memory::{GuestMemory, GuestRange, PAGE_BYTES, PageIndex};

use super::{Backend, Broken, Chain, Counters, Kind, OwnRegisters, Rules, Running, queue};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// As many as the specification counts, those of features that are not offered included.
const QUEUES: usize = 5;
const QUEUE_SIZE: u16 = 128;
/// Most pages that one request may give up; Linux gives up 256.
const PAGES_MAX: u64 = 4096;
const NUMBER_BYTES: u64 = 4;

const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
const FEATURE_REPORTING: u64 = 1 << 5;

/// Register: how many pages the guest shall give up.
const TARGET: usize = 0;
/// Register: how many it says that it has given up.
const ACTUAL: usize = 4;
const REGISTER_BYTES: usize = 8;

/// The device.
#[derive(Debug)]
pub struct Balloon {
    registers: Arc<OwnRegisters>,
    counters: Arc<Counters>,
}

/// The registers: how many pages are wanted, and how many are given up.
pub fn pages(registers: &OwnRegisters) -> (u32, u32) {
    let mut bytes = [0; REGISTER_BYTES];
    registers.read(TARGET, &mut bytes);
    let both = u64::from_le_bytes(bytes);
    (both as u32, (both >> 32) as u32)
}

impl Default for Balloon {
    fn default() -> Self {
        let registers = OwnRegisters::new(vec![0; REGISTER_BYTES], ACTUAL..REGISTER_BYTES);
        Self {
            registers: Arc::new(registers.travelling()),
            counters: Arc::default(),
        }
    }
}

impl Balloon {
    fn inflate(&self, memory: &GuestMemory, chain: &Chain) -> Result<u32, Broken> {
        let pages = named_pages(memory, chain)?;
        self.give_back(memory, &runs(pages));
        Ok(0)
    }

    fn report(&self, memory: &GuestMemory, chain: &Chain) -> Result<u32, Broken> {
        let whole = chain
            .writable
            .iter()
            .filter_map(|range| whole_pages(memory, range));
        let runs = joined(whole.collect());
        self.give_back(memory, &runs);
        Ok(0)
    }

    /// What the host does not take is the host's loss, and counted.
    fn give_back(&self, memory: &GuestMemory, runs: &[Range<u64>]) {
        for run in runs {
            let count = run.end - run.start;
            match memory.zero_pages(PageIndex(run.start), count) {
                Ok(()) => {
                    let bytes = count * PAGE_BYTES as u64;
                    self.counters.read_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                Err(_) => {
                    self.counters.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.counters.operations.fetch_add(1, Ordering::Relaxed);
    }
}

/// The pages that a request names by their addresses' upper 32 bits: of RAM, or the driver breaks the specification.
fn named_pages(memory: &GuestMemory, chain: &Chain) -> Result<Vec<u64>, Broken> {
    let bytes = chain.readable_bytes();
    if bytes > PAGES_MAX * NUMBER_BYTES {
        return Err(Broken::Long);
    }
    let mut numbers = vec![0; bytes as usize];
    queue::gather(memory, &chain.readable, &mut numbers)?;
    let (numbers, rest) = numbers.as_chunks();
    if !rest.is_empty() {
        return Err(Broken::Short);
    }
    let page = |number: &[u8; 4]| {
        let start = u64::from(u32::from_le_bytes(*number)) * PAGE_BYTES as u64;
        let page = memory.layout().page_of(GuestAddress(start));
        page.map(|page| page.0).ok_or(Broken::Buffer {
            start,
            bytes: PAGE_BYTES as u32,
        })
    };
    numbers.iter().map(page).collect()
}

/// The pages that lie wholly in a range of RAM.
fn whole_pages(memory: &GuestMemory, range: &GuestRange) -> Option<Range<u64>> {
    let page = PAGE_BYTES as u64;
    let start = range.start.0.next_multiple_of(page);
    let end = (range.start.0 + u64::from(range.bytes)) / page * page;
    if start >= end {
        return None;
    }
    // A range of RAM is in one region, so its pages are in a row.
    let first = memory.layout().page_of(GuestAddress(start))?.0;
    Some(first..first + (end - start) / page)
}

/// Pages as runs.
fn runs(pages: Vec<u64>) -> Vec<Range<u64>> {
    joined(pages.into_iter().map(|page| page..page + 1).collect())
}

/// Runs in ascending order, those that touch made one.
fn joined(mut runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => joined.push(run),
        }
    }
    joined
}

impl Backend for Balloon {
    fn kind(&self) -> Kind {
        Kind::Balloon
    }

    fn features(&self) -> u64 {
        FEATURE_DEFLATE_ON_OOM | FEATURE_REPORTING
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn registers(&self) -> Arc<OwnRegisters> {
        Arc::clone(&self.registers)
    }

    fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    fn memory_rules(&self, memory: &GuestMemory) -> Rules {
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // Private memory is given back without a file.
        let Some(fd) = memory.fd().map(|fd| fd.as_raw_fd()) else {
            return Vec::new();
        };
        let rule = allow(libc::SYS_fallocate)
            .when(Condition::IntIs(0, fd as u32))
            .when(Condition::IntIs(1, hole as u32));
        vec![rule]
    }

    fn reset(&mut self) {
        self.registers.set(ACTUAL, &[0; 4]);
    }

    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), Broken> {
        running.each(queue, |memory, chain| match queue {
            INFLATE => self.inflate(memory, chain),
            DEFLATE => Ok(0),
            _ => self.report(memory, chain),
        })
    }

    fn aim(&mut self, pages: u32) -> bool {
        self.registers.set(TARGET, &pages.to_le_bytes());
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::devices::virtio::driver::{
        Driver, QUEUE_BYTES, Started, memory, readable, start, writable,
    };

    const MEMORY_BYTES: u64 = 1 << 20;
    const LIST: u64 = 8 * QUEUE_BYTES;

    fn started() -> (Started<Balloon>, Vec<Driver>) {
        let memory = memory(MEMORY_BYTES);
        start(Balloon::default(), &memory, u64::MAX)
    }

    /// Writes to every page behind the queues.
    fn touch(driver: &Driver) {
        for page in LIST / 4096 + 1..MEMORY_BYTES / 4096 {
            driver.write(page * 4096 + 8, &[1]);
        }
    }

    fn touched(driver: &Driver) -> BTreeSet<u64> {
        let pages = LIST / 4096 + 1..MEMORY_BYTES / 4096;
        let is_touched = |page: &u64| driver.read(page * 4096 + 8, 1) == [1];
        pages.filter(is_touched).collect()
    }

    proptest! {
        #[test]
        fn exactly_what_is_given_up_is_gone(pages in prop::collection::vec(40..256u32, 0..60)) {
            let (mut device, mut drivers) = started();
            let driver = &mut drivers[INFLATE];
            touch(driver);
            let before = touched(driver);
            for (n, page) in (0..).zip(&pages) {
                driver.write(LIST + 4 * n, &page.to_le_bytes());
            }
            // In two pieces, the cut within a number.
            let bytes = 4 * pages.len() as u32;
            let cut = bytes.min(6);
            driver.add(&[readable(LIST, cut), readable(LIST + u64::from(cut), bytes - cut)]);
            device.serve(INFLATE).unwrap();
            let given: BTreeSet<u64> = pages.iter().map(|page| u64::from(*page)).collect();
            let left: BTreeSet<u64> = before.difference(&given).copied().collect();
            prop_assert_eq!(touched(driver), left);
            prop_assert!(driver.take().is_some());
            let counted = device.backend.counters.read_bytes.load(Ordering::Relaxed);
            prop_assert_eq!(counted, given.len() as u64 * 4096);
        }

        #[test]
        fn of_what_is_reported_whole_pages_are_gone(
            ranges in prop::collection::vec((40 * 4096..200 * 4096u64, 0..40_000u32), 1..8),
            queue in prop::sample::select(vec![2, 4]),
        ) {
            let (mut device, mut drivers) = started();
            let driver = &mut drivers[queue];
            touch(driver);
            let pieces: Vec<_> = ranges.iter().map(|(start, bytes)| writable(*start, *bytes)).collect();
            let inside = |page: &u64| ranges.iter().any(|(start, bytes)| {
                page * 4096 >= *start && (page + 1) * 4096 <= start + u64::from(*bytes)
            });
            let left: BTreeSet<u64> = touched(driver).into_iter().filter(|page| !inside(page)).collect();
            driver.add(&pieces);
            device.serve(queue).unwrap();
            prop_assert_eq!(touched(driver), left);
            prop_assert_eq!(driver.take().map(|(_, written)| written), Some(0));
        }

        #[test]
        fn runs_are_joined_and_lose_nothing(runs in prop::collection::vec((0..60u64, 1..9u64), 0..20)) {
            let runs: Vec<_> = runs.into_iter().map(|(start, count)| start..start + count).collect();
            let all: BTreeSet<u64> = runs.iter().cloned().flatten().collect();
            let joined = joined(runs);
            prop_assert!(joined.windows(2).all(|two| two[0].end < two[1].start));
            prop_assert_eq!(joined.into_iter().flatten().collect::<Vec<_>>(), Vec::from_iter(all));
        }
    }

    #[test]
    fn a_page_that_is_not_there_and_an_endless_list_break_the_device() {
        for (page, bytes, told) in [
            (
                256u32,
                4,
                Broken::Buffer {
                    start: MEMORY_BYTES,
                    bytes: 4096,
                },
            ),
            (
                u32::MAX,
                4,
                Broken::Buffer {
                    start: 0xfff_ffff_f000,
                    bytes: 4096,
                },
            ),
            (40, 3, Broken::Short),
            (40, 4 * 4096 + 4, Broken::Long),
        ] {
            let (mut device, mut drivers) = started();
            drivers[INFLATE].write(LIST, &page.to_le_bytes());
            drivers[INFLATE].add(&[readable(LIST, bytes)]);
            assert_eq!(device.serve(INFLATE), Err(told));
        }
    }

    #[test]
    fn what_is_taken_back_needs_nothing() {
        let (mut device, mut drivers) = started();
        touch(&drivers[DEFLATE]);
        let before = touched(&drivers[DEFLATE]);
        drivers[DEFLATE].write(LIST, &50u32.to_le_bytes());
        drivers[DEFLATE].add(&[readable(LIST, 4)]);
        device.serve(DEFLATE).unwrap();
        assert!(drivers[DEFLATE].take().is_some());
        assert_eq!(touched(&drivers[DEFLATE]), before);
    }

    #[test]
    fn the_driver_writes_what_it_has_given_and_nothing_else() {
        let mut balloon = Balloon::default();
        assert!(balloon.aim(7));
        balloon.registers.write(0, &[9; 8]);
        assert_eq!(pages(&balloon.registers), (7, 0x0909_0909));
        balloon.reset();
        assert_eq!(pages(&balloon.registers), (7, 0));
    }

    #[test]
    fn a_page_that_is_given_up_is_a_page_that_changed() {
        let memory = memory(MEMORY_BYTES);
        let (mut device, mut drivers) = start(Balloon::default(), &memory, u64::MAX);
        let size = memory.size();
        let bitmap = dwcp_memory::DirtyBitmap::create(size).unwrap();
        let bitmap = dwcp_memory::DirtyBitmap::map(bitmap, size).unwrap();
        drivers[4].add(&[writable(50 * 4096, 2 * 4096)]);
        memory.start_tracking();
        device.serve(4).unwrap();
        memory.drain_log(&[&bitmap]);
        assert!(bitmap.is_set(PageIndex(50)) && bitmap.is_set(PageIndex(51)));
        assert!(!bitmap.is_set(PageIndex(52)));
    }
}
