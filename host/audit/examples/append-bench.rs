//! Row 15 of the targets: how fast many writers append durable entries, and what a proof costs in a large log.
//!
//! `append-bench DIRECTORY [WRITERS [SECONDS [ENTRIES]]]` (64, 5, 10000000) prints one JSON object a line. The log is made in
//! DIRECTORY, which must not exist yet, and is left there.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dwcp_audit::{AuditLog, Entry, Outcome, Signer, Verifier};
use serde_json::json;

const NAME: &str = "bench.example/dwcp/audit";
const BATCH: u64 = 4096;
const PROOFS: u64 = 10_000;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .ok_or("Usage: append-bench DIRECTORY [WRITERS [SECONDS [ENTRIES]]]")?;
    let directory = Path::new(&directory);
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse());
    let (writers, seconds, entries) = (number(64)?, number(5)?, number(10_000_000)?);
    if directory.exists() {
        return Err("The directory is there already: name one that is not".into());
    }
    let signer = Signer::generate(NAME)?;
    let again = Signer::from_pem(NAME, &signer.to_pem()?)?;
    let log = Arc::new(AuditLog::open(directory, signer)?);
    append(&log, writers, Duration::from_secs(seconds))?;
    prove(&log, entries)?;
    drop(log);
    let started = Instant::now();
    let log = AuditLog::open(directory, again)?;
    figure(
        "open_ms",
        started.elapsed().as_secs_f64() * 1e3,
        "ms",
        log.size(),
    );
    Ok(())
}

fn entry(n: u64) -> Entry {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Entry {
        time_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        principal: "key:0f3c9a".into(),
        action: "vm.start".into(),
        object: format!("projects/default/vms/vm-{n}"),
        outcome: Outcome::Done,
        detail: json!({ "request": format!("{n:032x}"), "address": "192.0.2.7", "host": "left" }),
    }
}

/// Writers that each wait for their entry before the next, as requests do.
fn append(log: &Arc<AuditLog>, writers: u64, duration: Duration) -> Result<(), Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let threads: Vec<_> = (0..writers)
        .map(|writer| {
            let (log, stop) = (log.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut latencies = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let before = Instant::now();
                    log.append(&entry(writer))?;
                    latencies.push(before.elapsed());
                }
                Ok::<_, dwcp_audit::AppendError>(latencies)
            })
        })
        .collect();
    std::thread::sleep(duration);
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for thread in threads {
        latencies.extend(thread.join().map_err(|_| "a writer panicked")??);
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    let at = |part: f64| {
        latencies
            .get((latencies.len() as f64 * part) as usize)
            .map_or(0.0, Duration::as_secs_f64)
    };
    figure(
        "entries_per_s",
        latencies.len() as f64 / elapsed.as_secs_f64(),
        "1/s",
        writers,
    );
    figure("p50_ms", at(0.5) * 1e3, "ms", writers);
    figure("p99_ms", at(0.99) * 1e3, "ms", writers);
    Ok(())
}

/// Fills the log up, then makes and checks proofs of entries all over it, and opens it again.
fn prove(log: &AuditLog, entries: u64) -> Result<(), Failure> {
    let started = Instant::now();
    let before = log.size();
    while log.size() < entries {
        let batch: Vec<Entry> = (log.size()..entries.min(log.size() + BATCH))
            .map(entry)
            .collect();
        log.append_batch(&batch)?;
    }
    let size = log.size();
    figure(
        "batch_entries_per_s",
        (size - before) as f64 / started.elapsed().as_secs_f64(),
        "1/s",
        1,
    );

    let verifier = Verifier::new(log.verifier().clone());
    let checkpoint = verifier.checkpoint(&log.checkpoint())?;
    let (mut making, mut checking) = (Duration::ZERO, Duration::ZERO);
    for n in 0..PROOFS {
        let index = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % size;
        let stored = log
            .entries(index, 1)?
            .entries
            .pop()
            .ok_or("an entry is missing")?;
        let started = Instant::now();
        let proof = log.inclusion_proof(index, size)?;
        making += started.elapsed();
        let started = Instant::now();
        verifier.inclusion(&checkpoint, &stored, &proof)?;
        checking += started.elapsed();
    }
    figure(
        "proof_us",
        making.as_secs_f64() * 1e6 / PROOFS as f64,
        "us",
        size,
    );
    figure(
        "check_us",
        checking.as_secs_f64() * 1e6 / PROOFS as f64,
        "us",
        size,
    );
    Ok(())
}

fn figure(what: &str, value: f64, unit: &str, n: u64) {
    println!(
        "{}",
        json!({ "target": 15, "what": what, "value": value, "unit": unit, "n": n })
    );
}
