//! Finding entries in the segments and reading them back, each checked against its hash.
//!
//! Reads only what is durable: a writer may be appending to the same file meanwhile.

use std::sync::PoisonError;

use super::segment::{self, Fault, Reader, Record};
use super::{AuditLog, EntriesPage, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, ReadError};
use crate::entry::StoredEntry;

/// Where entries lie in one segment.
#[derive(Debug, Clone)]
pub(super) struct SegmentIndex {
    pub(super) first: u64,
    /// The offset of every [`SegmentIndex::STRIDE`]th entry, in bytes.
    pub(super) offsets: Vec<u64>,
}

impl SegmentIndex {
    const STRIDE: u64 = 64;

    pub(super) fn new(first: u64) -> Self {
        Self {
            first,
            offsets: Vec::new(),
        }
    }

    pub(super) fn is_marked(place: u64) -> bool {
        place.is_multiple_of(Self::STRIDE)
    }
}

impl AuditLog {
    /// The entries from index `from` on, at most `limit` (1..=[`PAGE_ENTRIES_MAX`]); fewer when they are long.
    pub fn entries(&self, from: u64, limit: usize) -> Result<EntriesPage, ReadError> {
        if !(1..=PAGE_ENTRIES_MAX).contains(&limit) {
            return Err(ReadError::Invalid("a page has 1 to 1000 entries"));
        }
        let (size, mut place) = {
            let durable = self.durable.read().unwrap_or_else(PoisonError::into_inner);
            if from > durable.size {
                return Err(ReadError::BeyondEnd {
                    asked: from,
                    size: durable.size,
                });
            }
            (durable.size, Place::find(&durable.segments, from))
        };
        let mut entries = Vec::new();
        let mut bytes = 0;
        while from + (entries.len() as u64) < size
            && entries.len() < limit
            && bytes < PAGE_BYTES_MAX
        {
            let next = from + entries.len() as u64;
            if place.next_segment == Some(next) {
                let durable = self.durable.read().unwrap_or_else(PoisonError::into_inner);
                place = Place::find(&durable.segments, next);
            }
            let until = place.next_segment.unwrap_or(size).min(size);
            self.read_segment(&place, next, until, limit, &mut entries, &mut bytes)?;
        }
        Ok(EntriesPage { entries, size })
    }

    fn read_segment(
        &self,
        place: &Place,
        from: u64,
        until: u64,
        limit: usize,
        entries: &mut Vec<StoredEntry>,
        bytes: &mut usize,
    ) -> Result<(), ReadError> {
        let path = segment::path(&self.directory, place.first);
        let damaged = |offset, fault| match fault {
            Fault::Io(error) => ReadError::Io(error),
            Fault::Bad(_) => ReadError::Damaged {
                path: path.clone(),
                offset,
            },
        };
        let mut reader = Reader::open(&path, place.first).map_err(|fault| damaged(0, fault))?;
        reader
            .seek(place.offset)
            .map_err(|fault| damaged(place.offset, fault))?;
        let mut index = place.index;
        while index < until && entries.len() < limit && *bytes < PAGE_BYTES_MAX {
            let offset = reader.offset();
            match reader.next().map_err(|fault| damaged(offset, fault))? {
                Some(Record::Entry { text, .. }) => {
                    if index >= from {
                        *bytes += text.len();
                        entries.push(StoredEntry { index, text });
                    }
                    index += 1;
                }
                Some(Record::Commit { .. }) => {}
                None => return Err(ReadError::Damaged { path, offset }),
            }
        }
        Ok(())
    }
}

/// Where to begin reading for an entry.
struct Place {
    /// The segment.
    first: u64,
    /// The first entry of the segment after it.
    next_segment: Option<u64>,
    /// The entry that lies at `offset`, at or before the one wanted.
    index: u64,
    offset: u64,
}

impl Place {
    fn find(segments: &[SegmentIndex], index: u64) -> Self {
        let after = segments.partition_point(|segment| segment.first <= index);
        let next_segment = segments.get(after).map(|segment| segment.first);
        let Some(segment) = after.checked_sub(1).and_then(|at| segments.get(at)) else {
            return Self {
                first: 0,
                next_segment,
                index: 0,
                offset: segment::HEADER_BYTES as u64,
            };
        };
        let mark =
            usize::try_from((index - segment.first) / SegmentIndex::STRIDE).unwrap_or(usize::MAX);
        let start = (segment.first, segment::HEADER_BYTES as u64);
        let (index, offset) = segment.offsets.get(mark).map_or(start, |offset| {
            (segment.first + mark as u64 * SegmentIndex::STRIDE, *offset)
        });
        Self {
            first: segment.first,
            next_segment,
            index,
            offset,
        }
    }
}
