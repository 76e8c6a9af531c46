//! What transactions do to entries, and what they refuse.

use std::sync::Arc;

use bytes::Bytes;

use super::good;
use crate::limits::{KEY_BYTES_MAX, OPERATIONS_MAX, VALUE_BYTES_MAX};
use crate::{
    Compare, InvalidRequest, Op, OpResult, Revision, Store, StoreError, Test, Txn, Typed,
    TypedError,
};

pub(super) async fn entries_carry_their_history(store: Arc<dyn Store>) {
    assert_eq!(good(store.get("a").await), None);
    let before = good(store.revision().await);
    let first = good(store.put("a", "1".into()).await);
    let second = good(store.put("a", "2".into()).await);
    assert!(
        before < first && first < second,
        "{before} {first} {second}"
    );
    assert!(good(store.revision().await) >= second);

    let entry = good(store.get("a").await).expect("a was written");
    assert_eq!((entry.key.as_str(), &entry.value[..]), ("a", &b"2"[..]));
    assert_eq!(
        (entry.create_revision, entry.mod_revision, entry.version),
        (first, second, 2)
    );

    assert!(good(store.delete("a").await));
    assert!(!good(store.delete("a").await));
    assert_eq!(good(store.get("a").await), None);

    let again = good(store.put("a", Bytes::new()).await);
    let entry = good(store.get("a").await).expect("a was written again");
    assert_eq!(
        (entry.create_revision, entry.mod_revision, entry.version),
        (again, again, 1)
    );
    assert!(entry.value.is_empty());
}

pub(super) async fn comparisons_decide(store: Arc<dyn Store>) {
    let created = good(store.put("k", "v".into()).await);
    let modified = good(store.put("k", "w".into()).await);
    let cases = [
        (Compare::exists("k"), true),
        (Compare::exists("none"), false),
        (Compare::absent("k"), false),
        (Compare::absent("none"), true),
        (Compare::unchanged("k", modified), true),
        (Compare::unchanged("k", created), false),
        (Compare::unchanged("none", Revision::ZERO), true),
        (Compare::unchanged("none", modified), false),
        (Compare::unchanged("k", Revision::ZERO), false),
        (Compare::new("k", Test::CreateRevision(created)), true),
        (Compare::new("k", Test::CreateRevision(modified)), false),
        (
            Compare::new("none", Test::CreateRevision(Revision::ZERO)),
            true,
        ),
        (Compare::new("k", Test::Value("w".into())), true),
        (Compare::new("k", Test::Value("v".into())), false),
        (Compare::new("k", Test::Value(Bytes::new())), false),
        (Compare::new("none", Test::Value(Bytes::new())), false),
    ];
    for (compare, holds) in &cases {
        let txn = Txn::new()
            .when(compare.clone())
            .then(Op::put("out", "then"))
            .otherwise(Op::put("out", "otherwise"));
        let outcome = good(store.transact(txn).await);
        assert_eq!(outcome.succeeded, *holds, "{compare:?}");
        assert_eq!(outcome.results, [OpResult::Put]);
        let written = good(store.get("out").await).expect("one list was done");
        assert_eq!(
            written.value,
            if *holds { "then" } else { "otherwise" },
            "{compare:?}"
        );
        assert_eq!(written.mod_revision, outcome.revision);
    }
    let all = Txn {
        compares: cases.iter().map(|(compare, _)| compare.clone()).collect(),
        ..Txn::new()
    };
    assert!(
        !good(store.transact(all).await).succeeded,
        "one false comparison decides"
    );
}

pub(super) async fn operations_see_those_before(store: Arc<dyn Store>) {
    good(store.put("old", "1".into()).await);
    let txn = Txn::new()
        .then(Op::get("new"))
        .then(Op::put("new", "2"))
        .then(Op::get("new"))
        .then(Op::delete("old"))
        .then(Op::get("old"))
        .then(Op::delete("never"));
    let outcome = good(store.transact(txn).await);
    let [
        before,
        OpResult::Put,
        OpResult::Get(Some(after)),
        deleted,
        gone,
        never,
    ] = &outcome.results[..]
    else {
        panic!("six results, in order: {:?}", outcome.results);
    };
    assert_eq!(*before, OpResult::Get(None));
    assert_eq!(
        (&after.value[..], after.mod_revision, after.version),
        (&b"2"[..], outcome.revision, 1)
    );
    assert_eq!(*deleted, OpResult::Delete { existed: true });
    assert_eq!(*gone, OpResult::Get(None));
    assert_eq!(*never, OpResult::Delete { existed: false });
}

pub(super) async fn changing_nothing_is_no_revision(store: Arc<dyn Store>) {
    let written = good(store.put("a", "1".into()).await);
    let reads = Txn::new().then(Op::get("a")).then(Op::delete("none"));
    for txn in [
        Txn::new(),
        reads,
        Txn::new().when(Compare::absent("a")).then(Op::delete("a")),
    ] {
        let outcome = good(store.transact(txn).await);
        assert!(outcome.revision >= written, "{outcome:?}");
    }
    let entry = good(store.get("a").await).expect("a is still there");
    assert_eq!((entry.mod_revision, entry.version), (written, 1));
}

