//! FAT with 12, 16 and 32 bits and long names.
//!
//! What always holds: every number of the volume is checked before it is used; chains of clusters are followed no
//! further than the file or the directory may be long, so one that leads in a circle ends; directories, walked from the
//! root for each step of a path, are read up to a bound for the whole volume. It is read here, and not by
//! a crate, because those that there are trust the volume: a cluster number of 1, or a table of many copies, makes them
//! panic. The format is Microsoft's "FAT32 File System Specification", version 1.03.

use std::cell::Cell;

use super::{FileError, Node, PIECE_BYTES, Sink, Slice, Tree};
use crate::bytes::{array, le16, le32};
use crate::limits::{DIRECTORY_BYTES_MAX, DIRECTORY_ENTRIES_MAX, DIRECTORY_WORK_BYTES_MAX};
use crate::shown::shown;

mod directory;

use directory::Entry;

const ENTRY_BYTES: u64 = 32;

/// How wide a number in the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits12,
    Bits16,
    Bits32,
}

/// Where things are in a volume.
#[derive(Clone, Copy, Debug)]
struct Layout {
    width: Width,
    table_at: u64,
    table_bytes: u64,
    /// Where the root directory of a volume with 12 or 16 bits is.
    root_at: u64,
    root_bytes: u64,
    /// Where the root directory of one with 32 bits begins.
    root_cluster: u32,
    data_at: u64,
    cluster_bytes: u64,
    clusters: u32,
    serial: u32,
}

/// Whether a partition begins as a FAT volume.
pub(super) fn is_fat(slice: &Slice) -> bool {
    Layout::read(slice).is_ok_and(|layout| layout.is_some())
}

impl Layout {
    /// `None` when the boot sector is not that of a FAT volume.
    fn read(slice: &Slice) -> std::io::Result<Option<Self>> {
        let mut sector = [0; 512];
        slice.read_at(0, &mut sector)?;
        Ok(Self::parse(&sector, slice.bytes()))
    }

    fn parse(sector: &[u8], partition_bytes: u64) -> Option<Self> {
        let number = |at| le16(sector, at).map(u64::from);
        if sector.get(510..512)? != [0x55, 0xaa] {
            return None;
        }
        let sector_bytes = number(11)?;
        let per_cluster = u64::from(*sector.get(13)?);
        let tables = u64::from(*sector.get(16)?);
        if ![512, 1024, 2048, 4096].contains(&sector_bytes)
            || !per_cluster.is_power_of_two()
            || !(1..=2).contains(&tables)
        {
            return None;
        }
        let reserved = number(14)?;
        let root_bytes = number(17)? * ENTRY_BYTES;
        let sectors = match number(19)? {
            0 => u64::from(le32(sector, 32)?),
            small => small,
        };
        let (per_table, narrow) = match number(22)? {
            0 => (u64::from(le32(sector, 36)?), false),
            small => (small, true),
        };
        let table_at = reserved * sector_bytes;
        let table_bytes = per_table * sector_bytes;
        let root_at = table_at + tables * table_bytes;
        let data_at = root_at + root_bytes.next_multiple_of(sector_bytes);
        let bytes = sectors * sector_bytes;
        let cluster_bytes = per_cluster * sector_bytes;
        if reserved == 0 || per_table == 0 || bytes > partition_bytes {
            return None;
        }
        let clusters = u32::try_from(bytes.checked_sub(data_at)? / cluster_bytes).ok()?;
        let width = match (clusters, narrow) {
            (0, _) => return None,
            (..4085, true) => Width::Bits12,
            (4085..65_525, true) => Width::Bits16,
            // Small volumes with 32 bits exist against the specification, and Linux reads them.
            (..0x0fff_fff5, false) => Width::Bits32,
            _ => return None,
        };
        let serial_at = if width == Width::Bits32 { 67 } else { 39 };
        Some(Self {
            width,
            table_at,
            table_bytes,
            root_at,
            root_bytes,
            root_cluster: le32(sector, 44)?,
            data_at,
            cluster_bytes,
            clusters,
            serial: le32(sector, serial_at)?,
        })
    }
}

/// An opened volume.
#[derive(Debug)]
pub(super) struct Fat {
    slice: Slice,
    layout: Layout,
    /// How many bytes of directories may still be gone through.
    directory_bytes_left: Cell<u64>,
}

/// Where a file or directory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The root directory of a volume with 12 or 16 bits.
    FixedRoot,
    /// A chain that begins at this cluster; 0 is an empty file.
    Chain(u32),
}

