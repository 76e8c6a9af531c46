//! How the file is laid out: four tables and the bytes of their rows.
//!
//! - `current`: key → the live entry. Listings of the present read nothing else.
//! - `history`: (key, revision) → versions that were superseded, and deletions.
//! - `log`: (revision, position) → (bytes accounted, key) of every change that is still kept for watches.
//! - `meta`: the format, the latest revision, the compacted revision, and how far compaction has cleaned up.
//!
//! What always holds: a revision after `compacted` can be read whole from `current` and `history`; every change after
//! `purged` has a row in `log`.

use ::redb::TableDefinition;
use bytes::{Bytes, BytesMut};

use crate::error::StoreError;
use crate::records::{Entry, Revision};

pub(super) const CURRENT: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("current");
pub(super) const HISTORY: TableDefinition<'static, (&str, u64), &[u8]> =
    TableDefinition::new("history");
pub(super) const LOG: TableDefinition<'static, (u64, u32), (u32, &str)> =
    TableDefinition::new("log");
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// The layout described above.
pub(super) const FORMAT: u64 = 1;
pub(super) const META_FORMAT: &str = "format";
pub(super) const META_REVISION: &str = "revision";
pub(super) const META_COMPACTED: &str = "compacted";
pub(super) const META_PURGED: &str = "purged";

const PUT: u8 = 1;
const DELETE: u8 = 0;
const HEADER_BYTES: usize = 25;

/// The row of an entry: kind, create revision, mod revision, version (little-endian u64 each), value.
pub(super) fn encode(entry: &Entry) -> Bytes {
    let mut row = BytesMut::with_capacity(HEADER_BYTES + entry.value.len());
    row.extend_from_slice(&[PUT]);
    for number in [entry.create_revision.0, entry.mod_revision.0, entry.version] {
        row.extend_from_slice(&number.to_le_bytes());
    }
    row.extend_from_slice(&entry.value);
    row.freeze()
}

/// The row of a deletion in `history`.
pub(super) const DELETED: &[u8] = &[DELETE];

/// Reads a row; `None` is a deletion.
pub(super) fn decode(key: &str, row: &[u8]) -> Result<Option<Entry>, StoreError> {
    if row == DELETED {
        return Ok(None);
    }
    let damaged = || StoreError::Damaged(format!("the row of key {key:?}"));
    let (header, value) = row.split_at_checked(HEADER_BYTES).ok_or_else(damaged)?;
    if header[0] != PUT {
        return Err(damaged());
    }
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    Ok(Some(Entry {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        create_revision: Revision(number(1)),
        mod_revision: Revision(number(9)),
        version: number(17),
    }))
}

/// What a row costs in a page or in the history: its key and value.
pub(super) fn cost_bytes(key: &str, value_bytes: usize) -> u32 {
    u32::try_from(key.len() + value_bytes + HEADER_BYTES).unwrap_or(u32::MAX)
}
