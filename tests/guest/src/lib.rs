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
//! `cpuid=LEAF[:SUBLEAF]` (hexadecimal, up to 8 times) tells what the guest was told of its CPU ([`said::Cpuid`]).
//!
//! Devices (virtio over PCI; what is said of them is in [`said`]). Each word is off unless given; words with the same
//! key add up. What is done once is done in the order given here, before the work goes on:
//! - `virtio=msix`: whether disk, entropy and network devices interrupt;
//! - `virtio=hostile:ATTACK[:DEVICE[:QUEUE]]`: misbehaves towards devices; `all`, or one of `loop`, `next`, `index`,
//!   `length`, `outside`, `jump`, `swapped`, `empty`, `indirect`, `unaligned`, `elsewhere`, `reset`, `registers`,
//!   `random` (by `seed`); DEVICE is `disk` (the default), `net`, `rng`, `balloon` or `vsock`;
//! - `rng=BYTES`: reads entropy;
//! - `disk=check`: everything a disk can be asked for; `disk=read:MIB`: compares with [`pattern`] under `seed`;
//!   `disk=bench:SECONDS` for each measurement; `disk=loop`: verified transfers beside the work. `disk_at_mib` (0) and
//!   `disk_mib` (1) say where and how much is written, `disk_only` which disk (all). `disk=check` leaves the pattern of
//!   `seed` + 1 in the second half of what it wrote;
//! - `net=dhcp`: gets an address; `net=send:COUNT`: datagrams to a peer that echoes; `net=bench:SECONDS` for each
//!   measurement; `net=echo[:PORT]` (7): sends datagrams back beside the work; `net=loop`: verified datagrams to the
//!   peer beside the work. `ip=ADDRESS/PREFIX`, `router=ADDRESS`, `peer=ADDRESS:PORT`, `net_bytes` (1000) of a datagram,
//!   `net_only` which interface (all), `offload=1` sums by the device and mergeable buffers. Pings are answered whenever
//!   an interface is looked at;
//! - `vsock=connect:PORT:BYTES`: sends the pattern of `seed` to a port of the host, which must send it back;
//!   `vsock=listen:PORT`: sends back what comes, beside the work;
//! - `balloon=report`: writes to all spare pages, then reports them as free; `balloon=follow`: gives the host as many
//!   spare pages as it wants, beside the work;
//! - `io_rate` (1000): what `loop` begins a second, 0 for none; `event_idx=0`, `indirect=1`: how queues are used (event
//!   indices if offered, no indirect descriptors);
//! - `then=reset`, `then=power-off`: ends when everything is done that is done once.
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
