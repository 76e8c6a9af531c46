//! Listings: order, prefixes, and pages that fit together.

use std::sync::Arc;

use bytes::Bytes;

use super::good;
use crate::{Entry, Page, Store};

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

pub(super) async fn keys_are_ordered_by_bytes(store: Arc<dyn Store>) {
    let unordered = [
        "b",
        "a0",
        "a/2",
        "a",
        "a/10",
        "é",
        "a/\u{10ffff}",
        "\u{10ffff}",
        "A",
        "a/",
        "z",
        "~",
        "a\0",
    ];
    for key in unordered {
        good(store.put(key, key.to_owned().into()).await);
    }
    let mut ordered = unordered.to_vec();
    ordered.sort_unstable();
    let page = good(store.range("", None, 100, None).await);
    assert_eq!(keys(&page.entries), ordered);
    assert!(!page.more && page.entries.iter().all(|entry| entry.value == entry.key));

    for prefix in ["a", "a/", "a/1", "\u{10ffff}", "nothing", "a\0", "A"] {
        let page = good(store.range(prefix, None, 100, None).await);
        let wanted: Vec<_> = ordered
            .iter()
            .copied()
            .filter(|key| key.starts_with(prefix))
            .collect();
        assert_eq!(keys(&page.entries), wanted, "prefix {prefix:?}");
        for after in ["", "a", "a/", "a/15", "a0", "zz", "\u{10ffff}"] {
            let page = good(store.range(prefix, Some(after), 100, None).await);
            let wanted: Vec<_> = wanted.iter().copied().filter(|key| *key > after).collect();
            assert_eq!(
                keys(&page.entries),
                wanted,
                "prefix {prefix:?} after {after:?}"
            );
        }
    }
}

/// All pages of a listing, the later ones from the moment of the first.
async fn all_pages(store: &Arc<dyn Store>, prefix: &str, limit: usize) -> Vec<Page> {
    let mut pages = vec![good(store.range(prefix, None, limit, None).await)];
    while let Some((after, at)) = pages
        .last()
        .and_then(|page| Some((page.next_after()?.to_owned(), page.revision)))
    {
        pages.push(good(
            store.range(prefix, Some(&after), limit, Some(at)).await,
        ));
    }
    pages
}

pub(super) async fn pages_join_without_gap(store: Arc<dyn Store>) {
    for n in 0..12 {
        good(store.put(&format!("p/{n:02}"), Bytes::new()).await);
        good(store.put(&format!("q/{n:02}"), Bytes::new()).await);
    }
    for limit in [1, 5, 6, 11, 12, 13, 1000] {
        let pages = all_pages(&store, "p/", limit).await;
        let joined: Vec<_> = pages.iter().flat_map(|page| keys(&page.entries)).collect();
        assert_eq!(
            joined,
            (0..12).map(|n| format!("p/{n:02}")).collect::<Vec<_>>()
        );
        assert_eq!(
            pages.len(),
            12_usize.div_ceil(limit),
            "no empty last page with limit {limit}"
        );
    }
}

pub(super) async fn pages_show_one_moment(store: Arc<dyn Store>) {
    for n in 0..10 {
        good(store.put(&format!("p/{n}"), "old".into()).await);
    }
    let first = good(store.range("p/", None, 4, None).await);
    assert!(first.more && first.entries.len() == 4);
    for n in 0..10 {
        good(store.put(&format!("p/{n}x"), "new".into()).await);
    }
    good(store.put("p/5", "new".into()).await);
    good(store.delete("p/6").await);
    good(store.delete("p/7").await);
    good(store.put("p/7", "again".into()).await);

    let rest = good(
        store
            .range("p/", first.next_after(), 100, Some(first.revision))
            .await,
    );
    assert_eq!(
        keys(&rest.entries),
        ["p/4", "p/5", "p/6", "p/7", "p/8", "p/9"]
    );
    assert!(
        rest.entries
            .iter()
            .all(|entry| entry.value == "old" && entry.version == 1)
    );
    assert_eq!((rest.revision, rest.more), (first.revision, false));
}

pub(super) async fn large_values_make_short_pages(store: Arc<dyn Store>) {
    let value = Bytes::from(vec![7; 1 << 20]);
    for n in 0..10 {
        good(store.put(&format!("big/{n}"), value.clone()).await);
    }
    let pages = all_pages(&store, "big/", 1000).await;
    let joined: Vec<_> = pages.iter().flat_map(|page| keys(&page.entries)).collect();
    assert_eq!(
        joined,
        (0..10).map(|n| format!("big/{n}")).collect::<Vec<_>>()
    );
    assert!(pages.iter().all(|page| !page.entries.is_empty()));
}
