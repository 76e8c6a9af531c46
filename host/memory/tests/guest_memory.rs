//! Guest RAM: where it lies, what its writers mark, and what a read-only descriptor refuses.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};

use dwcp_memory::vm_memory::{Bytes, GuestAddress};
use dwcp_memory::{
    DirtyBitmap, GAP_END, GAP_START, GuestMemory, Layout, MemoryError, MemorySize, MemoryView,
    PAGE_BYTES, PageIndex, create_memory, is_read_only, reopen_read_only,
};
use proptest::prelude::*;

fn memory(mib: u64) -> GuestMemory {
    let size = MemorySize::mib(mib).unwrap();
    GuestMemory::map(create_memory(size).unwrap(), size).unwrap()
}

fn logged(memory: &GuestMemory) -> BTreeSet<u64> {
    let size = memory.size();
    let bitmap = DirtyBitmap::map(DirtyBitmap::create(size).unwrap(), size).unwrap();
    memory.drain_log(&[&bitmap]);
    bitmap.iter().map(|page| page.0).collect()
}

proptest! {
    #[test]
    fn every_page_has_one_address(pages in 1..(16u64 << 30) / 4096, pick in any::<u64>()) {
        let layout = Layout::new(MemorySize::new(pages * 4096).unwrap());
        prop_assert_eq!(layout.regions().map(|region| region.bytes).sum::<u64>(), pages * 4096);
        let page = PageIndex(pick % pages);
        let address = layout.address_of(page).unwrap();
        prop_assert!(address < GAP_START || address >= GAP_END);
        prop_assert_eq!(layout.page_of(address), Some(page));
        prop_assert_eq!(layout.page_of(GuestAddress(address.0 + 4095)), Some(page));
        prop_assert_eq!(layout.address_of(PageIndex(pages)), None);
    }

    #[test]
    fn a_write_marks_exactly_its_pages(at in 0..(2u64 << 20) - 20_000, length in 0..20_000usize) {
        let memory = memory(2);
        memory.ram().write_slice(&vec![7; length], GuestAddress(at)).unwrap();
        prop_assert_eq!(logged(&memory), BTreeSet::new());
        memory.start_tracking();
        memory.ram().write_slice(&vec![9; length], GuestAddress(at)).unwrap();
        let expected: BTreeSet<u64> = match length {
            0 => BTreeSet::new(),
            _ => (at / 4096..=(at + length as u64 - 1) / 4096).collect(),
        };
        prop_assert_eq!(logged(&memory), expected);
        prop_assert_eq!(logged(&memory), BTreeSet::new());
        memory.stop_tracking();
        memory.ram().write_slice(&vec![1; length], GuestAddress(at)).unwrap();
        prop_assert_eq!(logged(&memory), BTreeSet::new());
    }

    #[test]
    fn pages_written_are_read_back(first in 0..500u64, count in 1..12usize, seed in any::<u8>()) {
        let memory = memory(2);
        memory.start_tracking();
        let bytes: Vec<u8> = (0..count * PAGE_BYTES).map(|i| (i / 7) as u8 ^ seed).collect();
        memory.write_pages(PageIndex(first), &bytes).unwrap();
        let mut seen = vec![0; bytes.len()];
        memory.read_pages(PageIndex(first), &mut seen).unwrap();
        prop_assert_eq!(&seen, &bytes);
        memory.ram().read_slice(&mut seen, GuestAddress(first * 4096)).unwrap();
        prop_assert_eq!(&seen, &bytes);
        prop_assert_eq!(logged(&memory), (first..first + count as u64).collect::<BTreeSet<_>>());
        memory.zero_pages(PageIndex(first), count as u64).unwrap();
        memory.read_pages(PageIndex(first), &mut seen).unwrap();
        prop_assert!(seen.iter().all(|byte| *byte == 0));
        prop_assert_eq!(logged(&memory), (first..first + count as u64).collect::<BTreeSet<_>>());
    }
}

#[test]
fn high_memory_goes_on_where_low_memory_ends() {
    let memory = memory(3 * 1024 + 2);
    memory.start_tracking();
    memory.ram().write_obj(0x1122_3344_u32, GAP_END).unwrap();
    assert!(memory.ram().write_obj(1u32, GAP_START).is_err());
    let page = PageIndex(GAP_START.0 / 4096);
    assert_eq!(logged(&memory), BTreeSet::from([page.0]));
    let mut bytes = vec![0; PAGE_BYTES];
    memory.read_pages(page, &mut bytes).unwrap();
    assert_eq!(bytes[..4], 0x1122_3344_u32.to_le_bytes());
    assert!(memory.contains(GAP_END, 2 << 20));
    assert!(!memory.contains(GAP_END, (2 << 20) + 1));
    // A run across the gap, in one piece.
    let run = vec![5; 3 * PAGE_BYTES];
    memory.write_pages(PageIndex(page.0 - 1), &run).unwrap();
    assert_eq!(logged(&memory), (page.0 - 1..page.0 + 2).collect());
    let below = GuestAddress(GAP_START.0 - 4096);
    assert_eq!(memory.ram().read_obj::<u8>(below).unwrap(), 5);
    let last = GuestAddress(GAP_END.0 + 2 * 4096 - 1);
    assert_eq!(memory.ram().read_obj::<u8>(last).unwrap(), 5);
    let hosts = memory.mapped_regions();
    assert_eq!(hosts.len(), 2);
    assert_eq!(hosts[1].region.start, GAP_END);
}

