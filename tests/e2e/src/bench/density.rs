//! Row 22: what an idle fork costs in memory, when there are a hundred.
//!
//! Each is forked, runs until it speaks, and is paused: our guest never sleeps, so an idle one is one that stands still.
//! The proportional set size of all VMM processes, guest memory included, divided by their number: what many share
//! counts once. The template's own memory comes once in addition, as no process has all of it mapped; memory that the
//! kernel holds for KVM is not in it, but mostly in the control groups' figure.

use std::fs;
use std::path::Path;

use anyhow::Context;
use dwcp_vmm::client::VmmClient;

use super::figure::Figure;
use super::firecracker::snapshot::Kept;
use super::firecracker::{self, Firecracker};
use super::fork::{SHAPE, go_on};
use super::launcher::{self, Bench};
use super::machine::Prepared;
use super::output::Output;
use super::overhead::all_kib;
use super::say;
use super::template::Template;

const VMS: usize = 100;
/// Nothing is written beside what is told: what a guest catches up with before it is paused would be counted.
const CMDLINE: &str = "fill_mib=64 rate=0 verify=0";
const NOTE: &str = "100 forks of one template, each paused after its first output; 512 MiB, of which the template filled \
                    64 MiB, 2 vCPUs, block, entropy and balloon attached, no net";

pub async fn measure(firecracker: Option<&Path>) -> anyhow::Result<Vec<Figure>> {
    let firecracker = Firecracker::given(firecracker);
    launcher::measure(move |bench, _| rounds(bench, firecracker)).await
}

fn rounds(bench: &Bench, firecracker: Result<Firecracker, String>) -> anyhow::Result<Vec<Figure>> {
    let (ours, of_groups) = forks(bench)?;
    let other = firecracker.and_then(|program| {
        let theirs = restored(bench, &program).map_err(|error| format!("{error:#}"))?;
        Ok((program, theirs))
    });
    let figure = Figure::of(22, "idle_fork_mib", &[ours], "MiB", "stated")?;
    let figure = figure.noted(&format!(
        "{NOTE}; proportional set size of all processes by their number; the reference: as many restored from one \
         snapshot and paused"
    ));
    let mut figures = vec![match other {
        Ok((program, theirs)) => figure.beside(program.version(), &[theirs])?,
        Err(why) => figure.without(firecracker::NAME, &why),
    }];
    if let Some(of_groups) = of_groups {
        let figure = Figure::of(22, "idle_fork_group_mib", &[of_groups], "MiB", "stated")?;
        figures.push(
            figure
                .noted(&format!(
                    "{NOTE}; what their control groups are charged, by their number"
                ))
                .without(firecracker::NAME, "it has no groups without its jailer"),
        );
    }
    Ok(figures)
}

/// A fork that stands still.
struct Idle {
    vm: Prepared,
    pid: u32,
    _control: VmmClient,
    _output: Output,
}

/// By processes, and by control groups if there are any: MiB a VM.
fn forks(bench: &Bench) -> anyhow::Result<(f64, Option<f64>)> {
    let template = Template::make(bench, SHAPE, CMDLINE)?;
    let mut client = bench.client()?;
    let mut exits = bench.client()?.watch()?;
    let mut idle = Vec::new();
    for number in 0..VMS {
        let (vm, output) = bench.prepare_fork(&format!("idle-{number}"), SHAPE, &template)?;
        let pid = vm.spawn(&mut client)?;
        let mut control = vm.connect()?;
        go_on(&mut control, &template, &output)?;
        control.pause()?;
        idle.push(Idle {
            vm,
            pid,
            _control: control,
            _output: output,
        });
    }
    let pids: Vec<u32> = idle.iter().map(|vm| vm.pid).collect();
    let each_mib = mib_each(&pids)?;
    let group_bytes: Option<u64> = pids.iter().map(|pid| group_bytes(*pid)).sum();
    let group_mib = group_bytes.map(|bytes| bytes as f64 / VMS as f64 / f64::from(1 << 20));
    say(format!("{VMS} forks: {each_mib:.2} MiB each"));
    for vm in &idle {
        vm.vm.end(&mut client, &mut exits)?;
    }
    Ok((each_mib, group_mib))
}

/// As many of Firecracker's, restored from one snapshot: MiB a VM.
fn restored(bench: &Bench, program: &Firecracker) -> anyhow::Result<f64> {
    let kept = Kept::take(program, bench, SHAPE, CMDLINE)?;
    let idle: Vec<_> = (0..VMS)
        .map(|number| kept.idle(number))
        .collect::<Result<_, _>>()?;
    let pids: Vec<u32> = idle.iter().map(|one| one.pid()).collect();
    let each_mib = mib_each(&pids)?;
    say(format!("{VMS} of Firecracker: {each_mib:.2} MiB each"));
    Ok(each_mib)
}

fn mib_each(pids: &[u32]) -> anyhow::Result<f64> {
    let mut sum_kib = 0;
    for pid in pids {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        sum_kib += all_kib(&rollup).context("smaps_rollup has no Pss")?;
    }
    Ok(sum_kib as f64 / 1024.0 / pids.len().max(1) as f64)
}

/// What the memory control group of a process is charged: version 2, or the old hierarchy at its usual place.
fn group_bytes(pid: u32) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let of = |marked: &str, place: &str, file: &str| {
        let path = groups.lines().find_map(|line| line.split_once(marked))?.1;
        let path = format!("{place}{path}/{file}");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    of(":memory:", "/sys/fs/cgroup/memory", "memory.usage_in_bytes")
        .or_else(|| of("0::", "/sys/fs/cgroup", "memory.current"))
}
