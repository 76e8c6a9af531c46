//! Partition tables in the master boot record, with logical partitions.
//!
//! What always holds: a chain of extended tables is followed only forwards from one to the next within bounds, so one
//! that bites its tail ends. A boot sector of a file system, which carries the same signature, is not taken for a table.

use super::{PARTITION_ENTRIES_MAX, Partition, Role, SECTOR_BYTES, TableError, add};
use crate::bytes::le32;
use crate::disk::Disk;

const SIGNATURE: [u8; 2] = [0x55, 0xaa];
const TABLE_AT: usize = 446;
const ENTRY_BYTES: usize = 16;
const ENTRIES: usize = 4;
const DISK_SIGNATURE_AT: usize = 440;

mod kind {
    pub const EMPTY: u8 = 0;
    pub const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
    pub const EXTENDED_BOOT: u8 = 0xea;
    pub const GPT: u8 = 0xee;
    pub const EFI_SYSTEM: u8 = 0xef;
}

#[derive(Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    first: u32,
    sectors: u32,
}

/// Whether the record only says that there is a GUID partition table.
pub(super) fn is_protective(sector: &[u8]) -> bool {
    sector.get(510..512) == Some(&SIGNATURE) && entries(sector).any(|entry| entry.kind == kind::GPT)
}

/// Reads the table that `sector`, the disk's first, may hold.
pub(super) fn read(disk: &Disk, sector: &[u8]) -> Result<Option<Vec<Partition>>, TableError> {
    if !is_table(sector) {
        return Ok(None);
    }
    let signature = le32(sector, DISK_SIGNATURE_AT).unwrap_or(0);
    let mut partitions = Vec::new();
    let mut extended = None;
    for (index, entry) in entries(sector).enumerate() {
        if kind::EXTENDED.contains(&entry.kind) {
            extended = extended.or(Some(entry.first));
        } else if entry.kind != kind::EMPTY {
            let found = partition(signature, index as u32 + 1, 0, entry);
            add(&mut partitions, disk, found)?;
        }
    }
    if let Some(start) = extended {
        add_logical(disk, signature, start.into(), &mut partitions)?;
    }
    Ok(Some(partitions).filter(|partitions| !partitions.is_empty()))
}

/// A table has a status of 0 or 0x80 in all entries, at least one in use, and none of no size.
fn is_table(sector: &[u8]) -> bool {
    if sector.get(510..512) != Some(&SIGNATURE) {
        return false;
    }
    let mut used = 0;
    for entry in entries(sector) {
        if entry.status & 0x7f != 0 {
            return false;
        }
        if entry.kind != kind::EMPTY {
            if entry.first == 0 || entry.sectors == 0 {
                return false;
            }
            used += 1;
        }
    }
    used > 0
}

/// Follows the chain of extended tables that begins at sector `base`.
fn add_logical(
    disk: &Disk,
    signature: u32,
    base: u64,
    partitions: &mut Vec<Partition>,
) -> Result<(), TableError> {
    let mut at = base;
    for number in 5..PARTITION_ENTRIES_MAX {
        let mut sector = [0; SECTOR_BYTES as usize];
        let Some(offset) = at
            .checked_mul(SECTOR_BYTES)
            .filter(|offset| offset.saturating_add(SECTOR_BYTES) <= disk.bytes())
        else {
            return Ok(());
        };
        disk.read_at(offset, &mut sector)?;
        if sector[510..] != SIGNATURE {
            return Ok(());
        }
        let mut both = entries(&sector);
        let (Some(own), Some(next)) = (both.next(), both.next()) else {
            return Ok(());
        };
        if own.kind != kind::EMPTY {
            add(partitions, disk, partition(signature, number, at, own))?;
        }
        let following = base + u64::from(next.first);
        if !kind::EXTENDED.contains(&next.kind) || following <= at {
            return Ok(());
        }
        at = following;
    }
    Ok(())
}

fn partition(signature: u32, number: u32, base: u64, entry: Entry) -> Partition {
    Partition {
        number,
        role: match entry.kind {
            kind::EFI_SYSTEM => Role::EfiSystem,
            kind::EXTENDED_BOOT => Role::ExtendedBoot,
            _ => Role::Other,
        },
        start: (base + u64::from(entry.first)) * SECTOR_BYTES,
        bytes: u64::from(entry.sectors) * SECTOR_BYTES,
        unique: Some(format!("{signature:08x}-{number:02x}")),
    }
}

fn entries(sector: &[u8]) -> impl Iterator<Item = Entry> {
    (0..ENTRIES).filter_map(|index| {
        let at = TABLE_AT + index * ENTRY_BYTES;
        Some(Entry {
            status: *sector.get(at)?,
            kind: *sector.get(at + 4)?,
            first: le32(sector, at + 8)?,
            sectors: le32(sector, at + 12)?,
        })
    })
}