pub(super) async fn limits_are_limits(store: Arc<dyn Store>) {
    let refused = |txn: Txn| {
        let store = store.clone();
        async move {
            match store.transact(txn).await {
                Err(StoreError::Invalid(why)) => why,
                other => panic!("must be refused, not {other:?}"),
            }
        }
    };
    let ops = |count: usize| {
        (0..count)
            .map(|n| Op::put(format!("many/{n}"), "x"))
            .collect::<Vec<_>>()
    };
    let compares = |count: usize| {
        (0..count)
            .map(|n| Compare::absent(format!("none/{n}")))
            .collect::<Vec<_>>()
    };

    let full = Txn {
        compares: compares(OPERATIONS_MAX),
        then: ops(OPERATIONS_MAX),
        otherwise: ops(OPERATIONS_MAX),
    };
    assert!(good(store.transact(full).await).succeeded);
    let over = OPERATIONS_MAX + 1;
    for txn in [
        Txn {
            compares: compares(over),
            ..Txn::new()
        },
        Txn {
            then: ops(over),
            ..Txn::new()
        },
        Txn {
            otherwise: ops(over),
            ..Txn::new()
        },
    ] {
        assert_eq!(refused(txn).await, InvalidRequest::TooManyOperations(over));
    }

    good(store.put(&"k".repeat(KEY_BYTES_MAX), "x".into()).await);
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    assert_eq!(
        refused(Txn::new().then(Op::put("", "x"))).await,
        InvalidRequest::EmptyKey
    );
    assert_eq!(
        refused(Txn::new().then(Op::get(&long))).await,
        InvalidRequest::KeyTooLong(long.len())
    );
    assert_eq!(
        refused(Txn::new().when(Compare::exists(&long))).await,
        InvalidRequest::KeyTooLong(long.len())
    );

    let value = vec![0; VALUE_BYTES_MAX + 1];
    assert_eq!(
        refused(Txn::new().then(Op::put("v", value))).await,
        InvalidRequest::ValueTooLong(VALUE_BYTES_MAX + 1)
    );
    let half = Bytes::from(vec![0; VALUE_BYTES_MAX / 2 + 4096]);
    let both = Txn::new()
        .then(Op::put("h/1", half.clone()))
        .otherwise(Op::put("h/2", half));
    assert!(matches!(
        refused(both).await,
        InvalidRequest::RequestTooLong(_)
    ));

    for second in [Op::put("twice", "2"), Op::delete("twice")] {
        let txn = Txn::new().then(Op::put("twice", "1")).then(second);
        assert_eq!(
            refused(txn).await,
            InvalidRequest::ChangedTwice("twice".into())
        );
    }
    good(
        store
            .transact(
                Txn::new()
                    .then(Op::put("twice", "1"))
                    .otherwise(Op::delete("twice")),
            )
            .await,
    );

    for limit in [0, crate::limits::PAGE_ENTRIES_MAX + 1] {
        let page = store.range("", None, limit, None).await;
        assert!(
            matches!(page, Err(StoreError::Invalid(InvalidRequest::Limit(_)))),
            "{page:?}"
        );
    }
}

pub(super) async fn largest_value_comes_back(store: Arc<dyn Store>) {
    let value = Bytes::from(super::random_bytes(1, VALUE_BYTES_MAX)).slice(..VALUE_BYTES_MAX);
    let key = "k".repeat(KEY_BYTES_MAX);
    good(store.put(&key, value.clone()).await);
    assert!(good(store.get(&key).await).is_some_and(|entry| entry.value == value));
}

pub(super) async fn writers_do_not_lose_updates(store: Arc<dyn Store>) {
    const WRITERS: u64 = 8;
    const TIMES: u64 = 25;
    let counters: Typed<u64> = Typed::new(store.clone(), "counters/");
    good(counters.create("n", &0).await);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let counters = counters.clone();
        writers.spawn(async move {
            let mut left = TIMES;
            while left > 0 {
                let now = good(counters.get("n").await).expect("the counter is there");
                match counters.update("n", &(now.value + 1), now.revision).await {
                    Ok(_) => left -= 1,
                    Err(TypedError::Conflict(_)) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        });
    }
    super::soon(writers.join_all()).await;
    let counter = good(counters.get("n").await).expect("the counter is there");
    assert_eq!(
        (counter.value, counter.version),
        (WRITERS * TIMES, WRITERS * TIMES + 1)
    );
}

pub(super) async fn typed_records_conflict(store: Arc<dyn Store>) {
    let names: Typed<String> = Typed::new(store.clone(), "names/");
    let first = good(names.create("a", &"one".into()).await);
    assert!(matches!(
        names.create("a", &"two".into()).await,
        Err(TypedError::Conflict(_))
    ));
    let second = good(names.update("a", &"two".into(), first).await);
    assert!(matches!(
        names.update("a", &"three".into(), first).await,
        Err(TypedError::Conflict(_))
    ));
    assert!(matches!(
        names.delete_at("a", first).await,
        Err(TypedError::Conflict(_))
    ));
    let changed = names
        .modify::<TypedError>("a", |name| {
            name.push('!');
            Ok(())
        })
        .await;
    let changed = good(changed);
    assert_eq!((changed.value.as_str(), changed.version), ("two!", 3));
    assert!(changed.revision > second);
    let absent = names.modify::<TypedError>("b", |_| Ok(())).await;
    assert!(matches!(absent, Err(TypedError::Absent(key)) if key == "names/b"));
    let page = good(names.list(None, 10, None).await);
    assert_eq!(page.records, std::slice::from_ref(&changed));
    good(names.delete_at("a", changed.revision).await);
    assert!(matches!(
        names.delete_at("a", Revision::ZERO).await,
        Err(TypedError::Conflict(_))
    ));

    good(store.put("names/c", "{".into()).await);
    let unreadable = names.get("c").await;
    assert!(matches!(unreadable, Err(TypedError::Unreadable { key, .. }) if key == "names/c"));
}