impl Fat {
    /// Opens it, and answers its serial number as Linux and GRUB write it.
    pub(super) fn open(slice: Slice) -> Result<(Self, String), FileError> {
        let layout = Layout::read(&slice)
            .map_err(FileError::Read)?
            .ok_or_else(|| FileError::Damaged("its boot sector is not that of FAT".into()))?;
        let serial = layout.serial;
        let uuid = format!("{:04x}-{:04x}", serial >> 16, serial & 0xffff);
        let fat = Self {
            slice,
            layout,
            directory_bytes_left: Cell::new(DIRECTORY_WORK_BYTES_MAX),
        };
        Ok((fat, uuid))
    }

    fn root(&self) -> Place {
        match self.layout.width {
            Width::Bits32 => Place::Chain(self.layout.root_cluster),
            _ => Place::FixedRoot,
        }
    }

    /// The entry of a path, and `None` for the root itself.
    fn find(&self, path: &str) -> Result<Option<Option<Entry>>, FileError> {
        let mut place = self.root();
        let mut found = None;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if found
                .as_ref()
                .is_some_and(|entry: &Entry| !entry.is_directory)
            {
                return Ok(None);
            }
            let entries = self.entries(place, path)?;
            let Some(entry) = entries.into_iter().find(|entry| entry.is_called(name)) else {
                return Ok(None);
            };
            place = match entry.cluster {
                0 => self.root(),
                cluster => Place::Chain(cluster),
            };
            found = Some(entry);
        }
        Ok(Some(found))
    }

    fn entries(&self, place: Place, path: &str) -> Result<Vec<Entry>, FileError> {
        let mut bytes = Vec::new();
        match place {
            Place::FixedRoot => {
                self.pay(self.layout.root_bytes)?;
                bytes.resize(self.layout.root_bytes as usize, 0);
                self.slice
                    .read_at(self.layout.root_at, &mut bytes)
                    .map_err(FileError::Read)?;
            }
            Place::Chain(first) => {
                let mut chain = Chain::new(self, first);
                while let Some(cluster) = chain.next()? {
                    let at = bytes.len();
                    if at as u64 + self.layout.cluster_bytes > DIRECTORY_BYTES_MAX {
                        return Err(FileError::Directory(shown(path)));
                    }
                    self.pay(self.layout.cluster_bytes)?;
                    bytes.resize(at + self.layout.cluster_bytes as usize, 0);
                    self.read_cluster(cluster, 0, &mut bytes[at..])?;
                    if directory::is_last(&bytes[at..]) {
                        break;
                    }
                }
            }
        }
        let mut entries = directory::parse(&bytes, DIRECTORY_ENTRIES_MAX)
            .ok_or_else(|| FileError::Directory(shown(path)))?;
        if self.layout.width != Width::Bits32 {
            // The upper half is something else there.
            entries.iter_mut().for_each(|entry| entry.cluster &= 0xffff);
        }
        Ok(entries)
    }

    /// Counts bytes of a directory that are about to be read: a directory that is its own parent, or a long path, would
    /// otherwise make work without reading anything new.
    fn pay(&self, bytes: u64) -> Result<(), FileError> {
        let left = self.directory_bytes_left.get().checked_sub(bytes);
        self.directory_bytes_left
            .set(left.ok_or(FileError::DirectoryWork)?);
        Ok(())
    }

    /// Reads within a cluster whose number a chain has checked.
    fn read_cluster(&self, cluster: u32, skip: u64, buffer: &mut [u8]) -> Result<(), FileError> {
        let at = self.layout.data_at + u64::from(cluster - 2) * self.layout.cluster_bytes + skip;
        self.slice.read_at(at, buffer).map_err(FileError::Read)
    }
}

/// The clusters of a file, one after the other.
struct Chain<'a> {
    fat: &'a Fat,
    next: Option<u32>,
}

impl<'a> Chain<'a> {
    fn new(fat: &'a Fat, first: u32) -> Self {
        Self {
            fat,
            next: Some(first),
        }
    }

    /// The next cluster, a number from 2 to the count of clusters and one more; `None` at the end.
    fn next(&mut self) -> Result<Option<u32>, FileError> {
        let Some(cluster) = self.next else {
            return Ok(None);
        };
        let layout = &self.fat.layout;
        if !(2..layout.clusters.saturating_add(2)).contains(&cluster) {
            return Err(FileError::Damaged(format!(
                "a chain leads to cluster {cluster}"
            )));
        }
        let (at, bytes) = match layout.width {
            Width::Bits12 => (u64::from(cluster) * 3 / 2, 2),
            Width::Bits16 => (u64::from(cluster) * 2, 2),
            Width::Bits32 => (u64::from(cluster) * 4, 4),
        };
        if at + bytes > layout.table_bytes {
            return Err(FileError::Damaged(
                "its table is shorter than the volume".into(),
            ));
        }
        let mut raw = [0; 4];
        self.fat
            .slice
            .read_at(layout.table_at + at, &mut raw[..bytes as usize])
            .map_err(FileError::Read)?;
        let raw = u32::from_le_bytes(raw);
        let (value, end) = match layout.width {
            Width::Bits12 if cluster % 2 == 1 => (raw >> 4, 0xff8),
            Width::Bits12 => (raw & 0xfff, 0xff8),
            Width::Bits16 => (raw, 0xfff8),
            Width::Bits32 => (raw & 0x0fff_ffff, 0x0fff_fff8),
        };
        self.next = (value < end).then_some(value);
        Ok(Some(cluster))
    }
}

