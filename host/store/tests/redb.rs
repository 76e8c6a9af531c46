//! The store in a file: the conformance suite, the model, and what only a file can do (be opened again, be damaged, be
//! in use, forget its past by itself).
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_store::{
    Op, OpenError, RedbStore, Retention, Revision, Store, StoreError, Txn, conformance,
};
use proptest::prelude::*;

fn seed() -> u64 {
    let fresh = || {
        u64::try_from(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_micros(),
        )
        .unwrap()
    };
    std::env::var("DWCP_SEED")
        .ok()
        .map_or_else(fresh, |seed| seed.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let directory = tempfile::tempdir().unwrap();
    let made = std::sync::atomic::AtomicUsize::new(0);
    conformance::run(seed(), || async {
        let n = made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Arc::new(RedbStore::open(directory.path().join(format!("{n}.redb"))).unwrap())
            as Arc<dyn Store>
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_the_model(program in prop::collection::vec(any::<u8>(), 0..400)) {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Arc::new(RedbStore::open(directory.path().join("store.redb")).unwrap());
            conformance::check_program(store, &program).await;
        });
    }
}

#[tokio::test]
async fn everything_is_there_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let first = store.put("a", "1".into()).await.unwrap();
    let second = store.put("a", "2".into()).await.unwrap();
    store.put("b", "1".into()).await.unwrap();
    store.delete("b").await.unwrap();
    let before = store.range("", None, 10, None).await.unwrap();
    drop(store);

    let store = RedbStore::open(&path).unwrap();
    assert_eq!(store.range("", None, 10, None).await.unwrap(), before);
    assert_eq!(
        store
            .range("", None, 10, Some(first))
            .await
            .unwrap()
            .entries[0]
            .value,
        "1"
    );
    let mut watch = store.watch("", second).await.unwrap();
    for keys in [["a"], ["b"], ["b"]] {
        let batch = watch.next().await.unwrap().unwrap();
        assert_eq!(
            batch
                .events
                .iter()
                .map(dwcp_store::Event::key)
                .collect::<Vec<_>>(),
            keys
        );
    }
    assert!(store.put("c", "1".into()).await.unwrap() > before.revision);
}

#[tokio::test]
async fn a_second_opener_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let second = RedbStore::open(&path);
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    drop(store);
    RedbStore::open(&path).unwrap();
}

#[tokio::test]
async fn closing_ends_watches_and_frees_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let mut watch = store.watch("", Revision::ZERO.next().next()).await.unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    drop(store);
    let end = waiting.await.unwrap();
    assert!(
        matches!(end, Some(Err(StoreError::Unavailable(_)))),
        "{end:?}"
    );
    RedbStore::open(&path).unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    for n in 0..200 {
        store
            .put(&format!("key/{n}"), vec![b'x'; 2000].into())
            .await
            .unwrap();
    }
    drop(store);
    let whole = std::fs::read(&path).unwrap();

    // Not ours at all, cut short, and a byte changed in a value.
    let mut changed = whole.clone();
    let at = whole
        .windows(64)
        .rposition(|window| window == [b'x'; 64])
        .unwrap();
    changed[at + 32] ^= 1;
    for bytes in [
        &b"this is no store"[..],
        &[0; 8192],
        &whole[..whole.len() / 3],
        &changed,
    ] {
        std::fs::write(&path, bytes).unwrap();
        match RedbStore::open(&path) {
            Err(error @ OpenError::Damaged { .. }) => {
                assert!(error.to_string().contains("backup"), "{error}")
            }
            Ok(_) if bytes.len() == changed.len() => {
                // The byte lay in a page that nothing uses any more.
            }
            other => panic!("{other:?}"),
        }
    }
    std::fs::write(&path, &whole).unwrap();
    RedbStore::open(&path).unwrap();
}

#[tokio::test]
async fn every_changed_byte_is_refused_or_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let mut expected = Vec::new();
    for n in 0..20 {
        store
            .put(&format!("key/{n:02}"), vec![b'x'; 500].into())
            .await
            .unwrap();
        expected.push(format!("key/{n:02}"));
    }
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(whole.len() / 400) {
        let mut changed = whole.clone();
        changed[at] ^= 0x40;
        std::fs::write(&path, &changed).unwrap();
        let Ok(store) = RedbStore::open(&path) else {
            refused += 1;
            continue;
        };
        let page = store.range("key/", None, 100, None).await.unwrap();
        assert!(
            page.entries
                .iter()
                .all(|entry| entry.value == vec![b'x'; 500]),
            "byte {at} changed a value unseen"
        );
        assert_eq!(
            page.entries
                .iter()
                .map(|e| e.key.as_str())
                .collect::<Vec<_>>(),
            expected,
            "byte {at}"
        );
    }
    println!("{refused} changed bytes refused");
}

