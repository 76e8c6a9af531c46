//! Watches: every change, once, in order, from where one asked; or a clear end.

use std::sync::Arc;

use super::{good, next_change, soon};
use crate::{Batch, Event, Op, Revision, Store, StoreError, Txn};

fn told<'b>(batch: &'b Batch) -> Vec<(&'b str, Option<&'b [u8]>)> {
    let value = |event: &'b Event| match event {
        Event::Put(entry) => Some(&entry.value[..]),
        Event::Delete { .. } => None,
    };
    batch
        .events
        .iter()
        .map(|event| (event.key(), value(event)))
        .collect()
}

pub(super) async fn watch_follows_a_listing(store: Arc<dyn Store>) {
    good(store.put("a", "before".into()).await);
    let page = good(store.range("", None, 10, None).await);
    let mut watch = good(store.watch("", page.revision.next()).await);
    let put = good(store.put("a", "after".into()).await);
    let batch = next_change(&mut watch).await;
    assert_eq!(
        (batch.revision, told(&batch)),
        (put, vec![("a", Some(&b"after"[..]))])
    );
    let Some(Event::Put(entry)) = batch.events.first() else {
        panic!("{batch:?}")
    };
    assert_eq!(
        Some(entry),
        good(store.get("a").await).as_ref(),
        "an event carries the whole entry"
    );

    good(store.delete("a").await);
    let batch = next_change(&mut watch).await;
    assert!(batch.revision > put);
    assert_eq!(
        batch.events,
        [Event::Delete {
            key: "a".into(),
            revision: batch.revision
        }]
    );
}

pub(super) async fn watch_replays_the_past(store: Arc<dyn Store>) {
    let mut revisions = Vec::new();
    for n in 0..5 {
        revisions.push(good(store.put("k", format!("{n}").into()).await));
    }
    good(store.delete("k").await);
    for (n, from) in revisions.iter().enumerate() {
        let mut watch = good(store.watch("k", *from).await);
        for (m, revision) in revisions.iter().enumerate().skip(n) {
            let batch = next_change(&mut watch).await;
            let value = m.to_string();
            assert_eq!(
                (batch.revision, told(&batch)),
                (*revision, vec![("k", Some(value.as_bytes()))])
            );
        }
        assert_eq!(told(&next_change(&mut watch).await), [("k", None)]);
    }
}

pub(super) async fn watch_waits_for_its_revision(store: Arc<dyn Store>) {
    let now = good(store.put("k", "0".into()).await);
    let mut watch = good(store.watch("k", Revision(now.0 + 4)).await);
    let mut last = now;
    let mut n = 0;
    while last.0 < now.0 + 4 {
        n += 1;
        last = good(store.put("k", format!("{n}").into()).await);
    }
    let batch = next_change(&mut watch).await;
    assert_eq!(
        (batch.revision, told(&batch)),
        (last, vec![("k", Some(n.to_string().as_bytes()))])
    );
}

pub(super) async fn watch_keeps_transactions_whole(store: Arc<dyn Store>) {
    let start = good(store.put("w/0", "x".into()).await).next();
    let mut live = good(store.watch("w/", start).await);
    let mut txn = Txn::new().then(Op::delete("w/0"));
    for n in (1..100).rev() {
        txn = txn.then(Op::put(format!("w/{n}"), "y"));
    }
    let outcome = good(store.transact(txn).await);
    let mut late = good(store.watch("w/", start).await);
    for watch in [&mut live, &mut late] {
        let batch = next_change(watch).await;
        assert_eq!(
            (batch.revision, batch.events.len()),
            (outcome.revision, 100)
        );
        let mut keys: Vec<_> = batch.events.iter().map(Event::key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 100);
    }
}

pub(super) async fn watch_sees_only_its_prefix(store: Arc<dyn Store>) {
    let start = good(store.revision().await).next();
    let mut watch = good(store.watch("a/", start).await);
    for key in ["a", "a0", "b/1", "a/1", "A/1"] {
        good(store.put(key, "x".into()).await);
    }
    good(
        store
            .transact(Txn::new().then(Op::put("a/2", "x")).then(Op::put("c", "x")))
            .await,
    );
    assert_eq!(
        told(&next_change(&mut watch).await),
        [("a/1", Some(&b"x"[..]))]
    );
    assert_eq!(
        told(&next_change(&mut watch).await),
        [("a/2", Some(&b"x"[..]))]
    );
}

pub(super) async fn slow_watch_misses_nothing(store: Arc<dyn Store>) {
    const CHANGES: usize = 600;
    let start = good(store.revision().await).next();
    let mut watch = good(store.watch("s/", start).await);
    let mut writers = tokio::task::JoinSet::new();
    // Far more bytes than any watch should hold in memory.
    for writer in 0..CHANGES / 20 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..20 {
                good(
                    store
                        .put(&format!("s/{writer}/{n}"), vec![0; 64 << 10].into())
                        .await,
                );
            }
        });
    }
    soon(writers.join_all()).await;
    let mut last = Revision::ZERO;
    let mut keys = Vec::new();
    while keys.len() < CHANGES {
        let batch = next_change(&mut watch).await;
        assert!(batch.revision > last);
        last = batch.revision;
        keys.extend(batch.events.iter().map(|event| event.key().to_owned()));
    }
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), CHANGES);
}

pub(super) async fn watch_of_compacted_history_ends(store: Arc<dyn Store>) {
    let first = good(store.put("k", "1".into()).await);
    let second = good(store.put("k", "2".into()).await);
    let third = good(store.put("k", "3".into()).await);
    good(store.compact(second).await);
    // The error may come from the watch itself or from its first item.
    match store.watch("k", first).await {
        Err(StoreError::Compacted) => {}
        Err(error) => panic!("{error:?}"),
        Ok(mut watch) => {
            let item = soon(watch.next()).await;
            assert!(matches!(item, Some(Err(StoreError::Compacted))), "{item:?}");
            assert!(soon(watch.next()).await.is_none(), "an error ends a watch");
        }
    }
    let mut watch = good(store.watch("k", third).await);
    assert_eq!(next_change(&mut watch).await.revision, third);
}

pub(super) async fn watch_sees_every_writer_in_order(store: Arc<dyn Store>) {
    const WRITERS: usize = 8;
    const TIMES: usize = 30;
    let start = good(store.revision().await).next();
    let watches = [
        good(store.watch("o/", start).await),
        good(store.watch("o/", start).await),
    ];
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            let mut revisions = Vec::new();
            for n in 0..TIMES {
                revisions.push(good(
                    store
                        .put(&format!("o/{writer}"), format!("{n}").into())
                        .await,
                ));
            }
            revisions
        });
    }
    let mut acknowledged: Vec<Revision> = soon(writers.join_all())
        .await
        .into_iter()
        .flatten()
        .collect();
    acknowledged.sort_unstable();
    for mut watch in watches {
        let mut seen = Vec::new();
        while seen.len() < WRITERS * TIMES {
            seen.push(next_change(&mut watch).await.revision);
        }
        assert_eq!(seen, acknowledged, "each revision once, in order");
    }
}