#[test]
fn pages_outside_are_refused() {
    let memory = memory(1);
    let mut page = vec![0; PAGE_BYTES];
    for first in [256, u64::MAX / 4096, u64::MAX] {
        let outside = memory.read_pages(PageIndex(first), &mut page).unwrap_err();
        assert!(
            matches!(outside, MemoryError::OutOfRange { .. }),
            "{outside}"
        );
        assert!(memory.write_pages(PageIndex(first), &page).is_err());
        assert!(memory.zero_pages(PageIndex(first), 1).is_err());
    }
    assert!(memory.zero_pages(PageIndex(1), u64::MAX).is_err());
    let partial = memory.read_pages(PageIndex(0), &mut page[1..]).unwrap_err();
    assert!(
        matches!(partial, MemoryError::PartialPage(4095)),
        "{partial}"
    );
}

#[test]
fn sizes_are_checked() {
    for bytes in [0, 1, 4095, 4097, (16 << 40) + 4096, u64::MAX] {
        assert!(MemorySize::new(bytes).is_err(), "{bytes}");
    }
    assert!(MemorySize::mib(u64::MAX).is_err());
    assert_eq!(MemorySize::mib(1).unwrap().pages(), 256);
}

#[test]
fn a_read_only_descriptor_cannot_be_written_through() {
    let size = MemorySize::mib(1).unwrap();
    let fd = create_memory(size).unwrap();
    let writable = GuestMemory::map(fd.try_clone().unwrap(), size).unwrap();
    let read_only = reopen_read_only(&fd).unwrap();
    assert!(is_read_only(&read_only).unwrap());
    assert!(!is_read_only(&fd).unwrap());

    let refused = GuestMemory::map(read_only.try_clone().unwrap(), size).unwrap_err();
    assert!(matches!(refused, MemoryError::ReadOnly), "{refused}");
    assert_eq!(
        nix::unistd::write(&read_only, b"x"),
        Err(nix::errno::Errno::EBADF)
    );
    // SAFETY: a fresh mapping at an address of the kernel's choosing; it is expected to fail.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            read_only.as_fd().as_raw_fd(),
            0,
        )
    };
    assert_eq!(mapped, libc::MAP_FAILED);

    let view = MemoryView::new(read_only, size).unwrap();
    writable
        .ram()
        .write_obj(0xdead_beef_u32, GuestAddress(8192))
        .unwrap();
    let mut page = vec![0; PAGE_BYTES];
    view.read_pages(PageIndex(2), &mut page).unwrap();
    assert_eq!(page[..4], 0xdead_beef_u32.to_le_bytes());
}

#[test]
fn reading_untouched_pages_allocates_nothing() {
    let size = MemorySize::mib(64).unwrap();
    let fd = create_memory(size).unwrap();
    let view = MemoryView::new(fd.try_clone().unwrap(), size).unwrap();
    let mut buffer = vec![1; 1 << 20];
    for first in (0..size.pages()).step_by(256) {
        view.read_pages(PageIndex(first), &mut buffer).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 0));
    }
    assert_eq!(nix::sys::stat::fstat(&fd).unwrap().st_blocks, 0);
}

#[test]
fn an_unsealed_or_ill_sized_descriptor_is_refused() {
    let size = MemorySize::mib(1).unwrap();
    let fd = create_memory(size).unwrap();
    assert_eq!(
        nix::unistd::ftruncate(&fd, 0),
        Err(nix::errno::Errno::EPERM)
    );
    let refused = GuestMemory::map(fd, MemorySize::mib(2).unwrap()).unwrap_err();
    assert!(
        matches!(refused, MemoryError::WrongLength { .. }),
        "{refused}"
    );
    let loose =
        nix::sys::memfd::memfd_create(c"loose", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&loose, 1 << 20).unwrap();
    let refused = GuestMemory::map(loose, size).unwrap_err();
    assert!(matches!(refused, MemoryError::NotSealed), "{refused}");
}

#[test]
fn pages_that_were_touched_are_told_from_holes() {
    let memory = memory(3 * 1024 + 2);
    let page = [1; PAGE_BYTES];
    let touched = [0, 7, 8, 256, GAP_START.0 / 4096, memory.size().pages() - 1];
    for index in touched {
        memory.write_pages(PageIndex(index), &page).unwrap();
    }
    memory.write_pages(PageIndex(9), &page).unwrap();
    memory.zero_pages(PageIndex(9), 1).unwrap();
    let size = memory.size();
    let bitmap = DirtyBitmap::map(DirtyBitmap::create(size).unwrap(), size).unwrap();
    memory.mark_present(&bitmap).unwrap();
    assert_eq!(
        bitmap.iter().map(|page| page.0).collect::<Vec<_>>(),
        touched
    );
}
