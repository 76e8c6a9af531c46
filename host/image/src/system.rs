//! A disk with its partitions looked at and its file systems opened: what a search for a kernel searches.
//!
//! What always holds: a partition that cannot be read does not keep the others from being read; why it could not is
//! remembered and told. What it must not know: boot loaders.

use std::io;
use std::rc::Rc;

use crate::disk::{Disk, DiskError};
use crate::files::{FileSystem, Slice, Volume, identify};
use crate::limits::{REMARKS_MAX, VOLUMES_MAX};
use crate::partitions::{self, Partition, Role, TableError, TableKind};
use crate::shown::sentence;

/// A partition and what is on it.
#[derive(Debug)]
pub struct Part {
    /// Where it lies, and what its type says.
    pub partition: Partition,
    /// What it holds.
    pub file_system: FileSystem,
    /// Its files, if they can be read.
    pub volume: Option<Volume>,
}

impl Part {
    /// How messages speak of it.
    pub fn name(&self) -> String {
        match self.partition.number {
            0 => "the disk".to_owned(),
            number => format!("partition {number}"),
        }
    }

    /// Whether it holds the root of an installed system, as far as can be told.
    fn is_root(&self) -> bool {
        const MARKS: [&str; 3] = ["/etc/os-release", "/usr/lib/os-release", "/etc/fstab"];
        match &self.volume {
            Some(volume) => MARKS.iter().any(|mark| volume.has_file(mark)),
            None => self.partition.role == Role::Root,
        }
    }
}

/// Why a disk could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// The images do not make a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The partition table is damaged.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The disk could not be read.
    #[error("The disk could not be read")]
    Io(#[from] io::Error),
}

/// A disk and what is on it.
#[derive(Debug)]
pub struct System {
    /// The disk.
    pub disk: Rc<Disk>,
    /// What kind of partition table it has.
    pub table: TableKind,
    /// Its partitions, in the order of their table.
    pub parts: Vec<Part>,
    /// What could not be read, and why; one sentence each.
    pub remarks: Vec<String>,
}

impl System {
    /// Reads the partition table and opens every file system that can be read.
    pub fn open(disk: Disk) -> Result<Self, SystemError> {
        let disk = Rc::new(disk);
        let table = partitions::read(&disk)?;
        let mut remarks = Vec::new();
        let mut parts = Vec::with_capacity(table.partitions.len());
        let mut opened = 0;
        for partition in table.partitions {
            let slice = Slice::new(Rc::clone(&disk), &partition);
            let file_system = identify(&slice);
            let mut part = Part {
                partition,
                file_system,
                volume: None,
            };
            if file_system.is_read() && opened == VOLUMES_MAX {
                remarks.push(format!(
                    "{} was not opened: at most {VOLUMES_MAX} file systems are",
                    part.name()
                ));
            } else {
                match Volume::open(slice, file_system) {
                    Ok(volume) => part.volume = volume,
                    Err(error) => {
                        remarks.push(format!("{}: {}", part.name(), sentence(&error)));
                    }
                }
                opened += usize::from(part.volume.is_some());
            }
            parts.push(part);
        }
        remarks.truncate(REMARKS_MAX);
        Ok(Self {
            disk,
            table: table.kind,
            parts,
            remarks,
        })
    }

    /// The opened file systems with a place in [`parts`](Self::parts): those whose type is among `first`, in that
    /// order, then the others as the table has them.
    pub fn volumes(&self, first: &[Role]) -> Vec<(usize, &Volume)> {
        let mut volumes: Vec<_> = self
            .parts
            .iter()
            .enumerate()
            .filter_map(|(index, part)| Some((index, part.volume.as_ref()?)))
            .collect();
        volumes.sort_by_key(|(index, _)| {
            let role = self.parts[*index].partition.role;
            first
                .iter()
                .position(|wanted| *wanted == role)
                .unwrap_or(first.len())
        });
        volumes
    }

    /// The opened file system with this UUID, in lower case.
    pub fn volume_by_uuid(&self, uuid: &str) -> Option<(usize, &Volume)> {
        self.volumes(&[])
            .into_iter()
            .find(|(_, volume)| volume.uuid() == uuid)
    }

    /// What tells a kernel where its root is, when no boot loader says it.
    pub fn root_argument(&self) -> Option<String> {
        let typed = self
            .parts
            .iter()
            .find(|part| part.partition.role == Role::Root);
        let root = typed.or_else(|| self.parts.iter().find(|part| part.is_root()))?;
        Some(match &root.partition.unique {
            Some(unique) => format!("root=PARTUUID={unique}"),
            None => "root=/dev/vda".to_owned(),
        })
    }

    /// What a person should know about partitions that are not read, in one sentence; empty when there are none.
    pub fn unread(&self) -> String {
        let unread: Vec<String> = self
            .parts
            .iter()
            .filter(|part| part.volume.is_none() && part.file_system != FileSystem::Unknown)
            .map(|part| format!("{} is {}", part.name(), part.file_system))
            .collect();
        unread.join(", ")
    }
}