#[tokio::test]
async fn history_is_bounded_and_live_entries_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let retention = Retention {
        revisions: 50,
        bytes: 1 << 20,
    };
    let store = RedbStore::open_with(&path, retention).unwrap();
    let first = store.put("still", "here".into()).await.unwrap();
    let mut last = first;
    for n in 0..200 {
        last = store.put("hot", format!("{n}").into()).await.unwrap();
    }
    assert!(matches!(
        store.watch("", first).await,
        Err(StoreError::Compacted)
    ));
    assert!(matches!(
        store.range("", None, 9, Some(first)).await,
        Err(StoreError::Compacted)
    ));
    let kept = Revision(last.0 - 49);
    let mut watch = store.watch("", kept).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().revision, kept);
    assert_eq!(store.get("still").await.unwrap().unwrap().value, "here");

    // By bytes: each of these supersedes a value of 100 kB.
    for _ in 0..30 {
        last = store.put("big", vec![0; 100_000].into()).await.unwrap();
    }
    assert!(store.watch("", Revision(last.0 - 5)).await.is_ok());
    assert!(matches!(
        store.watch("", Revision(last.0 - 15)).await,
        Err(StoreError::Compacted)
    ));
    drop(store);
    let store = RedbStore::open_with(&path, retention).unwrap();
    assert!(matches!(
        store.watch("", Revision(last.0 - 15)).await,
        Err(StoreError::Compacted)
    ));
}

#[tokio::test]
async fn a_watch_that_falls_behind_the_retention_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open_with(
        &path,
        Retention {
            revisions: 20,
            bytes: 1 << 30,
        },
    )
    .unwrap();
    let start = store.revision().await.unwrap().next();
    let mut watch = store.watch("k/", start).await.unwrap();
    // 40 transactions of 1 MB: more than what is kept in memory, and more than what is kept at all.
    for n in 0..40 {
        store
            .put(&format!("k/{n}"), vec![0; 1_000_000].into())
            .await
            .unwrap();
    }
    let first = watch.next().await.unwrap();
    assert!(matches!(first, Err(StoreError::Compacted)), "{first:?}");
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn an_idle_watch_is_told_how_far_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("store.redb")).unwrap();
    let start = store.revision().await.unwrap().next();
    let mut watch = store.watch("quiet/", start).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    let store = Arc::new(store);
    for writer in 0..64 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..20 {
                store
                    .put(&format!("loud/{writer}"), format!("{n}").into())
                    .await
                    .unwrap();
            }
        });
    }
    writers.join_all().await;
    let batch = watch.next().await.unwrap().unwrap();
    assert!(
        batch.events.is_empty() && batch.revision.0 >= start.0 + 999,
        "{batch:?}"
    );
}

#[tokio::test]
async fn many_writers_share_a_sync() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(RedbStore::open(directory.path().join("store.redb")).unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..200 {
        let store = store.clone();
        writers.spawn(async move {
            store
                .transact(Txn::new().then(Op::put(format!("w/{writer}"), "x")))
                .await
                .unwrap()
                .revision
        });
    }
    let mut revisions = writers.join_all().await;
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(
        revisions.len(),
        200,
        "each has a revision of its own, whatever shared its sync"
    );
}

#[tokio::test]
async fn a_file_of_a_later_version_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    drop(RedbStore::open(&path).unwrap());
    let db = redb::Database::open(&path).unwrap();
    let txn = db.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    txn.open_table(meta).unwrap().insert("format", 2).unwrap();
    txn.commit().unwrap();
    drop(db);
    let opened = RedbStore::open(&path);
    assert!(
        matches!(opened, Err(OpenError::UnknownFormat { format: 2, .. })),
        "{opened:?}"
    );
}

#[test]
fn only_its_owner_reads_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    drop(RedbStore::open(&path).unwrap());
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let nowhere = RedbStore::open(directory.path().join("missing/store.redb"));
    assert!(matches!(nowhere, Err(OpenError::Io { .. })), "{nowhere:?}");
}
