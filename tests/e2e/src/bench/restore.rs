//! Row 3: from the request to restore a snapshot to the guest's first sign.
//!
//! Warm: a VMM waits as a shell, its devices, card and memory slots there and its socket connected, as in a pool. Cold:
//! the request begins with the launcher starting that shell. In both the snapshot is opened and its seal looked at as
//! the daemon does. The sign is the first byte of the guest's output, which comes some exits after its first
//! instruction. Both take turns, with Firecracker's restore of its own snapshot of the same guest.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use dwcp_launch::{Client, Exits};
use dwcp_vmm::client::VmmClient;

use super::figure::Figure;
use super::firecracker::snapshot::Kept;
use super::firecracker::{self, Firecracker};
use super::launcher::{self, Bench};
use super::machine::Shape;
use super::output::Output;
use super::say;
use super::template::Stored;
use crate::programs::Programs;

const WARM_UP: usize = 2;
const RUNS: usize = 30;
const SHAPE: Shape = Shape {
    vcpus: 1,
    memory_mib: 1024,
    card: Some(0),
};
const CMDLINE: &str = "fill_mib=256 ws_mib=16 rate=1000";
/// The snapshot was taken under the first.
const EPOCH: u64 = 2;
const NOTE: &str = "1 GiB, of which the guest filled 256 MiB; 1 vCPU, block and net attached; files in the page cache; \
                    until the guest's first output";

pub async fn measure(firecracker: Option<&Path>) -> anyhow::Result<Vec<Figure>> {
    let firecracker = Firecracker::given(firecracker);
    launcher::measure(move |bench, programs| rounds(bench, programs, firecracker)).await
}

#[derive(Debug, Default)]
struct Runs {
    warm_ms: Vec<f64>,
    cold_ms: Vec<f64>,
    other_warm_ms: Vec<f64>,
    other_cold_ms: Vec<f64>,
}

fn rounds(
    bench: &Bench,
    programs: &Programs,
    firecracker: Result<Firecracker, String>,
) -> anyhow::Result<Vec<Figure>> {
    say("taking snapshots");
    let stored = Stored::take(bench, programs, SHAPE, CMDLINE)?;
    let other = firecracker.and_then(|program| {
        let kept = Kept::take(&program, bench, SHAPE, CMDLINE);
        let kept = kept.map_err(|error| format!("{error:#}"))?;
        Ok((program, kept))
    });
    let mut client = bench.client()?;
    let mut exits = bench.client()?.watch()?;
    let mut runs = Runs::default();
    for round in 0..WARM_UP + RUNS {
        let warm = from_pool(bench, &stored, &mut client, &mut exits)?;
        let cold = from_nothing(bench, &stored, &mut client, &mut exits)?;
        let theirs = match &other {
            Ok((_, kept)) => Some((kept.warm()?, kept.cold()?)),
            Err(_) => None,
        };
        if round >= WARM_UP {
            runs.warm_ms.push(warm);
            runs.cold_ms.push(cold);
            runs.other_warm_ms.extend(theirs.map(|(warm, _)| warm));
            runs.other_cold_ms.extend(theirs.map(|(_, cold)| cold));
        }
    }
    let finish = |figure: Figure, values: &[f64], how: &str| {
        let figure = figure.noted(&format!("{NOTE}; {how}"));
        match &other {
            Ok((program, _)) => figure.beside(program.version(), values),
            Err(why) => Ok(figure.without(firecracker::NAME, why)),
        }
    };
    Ok(vec![
        finish(
            Figure::of(3, "restore_warm_ms", &runs.warm_ms, "ms", "<= 4")?,
            &runs.other_warm_ms,
            "by a shell from the pool; the reference by a process that waits for orders, without jail, tap or devices yet",
        )?,
        finish(
            Figure::of(3, "restore_cold_ms", &runs.cold_ms, "ms", "ratio <= 1")?,
            &runs.other_cold_ms,
            "the process started by dwcp-launch, with its tap; the reference's process without its jailer, its tap there \
             before",
        )?,
    ])
}

fn from_pool(
    bench: &Bench,
    stored: &Stored,
    client: &mut Client,
    exits: &mut Exits,
) -> anyhow::Result<f64> {
    let (vm, mut output) = bench.prepare_shell("warm", SHAPE)?;
    vm.spawn(client)?;
    let mut control = vm.connect()?;
    let began = Instant::now();
    go_on(&mut control, stored, &output)?;
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    output.wait_for_tick()?;
    vm.end(client, exits)?;
    Ok(ms)
}

fn from_nothing(
    bench: &Bench,
    stored: &Stored,
    client: &mut Client,
    exits: &mut Exits,
) -> anyhow::Result<f64> {
    let (vm, mut output) = bench.prepare_shell("cold", SHAPE)?;
    let began = Instant::now();
    vm.spawn(client)?;
    go_on(&mut vm.connect()?, stored, &output)?;
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    output.wait_for_tick()?;
    vm.end(client, exits)?;
    Ok(ms)
}

/// Lets a shell go on from the snapshot, and waits for the guest's first sign.
fn go_on(control: &mut VmmClient, stored: &Stored, output: &Output) -> anyhow::Result<()> {
    let snapshot = stored.open()?;
    control.restore(&[snapshot.file().as_fd()])?;
    control.run(EPOCH)?;
    output.wait()
}
