//! The test guest: a real guest that is fast even where ring 0 is interpreted, and that checks its own memory.
//!
//! `build.rs` builds it as a PVH ELF ([`elf`]). It runs in ring 3 and talks on the first serial port:
//! ```text
//! guest: up tsc_khz 2400000
//! guest: filled 16 MiB
//! guest: tick 1 pages 1000 gap_us 61 checked 2867 bad 0      about once a second, see Tick
//! ```
//! `guest: refused: …`, `guest: trap …`, `guest: page N is not what was written` tell of trouble.
//!
//! Command line (defaults in parentheses): `fill_mib` (16), `ws_mib` (4), `rate` pages a second (1000), `seed`, `mix`
//! (`reference`; or `zero`, `random`, `text`), `verify` 0, 1 or 2 (1; 2 also checks that untouched pages are zero, which
//! allocates them), `tsc_khz`; `exit=reset` as the first word resets at the first instruction.
//!
//! Devices (virtio over PCI), each word off unless given, several with the same key add up:
//! - `rng=BYTES`: reads entropy ([`said::RngRead`]);
//! - `disk=check`: everything a disk can be asked for ([`said::DiskStep`]); `disk=read:MIB`: compares with
//!   [`pattern`] under `seed` ([`said::DiskRead`]); `disk=bench:SECONDS` per measurement ([`said::Bench`]);
//!   `disk=loop`: verified transfers beside the work, `io_rate` a second (1000; 0 none) ([`said::DiskLoop`]).
//!   `disk_at_mib` (0) and `disk_mib` (1) say where and how much is written, `disk_only` which disk (all);
//!   `disk=check` leaves the pattern of `seed` + 1 in the second half of what it wrote;
//! - `event_idx=0`, `indirect=1`: how queues are used (event indices if offered, no indirect descriptors);
//! - `then=reset`, `then=power-off`: how to end after all that is done once.
//!
//! A device that cannot be used: `guest: disk 0: fault: …`; one that is not there: `guest: disk: no device`.
//!
//! Commands, one character on its serial input: `s` stop by reset, `p` power off, `c` crash by triple fault, `h` hang,
//! `x` corrupt a page so that the check fails, `r` report the longest standstill since boot.

#[path = "../guest/pattern.rs"]
pub mod pattern;
pub mod said;

/// The guest, to be booted by PVH. Needs 32 MiB of memory, or 16 MiB more than its fill.
pub fn elf() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"))
}

/// What the guest says once a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// Counts up by one.
    pub tick: u64,
    /// Pages written so far.
    pub pages: u64,
    /// Longest time between two iterations of its loop since the last tick, in microseconds.
    pub gap_us: u64,
    /// Pages verified so far.
    pub checked: u64,
    /// Pages found other than they were written, so far; counted again in every round of verification.
    pub bad: u64,
}

impl Tick {
    /// Reads a line of the guest; `None` if it is no tick.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim_end().strip_prefix("guest: ")?.split(' ');
        let mut field = |name| match words.next() {
            Some(word) if word == name => words.next()?.parse().ok(),
            _ => None,
        };
        let tick = Self {
            tick: field("tick")?,
            pages: field("pages")?,
            gap_us: field("gap_us")?,
            checked: field("checked")?,
            bad: field("bad")?,
        };
        words.next().is_none().then_some(tick)
    }
}
