//! The entries of a FAT directory, long names put together.
//!
//! What always holds: a long name counts only when its parts are in order and carry the checksum of the short name that
//! they precede; a name with a slash or a control character in it is none.

use super::{ENTRY_BYTES, short_name};
use crate::bytes::{le16, le32};

const LAST: u8 = 0x00;
const DELETED: u8 = 0xe5;
/// Stands for a first byte of 0xe5 that is part of the name.
const ESCAPED: u8 = 0x05;

mod attribute {
    pub const VOLUME: u8 = 0x08;
    pub const DIRECTORY: u8 = 0x10;
    pub const LONG_NAME: u8 = 0x0f;
}

const LONG_LAST: u8 = 0x40;
/// A long name has at most 255 characters of 16 bits, 13 in each part.
const PARTS_MAX: u8 = 20;
/// Where the 13 characters of a part are.
const PART: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// One file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    short: String,
    long: Option<String>,
    /// Whether it is a directory.
    pub(super) is_directory: bool,
    /// Its first cluster.
    pub(super) cluster: u32,
    /// Its size in bytes; 0 for a directory.
    pub(super) bytes: u32,
}

impl Entry {
    /// Whether one of its names is this, letter case aside.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.short.eq_ignore_ascii_case(name)
            || self
                .long
                .as_ref()
                .is_some_and(|long| long.eq_ignore_ascii_case(name))
    }

    /// Its long name, or its short one.
    pub(super) fn into_name(self) -> String {
        self.long.unwrap_or(self.short)
    }
}

/// Whether the directory ends within these bytes.
pub(super) fn is_last(bytes: &[u8]) -> bool {
    bytes
        .chunks_exact(ENTRY_BYTES as usize)
        .any(|entry| entry.first() == Some(&LAST))
}

/// The entries in a directory's bytes; `None` when there are more than `entries_max`.
pub(super) fn parse(bytes: &[u8], entries_max: usize) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut long = LongName::default();
    for raw in bytes.chunks_exact(ENTRY_BYTES as usize) {
        match (raw[0], raw[11] & 0x3f) {
            (LAST, _) => break,
            (DELETED, _) => long = LongName::default(),
            (_, attribute::LONG_NAME) => long.add(raw),
            (_, attributes) if attributes & attribute::VOLUME != 0 => long = LongName::default(),
            (_, attributes) => {
                let name = std::mem::take(&mut long);
                if let Some(entry) = entry(raw, attributes, name) {
                    if entries.len() == entries_max {
                        return None;
                    }
                    entries.push(entry);
                }
            }
        }
    }
    Some(entries)
}

fn entry(raw: &[u8], attributes: u8, long: LongName) -> Option<Entry> {
    let stored = short_name(raw)?;
    let short = readable(&stored, raw[12])?;
    if short == "." || short == ".." {
        return None;
    }
    let is_directory = attributes & attribute::DIRECTORY != 0;
    let cluster = u32::from(le16(raw, 20)?) << 16 | u32::from(le16(raw, 26)?);
    Some(Entry {
        short,
        long: long.finish(checksum(&stored)),
        is_directory,
        cluster,
        bytes: if is_directory { 0 } else { le32(raw, 28)? },
    })
}

/// A short name as people write it. Two bits of `case` say which half is in lower case.
fn readable(stored: &[u8; 11], case: u8) -> Option<String> {
    let half = |bytes: &[u8], lower: bool| -> Option<String> {
        let text: String = bytes
            .iter()
            .map(|&byte| {
                if byte.is_ascii_graphic() || byte == b' ' {
                    byte as char
                } else {
                    '_'
                }
            })
            .collect();
        let text = text.trim_end_matches(' ');
        (!text.contains('/')).then(|| match lower {
            true => text.to_ascii_lowercase(),
            false => text.to_owned(),
        })
    };
    let mut stored = *stored;
    if stored[0] == ESCAPED {
        stored[0] = DELETED;
    }
    let name = half(&stored[..8], case & 0x08 != 0)?;
    let ending = half(&stored[8..], case & 0x10 != 0)?;
    match (name.is_empty(), ending.is_empty()) {
        (true, _) => None,
        (false, true) => Some(name),
        (false, false) => Some(format!("{name}.{ending}")),
    }
}

/// What ties a long name to its short one.
pub(super) fn checksum(stored: &[u8; 11]) -> u8 {
    stored
        .iter()
        .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// A long name as its parts come, the last one first.
#[derive(Debug, Default)]
struct LongName {
    /// The parts in the order of the directory.
    parts: Vec<[u16; PART.len()]>,
    /// The number that the next part must have; 0 when nothing may follow.
    expected: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, raw: &[u8]) {
        let (order, checksum) = (raw[0], raw[13]);
        let number = order & !LONG_LAST;
        if order & LONG_LAST != 0 {
            *self = Self {
                parts: Vec::new(),
                expected: number,
                checksum,
            };
        }
        if !(1..=PARTS_MAX).contains(&number)
            || number != self.expected
            || checksum != self.checksum
        {
            *self = Self::default();
            return;
        }
        self.parts.push(PART.map(|at| le16(raw, at).unwrap_or(0)));
        self.expected = number - 1;
    }

    /// The whole name, if every part was there and belongs to this short name.
    fn finish(self, checksum: u8) -> Option<String> {
        if self.parts.is_empty() || self.expected != 0 || self.checksum != checksum {
            return None;
        }
        let units: Vec<u16> = self
            .parts
            .iter()
            .rev()
            .flatten()
            .copied()
            .take_while(|unit| *unit != 0)
            .collect();
        let name = String::from_utf16(&units).ok()?;
        let is_good = !name.is_empty()
            && !name.contains(|character: char| character == '/' || character.is_control());
        is_good.then_some(name)
    }
}
