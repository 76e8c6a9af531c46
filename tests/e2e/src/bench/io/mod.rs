//! Row 20: what a guest gets from its disk and its card, the same guest on dwcp-vmm, QEMU and Firecracker in turns.
//!
//! The guest measures itself (`disk=bench`, `net=bench`) and polls its queues. The disk is one raw file of random bytes
//! in the page cache; the card is one tap, behind which a thread of this program sends every datagram back. All of it
//! lies in a network namespace that vanishes with the thread that made it. What is said of a figure that several
//! references stand beside is printed once for each.

mod vmms;
mod yard;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow, ensure};
use dwcp_guest::said::Bench as Told;
use tokio::sync::oneshot;

use super::figure::Figure;
use super::firecracker::{self, Firecracker};
use super::say;
use crate::programs::Programs;
use vmms::Rival;
use yard::Yard;

const WARM_UP: usize = 1;
const RUNS: usize = 4;
/// For each of five measurements of the guest.
const SECONDS: u64 = 1;
const NOTE: &str = "128 MiB, 1 vCPU; the guest polls; raw file in the page cache; datagrams echoed by a thread on the \
                    host; without dwcp-launch, so neither namespaces nor its filters; seccomp on";

/// A figure: its name, its unit, what it is, the guest's measurement that it comes from, and how.
struct Kind {
    what: &'static str,
    unit: &'static str,
    how: &'static str,
    told: &'static str,
    of: fn(&Told) -> f64,
}

const KINDS: &[Kind] = &[
    Kind {
        what: "disk_us",
        unit: "us",
        how: "median of 4 KiB reads at random places, one at a time",
        told: "disk 0 random-1",
        of: |told| told.median_us as f64,
    },
    Kind {
        what: "disk_p99_us",
        unit: "us",
        how: "99th percentile of the same",
        told: "disk 0 random-1",
        of: |told| told.p99_us as f64,
    },
    Kind {
        what: "disk_per_s",
        unit: "1/s",
        how: "4 KiB reads at random places, 32 at a time; more is better",
        told: "disk 0 random-32",
        of: Told::operations_per_s,
    },
    Kind {
        what: "disk_mb_s",
        unit: "MB/s",
        how: "128 KiB reads in order, 8 at a time; more is better",
        told: "disk 0 sequential-8",
        of: |told| told.bytes_per_s() / 1e6,
    },
    Kind {
        what: "net_us",
        unit: "us",
        how: "median round trip of 64 bytes by UDP, one at a time",
        told: "net 0 udp-1",
        of: |told| told.median_us as f64,
    },
    Kind {
        what: "net_p99_us",
        unit: "us",
        how: "99th percentile of the same",
        told: "net 0 udp-1",
        of: |told| told.p99_us as f64,
    },
    Kind {
        what: "net_mb_s",
        unit: "MB/s",
        how: "payload of the largest datagrams each way, 64 at a time; more is better",
        told: "net 0 udp-64",
        of: |told| told.bytes_per_s() / 1e6,
    },
];

/// Says, when it is dropped, that nobody waits any more.
struct Given(Arc<AtomicBool>);

impl Drop for Given {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub async fn measure(firecracker: Option<&Path>) -> anyhow::Result<Vec<Figure>> {
    let programs = Programs::find()?;
    let firecracker = Firecracker::given(firecracker);
    let is_given_up = Arc::new(AtomicBool::new(false));
    let _given = Given(Arc::clone(&is_given_up));
    let (answer, answered) = oneshot::channel();
    // A thread of its own, as it moves into another network namespace, and what it starts goes with it.
    std::thread::Builder::new()
        .name("bench-io".into())
        .spawn(move || {
            // Nobody waits for the answer if this was interrupted.
            let _ = answer.send(rounds(&programs, firecracker, &is_given_up));
        })?;
    answered.await.context("The measuring thread panicked")?
}

fn rounds(
    programs: &Programs,
    firecracker: Result<Firecracker, String>,
    is_given_up: &AtomicBool,
) -> anyhow::Result<Vec<Figure>> {
    let yard = Yard::new(SECONDS)?;
    let rivals = [
        ("QEMU", vmms::qemu()),
        (firecracker::NAME, vmms::firecracker(firecracker)),
    ];
    let mut own = BTreeMap::new();
    let mut theirs = [BTreeMap::new(), BTreeMap::new()];
    for round in 0..WARM_UP + RUNS {
        ensure!(!is_given_up.load(Ordering::Relaxed), "Given up");
        let is_counted = round >= WARM_UP;
        // First, as the other guests are told of their clock what it tells of its own.
        let told = vmms::ours(programs, &yard, is_given_up)?;
        keep(&mut own, &told, is_counted);
        for ((_, rival), values) in rivals.iter().zip(&mut theirs) {
            if let Ok(rival) = rival {
                keep(values, &rival.run(&yard, is_given_up)?, is_counted);
            }
        }
        say(format!("round {} of {}", round + 1, WARM_UP + RUNS));
    }
    figures(&own, &rivals, &theirs)
}

type Values = BTreeMap<&'static str, Vec<f64>>;

fn keep(values: &mut Values, told: &[Told], is_counted: bool) {
    for kind in KINDS.iter().filter(|_| is_counted) {
        let told = told.iter().filter(|told| told.name == kind.told);
        values
            .entry(kind.what)
            .or_default()
            .extend(told.map(kind.of));
    }
}

fn figures(
    own: &Values,
    rivals: &[(&str, Result<Rival, String>); 2],
    theirs: &[Values; 2],
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for kind in KINDS {
        let of = |values: &Values| values.get(kind.what).cloned().unwrap_or_default();
        let figure = Figure::of(20, kind.what, &of(own), kind.unit, "stated")
            .map_err(|error| anyhow!("{}: {error}", kind.what))?
            .noted(&format!("{}; {NOTE}", kind.how));
        for ((name, rival), values) in rivals.iter().zip(theirs) {
            figures.push(match rival {
                Ok(rival) => figure.clone().beside(rival.version(), &of(values))?,
                Err(why) => figure.clone().without(name, why),
            });
        }
    }
    Ok(figures)
}
