//! The loop: write pages at the asked rate, verify the others in between, tell about it once a second, obey.
//!
//! An iteration does at most one page of each, so that the time between two iterations shows when the guest as a
//! whole stood still.

use core::fmt::Write;

use crate::check;
use crate::clock::{self, Clock, Pace};
use crate::fill::{Mix, PAGE_WORDS, Random, fill_page};
use crate::memory::{Memory, WRITTEN};
use crate::params::Params;
use crate::serial::{self, Serial};
use crate::tasks::Services;

/// Commands are looked for this often: a look costs an exit.
const POLLS_PER_S: u64 = 100;
/// A whole round of verification takes about this long.
const ROUND_S: u64 = 1;

/// The guest at work.
pub struct Work {
    memory: Memory,
    params: Params,
    random: Random,
    clock: Clock,
    services: Services,
    written: u64,
    checked: u64,
    bad: u64,
    tick: u64,
    gap: u64,
    gap_ever: u64,
    next_check: usize,
}

impl Work {
    /// Fills memory.
    pub fn prepare(memory: Memory, params: Params, clock: Clock) -> Self {
        let mut random = Random::new(params.seed);
        let mix = params.mix.unwrap_or(Mix::Reference);
        for (number, page) in memory.pages.iter_mut().enumerate() {
            if fill_page(mix, number as u64, page, &mut random) {
                memory.sums[number] = check::sum(page).wrapping_add(WRITTEN);
            }
        }
        Self {
            memory,
            params,
            random,
            clock,
            services: Services::none(),
            written: 0,
            checked: 0,
            bad: 0,
            tick: 0,
            gap: 0,
            gap_ever: 0,
            next_check: 0,
        }
    }

    /// Works until told otherwise, and lets devices be served beside it.
    pub fn run(mut self, services: Services) -> ! {
        self.services = services;
        let hz = self.clock.ticks_per_s();
        let pages = self.memory.pages.len() as u64;
        let checks = if self.params.verify == 0 {
            0
        } else {
            pages.div_ceil(ROUND_S)
        };
        let mut now = clock::now();
        let mut write = Pace::new(self.params.rate, hz, now);
        let mut check = Pace::new(checks, hz, now);
        let mut poll = Pace::new(POLLS_PER_S, hz, now);
        let mut tell = Pace::new(1, hz, now);
        loop {
            let before = now;
            now = clock::now();
            self.gap = self.gap.max(now.saturating_sub(before));
            if write.is_due(now) {
                self.write_page(now);
            }
            if check.is_due(now) {
                self.check_page();
            }
            self.services.step(now);
            if poll.is_due(now)
                && let Some(command) = serial::poll()
            {
                self.obey(command);
            }
            if tell.is_due(now) {
                self.tell();
                // What telling cost is no standstill.
                now = clock::now();
            }
        }
    }

    /// Changes two words of a page of the working set.
    fn write_page(&mut self, now: u64) {
        let pages = (self.params.ws_mib * 256).max(1);
        let number = (self.random.next() % pages) as usize;
        let Some(page) = self.memory.pages.get_mut(number) else {
            return;
        };
        let stored = &mut self.memory.sums[number];
        let mut sum = if *stored == 0 {
            0
        } else {
            stored.wrapping_sub(WRITTEN)
        };
        let counted = (self.random.next() & (PAGE_WORDS as u64 - 1)) as usize;
        let stamped = (self.random.next() & (PAGE_WORDS as u64 - 1)) as usize;
        for place in [counted, stamped] {
            let old = page[place];
            let new = if place == stamped {
                now
            } else {
                old.wrapping_add(1)
            };
            page[place] = new;
            sum = check::replace(sum, place, old, new);
        }
        *stored = sum.wrapping_add(WRITTEN);
        self.written += 1;
    }

    fn check_page(&mut self) {
        let number = self.next_check;
        self.next_check = (number + 1) % self.memory.pages.len().max(1);
        let Some(page) = self.memory.pages.get(number) else {
            return;
        };
        let expected = match self.memory.sums[number] {
            0 if self.params.verify < 2 => return,
            0 => 0,
            stored => stored.wrapping_sub(WRITTEN),
        };
        self.checked += 1;
        if check::sum(page) != expected {
            self.bad += 1;
            let _ = writeln!(Serial, "guest: page {number} is not what was written");
        }
    }

    fn tell(&mut self) {
        self.tick += 1;
        self.gap_ever = self.gap_ever.max(self.gap);
        let gap_us = self.clock.microseconds(self.gap);
        let _ = writeln!(
            Serial,
            "guest: tick {} pages {} gap_us {gap_us} checked {} bad {}",
            self.tick, self.written, self.checked, self.bad
        );
        self.gap = 0;
        self.services.tell();
    }

    fn obey(&mut self, command: u8) {
        match command {
            b's' => {
                let _ = writeln!(Serial, "guest: stopping");
                serial::reset()
            }
            b'p' => {
                let _ = writeln!(Serial, "guest: powering off");
                serial::power_off()
            }
            b'c' => {
                let _ = writeln!(Serial, "guest: crashing");
                crate::boot::triple_fault()
            }
            b'h' => {
                let _ = writeln!(Serial, "guest: hanging");
                serial::hang()
            }
            b'x' => self.corrupt(),
            b'r' => {
                let longest = self.clock.microseconds(self.gap_ever.max(self.gap));
                let _ = writeln!(Serial, "guest: longest gap_us {longest}");
            }
            _ => {}
        }
    }

    /// Changes a page that was written, without telling its sum.
    fn corrupt(&mut self) {
        let victim = self.memory.sums.iter().rposition(|stored| *stored != 0);
        if let Some(number) = victim {
            self.memory.pages[number][0] ^= 1;
            let _ = writeln!(Serial, "guest: corrupted page {number}");
        }
    }
}
