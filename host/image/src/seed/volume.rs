//! A small FAT12 volume with a few files in its root.
//!
//! What always holds: the same files make the same bytes, dates and serial number included; files lie one after the
//! other, each in one piece. The caller's files are few and their names plain, so nothing here can fail. The format is
//! Microsoft's "FAT32 File System Specification", version 1.03.

use crc::{CRC_32_ISO_HDLC, Crc};

const SECTOR_BYTES: usize = 512;
const SECTORS_PER_CLUSTER: usize = 4;
const CLUSTER_BYTES: usize = SECTORS_PER_CLUSTER * SECTOR_BYTES;
const RESERVED_SECTORS: usize = 1;
const TABLES: usize = 2;
/// Most clusters of a volume with 12 bits, whose table then takes this many sectors.
const CLUSTERS_MAX: usize = 4084;
const TABLE_SECTORS: usize = ((CLUSTERS_MAX + 2) * 3 / 2).div_ceil(SECTOR_BYTES);
const ENTRY_BYTES: usize = 32;
const ROOT_ENTRIES: usize = 64;
const ROOT_SECTORS: usize = ROOT_ENTRIES * ENTRY_BYTES / SECTOR_BYTES;
const DATA_SECTOR: usize = RESERVED_SECTORS + TABLES * TABLE_SECTORS + ROOT_SECTORS;
/// The volume's size is a multiple of this.
const ROUND_BYTES: usize = 64 << 10;

const MEDIA: u8 = 0xf8;
const END_OF_CHAIN: u16 = 0xfff;
/// 1 January 1980, the first day that FAT knows.
const DATE: u16 = 1 << 5 | 1;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

mod attribute {
    pub const VOLUME_LABEL: u8 = 0x08;
    pub const ARCHIVE: u8 = 0x20;
    pub const LONG_NAME: u8 = 0x0f;
}

/// Where the 13 characters of a part of a long name are.
const PART: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// Makes a volume. The label has at most 11 characters; the files fit into 8 MiB and their names are ASCII.
pub(super) fn make(label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let clusters: usize = files
        .iter()
        .map(|(_, bytes)| bytes.len().div_ceil(CLUSTER_BYTES))
        .sum();
    debug_assert!(clusters <= CLUSTERS_MAX && files.len() < 10);
    let bytes = DATA_SECTOR * SECTOR_BYTES + clusters.max(1) * CLUSTER_BYTES;
    let mut volume = vec![0; bytes.next_multiple_of(ROUND_BYTES)];
    let mut table = vec![0xf00 | u16::from(MEDIA), END_OF_CHAIN];
    let mut root = label_entry(label).to_vec();
    for (index, (name, bytes)) in files.iter().enumerate() {
        let first = table.len();
        let count = bytes.len().div_ceil(CLUSTER_BYTES);
        let at = DATA_SECTOR * SECTOR_BYTES + (first - 2) * CLUSTER_BYTES;
        volume[at..at + bytes.len()].copy_from_slice(bytes);
        table.extend((first + 1..first + count).map(|next| next as u16));
        table.extend((count > 0).then_some(END_OF_CHAIN));
        let cluster = if count > 0 { first as u16 } else { 0 };
        root.extend(file_entries(name, index + 1, cluster, bytes.len() as u32));
    }
    let serial = CRC.checksum(&volume);
    let sectors = volume.len() / SECTOR_BYTES;
    put(&mut volume, 0, &boot_sector(label, sectors, serial));
    let table = packed(&table);
    for number in 0..TABLES {
        let sector = RESERVED_SECTORS + number * TABLE_SECTORS;
        put(&mut volume, sector * SECTOR_BYTES, &table);
    }
    put(
        &mut volume,
        (DATA_SECTOR - ROOT_SECTORS) * SECTOR_BYTES,
        &root,
    );
    volume
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..at + new.len()].copy_from_slice(new);
}

