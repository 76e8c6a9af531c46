//! A virtual disk behind a chain of image files, read by descriptor.
//!
//! What always holds: no file is opened by name; a name inside an image is refused; a qcow2 header is checked here,
//! strictly, before the library that reads the rest sees it; reads are within the disk, and all of them together are
//! bounded. What it must not know: partitions, file systems, kernels.
//!
//! A chain is a list of images, the topmost first. What a qcow2 does not hold is read from the next image; what the
//! last one does not hold is zero. A raw image holds everything, so it can only be the last.

mod cache;
mod qcow2;

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use imago::format::builder::FormatDriverBuilder;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess};
use serde::{Deserialize, Serialize};

use crate::limits::{CHAIN_IMAGES_MAX, READ_BYTES_MAX, VIRTUAL_BYTES_MAX};
use cache::Cache;
pub use qcow2::Qcow2Error;
use qcow2::Qcow2Header;

/// How the bytes of a file make a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As they are.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

/// What the caller says about a file's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// Look at the first bytes. Only for an image that no guest has ever written to: a guest that owns a raw disk can
    /// make it look like anything.
    Detect,
    /// It is raw, whatever its first bytes are.
    Raw,
    /// It is qcow2, or an error.
    Qcow2,
}

/// One image of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its format.
    pub format: Format,
    /// Size of the disk that it describes.
    pub virtual_bytes: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// What the file takes on the host's disk.
    pub allocated_bytes: u64,
}

/// Why a disk could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No image, or too many.
    #[error("A chain has 1 to {CHAIN_IMAGES_MAX} images, not {0}")]
    Chain(usize),
    /// A raw image stands above another.
    #[error(
        "Image {0} of the chain is raw and hides the images below it; only the last image may be raw"
    )]
    RawAbove(usize),
    /// A directory, a device, a pipe.
    #[error("Image {0} of the chain is not a regular file")]
    Kind(usize),
    /// Nothing in it.
    #[error("Image {0} of the chain is empty")]
    Empty(usize),
    /// Larger than any disk here.
    #[error("The disk of {0} bytes is over the limit of {VIRTUAL_BYTES_MAX}")]
    TooLarge(u64),
    /// The qcow2 header is not one that can be read.
    #[error("Image {number} of the chain cannot be read as qcow2")]
    Qcow2 {
        /// Counted from 1.
        number: usize,
        /// Why.
        #[source]
        error: Qcow2Error,
    },
    /// The file could not be read, or its tables are damaged.
    #[error("Image {number} of the chain could not be opened")]
    Open {
        /// Counted from 1.
        number: usize,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// A disk that is open for reading.
#[derive(Debug)]
pub struct Disk {
    access: FormatAccess<imago::file::File>,
    layers: Vec<Layer>,
    cache: RefCell<Cache>,
}

impl Disk {
    /// Opens a chain, the topmost image first.
    pub fn open(chain: Vec<(File, Expected)>) -> Result<Self, DiskError> {
        Self::open_within(chain, READ_BYTES_MAX)
    }

    /// As [`open`](Self::open), but at most `bytes_max` are read from it.
    fn open_within(chain: Vec<(File, Expected)>, bytes_max: u64) -> Result<Self, DiskError> {
        let count = chain.len();
        if !(1..=CHAIN_IMAGES_MAX).contains(&count) {
            return Err(DiskError::Chain(count));
        }
        let mut layers = Vec::with_capacity(count);
        let mut below: Option<FormatAccess<imago::file::File>> = None;
        let mut block_bytes = 0;
        for (index, (file, expected)) in chain.into_iter().enumerate().rev() {
            let number = index + 1;
            let (layer, header) = look(number, &file, expected)?;
            if layer.virtual_bytes > VIRTUAL_BYTES_MAX {
                return Err(DiskError::TooLarge(layer.virtual_bytes));
            }
            block_bytes = block_bytes.max(header.map_or(0, |header| header.cluster_bytes));
            let opened = match layer.format {
                Format::Raw if below.is_some() => return Err(DiskError::RawAbove(number)),
                Format::Raw => open_raw(file),
                Format::Qcow2 => open_qcow2(file, below.take()),
            };
            below = Some(opened.map_err(|error| DiskError::Open { number, error })?);
            layers.insert(0, layer);
        }
        let access = below.ok_or(DiskError::Chain(0))?;
        Ok(Self {
            access,
            layers,
            cache: RefCell::new(Cache::new(block_bytes, bytes_max)),
        })
    }

    /// The images, topmost first; never empty.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Size of the disk in bytes.
    pub fn bytes(&self) -> u64 {
        self.access.size()
    }

    /// Reads exactly `buffer.len()` bytes at `offset`. Beyond the end of the disk is an error, and so is more work than
    /// [`READ_BYTES_MAX`].
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.cache
            .borrow_mut()
            .read(self.bytes(), offset, buffer, |at, block| {
                self.access.read(block, at)
            })
    }
}