impl Tree for Fat {
    fn node(&self, path: &str) -> Result<Option<Node>, FileError> {
        Ok(self.find(path)?.map(|entry| match entry {
            Some(entry) if !entry.is_directory => Node::File {
                bytes: entry.bytes.into(),
            },
            _ => Node::Directory,
        }))
    }

    fn names(&self, path: &str) -> Result<Vec<String>, FileError> {
        let place = match self.find(path)? {
            Some(None) => self.root(),
            Some(Some(entry)) if entry.is_directory && entry.cluster != 0 => {
                Place::Chain(entry.cluster)
            }
            _ => return Err(FileError::NotDirectory(shown(path))),
        };
        let entries = self.entries(place, path)?;
        Ok(entries.into_iter().map(Entry::into_name).collect())
    }

    fn read(&self, path: &str, sink: &mut Sink<'_>) -> Result<(), FileError> {
        let Some(Some(entry)) = self.find(path)? else {
            return Err(FileError::NotFound(shown(path)));
        };
        let mut left = u64::from(entry.bytes);
        let mut chain = Chain::new(self, entry.cluster);
        let mut piece = [0; PIECE_BYTES];
        while left > 0 {
            let cluster = chain.next()?.ok_or_else(|| {
                FileError::Damaged(format!("the chain of {} is too short", shown(path)))
            })?;
            let in_cluster = left.min(self.layout.cluster_bytes);
            let mut done = 0;
            while done < in_cluster {
                let length = (in_cluster - done).min(PIECE_BYTES as u64) as usize;
                self.read_cluster(cluster, done, &mut piece[..length])?;
                sink(&piece[..length])?;
                done += length as u64;
            }
            left -= in_cluster;
        }
        Ok(())
    }
}

/// Bytes at a place that [`directory`] has checked.
fn short_name(entry: &[u8]) -> Option<[u8; 11]> {
    array(entry, 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::rc::Rc;

    use super::super::resolve::resolve;
    use super::*;
    use crate::disk::{Disk, Expected};

    /// A volume of 12 bits whose only directory, `a`, is its own parent.
    fn circle() -> Fat {
        const SECTOR: usize = 512;
        let mut volume = vec![0u8; 64 * SECTOR];
        let mut put = |at: usize, bytes: &[u8]| volume[at..at + bytes.len()].copy_from_slice(bytes);
        // Sectors of 512 bytes, clusters of one, one sector before one table of one, a root of 16 entries.
        put(11, &[0, 2, 1, 1, 0, 1, 16, 0, 64, 0, 0xf8, 1, 0]);
        put(510, &[0x55, 0xaa]);
        put(SECTOR + 3, &[0xff, 0x0f]);
        let mut entry = [0; ENTRY_BYTES as usize];
        entry[..12].copy_from_slice(b"A          \x10");
        entry[26] = 2;
        put(2 * SECTOR, &entry);
        put(3 * SECTOR, &entry);
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &volume, 0).unwrap();
        let slice = Slice {
            disk: Rc::new(Disk::open(vec![(file, Expected::Raw)]).unwrap()),
            start: 0,
            bytes: volume.len() as u64,
        };
        Fat::open(slice).unwrap().0
    }

    #[test]
    fn directories_that_are_read_again_are_paid_for_again() {
        let fat = circle();
        assert_eq!(resolve(&fat, "/a/a/a").unwrap().1, Node::Directory);
        // One directory for the first step, two for the second, three for the third; each is a sector.
        let paid = DIRECTORY_WORK_BYTES_MAX - fat.directory_bytes_left.get();
        assert_eq!(paid, 6 * 512);
        fat.directory_bytes_left.set(1 << 20);
        let deep = resolve(&fat, &"/a".repeat(200));
        assert!(matches!(deep, Err(FileError::DirectoryWork)), "{deep:?}");
        let again = resolve(&fat, &"/a".repeat(200));
        assert!(matches!(again, Err(FileError::DirectoryWork)), "{again:?}");
    }
}
