//! The header of a qcow2 image, checked before anything else of it is read.
//!
//! What always holds: an image that passes needs nothing but its own bytes and the images that the caller gave; every
//! length in its header is within bounds. The format is QEMU's docs/interop/qcow2.rst.

use std::io;

use crate::bytes::{be32, be64};
use crate::limits::QCOW2_EXTENSIONS_MAX;
use crate::shown::shown_bytes;

/// The part of a header that is looked at: that of version 3 without additional fields.
pub(super) const HEADER_BYTES: usize = 104;
/// The header of version 2.
const HEADER_2_BYTES: usize = 72;
const MAGIC: &[u8; 4] = b"QFI\xfb";
/// QEMU's own limit: 32 MiB of first-level table.
const L1_ENTRIES_MAX: u32 = 4 << 20;
const NAME_BYTES_MAX: u32 = 1023;

mod feature {
    pub const DIRTY: u64 = 1 << 0;
    pub const CORRUPT: u64 = 1 << 1;
    pub const EXTERNAL_DATA: u64 = 1 << 2;
    pub const COMPRESSION_TYPE: u64 = 1 << 3;
    pub const EXTENDED_L2: u64 = 1 << 4;
}

mod extension {
    pub const END: u32 = 0;
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    pub const EXTERNAL_DATA_NAME: u32 = 0x4441_5441;
    pub const FULL_DISK_ENCRYPTION: u32 = 0x0537_be77;
}

/// Why a header is refused.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// Not qcow2.
    #[error("It does not begin as a qcow2 image")]
    Magic,
    /// It ends within its header.
    #[error("It is cut off within its header")]
    Short,
    /// A version that is not known.
    #[error("It has version {0} of the format; versions 2 and 3 are read")]
    Version(u32),
    /// A backing file by name.
    #[error(
        "It names a backing file ('{0}'), and names inside images are not followed; write it whole with \
         'qemu-img convert -O qcow2', or give the images of the chain one by one after 'qemu-img rebase -u -b \"\"'"
    )]
    BackingName(String),
    /// An external data file.
    #[error(
        "It keeps its data in another file, and names inside images are not followed; write it whole with 'qemu-img \
         convert -O qcow2'"
    )]
    ExternalData,
    /// Encryption.
    #[error("It is encrypted; write it without encryption with 'qemu-img convert'")]
    Encrypted,
    /// Not closed cleanly.
    #[error("It was not closed cleanly; repair it with 'qemu-img check -r all'")]
    Dirty,
    /// Marked corrupt.
    #[error("It is marked as corrupt; repair it with 'qemu-img check -r all'")]
    Corrupt,
    /// Another compression than deflate.
    #[error(
        "It is compressed with zstd, which is not read; compress it with zlib: 'qemu-img convert -c -O qcow2 -o \
         compression_type=zlib'"
    )]
    Compression,
    /// Subclusters.
    #[error(
        "It has extended L2 entries, which are not read; write it without them: 'qemu-img convert -O qcow2 -o \
         extended_l2=off'"
    )]
    ExtendedL2,
    /// Features that nobody here has heard of.
    #[error("It has incompatible features that are not known (bits {0:#x})")]
    Features(u64),
    /// A number out of its range.
    #[error("Its header is damaged: {0} is {1}")]
    Field(&'static str, u64),
    /// Header extensions that are too many, too long or of a wrong length.
    #[error("Its header extensions are damaged")]
    Extensions,
    /// It could not be read.
    #[error("Its header could not be read")]
    Io(#[from] io::Error),
}

/// What of a header matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Qcow2Header {
    /// Size of the disk.
    pub(super) virtual_bytes: u64,
    /// Size of a cluster: a power of two from 512 bytes to 2 MiB.
    pub(super) cluster_bytes: u64,
}

