//! Which file system, or what else, a partition holds: by the marks that each leaves at a known place.
//!
//! What always holds: a mark is only a reason to try; whether the file system is whole shows when it is opened.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Slice, fat};

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// ext2, ext3 or ext4.
    Ext,
    /// FAT with 12, 16 or 32 bits.
    Fat,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// F2FS.
    F2fs,
    /// EROFS.
    Erofs,
    /// SquashFS.
    Squashfs,
    /// ISO 9660.
    Iso9660,
    /// NTFS.
    Ntfs,
    /// exFAT.
    Exfat,
    /// An encrypted LUKS volume.
    Luks,
    /// A physical volume of LVM.
    Lvm,
    /// Swap space.
    Swap,
    /// Nothing that is known here.
    Unknown,
}

impl FileSystem {
    /// Whether files are read from it.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Ext | Self::Fat)
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext => "ext4",
            Self::Fat => "FAT",
            Self::Xfs => "XFS",
            Self::Btrfs => "btrfs",
            Self::F2fs => "F2FS",
            Self::Erofs => "EROFS",
            Self::Squashfs => "SquashFS",
            Self::Iso9660 => "ISO 9660",
            Self::Ntfs => "NTFS",
            Self::Exfat => "exFAT",
            Self::Luks => "encrypted (LUKS)",
            Self::Lvm => "an LVM physical volume",
            Self::Swap => "swap",
            Self::Unknown => "of no known kind",
        })
    }
}

/// Where a mark is, what it is, and of what. The order matters: a boot sector may precede another file system.
const MARKS: [(u64, &[u8], FileSystem); 16] = [
    (0, b"LUKS\xba\xbe", FileSystem::Luks),
    (0, b"XFSB", FileSystem::Xfs),
    (0x1_0040, b"_BHRfS_M", FileSystem::Btrfs),
    (1024 + 0x38, b"\x53\xef", FileSystem::Ext),
    (1024, b"\x10\x20\xf5\xf2", FileSystem::F2fs),
    (1024, b"\xe2\xe1\xf5\xe0", FileSystem::Erofs),
    (0, b"hsqs", FileSystem::Squashfs),
    (3, b"NTFS    ", FileSystem::Ntfs),
    (3, b"EXFAT   ", FileSystem::Exfat),
    (0, b"LABELONE", FileSystem::Lvm),
    (512, b"LABELONE", FileSystem::Lvm),
    (1024, b"LABELONE", FileSystem::Lvm),
    (1536, b"LABELONE", FileSystem::Lvm),
    (4086, b"SWAPSPACE2", FileSystem::Swap),
    (4086, b"SWAP-SPACE", FileSystem::Swap),
    (0x8001, b"CD001", FileSystem::Iso9660),
];

/// Looks for marks. What cannot be read holds nothing known.
pub fn identify(slice: &Slice) -> FileSystem {
    let found = MARKS.iter().find(|(at, mark, _)| {
        let mut bytes = vec![0; mark.len()];
        slice.read_at(*at, &mut bytes).is_ok() && bytes == *mark
    });
    match found {
        Some((_, _, kind)) => *kind,
        None if fat::is_fat(slice) => FileSystem::Fat,
        None => FileSystem::Unknown,
    }
}