fn boot_sector(label: &str, sectors: usize, serial: u32) -> [u8; SECTOR_BYTES] {
    let mut sector = [0; SECTOR_BYTES];
    // Jumps to a loop that waits for interrupts: nobody boots from it.
    put(&mut sector, 0, &[0xeb, 0x3c, 0x90]);
    put(&mut sector, 3, b"MSWIN4.1");
    put(&mut sector, 11, &(SECTOR_BYTES as u16).to_le_bytes());
    sector[13] = SECTORS_PER_CLUSTER as u8;
    put(&mut sector, 14, &(RESERVED_SECTORS as u16).to_le_bytes());
    sector[16] = TABLES as u8;
    put(&mut sector, 17, &(ROOT_ENTRIES as u16).to_le_bytes());
    put(&mut sector, 19, &(sectors as u16).to_le_bytes());
    sector[21] = MEDIA;
    put(&mut sector, 22, &(TABLE_SECTORS as u16).to_le_bytes());
    put(&mut sector, 24, &32u16.to_le_bytes());
    put(&mut sector, 26, &2u16.to_le_bytes());
    sector[36] = 0x80;
    sector[38] = 0x29;
    put(&mut sector, 39, &serial.to_le_bytes());
    put(&mut sector, 43, &padded(label));
    put(&mut sector, 54, b"FAT12   ");
    put(&mut sector, 62, &[0xf4, 0xeb, 0xfd]);
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

/// A name as entries store it.
fn padded(name: &str) -> [u8; 11] {
    let mut stored = [b' '; 11];
    for (place, byte) in stored.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    stored
}

fn label_entry(label: &str) -> [u8; ENTRY_BYTES] {
    entry(padded(label), attribute::VOLUME_LABEL, 0, 0)
}

fn entry(name: [u8; 11], attributes: u8, cluster: u16, bytes: u32) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    put(&mut entry, 0, &name);
    entry[11] = attributes;
    for at in [16, 18, 24] {
        put(&mut entry, at, &DATE.to_le_bytes());
    }
    put(&mut entry, 26, &cluster.to_le_bytes());
    put(&mut entry, 28, &bytes.to_le_bytes());
    entry
}

/// The parts of the long name, the last one first, and the entry itself with a short name that only has to differ.
fn file_entries(name: &str, number: usize, cluster: u16, bytes: u32) -> Vec<u8> {
    let short = padded(&format!("FILE~{number}"));
    let checksum = short
        .iter()
        .fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let units: Vec<u16> = name.encode_utf16().collect();
    let parts: Vec<&[u16]> = units.chunks(PART.len()).collect();
    let mut entries = Vec::new();
    for (index, part) in parts.iter().enumerate().rev() {
        let mut raw = [0; ENTRY_BYTES];
        let is_last = index + 1 == parts.len();
        raw[0] = (index + 1) as u8 | if is_last { 0x40 } else { 0 };
        raw[11] = attribute::LONG_NAME;
        raw[13] = checksum;
        for (place, at) in PART.into_iter().enumerate() {
            // One zero ends a name that does not fill its part; the rest is all ones.
            let unit = match place.cmp(&part.len()) {
                std::cmp::Ordering::Less => part[place],
                std::cmp::Ordering::Equal => 0,
                std::cmp::Ordering::Greater => 0xffff,
            };
            put(&mut raw, at, &unit.to_le_bytes());
        }
        entries.extend(raw);
    }
    entries.extend(entry(short, attribute::ARCHIVE, cluster, bytes));
    entries
}

/// Numbers of 12 bits, two in three bytes.
fn packed(table: &[u16]) -> Vec<u8> {
    table
        .chunks(2)
        .flat_map(|pair| {
            let (low, high) = (pair[0], pair.get(1).copied().unwrap_or(0));
            [
                low as u8,
                (low >> 8) as u8 | ((high & 0xf) << 4) as u8,
                (high >> 4) as u8,
            ]
        })
        .collect()
}
