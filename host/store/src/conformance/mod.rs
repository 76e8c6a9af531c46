//! The judge of every [`Store`]: what each implementation must do, whatever it keeps its data in.
//!
//! Assumes nothing but the trait: revisions may have gaps (others may share the servers), errors of a watch may come at
//! its start or as an item. Panics at the first difference, naming the case.

mod histories;
mod model;
mod pages;
mod transactions;
mod watches;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::{Batch, Store, StoreError, Watch};

pub use model::check_program;

/// The deadline of everything that must happen; generous, since it says nothing about speed.
const DEADLINE: Duration = Duration::from_secs(120);

/// Runs every case, each on a new, empty store from `make_store`. `seed` is where the random cases begin; it is printed.
pub async fn run<F: Future<Output = Arc<dyn Store>>>(seed: u64, make_store: impl Fn() -> F) {
    println!("conformance seed {seed}");
    macro_rules! cases {
        ($($module:ident :: $case:ident),* $(,)?) => {$(
            println!("conformance {}::{}", stringify!($module), stringify!($case));
            $module::$case(make_store().await).await;
        )*};
    }
    cases!(
        transactions::entries_carry_their_history,
        transactions::comparisons_decide,
        transactions::operations_see_those_before,
        transactions::changing_nothing_is_no_revision,
        transactions::limits_are_limits,
        transactions::largest_value_comes_back,
        transactions::writers_do_not_lose_updates,
        transactions::typed_records_conflict,
        pages::keys_are_ordered_by_bytes,
        pages::pages_join_without_gap,
        pages::pages_show_one_moment,
        pages::large_values_make_short_pages,
        histories::past_is_readable,
        histories::compaction_ends_the_past,
        histories::future_is_refused,
        watches::watch_follows_a_listing,
        watches::watch_replays_the_past,
        watches::watch_waits_for_its_revision,
        watches::watch_keeps_transactions_whole,
        watches::watch_sees_only_its_prefix,
        watches::slow_watch_misses_nothing,
        watches::watch_of_compacted_history_ends,
        watches::watch_sees_every_writer_in_order,
    );
    for round in 0..8 {
        model::check_program(
            make_store().await,
            &random_bytes(seed.wrapping_add(round), 2000),
        )
        .await;
    }
}

/// Bytes from a seed (splitmix64), the same everywhere.
fn random_bytes(mut seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = seed;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes
}

/// The value of something that must succeed.
#[track_caller]
fn good<T, E: fmt::Debug>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the store must do this, and says {error:?}"),
    }
}

/// Waits for something that must happen.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("nothing happened within {DEADLINE:?}"),
    }
}

/// The next batch with events.
async fn next_change(watch: &mut Watch) -> Batch {
    loop {
        let batch = good(
            soon(watch.next())
                .await
                .unwrap_or(Err(StoreError::Compacted)),
        );
        if !batch.events.is_empty() {
            return batch;
        }
    }
}
