//! Row 21: how many VMs a second are started, each living until its guest resets itself at its first instruction.
//!
//! One after the other, and two at a time: each of two threads starts its next VM when its last one has ended. Through
//! the launcher, beside Firecracker in turns.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, anyhow};

use super::figure::Figure;
use super::firecracker::start::Configured;
use super::firecracker::{self, Firecracker};
use super::launcher::{self, Bench};
use super::machine::{SMALL, Shape, check_reset};
use super::say;

const WARM_UP: usize = 1;
const RUNS: usize = 7;
/// VMs in each run, by all threads together.
const VMS: usize = 30;
const CMDLINE: &str = "exit=reset";
const NOTE: &str = "128 MiB, 1 vCPU, block and net attached; from the request to the guest's reset at its first \
                    instruction";
const LANES: [u8; 2] = [0, 1];

pub async fn measure(firecracker: Option<&Path>) -> anyhow::Result<Vec<Figure>> {
    let firecracker = Firecracker::given(firecracker);
    launcher::measure(move |bench, _| rounds(bench, firecracker)).await
}

fn rounds(bench: &Bench, firecracker: Result<Firecracker, String>) -> anyhow::Result<Vec<Figure>> {
    let other = match &firecracker {
        Ok(program) => LANES
            .iter()
            .map(|lane| Configured::new(program, bench, shape(*lane), CMDLINE))
            .collect::<Result<Vec<_>, _>>()?,
        Err(_) => Vec::new(),
    };
    let (mut ours, mut theirs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..WARM_UP + RUNS {
        for lanes in 1..=LANES.len() {
            let rate = at_once(lanes, |lane| launched(bench, lane, VMS / lanes))?;
            let other = other.get(..lanes).map(|configured| {
                at_once(lanes, |lane| {
                    run(configured.get(usize::from(lane)), VMS / lanes)
                })
            });
            let other = other.transpose()?;
            if round >= WARM_UP {
                say(format!("{lanes} at a time: {rate:.0} a second"));
                ours[lanes - 1].push(rate);
                theirs[lanes - 1].extend(other);
            }
        }
    }
    let names = [
        ("starts_per_s", "one after the other"),
        ("starts_two_per_s", "two at a time"),
    ];
    let both = ours.iter().zip(&theirs).zip(names);
    both.map(|((ours, theirs), (what, how))| {
        let figure = Figure::of(21, what, ours, "1/s", "stated")?;
        let figure = figure.noted(&format!("{NOTE}; {how}; more is better"));
        match &firecracker {
            Ok(program) => figure.beside(program.version(), theirs),
            Err(why) => Ok(figure.without(firecracker::NAME, why)),
        }
    })
    .collect()
}

/// A thread's VMs have an address of their own.
fn shape(lane: u8) -> Shape {
    Shape {
        card: Some(lane),
        ..SMALL
    }
}

/// Starts [`VMS`] on so many threads; answers how many that were a second.
fn at_once(lanes: usize, start: impl Fn(u8) -> anyhow::Result<()> + Sync) -> anyhow::Result<f64> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let start = &start;
        let threads: Vec<_> = LANES
            .iter()
            .take(lanes)
            .map(|lane| scope.spawn(move || start(*lane)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow!("A thread that starts VMs panicked"))?
        })
    })?;
    Ok((VMS / lanes * lanes) as f64 / began.elapsed().as_secs_f64())
}

fn launched(bench: &Bench, lane: u8, count: usize) -> anyhow::Result<()> {
    let mut client = bench.client()?;
    let mut exits = bench.client()?.watch()?;
    for number in 0..count {
        let vm = bench.prepare(&format!("rate-{lane}-{number}"), shape(lane), CMDLINE)?;
        vm.spawn(&mut client)?;
        vm.connect()?.run(1)?;
        check_reset(&vm.wait(&mut client, &mut exits)?)?;
    }
    Ok(())
}

fn run(configured: Option<&Configured>, count: usize) -> anyhow::Result<()> {
    let configured = configured.context("There is no such thread")?;
    for _ in 0..count {
        configured.run()?;
    }
    Ok(())
}
