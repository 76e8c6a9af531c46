//! A process that appends from many threads is killed (SIGKILL) at random moments: every acknowledged entry is there, at
//! its place, and a client that kept a checkpoint sees only growth.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_audit::{AuditLog, Entry, Kept, Options, Outcome, Replay, Signer, Verifier};
use serde_json::json;

const WRITERS: u64 = 8;
const ROUNDS: u64 = 12;
const OPTIONS: Options = Options {
    segment_bytes: 16 << 10,
};
/// Set for the process that is to be killed: the log's directory.
const VICTIM: &str = "DWCP_TEST_AUDIT";

fn open(directory: &Path) -> AuditLog {
    let signer = Signer::from_seed("left.example/dwcp/audit", &[7; 32]).unwrap();
    AuditLog::open_with(directory, signer, OPTIONS).unwrap()
}

/// The victim: says each entry's place and mark once the log has acknowledged it.
fn append_until_killed(directory: &Path) {
    let log = Arc::new(open(directory));
    let start = log.size();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let log = log.clone();
            std::thread::spawn(move || {
                for n in 0.. {
                    let mark = format!("{start}-{writer}-{n}");
                    let entry = Entry {
                        time_ms: n,
                        principal: "victim".into(),
                        action: "test.append".into(),
                        object: mark.clone(),
                        outcome: Outcome::Done,
                        detail: json!({ "filling": "x".repeat(usize::try_from(n % 700).unwrap()) }),
                    };
                    let receipt = log.append(&entry).unwrap();
                    let line = format!("ack {} {mark}\n", receipt.index);
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    writers
        .into_iter()
        .for_each(|writer| writer.join().unwrap());
}

#[test]
fn nothing_acknowledged_is_lost() {
    if let Some(directory) = std::env::var_os(VICTIM) {
        return append_until_killed(Path::new(&directory));
    }
    let fresh = || {
        u64::try_from(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_micros(),
        )
        .unwrap()
    };
    let seed = std::env::var("DWCP_SEED")
        .ok()
        .map_or_else(fresh, |seed| seed.parse().unwrap());
    println!("DWCP_SEED={seed}");
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged: HashMap<u64, String> = HashMap::new();
    let mut kept = None;
    let mut random = seed;
    for round in 0..ROUNDS {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let kill_after = (random >> 33) % 200;
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nothing_acknowledged_is_lost", "--nocapture"])
            .env(VICTIM, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut seen = 0;
        let mut killed = false;
        // What was in the pipe when it died was acknowledged too.
        for line in BufReader::new(victim.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            // The harness prints before the first one, without a newline.
            let Some((index, mark)) = line
                .split_once("ack ")
                .and_then(|(_, ack)| ack.split_once(' '))
            else {
                continue;
            };
            acknowledged.insert(index.parse().unwrap(), mark.to_owned());
            seen += 1;
            if seen > kill_after && !killed {
                victim.kill().unwrap();
                killed = true;
            }
        }
        victim.wait().unwrap();
        assert!(killed, "round {round}: the victim ended by itself");
        kept = Some(check(directory.path(), &acknowledged, kept.as_ref()));
    }
    println!("{} entries acknowledged", acknowledged.len());
}

fn check(directory: &Path, acknowledged: &HashMap<u64, String>, kept: Option<&Kept>) -> Kept {
    let log = open(directory);
    println!("{:?}", log.report());
    let verifier = Verifier::new(log.verifier().clone());
    let note = log.checkpoint();
    let mut replay = kept.map_or_else(
        || Replay::from_start(None),
        |kept| Replay::resume(&verifier, kept).unwrap(),
    );
    while replay.next_index() < log.size() {
        for stored in log.entries(replay.next_index(), 1000).unwrap().entries {
            replay.push(&stored).unwrap();
        }
    }
    for (index, mark) in acknowledged {
        let page = log.entries(*index, 1).unwrap();
        assert_eq!(
            &page.entries[0].entry().unwrap().object,
            mark,
            "entry {index}"
        );
    }
    replay.finish(&verifier, &note).unwrap()
}
