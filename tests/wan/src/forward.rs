//! One direction at work: a thread that takes packets from one device and gives them to the other when it is time.
//!
//! Memory is bounded: what is under way is at most [`UNDER_WAY_BYTES_MAX`]; beyond that packets are dropped as if the
//! queue were full.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use dwcp_wan::{Direction, Settings};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::bottleneck::{Bottleneck, Fate};
use crate::tun::MTU;

/// Ten gigabits a second for 200 ms.
const UNDER_WAY_BYTES_MAX: usize = 256 << 20;
/// Packets taken before due ones are given again.
const BATCH_PACKETS: usize = 64;

/// What the control side and both directions share.
#[derive(Debug)]
pub struct Shared {
    /// What the link is like now.
    pub settings: Mutex<Settings>,
    /// How often it was cut and restored: odd while it is cut. A number, so that no cut is too short to be noticed.
    pub turns: AtomicU64,
}

impl Shared {
    /// Whether the link is cut now.
    pub fn is_cut(&self) -> bool {
        self.turns.load(Ordering::Acquire) % 2 == 1
    }

    /// Cuts or restores it; nothing changes when it is so already.
    pub fn set_cut(&self, cut: bool) {
        let turn = |turns: u64| ((turns % 2 == 1) != cut).then_some(turns + 1);
        let _ = self
            .turns
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, turn);
    }
}

/// One direction.
#[derive(Debug)]
pub struct Forwarder {
    from: File,
    to: File,
    bottleneck: Bottleneck,
    known: Settings,
    known_turns: u64,
    under_way: VecDeque<(Duration, Vec<u8>)>,
    under_way_bytes: usize,
    spare: Vec<Vec<u8>>,
}

impl Forwarder {
    /// From one device to the other.
    pub fn new(from: File, to: File, settings: Settings, seed: u64) -> Self {
        Self {
            from,
            to,
            bottleneck: Bottleneck::new(settings, seed),
            known: settings,
            known_turns: 0,
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            spare: Vec::new(),
        }
    }

    /// Forwards until a device fails, which it does when somebody deletes it.
    pub fn run(mut self, shared: &Shared, counts: &Mutex<Direction>) -> anyhow::Result<()> {
        let start = Instant::now();
        // Wake when asked, not up to 50 µs later as is the default.
        nix::sys::prctl::set_timerslack(1).context("The timer cannot be made precise")?;
        loop {
            let now = start.elapsed();
            let mut news = Direction::default();
            let cut = self.follow(shared, &mut news);
            self.give(now, &mut news);
            let drained = self.take(now, cut, &mut news)?;
            add(counts, news);
            if drained {
                self.wait(start.elapsed())?;
            }
        }
    }

    /// Takes up changed settings; on a cut, what is under way is lost. Answers whether the link is cut.
    fn follow(&mut self, shared: &Shared, news: &mut Direction) -> bool {
        let settings = *lock(&shared.settings);
        if settings != self.known {
            self.known = settings;
            self.bottleneck.change(settings);
        }
        let turns = shared.turns.load(Ordering::Acquire);
        if turns != self.known_turns {
            self.known_turns = turns;
            news.dropped_cut += self.under_way.len() as u64;
            self.under_way.clear();
            self.under_way_bytes = 0;
            self.bottleneck.clear();
        }
        turns % 2 == 1
    }

    /// Gives what is due.
    fn give(&mut self, now: Duration, news: &mut Direction) {
        while self.under_way.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, packet)) = self.under_way.pop_front() else {
                return;
            };
            self.under_way_bytes -= packet.len();
            match self.to.write(&packet) {
                Ok(_) => {
                    news.packets += 1;
                    news.bytes += packet.len() as u64;
                }
                Err(_) => news.dropped_refused += 1,
            }
            if self.spare.len() < BATCH_PACKETS {
                self.spare.push(packet);
            }
        }
    }

    /// Takes what is there, within a batch. Answers whether that was all.
    fn take(&mut self, now: Duration, cut: bool, news: &mut Direction) -> anyhow::Result<bool> {
        for _ in 0..BATCH_PACKETS {
            let mut packet = self.spare.pop().unwrap_or_default();
            packet.resize(MTU, 0);
            match self.from.read(&mut packet) {
                Ok(length) => packet.truncate(length),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.spare.push(packet);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("A device is gone"),
            }
            news.taken += 1;
            if cut {
                news.dropped_cut += 1;
            } else if self.under_way_bytes + packet.len() > UNDER_WAY_BYTES_MAX {
                news.dropped_queue += 1;
            } else {
                match self.bottleneck.take(now, packet.len()) {
                    Fate::Arrives(at) => {
                        self.under_way_bytes += packet.len();
                        self.under_way.push_back((at, packet));
                    }
                    Fate::QueueFull => news.dropped_queue += 1,
                    Fate::Lost => news.dropped_loss += 1,
                }
            }
        }
        Ok(false)
    }

    /// Waits for a packet, or until one is due.
    fn wait(&self, now: Duration) -> anyhow::Result<()> {
        let due = self.under_way.front();
        let timeout = due.map(|(at, _)| TimeSpec::from_duration(at.saturating_sub(now)));
        let mut fds = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).context("Packets cannot be waited for"),
        }
    }
}

fn add(counts: &Mutex<Direction>, news: Direction) {
    if news == Direction::default() {
        return;
    }
    let mut counts = lock(counts);
    counts.taken += news.taken;
    counts.packets += news.packets;
    counts.bytes += news.bytes;
    counts.dropped_queue += news.dropped_queue;
    counts.dropped_loss += news.dropped_loss;
    counts.dropped_cut += news.dropped_cut;
    counts.dropped_refused += news.dropped_refused;
}

/// Plain values: a thread that panicked while it held them left nothing half done.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
