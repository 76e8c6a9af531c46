//! GUID partition tables.
//!
//! What always holds: header and entries are used only when both checksums match; the backup at the end of the disk
//! stands in for a bad primary. Disks with blocks of 512 and of 4096 bytes are read.

use crc::{CRC_32_ISO_HDLC, Crc};
use uuid::Uuid;

use super::{PARTITION_ENTRIES_MAX, Partition, SECTOR_BYTES, TableError, add, role};
use crate::bytes::{array, le32, le64};
use crate::disk::Disk;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_BYTES: usize = 92;
/// Entries are 128 bytes times a power of two; no table here has larger ones.
const ENTRY_BYTES: std::ops::RangeInclusive<u32> = 128..=1024;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Reads the table, if the disk has one. `announced` says that the master boot record speaks of one.
pub(super) fn read(disk: &Disk, announced: bool) -> Result<Option<Vec<Partition>>, TableError> {
    let mut damage = None;
    for block_bytes in [SECTOR_BYTES, 4096] {
        match read_at(disk, block_bytes, block_bytes)? {
            Found::Table(partitions) => return Ok(Some(partitions)),
            Found::Damaged(why) => damage = Some(why),
            Found::Nothing => {}
        }
    }
    if !announced && damage.is_none() {
        return Ok(None);
    }
    for block_bytes in [SECTOR_BYTES, 4096] {
        let Some(last) = (disk.bytes() / block_bytes).checked_sub(1) else {
            continue;
        };
        if let Found::Table(partitions) = read_at(disk, last * block_bytes, block_bytes)? {
            return Ok(Some(partitions));
        }
    }
    Err(TableError::Gpt(damage.unwrap_or("there is no header")))
}

enum Found {
    Table(Vec<Partition>),
    Damaged(&'static str),
    Nothing,
}

/// Reads the table whose header is at `at`, counted in blocks of `block_bytes`.
fn read_at(disk: &Disk, at: u64, block_bytes: u64) -> Result<Found, TableError> {
    if at.saturating_add(block_bytes) > disk.bytes() {
        return Ok(Found::Nothing);
    }
    let mut block = vec![0; block_bytes as usize];
    disk.read_at(at, &mut block)?;
    if !block.starts_with(SIGNATURE) {
        return Ok(Found::Nothing);
    }
    let header = match Header::parse(&block) {
        Ok(header) => header,
        Err(why) => return Ok(Found::Damaged(why)),
    };
    let length = u64::from(header.entries) * u64::from(header.entry_bytes);
    let start = header.first.checked_mul(block_bytes);
    let Some(start) = start.filter(|start| {
        start
            .checked_add(length)
            .is_some_and(|end| end <= disk.bytes())
    }) else {
        return Ok(Found::Damaged("its entries lie beyond the disk"));
    };
    let mut entries = vec![0; length as usize];
    disk.read_at(start, &mut entries)?;
    if CRC.checksum(&entries) != header.entries_checksum {
        return Ok(Found::Damaged("the checksum of its entries is wrong"));
    }
    let mut partitions = Vec::new();
    for (index, entry) in entries
        .chunks_exact(header.entry_bytes as usize)
        .enumerate()
    {
        if let Some(partition) = partition(index as u32 + 1, entry, block_bytes) {
            add(&mut partitions, disk, partition)?;
        }
    }
    Ok(Found::Table(partitions))
}

struct Header {
    first: u64,
    entries: u32,
    entry_bytes: u32,
    entries_checksum: u32,
}

impl Header {
    fn parse(block: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "its header is cut off";
        let length = le32(block, 12).ok_or(SHORT)? as usize;
        if !(HEADER_BYTES..=block.len()).contains(&length) {
            return Err("the length of its header is wrong");
        }
        let mut summed = block[..length].to_vec();
        summed[16..20].fill(0);
        if le32(block, 16) != Some(CRC.checksum(&summed)) {
            return Err("the checksum of its header is wrong");
        }
        let header = Self {
            first: le64(block, 72).ok_or(SHORT)?,
            entries: le32(block, 80).ok_or(SHORT)?,
            entry_bytes: le32(block, 84).ok_or(SHORT)?,
            entries_checksum: le32(block, 88).ok_or(SHORT)?,
        };
        if !ENTRY_BYTES.contains(&header.entry_bytes) || !header.entry_bytes.is_power_of_two() {
            return Err("the size of its entries is wrong");
        }
        if header.entries > PARTITION_ENTRIES_MAX {
            return Err("it has too many entries");
        }
        Ok(header)
    }
}

/// The partition of an entry in use; one whose end is before its beginning is none.
fn partition(number: u32, entry: &[u8], block_bytes: u64) -> Option<Partition> {
    let kind = Uuid::from_bytes_le(array(entry, 0)?);
    if kind.is_nil() {
        return None;
    }
    let unique = Uuid::from_bytes_le(array(entry, 16)?);
    let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
    let blocks = last.checked_sub(first)?.checked_add(1)?;
    Some(Partition {
        number,
        role: role(kind),
        start: first.checked_mul(block_bytes)?,
        bytes: blocks.checked_mul(block_bytes)?,
        unique: Some(unique.hyphenated().to_string()),
    })
}
