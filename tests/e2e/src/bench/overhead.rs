//! Row 2: what a VMM takes beside its guest's memory, while the guest runs.
//!
//! The proportional set size that `smaps_rollup` gives, less that of the mapping of guest memory. The dirty bitmap
//! counts; memory that the kernel holds for KVM does not, as no process has it mapped.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dwcp_guest::Tick;
use dwcp_launch::{Client, Exits};

use super::figure::Figure;
use super::firecracker::start::Configured;
use super::firecracker::{self, Firecracker};
use super::launcher::{self, Bench};
use super::machine::SMALL;
use super::say;

const RUNS: usize = 5;
/// A guest that has not worked for a few seconds by then never will.
const DEADLINE: Duration = Duration::from_secs(120);
/// Ticks, one a second, before memory is looked at.
const TICKS: u64 = 2;
const CMDLINE: &str = "fill_mib=64 ws_mib=16 rate=1000";
/// How the mapping of guest memory is called.
const GUEST_MEMORY: &str = "/memfd:dwcp-guest-memory";
const NOTE: &str = "guest of 128 MiB and 1 vCPU at work, through dwcp-launch; block, net, entropy and balloon attached; \
                    the reference has block and net and no jailer; memory of the kernel's KVM is in neither";

pub async fn measure(firecracker: Option<&Path>) -> anyhow::Result<Vec<Figure>> {
    let firecracker = Firecracker::given(firecracker);
    launcher::measure(move |bench, _| rounds(bench, firecracker)).await
}

fn rounds(bench: &Bench, firecracker: Result<Firecracker, String>) -> anyhow::Result<Vec<Figure>> {
    let configured = firecracker.as_ref().ok();
    let configured = configured
        .map(|program| Configured::new(program, bench, SMALL, CMDLINE))
        .transpose()?;
    let mut client = bench.client()?;
    let mut exits = bench.client()?.watch()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let kib = one(bench, run, &mut client, &mut exits)?;
        let other = configured.as_ref().map(of_firecracker).transpose()?;
        let beside = other.map_or_else(String::new, |kib| format!("; {kib} KiB of Firecracker"));
        say(format!(
            "VM {}: {kib} KiB beside its guest{beside}",
            run + 1
        ));
        ours.push(kib as f64 / 1024.0);
        theirs.extend(other.map(|kib| kib as f64 / 1024.0));
    }
    let figure = Figure::of(2, "overhead_mib", &ours, "MiB", "<= 5")?.noted(NOTE);
    Ok(vec![match firecracker {
        Ok(program) => figure.beside(program.version(), &theirs)?,
        Err(why) => figure.without(firecracker::NAME, &why),
    }])
}

fn one(bench: &Bench, run: usize, client: &mut Client, exits: &mut Exits) -> anyhow::Result<u64> {
    let vm = bench.prepare(&format!("overhead-{run}"), SMALL, CMDLINE)?;
    let pid = vm.spawn(client)?;
    let mut control = vm.connect()?;
    control.run(1)?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let log = vm.said()?;
        if log
            .lines()
            .filter_map(Tick::parse)
            .any(|tick| tick.tick >= TICKS)
        {
            break;
        }
        ensure!(Instant::now() < deadline, "The guest does not work: {log}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let outside = outside_kib(pid, |mapping| mapping.name.starts_with(GUEST_MEMORY))?;
    vm.end(client, exits)?;
    Ok(outside)
}

/// The same of Firecracker, whose mapping of guest memory has no name; but no other is as large.
fn of_firecracker(configured: &Configured) -> anyhow::Result<u64> {
    let mut process = configured.start()?;
    let text = format!("guest: tick {TICKS} ");
    process.output().wait_for_text(&text)?;
    outside_kib(process.pid(), |mapping| {
        mapping.bytes == SMALL.memory_bytes()
    })
}

/// Proportional set size of a process without that of guest memory, KiB.
fn outside_kib(pid: u32, is_guest: impl Fn(&Mapping<'_>) -> bool) -> anyhow::Result<u64> {
    let all = all_kib(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?);
    let guest = pss_kib(&fs::read_to_string(format!("/proc/{pid}/smaps"))?, is_guest);
    let guest = guest.context("No guest memory is mapped")?;
    let all = all.context("smaps_rollup has no Pss")?;
    Ok(all.saturating_sub(guest))
}

/// Proportional set size of a whole process, from its `smaps_rollup`, KiB.
pub fn all_kib(rollup: &str) -> Option<u64> {
    pss_kib(rollup, |_| true)
}

/// A mapping of a process.
#[derive(Clone, Copy, Debug)]
struct Mapping<'a> {
    bytes: u64,
    /// Its file's name, or nothing.
    name: &'a str,
}

impl<'a> Mapping<'a> {
    /// Reads the first line of a mapping: range, access, offset, device, inode, name.
    fn parse(line: &'a str) -> Option<Self> {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let address = |digits| u64::from_str_radix(digits, 16).ok();
        let mut name = rest;
        for _ in 0..4 {
            name = name.split_once(' ')?.1;
        }
        Some(Self {
            bytes: address(to)?.checked_sub(address(from)?)?,
            name: name.trim(),
        })
    }
}

/// Sum of the `Pss:` lines of the mappings that are wanted; `None` if there is none.
fn pss_kib(smaps: &str, wanted: impl Fn(&Mapping<'_>) -> bool) -> Option<u64> {
    let (mut sum, mut inside) = (None, false);
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if !first.ends_with(':') {
            inside = Mapping::parse(line).is_some_and(|mapping| wanted(&mapping));
        } else if let (true, Some(rest)) = (inside, line.strip_prefix("Pss:")) {
            let kib: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
            sum = Some(sum.unwrap_or(0) + kib);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 fe:00 12 /opt/dwcp-vmm
Size:               1024 kB
Pss:                 700 kB
Pss_Dirty:             8 kB
7f0000000000-7f0008000000 rw-s 00000000 00:01 99 /memfd:dwcp-guest-memory (deleted)
Size:             131072 kB
Pss:               65000 kB
7f0010000000-7f0010001000 rw-s 00000000 00:01 98 /memfd:dwcp-dirty-bitmap (deleted)
Pss:                   4 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
Pss:                  40 kB
";

    #[test]
    fn mappings_are_told_apart_by_name_and_by_size() {
        let named = |mapping: &Mapping<'_>| mapping.name.starts_with(GUEST_MEMORY);
        assert_eq!(pss_kib(SMAPS, named), Some(65000));
        let large = |mapping: &Mapping<'_>| mapping.bytes == 128 << 20;
        assert_eq!(pss_kib(SMAPS, large), Some(65000));
        assert_eq!(pss_kib(SMAPS, |_| true), Some(65744));
        assert_eq!(pss_kib(SMAPS, |mapping| mapping.name.is_empty()), None);
    }

    #[test]
    fn a_process_has_one_sum() {
        let rollup =
            "00400000-7ffc00021000 ---p 00000000 00:00 0 [rollup]\nRss: 1 kB\nPss: 65744 kB\n";
        assert_eq!(all_kib(rollup), Some(65744));
        assert_eq!(all_kib(""), None);
    }
}
