//! Reading the past, and its end.

use std::sync::Arc;

use super::good;
use crate::{Op, Revision, Store, StoreError, Txn};

async fn at(
    store: &Arc<dyn Store>,
    revision: Revision,
) -> Result<Vec<(String, String)>, StoreError> {
    let page = store.range("", None, 100, Some(revision)).await?;
    assert_eq!(page.revision, revision);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(page
        .entries
        .iter()
        .map(|entry| (entry.key.clone(), text(&entry.value)))
        .collect())
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

pub(super) async fn past_is_readable(store: Arc<dyn Store>) {
    let r1 = good(store.put("a", "1".into()).await);
    let r2 = good(store.put("b", "1".into()).await);
    let r3 = good(
        store
            .transact(Txn::new().then(Op::put("a", "2")).then(Op::delete("b")))
            .await,
    )
    .revision;
    let r4 = good(store.put("b", "3".into()).await);
    assert_eq!(good(at(&store, r1).await), pairs(&[("a", "1")]));
    assert_eq!(good(at(&store, r2).await), pairs(&[("a", "1"), ("b", "1")]));
    assert_eq!(good(at(&store, r3).await), pairs(&[("a", "2")]));
    assert_eq!(good(at(&store, r4).await), pairs(&[("a", "2"), ("b", "3")]));
}

pub(super) async fn compaction_ends_the_past(store: Arc<dyn Store>) {
    let r1 = good(store.put("a", "1".into()).await);
    good(store.put("gone", "1".into()).await);
    good(store.put("still", "1".into()).await);
    let r2 = good(store.put("a", "2".into()).await);
    good(store.delete("gone").await);
    let r3 = good(store.put("a", "3".into()).await);
    let r4 = good(store.put("b", "4".into()).await);
    good(store.compact(r3).await);
    for gone in [r1, r2] {
        assert!(
            matches!(at(&store, gone).await, Err(StoreError::Compacted)),
            "{gone}"
        );
    }
    assert_eq!(
        good(at(&store, r3).await),
        pairs(&[("a", "3"), ("still", "1")])
    );
    assert_eq!(
        good(at(&store, r4).await),
        pairs(&[("a", "3"), ("b", "4"), ("still", "1")])
    );
    assert!(matches!(
        store.compact(r3).await,
        Err(StoreError::Compacted)
    ));
    assert!(matches!(
        store.compact(r1).await,
        Err(StoreError::Compacted)
    ));

    // A version that was live at the compaction stays readable there after it is superseded.
    let r5 = good(store.put("still", "5".into()).await);
    assert_eq!(
        good(at(&store, r4).await),
        pairs(&[("a", "3"), ("b", "4"), ("still", "1")])
    );
    good(store.compact(r5).await);
    assert_eq!(
        good(at(&store, r5).await),
        pairs(&[("a", "3"), ("b", "4"), ("still", "5")])
    );
    let entry = good(store.get("still").await).expect("compaction keeps what is live");
    assert_eq!((entry.version, entry.mod_revision), (2, r5));
}

pub(super) async fn future_is_refused(store: Arc<dyn Store>) {
    let now = good(store.put("a", "1".into()).await);
    let future = Revision(now.0 + 1_000_000);
    assert!(matches!(
        store.range("", None, 1, Some(future)).await,
        Err(StoreError::FutureRevision)
    ));
    assert!(matches!(
        store.compact(future).await,
        Err(StoreError::FutureRevision)
    ));
}
