//! Guest RAM, as a sealed memfd or as a private view of a snapshot or template, and the bitmaps that say which of its pages changed.
//!
//! What always holds:
//! - every write to guest RAM that is not the guest's own goes through [`GuestMemory`], which marks the page in the
//!   device log (while tracking is on) before the write's completion can be shown to anyone;
//! - RAM that is private to a process (a restored or forked guest's) is a copy-on-write view of files that nobody
//!   writes to; the same one type is its only writer;
//! - a process that holds only a read-only descriptor gets a [`MemoryView`], which has no way to write;
//! - pages are numbered in the order of the memfd ([`PageIndex`]), never by guest-physical address: [`Layout`] is the
//!   only place that translates;
//! - nothing that another process wrote into shared memory (lengths, bits past the end) is believed unchecked.
//!
//! This crate must never know KVM, a device, or how pages travel.

mod bitmap;
mod device_log;
mod faults;
mod guest;
mod hosts;
mod io;
mod layout;
mod memfd;
mod page;
mod private;
mod view;

pub use bitmap::{DirtyBitmap, TakenWord};
pub use device_log::DeviceLog;
pub use faults::{FILL_REQUESTS, FaultChannel, WATCH_REQUEST};
pub use guest::{GuestMemory, MappedRegion};
pub use hosts::HostMap;
pub use io::{GuestRange, RANGES_MAX};
pub use layout::{GAP_END, GAP_START, Layout, Region};
pub use memfd::{
    HUGE_PAGE_BYTES, create_huge_memory, create_memory, free_huge_pages, is_read_only, is_template,
    reopen_read_only, seal_template,
};
pub use page::{MemoryOffset, MemorySize, PAGE_BYTES, PageIndex};
pub use private::{PIECES_MAX, Piece, open_own_memory, open_page_map};
pub use view::MemoryView;
pub use vm_memory;

/// Why guest memory or a bitmap could not be made, mapped or used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is zero, over the limit or no multiple of the page size.
    #[error("A guest cannot have {0} bytes of memory: choose a multiple of 4096 up to 16 TiB")]
    BadSize(u64),
    /// The size is no multiple of a huge page.
    #[error("{0} bytes of memory cannot be of huge pages: choose a multiple of 2 MiB")]
    PartialHugePage(u64),
    /// The host has too few huge pages.
    #[error(
        "The guest needs {needed} huge pages of 2 MiB, and this host has {free} free: reserve more (`sysctl \
         vm.nr_hugepages=N` counts all of them, used ones too)"
    )]
    HugePages {
        /// As many as the guest's memory has.
        needed: u64,
        /// Free and promised to nobody.
        free: u64,
    },
    /// The descriptor is too short or too long for what it should hold.
    #[error(
        "The descriptor holds {found} bytes where {expected} are needed: pass the one made for this guest"
    )]
    WrongLength {
        /// Bytes that the caller's size asks for.
        expected: u64,
        /// Bytes that the descriptor has.
        found: u64,
    },
    /// The descriptor can be resized under us, so a mapping of it could fault.
    #[error(
        "The descriptor is not sealed against resizing: make it with this crate's create functions"
    )]
    NotSealed,
    /// Writing was asked for on a read-only descriptor.
    #[error("The descriptor is read-only: use a view, or pass a writable one")]
    ReadOnly,
    /// A template's memory must not be written to any more.
    #[error("The template's memory is still mapped for writing: end its VM first")]
    StillMapped,
    /// A memfd that somebody could still write to.
    #[error("The memory to fork from is not sealed: seal the template first")]
    NotATemplate,
    /// Something was to be laid over RAM that others share.
    #[error(
        "Only private guest memory can be laid over a snapshot: reserve it instead of mapping a memfd"
    )]
    NotPrivate,
    /// Too many pieces.
    #[error("{0} pieces cannot be laid over one memory, at most {PIECES_MAX}")]
    TooManyPieces(usize),
    /// A piece does not begin at a page of its file.
    #[error("A piece of memory cannot begin at byte {0} of a file: it must be a multiple of 4096")]
    UnalignedPiece(u64),
    /// Addresses that cannot be.
    #[error(
        "The addresses of guest memory do not fit its size: pass those of the process that has it mapped"
    )]
    BadHosts,
    /// A descriptor is not what it should be.
    #[error("The descriptor is no process's memory: pass /proc/PID/mem")]
    NotProcessMemory,
    /// A page or address outside the guest's memory.
    #[error("There is no guest memory at {what} {at:#x} for {bytes} bytes")]
    OutOfRange {
        /// What `at` is: "page" or "address".
        what: &'static str,
        /// First page or address.
        at: u64,
        /// Length of the access.
        bytes: u64,
    },
    /// A buffer for whole pages is no multiple of the page size.
    #[error("A buffer of {0} bytes does not hold whole pages of 4096 bytes")]
    PartialPage(usize),
    /// A kernel log was handed over for a range that does not start at a word of the bitmap.
    #[error("A dirty log must begin at a multiple of 64 pages and end inside memory")]
    UnalignedLog,
    /// The kernel refused.
    #[error("The kernel refused to {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The guest's regions could not be mapped.
    #[error("Guest memory could not be mapped: check the process's address-space limit")]
    Map(#[source] vm_memory::mmap::FromRangesError),
}

impl MemoryError {
    pub(crate) fn system(action: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::System {
            action,
            source: source.into(),
        }
    }
}
