//! A process that writes acknowledged counters is killed (SIGKILL) at random moments: nothing acknowledged is lost.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_store::{Event, RedbStore, Revision, Store, StoreError, Typed};

const WRITERS: usize = 8;
const ROUNDS: u64 = 12;
/// Set for the process that is to be killed: the store's file.
const VICTIM: &str = "DWCP_TEST_STORE";

/// The victim: counts in [`WRITERS`] counters and says each count once the store has acknowledged it.
fn count_until_killed(path: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(path).unwrap());
        let counters: Typed<u64> = Typed::new(store, "counters/");
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let counters = counters.clone();
            writers.spawn(async move {
                let id = writer.to_string();
                let mut count = counters
                    .get(&id)
                    .await
                    .unwrap()
                    .map_or(0, |record| record.value);
                loop {
                    count += 1;
                    counters.put(&id, &count).await.unwrap();
                    let line = format!("ack {writer} {count}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            });
        }
        writers.join_all().await;
    });
}

#[test]
fn nothing_acknowledged_is_lost() {
    if let Ok(path) = std::env::var(VICTIM) {
        return count_until_killed(&path);
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
    let path = directory.path().join("store.redb");
    let mut acknowledged = [0_u64; WRITERS];
    let mut random = seed;
    for round in 0..ROUNDS {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let kill_after = (random >> 33) % 200;
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nothing_acknowledged_is_lost", "--nocapture"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let mut seen = 0;
        let mut killed = false;
        // What was in the pipe when it died was acknowledged too.
        while let Some(Ok(line)) = lines.next() {
            // The harness prints before the first one, without a newline.
            let Some((_, ack)) = line.split_once("ack ") else {
                continue;
            };
            let (writer, count) = ack.split_once(' ').unwrap();
            acknowledged[writer.parse::<usize>().unwrap()] = count.parse().unwrap();
            seen += 1;
            if seen > kill_after && !killed {
                victim.kill().unwrap();
                killed = true;
            }
        }
        victim.wait().unwrap();
        assert!(killed, "round {round}: the victim ended by itself");
        check(&path, &mut acknowledged, round);
    }
    println!("acknowledged {acknowledged:?}");
}

/// Every counter is what was acknowledged, or the one count further that was under way; and history agrees.
fn check(path: &std::path::Path, acknowledged: &mut [u64; WRITERS], round: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = RedbStore::open(path).unwrap();
        let page = store.range("counters/", None, 100, None).await.unwrap();
        for entry in &page.entries {
            let writer: usize = entry
                .key
                .strip_prefix("counters/")
                .unwrap()
                .parse()
                .unwrap();
            let count: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
            let acked = acknowledged[writer];
            assert!(
                (acked..=acked + 1).contains(&count),
                "round {round}: writer {writer} acked {acked}, found {count}"
            );
            assert_eq!(entry.version, count, "no count was skipped or done twice");
            acknowledged[writer] = count;
        }
        let found = page.entries.len();
        let expected = acknowledged.iter().filter(|count| **count > 0).count();
        assert_eq!(found, expected, "round {round}");
        replay(&store, page.revision).await;
    });
}

/// What is kept of the past leads to the present.
async fn replay(store: &RedbStore, latest: Revision) {
    let mut from = Revision::ZERO.next();
    let mut watch = loop {
        match store.watch("", from).await {
            Ok(watch) => break watch,
            Err(StoreError::Compacted) => from = from.next(),
            Err(error) => panic!("{error:?}"),
        }
    };
    let mut last = Revision::ZERO;
    while last < latest {
        let batch = watch.next().await.unwrap().unwrap();
        assert!(batch.revision > last && batch.events.len() == 1);
        last = batch.revision;
        let [Event::Put(entry)] = &batch.events[..] else {
            panic!("{batch:?}")
        };
        let then = store.range(&entry.key, None, 1, Some(last)).await.unwrap();
        assert_eq!(then.entries, std::slice::from_ref(entry));
    }
}
