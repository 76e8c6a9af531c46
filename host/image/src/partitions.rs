//! What a disk is divided into: a GUID partition table, a table in the master boot record, or nothing.
//!
//! What always holds: a partition lies within the disk; their number is bounded; a table whose checksum does not match
//! is not used. What it must not know: file systems.
//!
//! The formats are those of UEFI 2.10 sections 5.2 and 5.3; what a type means is from the Discoverable Partitions
//! Specification.

mod gpt;
mod mbr;

use std::io;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::Disk;
use crate::limits::{PARTITION_ENTRIES_MAX, PARTITIONS_MAX};

/// Size of the blocks in which both tables count, in bytes. Images for disks with larger ones are rare and are read
/// by their GPT alone, which says so by where it lies.
const SECTOR_BYTES: u64 = 512;

/// What kind of table there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// A GUID partition table.
    Gpt,
    /// A table in the master boot record.
    Mbr,
    /// No table: the whole disk is one file system.
    None,
}

/// What a partition is for, as far as its type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Extended boot loader partition.
    ExtendedBoot,
    /// EFI system partition.
    EfiSystem,
    /// Root of an x86-64 system.
    Root,
    /// Anything else.
    Other,
}

/// One partition, or the whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as Linux counts; 0 for the whole disk.
    pub number: u32,
    /// What its type says.
    pub role: Role,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its size in bytes; not 0.
    pub bytes: u64,
    /// By what Linux finds it (`PARTUUID=`); none for the whole disk.
    pub unique: Option<String>,
}

/// The divisions of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What kind of table it is.
    pub kind: TableKind,
    /// What it lists, in its order; never empty for a disk that has any bytes.
    pub partitions: Vec<Partition>,
}

/// Why a table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Both copies of the GPT are bad.
    #[error("The disk's GUID partition table is damaged, its backup too: {0}")]
    Gpt(&'static str),
    /// More partitions than are looked at.
    #[error("The disk has more than {PARTITIONS_MAX} partitions")]
    TooMany,
    /// The disk could not be read.
    #[error("The partition table could not be read")]
    Io(#[from] io::Error),
}

/// Reads the table of a disk.
pub fn read(disk: &Disk) -> Result<Table, TableError> {
    let mut first = [0; SECTOR_BYTES as usize];
    if disk.bytes() >= SECTOR_BYTES {
        disk.read_at(0, &mut first)?;
    }
    if let Some(partitions) = gpt::read(disk, mbr::is_protective(&first))? {
        return Ok(Table {
            kind: TableKind::Gpt,
            partitions,
        });
    }
    match mbr::read(disk, &first)? {
        Some(partitions) => Ok(Table {
            kind: TableKind::Mbr,
            partitions,
        }),
        None => Ok(whole(disk)),
    }
}

/// A disk without a table.
fn whole(disk: &Disk) -> Table {
    Table {
        kind: TableKind::None,
        partitions: vec![Partition {
            number: 0,
            role: Role::Other,
            start: 0,
            bytes: disk.bytes(),
            unique: None,
        }],
    }
}

/// Adds a partition if it lies within the disk.
fn add(partitions: &mut Vec<Partition>, disk: &Disk, new: Partition) -> Result<(), TableError> {
    let end = new.start.checked_add(new.bytes);
    if new.bytes == 0 || end.is_none_or(|end| end > disk.bytes()) {
        return Ok(());
    }
    if partitions.len() == PARTITIONS_MAX {
        return Err(TableError::TooMany);
    }
    partitions.push(new);
    Ok(())
}

/// The types that have a role here.
const ROLES: [(Uuid, Role); 3] = [
    (
        Uuid::from_u128(0xbc13c2ff_59e6_4262_a352_b275fd6f7172),
        Role::ExtendedBoot,
    ),
    (
        Uuid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b),
        Role::EfiSystem,
    ),
    (
        Uuid::from_u128(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709),
        Role::Root,
    ),
];

fn role(kind: Uuid) -> Role {
    ROLES
        .iter()
        .find(|(known, _)| *known == kind)
        .map_or(Role::Other, |(_, role)| *role)
}
