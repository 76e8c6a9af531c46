//! Row 4: from the request to fork a template to the guest's first sign.
//!
//! A fork gets a generation number of its own, by which its guest knows that it needs new entropy. `fork_*` by a shell
//! that waits in a pool, `fork_cold_ms` from the launcher's start of one, `refill_ms` what the pool needs for another
//! shell. The sign is the first byte of the guest's output: a few exits after the first. Firecracker has no fork; its
//! restore of a snapshot of the same guest stands beside, by a process that waits and by a new one.

use std::path::Path;
use std::time::Instant;

use dwcp_launch::{Client, Exits};
use dwcp_vmm::client::VmmClient;

use super::figure::{Figure, p99};
use super::firecracker::snapshot::Kept;
use super::firecracker::{self, Firecracker};
use super::launcher::{self, Bench};
use super::machine::Shape;
use super::output::Output;
use super::say;
use super::template::Template;

const WARM_UP: usize = 5;
const RUNS: usize = 200;
/// Every so many of the others there is one without the pool, and one of Firecracker's without a waiting process.
const EACH_COLD: usize = 5;
/// No card: a fork with another's address has no use of it.
pub const SHAPE: Shape = Shape {
    vcpus: 2,
    memory_mib: 512,
    card: None,
};
pub const CMDLINE: &str = "fill_mib=64 ws_mib=4 rate=100";
/// The template ran under the first.
const EPOCH: u64 = 2;
const NOTE: &str = "512 MiB, of which the guest filled 64 MiB; 2 vCPUs, block, entropy and balloon attached, no net; a \
                    generation of its own; until the guest's first output";

pub async fn measure(firecracker: Option<&Path>) -> anyhow::Result<Vec<Figure>> {
    let firecracker = Firecracker::given(firecracker);
    launcher::measure(move |bench, _| rounds(bench, firecracker)).await
}

#[derive(Debug, Default)]
struct Runs {
    fork_ms: Vec<f64>,
    refill_ms: Vec<f64>,
    cold_ms: Vec<f64>,
    other_warm_ms: Vec<f64>,
    other_cold_ms: Vec<f64>,
}

fn rounds(bench: &Bench, firecracker: Result<Firecracker, String>) -> anyhow::Result<Vec<Figure>> {
    say("making a template and a snapshot");
    let template = Template::make(bench, SHAPE, CMDLINE)?;
    let other = firecracker.and_then(|program| {
        let kept = Kept::take(&program, bench, SHAPE, CMDLINE);
        let kept = kept.map_err(|error| format!("{error:#}"))?;
        Ok((program, kept))
    });
    let mut client = bench.client()?;
    let mut exits = bench.client()?.watch()?;
    let mut runs = Runs::default();
    for round in 0..WARM_UP + RUNS {
        let (refill_ms, fork_ms) = from_pool(bench, &template, &mut client, &mut exits)?;
        let is_cold = round % EACH_COLD == 0;
        let cold_ms = match is_cold {
            true => Some(from_nothing(bench, &template, &mut client, &mut exits)?),
            false => None,
        };
        let mut theirs = (None, None);
        if let Ok((_, kept)) = &other {
            let cold = is_cold.then(|| kept.cold()).transpose()?;
            theirs = (Some(kept.warm()?), cold);
        }
        if round >= WARM_UP {
            runs.fork_ms.push(fork_ms);
            runs.refill_ms.push(refill_ms);
            runs.cold_ms.extend(cold_ms);
            runs.other_warm_ms.extend(theirs.0);
            runs.other_cold_ms.extend(theirs.1);
        }
    }
    figures(&runs, &other)
}

fn figures(
    runs: &Runs,
    other: &Result<(Firecracker, Kept), String>,
) -> anyhow::Result<Vec<Figure>> {
    let finish = |figure: Figure, of: fn(&[f64]) -> anyhow::Result<f64>, theirs: &[f64], how| {
        let figure = figure.noted(&format!("{NOTE}; {how}"));
        match other {
            Ok((program, _)) => figure.beside_value(program.version(), of(theirs)?),
            Err(why) => Ok(figure.without(firecracker::NAME, why)),
        }
    };
    let median = super::figure::median;
    let warm = "by a shell from the pool; the reference restores a snapshot by a process that waits for orders, without \
                jail or devices yet";
    let cold = "the process started by dwcp-launch; the reference's process without its jailer, restoring a snapshot";
    let refill = Figure::of(4, "refill_ms", &runs.refill_ms, "ms", "stated")?;
    Ok(vec![
        finish(
            Figure::of(4, "fork_p50_ms", &runs.fork_ms, "ms", "<= 1")?,
            median,
            &runs.other_warm_ms,
            warm,
        )?,
        finish(
            Figure::p99_of(4, "fork_p99_ms", &runs.fork_ms, "ms", "<= 3")?,
            p99,
            &runs.other_warm_ms,
            warm,
        )?,
        finish(
            Figure::of(4, "fork_cold_ms", &runs.cold_ms, "ms", "<= 15")?,
            median,
            &runs.other_cold_ms,
            cold,
        )?,
        refill
            .noted(
                "request to the launcher until a shell of 512 MiB and 2 vCPUs answers on its socket",
            )
            .without(firecracker::NAME, "it has no pool of shells"),
    ])
}

/// Answers how long the shell took, and then the fork.
fn from_pool(
    bench: &Bench,
    template: &Template,
    client: &mut Client,
    exits: &mut Exits,
) -> anyhow::Result<(f64, f64)> {
    let (vm, mut output) = bench.prepare_fork("warm", SHAPE, template)?;
    let began = Instant::now();
    vm.spawn(client)?;
    let mut control = vm.connect()?;
    let refill_ms = began.elapsed().as_secs_f64() * 1000.0;
    let began = Instant::now();
    go_on(&mut control, template, &output)?;
    let fork_ms = began.elapsed().as_secs_f64() * 1000.0;
    output.wait_for_tick()?;
    vm.end(client, exits)?;
    Ok((refill_ms, fork_ms))
}

fn from_nothing(
    bench: &Bench,
    template: &Template,
    client: &mut Client,
    exits: &mut Exits,
) -> anyhow::Result<f64> {
    let (vm, mut output) = bench.prepare_fork("cold", SHAPE, template)?;
    let began = Instant::now();
    vm.spawn(client)?;
    go_on(&mut vm.connect()?, template, &output)?;
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    output.wait_for_tick()?;
    vm.end(client, exits)?;
    Ok(ms)
}

/// Makes a shell a fork, and waits for the guest's first sign.
pub fn go_on(control: &mut VmmClient, template: &Template, output: &Output) -> anyhow::Result<()> {
    control.fork(template.state())?;
    control.run(EPOCH)?;
    output.wait()
}
