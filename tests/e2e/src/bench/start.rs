//! Row 1: from the request to start a VMM to the news that its guest has reset itself, which it does at its first
//! instruction.
//!
//! `start_ms` goes through the launcher, with all walls; `start_bare_ms` starts the same program without the launcher
//! (its own seccomp filters stay); they take turns, with Firecracker where there is one.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dwcp_launch::{Client, Exits};
use dwcp_memory::MemorySize;
use dwcp_vmm::config::{Device, VmConfig};
use dwcp_vmm::spawn::{GuestFiles, Plan, spawn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::figure::{Figure, median};
use super::firecracker::start::{Configured, OtherRun};
use super::firecracker::{self, Firecracker};
use super::launcher::{self, Bench};
use super::machine::{SMALL, Shape, check_reset, disk, fresh, open_disk};
use super::say;
use crate::programs::Programs;

const WARM_UP: usize = 5;
const RUNS: usize = 101;
const CMDLINE: &str = "exit=reset";
/// A guest that has not reset itself after this long never will.
const DEADLINE: Duration = Duration::from_secs(60);
const NOTE: &str = "128 MiB, 1 vCPU";
/// Without the launcher there is no tap, so no card.
const BARE: Shape = Shape {
    card: None,
    ..SMALL
};

pub async fn measure(firecracker: Option<&Path>) -> anyhow::Result<Vec<Figure>> {
    let firecracker = Firecracker::given(firecracker);
    launcher::measure(move |bench, programs| rounds(bench, programs, firecracker)).await
}

/// When what had happened, ms after the request.
#[derive(Clone, Copy, Debug)]
struct Stages {
    spawned: f64,
    ready: f64,
    ended: f64,
}

/// What was measured.
#[derive(Debug, Default)]
struct Runs {
    jailed: Vec<Stages>,
    bare_ms: Vec<f64>,
    cpu_ms: f64,
    other: Vec<OtherRun>,
    /// Without a card.
    other_bare_ms: Vec<f64>,
}

fn rounds(
    bench: &Bench,
    programs: &Programs,
    firecracker: Result<Firecracker, String>,
) -> anyhow::Result<Vec<Figure>> {
    let configured = firecracker.as_ref().ok();
    let configured = configured
        .map(|program| {
            let with_card = Configured::new(program, bench, SMALL, CMDLINE)?;
            anyhow::Ok((with_card, Configured::new(program, bench, BARE, CMDLINE)?))
        })
        .transpose()?;
    let mut client = bench.client()?;
    let mut exits = bench.client()?.watch()?;
    let mut runs = Runs::default();
    for round in 0..WARM_UP + RUNS {
        let before_ms = bench.cpu_ms()?;
        let stages = through_launcher(bench, &mut client, &mut exits, round)?;
        let used_ms = bench.cpu_ms()? - before_ms;
        let bare_ms = without_launcher(bench, programs)?;
        let other = match &configured {
            Some((with_card, bare)) => Some((with_card.run()?, bare.run()?.wall_ms)),
            None => None,
        };
        if round >= WARM_UP {
            runs.jailed.push(stages);
            runs.bare_ms.push(bare_ms);
            runs.cpu_ms += used_ms;
            runs.other.extend(other.map(|(with_card, _)| with_card));
            runs.other_bare_ms.extend(other.map(|(_, bare_ms)| bare_ms));
        }
    }
    figures(&runs, &firecracker)
}

fn figures(runs: &Runs, firecracker: &Result<Firecracker, String>) -> anyhow::Result<Vec<Figure>> {
    let of = |stage: fn(&Stages) -> f64| runs.jailed.iter().map(stage).collect::<Vec<f64>>();
    say(format!(
        "through the launcher: process {:.1} ms after the request, ready after {:.1} ms, ended after {:.1} ms",
        median(&of(|at| at.spawned))?,
        median(&of(|at| at.ready))?,
        median(&of(|at| at.ended))?,
    ));
    let other_ms: Vec<f64> = runs.other.iter().map(|run| run.wall_ms).collect();
    let other_cpu_ms: f64 = runs.other.iter().map(|run| run.cpu_ms).sum();
    let finish = |figure: Figure, other: &[f64], how: &str| {
        let figure = figure.noted(&format!("{NOTE}; {how}"));
        match firecracker {
            Ok(firecracker) => figure.beside(firecracker.version(), other),
            Err(why) => Ok(figure.without(firecracker::NAME, why)),
        }
    };
    let goal = "<= 10, ratio <= 0.75";
    Ok(vec![
        finish(
            Figure::of(1, "start_ms", &of(|at| at.ended), "ms", goal)?,
            &other_ms,
            "block, net, entropy and balloon attached; through dwcp-launch, jail and seccomp on",
        )?,
        finish(
            Figure::of(1, "start_bare_ms", &runs.bare_ms, "ms", "stated")?,
            &runs.other_bare_ms,
            "block and entropy attached; without dwcp-launch, so neither namespaces nor a tap; seccomp on; the reference without \
             a card too",
        )?,
        finish(
            mean_of_runs(runs.cpu_ms)?,
            &[other_cpu_ms / RUNS as f64],
            "mean processor time of launcher and VMM together",
        )?,
    ])
}

/// The kernel counts in ticks longer than one run, so there is only the mean.
fn mean_of_runs(all_ms: f64) -> anyhow::Result<Figure> {
    let mean = Figure::of(1, "start_cpu_ms", &[all_ms / RUNS as f64], "ms", "stated")?;
    Ok(Figure {
        runs: u32::try_from(RUNS)?,
        low: None,
        high: None,
        ..mean
    })
}

fn through_launcher(
    bench: &Bench,
    client: &mut Client,
    exits: &mut Exits,
    round: usize,
) -> anyhow::Result<Stages> {
    let vm = bench.prepare(&format!("start-{round}"), SMALL, CMDLINE)?;
    let began = Instant::now();
    let at = || began.elapsed().as_secs_f64() * 1000.0;
    vm.spawn(client)?;
    let spawned = at();
    let mut control = vm.connect()?;
    let ready = at();
    control.run(1)?;
    let child = exits.next().context("The launcher tells no exits")??;
    let ended = at();
    ensure!(child.id == *vm.id(), "{} ended unexpectedly", child.id);
    check_reset(&child.state)?;
    client.forget(vm.id())?;
    Ok(Stages {
        spawned,
        ready,
        ended,
    })
}

fn without_launcher(bench: &Bench, programs: &Programs) -> anyhow::Result<f64> {
    let config = VmConfig {
        devices: vec![Device::Rng, disk()],
        ..SMALL.config("bare", fresh(CMDLINE))?
    };
    let file = open_disk(&bench.disk()?)?;
    let kernel = std::fs::File::open(bench.kernel()?)?;
    let began = Instant::now();
    let guest = GuestFiles::new(MemorySize::new(config.memory_bytes)?)?;
    let vmm = spawn(Plan {
        program: &programs.path("dwcp-vmm"),
        directory: bench.dir(),
        config: &config,
        guest: &guest,
        kernel: Some((kernel, None)),
        devices: vec![file.into()],
    })?;
    let process = open_process(vmm.pid())?;
    vmm.client()?.run(1)?;
    wait_for_end(&process)?;
    let ended = began.elapsed().as_secs_f64() * 1000.0;
    let words = vmm.wait(DEADLINE)?.words;
    ensure!(
        words.as_deref() == Some("guest: reset"),
        "The guest did not end by its reset: {words:?}"
    );
    Ok(ended)
}

/// A descriptor that becomes readable when the process ends.
fn open_process(pid: u32) -> anyhow::Result<OwnedFd> {
    // SAFETY: one system call without pointers; what it answers is checked below.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(Errno::result(fd).context("The process cannot be watched")?)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn wait_for_end(process: &OwnedFd) -> anyhow::Result<()> {
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DEADLINE)?;
    ensure!(poll(&mut fds, timeout)? > 0, "The VMM does not end");
    Ok(())
}
