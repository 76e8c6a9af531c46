//! One snapshot of a VM in one file: written so that a crash leaves the old one whole, read so that nothing damaged is
//! believed, and laid out so that guest memory can be mapped from it copy-on-write.
//!
//! ```text
//! offset        length              what
//! 0             4096                header
//! M             stored              memory: raw (M = 2 MiB) or compressed (M = 4096)
//! M + stored    184 x records       chunk table
//!               at most 1 MiB       manifest, JSON
//!               at most 16 MiB      device state, as the VMM wrote it
//!
//! header
//! 0     8   "DWCPSNAP"                       64    8  length of the file
//! 8     4   format, 1                        72   32  digest of the manifest
//! 12    4   encoding: 0 raw, 1 zstd          104  32  digest of the device state
//! 16    8   guest memory, bytes              136  32  digest of the chunk table
//! 24    8   M                                168      zeros
//! 32    8   stored                           4064 32  digest of bytes 0 to 4063
//! 40    8   records
//! 48    8   length of the manifest
//! 56    8   length of the device state
//!
//! record of the chunk table, one for each chunk (2 MiB of guest memory) that the snapshot holds, ascending
//! 0     8   number of the chunk              24   64  pages held, one bit each
//! 8     8   where its content begins         88   64  pages filled: held and not zeros
//! 16    4   length of its content            152  32  digest of the filled pages, in order
//! 20    4   zeros
//! ```
//!
//! Numbers are little-endian. A digest is BLAKE3 under a context of its own (`digest.rs`). BLAKE3 and not a CRC, because
//! digests are also names: an incremental names its base by one, and a chunk from an archive that nobody vouches for is
//! as good as the digest that was kept at home. It is no slower than the disk.
//!
//! A **full** snapshot holds every page; a chunk without a record is zeros. An **incremental** holds the pages that
//! changed since its base; what it does not hold is the base's. **Raw**: page `i` lies at `M + 4096 i`; zeros are holes.
//! **zstd**: a chunk's content is its filled pages in order, as one frame, or as they are when that is no longer.
//! What no record refers to is never read, so holes may be holes or not, and a copy is the same snapshot.
//!
//! A snapshot's own digest covers manifest, device state and memory, not the encoding: compressing one does not
//! change what it is, and an incremental goes with its base in either form.
//!
//! What always holds:
//! - header, manifest, table and device state are checked whenever a file is opened; memory is checked as [`seal`] says;
//! - what comes from a file is bounded before it is allocated;
//! - a file that is published under a name is whole and on the disk ([`Draft`]).
//!
//! This crate must never know KVM, a device, the store, or who may read a snapshot.

mod chain;
mod digest;
mod draft;
pub mod fill;
mod header;
mod manifest;
mod map;
mod mask;
mod read;
mod recode;
pub mod seal;
mod table;
mod write;

pub use chain::{CHAIN_MAX, Chain, ChainError, ChunkContent};
pub use digest::{BadDigest, SnapshotDigest};
pub use draft::{BadName, Draft, DraftError, SnapshotName, open, sweep};
pub use header::{Encoding, HEADER_BYTES};
pub use manifest::{
    BadManifest, Cpu, DISKS_MAX, Disk, FEATURES_MAX, MANIFEST_BYTES_MAX, MEMORY_BYTES_MAX,
    Manifest, NAME_BYTES_MAX, Offer, Unfit,
};
pub use map::{MapError, Mapped};
pub use mask::{AllPages, CHUNK_BYTES, CHUNK_PAGES, ChunkIndex, PageChoice, PageMask};
pub use read::{Part, ReadError, Snapshot};
pub use recode::{flatten, recode};
pub use write::{Content, PageSource, Progress, SourceError, WriteError, write};

/// The first bytes of a snapshot.
pub const MAGIC: [u8; 8] = *b"DWCPSNAP";
/// The format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;
/// Longest device state, in bytes, its own hash included.
pub const STATE_BYTES_MAX: u64 = (16 << 20) + 32;
