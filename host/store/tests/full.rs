//! A disk that takes no more (a limit on the size of files stands for it): the writer is told, and what was acknowledged
//! before is there.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use dwcp_store::{RedbStore, Store, StoreError};

/// Set for the process that runs under the limit: the store's file.
const VICTIM: &str = "DWCP_TEST_STORE";

fn write_until_full(path: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = RedbStore::open(path).unwrap();
        for n in 0.. {
            match store.put(&format!("n/{n:06}"), vec![1; 100_000].into()).await {
                Ok(_) => println!("ack {n}"),
                Err(StoreError::Unavailable(_)) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
        let again = store.put("after", "x".into()).await;
        assert!(matches!(&again, Err(StoreError::Unavailable(why)) if why.to_string().contains("restart")), "{again:?}");
        println!("refused");
    });
}

#[tokio::test]
async fn a_full_disk_is_told_and_loses_nothing() {
    if let Ok(path) = std::env::var(VICTIM) {
        return std::thread::spawn(move || write_until_full(&path))
            .join()
            .unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    // A signal that is ignored stays so across exec; the write then fails instead of killing the process.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 20000; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_full_disk_is_told_and_loses_nothing",
            "--nocapture",
        ])
        .env(VICTIM, &path)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("refused"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let acknowledged = said.matches("ack ").count();
    assert!(acknowledged > 0);

    let store = RedbStore::open(&path).unwrap();
    for n in 0..acknowledged {
        assert!(
            store.get(&format!("n/{n:06}")).await.unwrap().is_some(),
            "{n} of {acknowledged}"
        );
    }
    store.put("after", "x".into()).await.unwrap();
}