/// Whether a file begins as a qcow2 does.
pub(super) fn is_qcow2(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

impl Qcow2Header {
    /// Checks a header. `head` is the first [`HEADER_BYTES`] of the file or the whole of a shorter one; `read` reads
    /// more of it.
    pub(super) fn read(
        head: &[u8],
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<Self, Qcow2Error> {
        if !is_qcow2(head) {
            return Err(Qcow2Error::Magic);
        }
        let be32 = |at| be32(head, at).ok_or(Qcow2Error::Short);
        let be64 = |at| be64(head, at).ok_or(Qcow2Error::Short);
        let version = be32(4)?;
        if !(2..=3).contains(&version) {
            return Err(Qcow2Error::Version(version));
        }
        if version == 3 {
            check_features(be64(72)?)?;
        }
        if be32(32)? != 0 {
            return Err(Qcow2Error::Encrypted);
        }
        let cluster_bits = be32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(Qcow2Error::Field("cluster_bits", cluster_bits.into()));
        }
        let cluster_bytes = 1u64 << cluster_bits;
        let name_at = be64(8)?;
        if name_at != 0 {
            return Err(Qcow2Error::BackingName(backing_name(
                name_at,
                be32(16)?,
                &mut read,
            )));
        }
        let l1_entries = be32(36)?;
        if l1_entries > L1_ENTRIES_MAX {
            return Err(Qcow2Error::Field("l1_size", l1_entries.into()));
        }
        for (name, at) in [("l1_table_offset", 40), ("refcount_table_offset", 48)] {
            let offset = be64(at)?;
            if offset % cluster_bytes != 0 || offset >= 1 << 56 {
                return Err(Qcow2Error::Field(name, offset));
            }
        }
        be32(HEADER_2_BYTES - 4)?;
        if version == 3 {
            let order = be32(96)?;
            if order > 6 {
                return Err(Qcow2Error::Field("refcount_order", order.into()));
            }
            let length = u64::from(be32(100)?);
            if length < HEADER_BYTES as u64 || length % 8 != 0 || length > cluster_bytes {
                return Err(Qcow2Error::Field("header_length", length));
            }
            check_extensions(length, cluster_bytes, read)?;
        }
        Ok(Self {
            virtual_bytes: be64(24)?,
            cluster_bytes,
        })
    }
}

fn check_features(features: u64) -> Result<(), Qcow2Error> {
    if features & feature::EXTERNAL_DATA != 0 {
        return Err(Qcow2Error::ExternalData);
    }
    if features & feature::CORRUPT != 0 {
        return Err(Qcow2Error::Corrupt);
    }
    if features & feature::DIRTY != 0 {
        return Err(Qcow2Error::Dirty);
    }
    if features & feature::COMPRESSION_TYPE != 0 {
        return Err(Qcow2Error::Compression);
    }
    if features & feature::EXTENDED_L2 != 0 {
        return Err(Qcow2Error::ExtendedL2);
    }
    match features {
        0 => Ok(()),
        unknown => Err(Qcow2Error::Features(unknown)),
    }
}

/// The name of the backing file, for the message that refuses it.
fn backing_name(
    at: u64,
    bytes: u32,
    read: &mut impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> String {
    let mut name = vec![0; bytes.min(NAME_BYTES_MAX) as usize];
    match read(at, &mut name) {
        Ok(()) => shown_bytes(&name),
        Err(_) => "?".to_owned(),
    }
}

/// Walks the extensions, which end within the first cluster.
fn check_extensions(
    mut at: u64,
    cluster_bytes: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<(), Qcow2Error> {
    for _ in 0..QCOW2_EXTENSIONS_MAX {
        if at + 8 > cluster_bytes {
            return Err(Qcow2Error::Extensions);
        }
        let mut head = [0; 8];
        read(at, &mut head)?;
        let kind = be32(&head, 0).unwrap_or(extension::END);
        let length = u64::from(be32(&head, 4).unwrap_or(0));
        at += 8;
        if length > cluster_bytes - at {
            return Err(Qcow2Error::Extensions);
        }
        match kind {
            extension::END => return Ok(()),
            extension::EXTERNAL_DATA_NAME => return Err(Qcow2Error::ExternalData),
            extension::FULL_DISK_ENCRYPTION => return Err(Qcow2Error::Encrypted),
            // A table of 48 bytes each; the library takes a shorter last one amiss.
            extension::FEATURE_NAMES if length % 48 != 0 => return Err(Qcow2Error::Extensions),
            _ => at += length.next_multiple_of(8),
        }
    }
    Err(Qcow2Error::Extensions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    /// A header of version 3 with clusters of 64 KiB, and nothing special.
    fn plain() -> Vec<u8> {
        let mut image = vec![0; 1 << 16];
        image[..4].copy_from_slice(MAGIC);
        put(&mut image, 4, &3u32.to_be_bytes());
        put(&mut image, 20, &16u32.to_be_bytes());
        put(&mut image, 24, &(10u64 << 30).to_be_bytes());
        put(&mut image, 36, &20u32.to_be_bytes());
        put(&mut image, 40, &(3u64 << 16).to_be_bytes());
        put(&mut image, 48, &(1u64 << 16).to_be_bytes());
        put(&mut image, 96, &4u32.to_be_bytes());
        put(&mut image, 100, &104u32.to_be_bytes());
        image
    }

    fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn check(image: &[u8]) -> Result<Qcow2Header, Qcow2Error> {
        let head = &image[..image.len().min(HEADER_BYTES)];
        Qcow2Header::read(head, |offset, buffer| {
            for (index, byte) in buffer.iter_mut().enumerate() {
                let at = usize::try_from(offset)
                    .ok()
                    .map(|at| at.saturating_add(index));
                *byte = at.and_then(|at| image.get(at)).copied().unwrap_or(0);
            }
            Ok(())
        })
    }

    #[test]
    fn a_plain_header_passes() {
        let header = check(&plain()).unwrap();
        assert_eq!(header.virtual_bytes, 10 << 30);
        assert_eq!(header.cluster_bytes, 1 << 16);
        let mut old = plain();
        put(&mut old, 4, &2u32.to_be_bytes());
        old[72..].fill(0xff);
        assert!(check(&old[..HEADER_2_BYTES]).is_ok());
    }

    #[test]
    fn what_is_not_read_is_refused_by_name() {
        type Refusal = fn(&Qcow2Error) -> bool;
        let cases: [(usize, &[u8], Refusal); 13] = [
            (0, b"QFI\xfa", |e| matches!(e, Qcow2Error::Magic)),
            (4, &4u32.to_be_bytes(), |e| {
                matches!(e, Qcow2Error::Version(4))
            }),
            (8, &200u64.to_be_bytes(), |e| {
                matches!(e, Qcow2Error::BackingName(_))
            }),
            (32, &1u32.to_be_bytes(), |e| {
                matches!(e, Qcow2Error::Encrypted)
            }),
            (72, &1u64.to_be_bytes(), |e| matches!(e, Qcow2Error::Dirty)),
            (72, &2u64.to_be_bytes(), |e| {
                matches!(e, Qcow2Error::Corrupt)
            }),
            (72, &4u64.to_be_bytes(), |e| {
                matches!(e, Qcow2Error::ExternalData)
            }),
            (72, &8u64.to_be_bytes(), |e| {
                matches!(e, Qcow2Error::Compression)
            }),
            (72, &16u64.to_be_bytes(), |e| {
                matches!(e, Qcow2Error::ExtendedL2)
            }),
            (72, &(1u64 << 63).to_be_bytes(), |e| {
                matches!(e, Qcow2Error::Features(_))
            }),
            (20, &22u32.to_be_bytes(), |e| {
                matches!(e, Qcow2Error::Field("cluster_bits", 22))
            }),
            (40, &513u64.to_be_bytes(), |e| {
                matches!(e, Qcow2Error::Field("l1_table_offset", _))
            }),
            (104, &0x4441_5441u32.to_be_bytes(), |e| {
                matches!(e, Qcow2Error::ExternalData)
            }),
        ];
        for (at, bytes, is_it) in cases {
            let mut image = plain();
            put(&mut image, at, bytes);
            let error = check(&image).unwrap_err();
            assert!(is_it(&error), "at {at}: {error}");
        }
    }

    #[test]
    fn the_name_of_a_backing_file_is_shown_without_harm() {
        let mut image = plain();
        put(&mut image, 8, &1000u64.to_be_bytes());
        put(&mut image, 16, &12u32.to_be_bytes());
        put(&mut image, 1000, b"/etc/\x1bshadow");
        let text = check(&image).unwrap_err().to_string();
        assert!(text.contains("'/etc/?shadow'"), "{text}");
    }

    #[test]
    fn extensions_without_end_are_refused() {
        let mut image = plain();
        for at in (104..image.len() - 8).step_by(8) {
            put(&mut image, at, &1u32.to_be_bytes());
        }
        assert!(matches!(check(&image), Err(Qcow2Error::Extensions)));
    }

    proptest! {
        #[test]
        fn no_header_is_a_panic(
            changes in proptest::collection::vec((0usize..256, any::<u8>()), 0..12),
            length in 0usize..300,
        ) {
            let mut image = plain();
            for (at, byte) in changes {
                image[at] = byte;
            }
            let _ = check(&image);
            let _ = check(&image[..length]);
        }
    }
}
