//! Reading a snapshot of the file: one key, a page of the present, a page of the past, changes for a slow watch.

use ::redb::{Database, ReadTransaction, ReadableDatabase};

use super::fault;
use super::tables::{self, CURRENT, HISTORY, LOG, META, META_COMPACTED, META_REVISION};
use crate::error::StoreError;
use crate::limits::PAGE_BYTES_MAX;
use crate::records::{Batch, Entry, Event, Page, Revision};

/// Most changes that a slow watch reads at a time.
const CHANGES_MAX: usize = 1024;

pub(super) fn get(db: &Database, key: &str) -> Result<Option<Entry>, StoreError> {
    let txn = db.begin_read().map_err(fault)?;
    let current = txn.open_table(CURRENT).map_err(fault)?;
    match current.get(key).map_err(fault)? {
        Some(row) => tables::decode(key, row.value()),
        None => Ok(None),
    }
}

pub(super) fn compacted(db: &Database) -> Result<Revision, StoreError> {
    meta(&db.begin_read().map_err(fault)?, META_COMPACTED)
}

fn meta(txn: &ReadTransaction, name: &str) -> Result<Revision, StoreError> {
    let meta = txn.open_table(META).map_err(fault)?;
    Ok(Revision(
        meta.get(name)
            .map_err(fault)?
            .map_or(0, |value| value.value()),
    ))
}

pub(super) fn range(
    db: &Database,
    prefix: &str,
    start_after: Option<&str>,
    limit: usize,
    at: Option<Revision>,
) -> Result<Page, StoreError> {
    let txn = db.begin_read().map_err(fault)?;
    let latest = meta(&txn, META_REVISION)?;
    let at = at.unwrap_or(latest);
    if at > latest {
        return Err(StoreError::FutureRevision);
    }
    if at < meta(&txn, META_COMPACTED)? {
        return Err(StoreError::Compacted);
    }
    let mut page = PageBuilder {
        entries: Vec::new(),
        bytes: 0,
        limit,
    };
    let more = if at == latest {
        fill_present(&txn, prefix, start_after, &mut page)?
    } else {
        fill_past(&txn, prefix, start_after, at, &mut page)?
    };
    Ok(Page {
        entries: page.entries,
        revision: at,
        more,
    })
}

struct PageBuilder {
    entries: Vec<Entry>,
    bytes: usize,
    limit: usize,
}

impl PageBuilder {
    fn is_full(&self) -> bool {
        self.entries.len() >= self.limit || self.bytes >= PAGE_BYTES_MAX
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.key.len() + entry.value.len();
        self.entries.push(entry);
    }
}

/// Where a listing starts: at the prefix, or after the key given, whichever is later. (`\0` is the least suffix.)
fn first_key(prefix: &str, start_after: Option<&str>) -> String {
    match start_after {
        Some(key) if key >= prefix => format!("{key}\0"),
        _ => prefix.to_owned(),
    }
}

/// Answers whether there is more than the page holds.
fn fill_present(
    txn: &ReadTransaction,
    prefix: &str,
    start_after: Option<&str>,
    page: &mut PageBuilder,
) -> Result<bool, StoreError> {
    let current = txn.open_table(CURRENT).map_err(fault)?;
    for row in current
        .range(first_key(prefix, start_after).as_str()..)
        .map_err(fault)?
    {
        let (key, row) = row.map_err(fault)?;
        let key = key.value();
        if !key.starts_with(prefix) {
            return Ok(false);
        }
        if page.is_full() {
            return Ok(true);
        }
        page.push(
            tables::decode(key, row.value())?
                .ok_or_else(|| StoreError::Damaged(format!("key {key:?}")))?,
        );
    }
    Ok(false)
}

/// The same for a past revision: every key that is live now or has history is looked at once.
fn fill_past(
    txn: &ReadTransaction,
    prefix: &str,
    start_after: Option<&str>,
    at: Revision,
    page: &mut PageBuilder,
) -> Result<bool, StoreError> {
    let current = txn.open_table(CURRENT).map_err(fault)?;
    let history = txn.open_table(HISTORY).map_err(fault)?;
    let mut from = first_key(prefix, start_after);
    loop {
        let live = current
            .range(from.as_str()..)
            .map_err(fault)?
            .next()
            .transpose()
            .map_err(fault)?;
        let past = history
            .range((from.as_str(), 0)..)
            .map_err(fault)?
            .next()
            .transpose()
            .map_err(fault)?;
        let live_key = live.as_ref().map(|(key, _)| key.value());
        let past_key = past.as_ref().map(|(key, _)| key.value().0);
        let Some(key) = live_key
            .into_iter()
            .chain(past_key)
            .min()
            .filter(|key| key.starts_with(prefix))
        else {
            return Ok(false);
        };
        let mut entry = match &live {
            Some((live_key, row)) if live_key.value() == key => tables::decode(key, row.value())?,
            _ => None,
        };
        if entry.as_ref().is_none_or(|e| e.mod_revision > at) {
            entry = match history
                .range((key, 0)..=(key, at.0))
                .map_err(fault)?
                .next_back()
            {
                Some(row) => tables::decode(key, row.map_err(fault)?.1.value())?,
                None => None,
            };
        }
        if let Some(entry) = entry {
            if page.is_full() {
                return Ok(true);
            }
            page.push(entry);
        }
        from = format!("{key}\0");
    }
}

/// The next changes from `from` on of keys that begin with `prefix`, and up to which revision that is all.
pub(super) fn changes(
    db: &Database,
    prefix: &str,
    from: Revision,
) -> Result<(Vec<Batch>, Revision), StoreError> {
    let txn = db.begin_read().map_err(fault)?;
    if from <= meta(&txn, META_COMPACTED)? {
        return Err(StoreError::Compacted);
    }
    let latest = meta(&txn, META_REVISION)?;
    let log = txn.open_table(LOG).map_err(fault)?;
    let current = txn.open_table(CURRENT).map_err(fault)?;
    let history = txn.open_table(HISTORY).map_err(fault)?;
    let mut batches: Vec<Batch> = Vec::new();
    let (mut bytes, mut done) = (0, from);
    for (seen, row) in log.range((from.0, 0)..).map_err(fault)?.enumerate() {
        let (at, change) = row.map_err(fault)?;
        let revision = Revision(at.value().0);
        // Only between two revisions, so that a batch is always whole.
        if revision != done && (seen >= CHANGES_MAX || bytes >= PAGE_BYTES_MAX) {
            return Ok((batches, done));
        }
        done = revision;
        let key = change.value().1;
        if !key.starts_with(prefix) {
            continue;
        }
        let missing = || StoreError::Damaged(format!("key {key:?} at revision {revision}"));
        let now = current
            .get(key)
            .map_err(fault)?
            .map(|row| tables::decode(key, row.value()))
            .transpose()?
            .flatten();
        let entry = match now.filter(|entry| entry.mod_revision == revision) {
            Some(entry) => Some(entry),
            None => {
                let row = history
                    .get((key, revision.0))
                    .map_err(fault)?
                    .ok_or_else(missing)?;
                tables::decode(key, row.value())?
            }
        };
        bytes += key.len() + entry.as_ref().map_or(0, |e| e.value.len());
        let event = entry.map_or_else(
            || Event::Delete {
                key: key.to_owned(),
                revision,
            },
            Event::Put,
        );
        match batches
            .last_mut()
            .filter(|batch| batch.revision == revision)
        {
            Some(batch) => batch.events.push(event),
            None => batches.push(Batch {
                revision,
                events: vec![event],
            }),
        }
    }
    Ok((batches, latest.max(done)))
}
