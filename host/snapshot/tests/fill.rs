//! A guest's memory comes while it is being touched: every page right, none overwritten, none before it was checked.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use dwcp_memory::{
    DirtyBitmap, FaultChannel, GuestMemory, HostMap, MemoryError, PAGE_BYTES, PageIndex,
    create_memory,
};
use dwcp_snapshot::fill::{FillError, Filler, watch};
use dwcp_snapshot::{Chain, Encoding, Snapshot};

/// Memory that is being watched, and what its filler gets.
struct Watched {
    chain: Chain,
    memory: GuestMemory,
    faults: FaultChannel,
    hosts: HostMap,
    arrived: DirtyBitmap,
}

impl Watched {
    fn new(test: &str, chain: Chain, is_private: bool) -> Option<Self> {
        let size = chain.size();
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/userfaultfd");
        let faults = FaultChannel::create(device.as_ref().ok().map(|device| device.as_fd()));
        let faults = match faults {
            Ok(faults) => faults,
            Err(error) => {
                println!("SKIPPED {test}: {error}");
                return None;
            }
        };
        let memory = if is_private {
            GuestMemory::reserve(size, None).unwrap()
        } else {
            GuestMemory::map(create_memory(size).unwrap(), size).unwrap()
        };
        let hosts = memory.host_map().unwrap();
        watch(&chain, &faults, &hosts).unwrap();
        let arrived = DirtyBitmap::map(DirtyBitmap::create(size).unwrap(), size).unwrap();
        Some(Self {
            chain,
            memory,
            faults,
            hosts,
            arrived,
        })
    }

    fn filler(&self) -> Filler<'_> {
        Filler::new(&self.chain, &self.faults, &self.hosts, &self.arrived).unwrap()
    }

    /// Reads a page as a guest would: through the mapping, so that it waits.
    fn touch(&self, page: u64) -> Vec<u8> {
        use dwcp_memory::vm_memory::Bytes;
        let address = self.memory.layout().address_of(PageIndex(page)).unwrap();
        let mut bytes = vec![0; PAGE_BYTES];
        self.memory.ram().read_slice(&mut bytes, address).unwrap();
        bytes
    }
}

fn page(memory: &PlainMemory, page: u64) -> &[u8] {
    &memory.0[page as usize * PAGE_BYTES..][..PAGE_BYTES]
}

/// Two layers, compressed, with chunks that hold nothing.
fn chain() -> (PlainMemory, Chain) {
    let mut old = PlainMemory::mixed(20 * 512 + 77, 1);
    for at in 5 * 512..7 * 512 {
        old.fill(at, 0);
    }
    let mut new = old.clone();
    for at in (9..new.pages()).step_by(5) {
        new.fill(at, (at % 9) as u8);
    }
    for at in 5 * 512..6 * 512 {
        new.fill(at, 0);
    }
    let (full, digest) = write_full(&old, Encoding::Zstd);
    let (change, _) = write_change(&old, &new, digest, Encoding::Zstd);
    let layers = [change, full].map(|file| Snapshot::open(file).unwrap());
    (new, Chain::new(layers.into()).unwrap())
}

/// Every page once, in an order that jumps.
fn jumping(pages: u64) -> impl Iterator<Item = u64> {
    (0..pages).map(move |at| at * 4099 % pages)
}

fn touched_while_filled(test: &str, is_private: bool) {
    let (saved, chain) = chain();
    let Some(watched) = Watched::new(test, chain, is_private) else {
        return;
    };
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let wrong = |at: &u64| watched.touch(*at) != page(&saved, *at);
            jumping(saved.pages()).find(wrong)
        });
        let mut last = None;
        let filled = watched.filler().run(&mut |progress| {
            last = Some(progress);
            ControlFlow::Continue(())
        });
        filled.unwrap();
        assert_eq!(guest.join().unwrap(), None);
        let last = last.unwrap();
        assert_eq!(last.chunks_done, last.chunks);
    });
    // Nobody is held back any more, and all is there.
    let mut all = PlainMemory::zeros(saved.pages());
    watched.memory.read_pages(PageIndex(0), &mut all.0).unwrap();
    assert!(all == saved);
}

#[test]
fn shared_memory_comes_as_it_is_touched() {
    touched_while_filled("shared_memory_comes_as_it_is_touched", false);
}

#[test]
fn private_memory_comes_as_it_is_touched() {
    touched_while_filled("private_memory_comes_as_it_is_touched", true);
}