/// What a file is, without trusting more of it than its first bytes.
fn look(
    number: usize,
    file: &File,
    expected: Expected,
) -> Result<(Layer, Option<Qcow2Header>), DiskError> {
    let failed = |error| DiskError::Open { number, error };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(DiskError::Kind(number));
    }
    let head = head(file).map_err(failed)?;
    if head.is_empty() {
        return Err(DiskError::Empty(number));
    }
    let header = match expected {
        Expected::Raw => None,
        Expected::Detect if !qcow2::is_qcow2(&head) => None,
        Expected::Detect | Expected::Qcow2 => {
            let header =
                Qcow2Header::read(&head, |offset, buffer| read_or_zero(file, offset, buffer))
                    .map_err(|error| DiskError::Qcow2 { number, error })?;
            Some(header)
        }
    };
    let layer = Layer {
        format: header.map_or(Format::Raw, |_| Format::Qcow2),
        virtual_bytes: header.map_or(metadata.len(), |header| header.virtual_bytes),
        file_bytes: metadata.len(),
        allocated_bytes: metadata.blocks().saturating_mul(512),
    };
    Ok((layer, header))
}

/// The first bytes of a file, as many as there are up to the length of a header.
fn head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; qcow2::HEADER_BYTES];
    let mut length = 0;
    while length < head.len() {
        match file.read_at(&mut head[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(length);
    Ok(head)
}

/// Reads bytes of a file; those beyond its end are zero, as for the library that reads it later.
fn read_or_zero(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    match file.read_exact_at(buffer, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            buffer.fill(0);
            let length = file.metadata()?.len().saturating_sub(offset);
            let length = buffer.len().min(length.try_into().unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..length], offset)
        }
        other => other,
    }
}

fn open_raw(file: File) -> io::Result<FormatAccess<imago::file::File>> {
    let storage = imago::file::File::try_from(file)?;
    let raw = Raw::builder(storage).open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(raw))
}

fn open_qcow2(
    file: File,
    below: Option<FormatAccess<imago::file::File>>,
) -> io::Result<FormatAccess<imago::file::File>> {
    let storage = imago::file::File::try_from(file)?;
    // Set outright, so that nothing in the header can stand in their places.
    let image = imago::qcow2::Qcow2::<imago::file::File>::builder(storage)
        .backing(below)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(image))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const CLUSTER_BYTES: u64 = 2 << 20;
    const CLUSTER_BITS: u32 = CLUSTER_BYTES.trailing_zeros();
    const FILL: u8 = b'x';

    /// A cluster of one byte over and over, as deflate packs it (RFC 1951): one block under the fixed code, in which
    /// the byte stands once, and then as often as needed the longest repetition of what came one byte before.
    fn packed() -> Vec<u8> {
        const LONGEST: u64 = 258;
        // The last block; fixed codes. Numbers begin at their lowest bit, codes at their highest.
        let mut bits = vec![true, true, false];
        let mut code = |code: u32, length: u32| {
            bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
        };
        let literal = |byte: u8| 0b0011_0000 + u32::from(byte);
        let repeated = (CLUSTER_BYTES - 1) / LONGEST;
        for _ in 0..CLUSTER_BYTES - repeated * LONGEST {
            code(literal(FILL), 8);
        }
        for _ in 0..repeated {
            code(0b1100_0101, 8);
            code(0, 5);
        }
        code(0, 7);
        bits.chunks(8)
            .map(|byte| {
                byte.iter()
                    .rev()
                    .fold(0, |all, bit| all << 1 | u8::from(*bit))
            })
            .collect()
    }

    /// A qcow2 of 16 TiB whose tables all lead to the same compressed cluster.
    fn small_file_of_much_work() -> File {
        const SECTOR_BYTES: u64 = 512;
        let packed = packed();
        let sectors = (packed.len() as u64).div_ceil(SECTOR_BYTES);
        let file = tempfile::tempfile().unwrap();
        let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
        let tables = |entry: u64| entry.to_be_bytes().repeat((CLUSTER_BYTES / 8) as usize);
        put(0, b"QFI\xfb\0\0\0\x03");
        put(20, &CLUSTER_BITS.to_be_bytes());
        put(24, &(1u64 << 44).to_be_bytes());
        put(36, &32u32.to_be_bytes());
        put(40, &CLUSTER_BYTES.to_be_bytes());
        put(96, &4u32.to_be_bytes());
        put(100, &(qcow2::HEADER_BYTES as u32).to_be_bytes());
        put(CLUSTER_BYTES, &tables(2 * CLUSTER_BYTES));
        // Where it is, and how many sectors there are after its first.
        let place = (sectors - 1) << (62 - (CLUSTER_BITS - 8)) | (3 * CLUSTER_BYTES);
        put(2 * CLUSTER_BYTES, &tables(1 << 62 | place));
        put(3 * CLUSTER_BYTES, &packed);
        file.set_len(3 * CLUSTER_BYTES + sectors * SECTOR_BYTES)
            .unwrap();
        file
    }

    #[test]
    fn a_small_file_cannot_make_much_work() {
        const CLUSTERS: u64 = 16;
        let file = small_file_of_much_work();
        assert!(file.metadata().unwrap().len() < 4 * CLUSTER_BYTES);
        let chain = vec![(file, Expected::Detect)];
        let disk = Disk::open_within(chain, CLUSTERS * CLUSTER_BYTES).unwrap();
        let mut cluster = vec![0; CLUSTER_BYTES as usize];
        for number in 0..CLUSTERS {
            // Far apart: each is under a table of its own.
            disk.read_at(number << 40, &mut cluster).unwrap();
            assert!(cluster.iter().all(|byte| *byte == FILL), "{number}");
            cluster.fill(0);
        }
        let over = disk.read_at(CLUSTERS / 2 * CLUSTER_BYTES, &mut cluster);
        let said = over.unwrap_err().to_string();
        assert!(
            said.contains("the limit of bytes read is reached"),
            "{said}"
        );
    }
}
