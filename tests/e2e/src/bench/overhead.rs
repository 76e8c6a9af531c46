//! Row 2: what a VMM takes beside its guest's memory, while the guest runs.
//!
//! The proportional set size that `smaps_rollup` gives, less that of the mapping of guest memory. The dirty bitmap
//! counts; memory that the kernel holds for KVM does not, as no process has it mapped.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dwcp_guest::Tick;

use super::figure::Figure;
use super::launcher::{Bench, Launcher};
use super::say;
use crate::programs::Programs;

const RUNS: usize = 5;
/// A guest that has not worked for a few seconds by then never will.
const DEADLINE: Duration = Duration::from_secs(120);
/// Ticks, one a second, before memory is looked at.
const TICKS: u64 = 2;
/// How the mapping of guest memory is called.
const GUEST_MEMORY: &str = "/memfd:dwcp-guest-memory";

pub async fn measure() -> anyhow::Result<Vec<Figure>> {
    let launcher = Launcher::start(&Programs::find()?)?;
    let bench = launcher.bench();
    // If this is dropped the launcher ends, and with it what the thread waits for.
    let runs = tokio::task::spawn_blocking(move || {
        (0..RUNS)
            .map(|run| one(&bench, run))
            .collect::<anyhow::Result<Vec<f64>>>()
    });
    let runs = runs.await.context("The measuring thread panicked")??;
    let note = "guest of 128 MiB and 1 vCPU at work, through dwcp-launch; block, net, entropy and balloon attached; \
                memory of the kernel's KVM is not in it";
    let figure = Figure::of(2, "overhead_mib", &runs, "MiB", "<= 5")?;
    Ok(vec![figure.without("Firecracker").noted(note)])
}

fn one(bench: &Bench, run: usize) -> anyhow::Result<f64> {
    let vm = bench.prepare(
        &format!("overhead-{run}"),
        "fill_mib=64 ws_mib=16 rate=1000",
    )?;
    let mut client = bench.client()?;
    let mut exits = bench.client()?.watch()?;
    let pid = vm.spawn(&mut client)?;
    let mut control = vm.connect()?;
    control.run(1)?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let log = fs::read_to_string(vm.log())?;
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
    let outside = outside_kib(
        &fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?,
        &fs::read_to_string(format!("/proc/{pid}/smaps"))?,
    )?;
    say(format!("VM {}: {outside} KiB beside its guest", run + 1));
    client.kill(vm.id())?;
    exits.next().context("The launcher tells no exits")??;
    client.forget(vm.id())?;
    Ok(outside as f64 / 1024.0)
}

/// Proportional set size of everything but guest memory, KiB.
fn outside_kib(rollup: &str, smaps: &str) -> anyhow::Result<u64> {
    let all = pss_kib(rollup, |_| true).context("smaps_rollup has no Pss")?;
    let guest = pss_kib(smaps, |name| name.starts_with(GUEST_MEMORY))
        .context("No guest memory is mapped")?;
    Ok(all.saturating_sub(guest))
}

/// Sum of the `Pss:` lines of the mappings whose name is wanted; `None` if there is none.
fn pss_kib(smaps: &str, wanted: impl Fn(&str) -> bool) -> Option<u64> {
    let (mut sum, mut inside) = (None, false);
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if !first.ends_with(':') {
            // A mapping begins: range, access, offset, device, inode, name.
            let name = line
                .split_whitespace()
                .skip(5)
                .collect::<Vec<_>>()
                .join(" ");
            inside = wanted(&name);
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
    fn guest_memory_is_left_out_and_nothing_else() {
        let rollup =
            "00400000-7ffc00021000 ---p 00000000 00:00 0 [rollup]\nRss: 1 kB\nPss: 65744 kB\n";
        assert_eq!(outside_kib(rollup, SMAPS).unwrap(), 744);
        assert_eq!(pss_kib(SMAPS, |_| true), Some(65744));
    }

    #[test]
    fn without_guest_memory_there_is_no_figure() {
        let rollup = "0-1 ---p 0 00:00 0 [rollup]\nPss: 5 kB\n";
        assert!(outside_kib(rollup, "").is_err());
    }
}