#[test]
fn another_filler_goes_on_and_what_the_guest_wrote_stays() {
    let test = "another_filler_goes_on_and_what_the_guest_wrote_stays";
    let (saved, chain) = chain();
    let Some(watched) = Watched::new(test, chain, false) else {
        return;
    };
    let stopped = watched
        .filler()
        .run(&mut |progress| match progress.chunks_done {
            5 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
    assert!(matches!(stopped, Err(FillError::Stopped)));
    let before = watched.arrived.count();
    assert!(before > 0);
    let written = [0xee; PAGE_BYTES];
    // Arrived, and as far as the next filler is told, not yet.
    watched.memory.write_pages(PageIndex(1), &written).unwrap();
    watched.arrived.clear_all();
    let has_begun = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            has_begun.store(true, Ordering::SeqCst);
            watched.touch(saved.pages() - 1)
        });
        // It may wait already when the second filler comes, or begin to wait later.
        while !has_begun.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        watched.filler().run(&mut go_on).unwrap();
        assert_eq!(guest.join().unwrap(), page(&saved, saved.pages() - 1));
    });
    assert!(watched.arrived.count() > before);
    assert_eq!(watched.touch(1), written);
    for at in 2..saved.pages() {
        assert_eq!(watched.touch(at), page(&saved, at), "page {at}");
    }
}

#[test]
fn a_fault_is_served_before_the_rest() {
    let (saved, chain) = chain();
    let Some(watched) = Watched::new("a_fault_is_served_before_the_rest", chain, false) else {
        return;
    };
    let last = saved.pages() - 2;
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| watched.touch(last));
        // The first chunk that comes after the fault was told is the one that is waited for.
        let mut seen_at = None;
        watched
            .filler()
            .run(&mut |progress| {
                if watched.arrived.is_set(PageIndex(last)) && seen_at.is_none() {
                    seen_at = Some(progress.chunks_done);
                }
                // The guest is given time to fault: nothing else may come meanwhile than what it waits for.
                while progress.chunks_done < 4 && !guest.is_finished() && !is_waiting(&watched) {
                    std::thread::yield_now();
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(guest.join().unwrap(), page(&saved, last));
        assert!(seen_at.unwrap() < 8, "{seen_at:?}");
    });
}

#[test]
fn a_page_that_was_given_up_is_zeros_when_it_is_touched_again() {
    let test = "a_page_that_was_given_up_is_zeros_when_it_is_touched_again";
    for is_private in [false, true] {
        let (_, chain) = chain();
        let Some(watched) = Watched::new(test, chain, is_private) else {
            return;
        };
        let is_given_up = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let guest = scope.spawn(|| {
                while !is_given_up.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                watched.touch(0)
            });
            let (mut calls, mut was_served) = (0, false);
            let filled = watched.filler().run(&mut |_| {
                calls += 1;
                let until = Instant::now() + Duration::from_secs(5);
                match calls {
                    // It has come, and the guest has no use for it any more.
                    1 => {
                        assert!(watched.arrived.is_set(PageIndex(0)));
                        watched.memory.zero_pages(PageIndex(0), 1).unwrap();
                        is_given_up.store(true, Ordering::SeqCst);
                        while !is_waiting(&watched) {
                            std::thread::yield_now();
                        }
                    }
                    // The fault was answered before the next chunk came.
                    2 => {
                        while !guest.is_finished() && Instant::now() < until {
                            std::thread::yield_now();
                        }
                        was_served = guest.is_finished();
                    }
                    _ => {}
                }
                ControlFlow::Continue(())
            });
            filled.unwrap();
            assert_eq!(guest.join().unwrap(), [0; PAGE_BYTES]);
            assert!(was_served);
        });
    }
}

/// Whether a fault is waiting to be read.
fn is_waiting(watched: &Watched) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(watched.faults.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
}

#[test]
fn a_damaged_chunk_does_not_enter() {
    let memory = PlainMemory::mixed(4 * 512, 1);
    let mut bytes = bytes_of(&write_full(&memory, Encoding::Zstd).0);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let chain = Chain::new(vec![Snapshot::open(file_of(&bytes)).unwrap()]).unwrap();
    let Some(watched) = Watched::new("a_damaged_chunk_does_not_enter", chain, false) else {
        return;
    };
    let refused = watched.filler().run(&mut go_on).unwrap_err();
    assert!(matches!(refused, FillError::Read(_)), "{refused}");
    // What came before it is right, and nothing of it is there.
    let arrived = watched.arrived.count();
    assert!(arrived > 0 && arrived < memory.pages() * 3 / 5);
    for at in watched.arrived.iter() {
        assert_eq!(watched.touch(at.0), page(&memory, at.0));
    }
}

#[test]
fn only_a_userfaultfd_is_taken_for_one() {
    let null = File::open("/dev/null").unwrap();
    let refused = FaultChannel::create(Some(null.as_fd())).unwrap_err();
    assert!(matches!(refused, MemoryError::System { .. }), "{refused}");
}
