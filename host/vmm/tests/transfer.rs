//! A VM goes on in another process; what changed meanwhile is known; a state that does not fit is refused.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use common::{Bed, DEADLINE, Serial, has_kvm};
use dwcp_memory::{DirtyBitmap, MemoryView, PAGE_BYTES, PageIndex};
use dwcp_vmm::client::ClientError;
use dwcp_vmm::protocol::Phase;
use dwcp_vmm::spawn::GuestFiles;

const SMALL: &str = "fill_mib=8 ws_mib=2 rate=500 verify=2";

fn bytes_of(fd: OwnedFd) -> Vec<u8> {
    let file = File::from(fd);
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Runs our guest until it ticks, pauses it, and takes its state.
fn paused_state(bed: &Bed) -> (dwcp_vmm::spawn::Spawned, u64, Vec<u8>) {
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    Serial::of(&vmm).wait_for_tick(0);
    client.pause().unwrap();
    let (fd, length) = client.save().unwrap();
    let bytes = bytes_of(fd);
    assert_eq!(bytes.len() as u64, length);
    let tick = Serial::of(&vmm).ticks().last().unwrap().tick;
    (vmm, tick, bytes)
}

/// Loads a state into a new process and sees the guest go on, unharmed.
fn goes_on(bed: &Bed, state: &[u8], last_tick: u64) {
    let vmm = bed.incoming("incoming");
    let mut client = vmm.client().unwrap();
    assert!(matches!(client.run(2), Err(ClientError::Refused(_))));
    client.load(file_of(state).as_fd()).unwrap();
    assert_eq!(client.status().unwrap().phase, Phase::Loaded);
    client.run(2).unwrap();
    let serial = Serial::of(&vmm);
    let next = serial.wait_for_tick(0);
    assert_eq!(next.tick, last_tick + 1);
    let later = serial.wait_for_tick(next.tick + 1);
    assert!(later.pages > next.pages);
    assert_eq!((next.bad, later.bad), (0, 0), "{}", serial.text());
    // Input reaches it too.
    client.console().unwrap().write_all(b"s").unwrap();
    assert_eq!(
        vmm.wait(DEADLINE).unwrap().words.as_deref(),
        Some("guest: reset")
    );
}

#[test]
fn a_guest_goes_on_over_the_same_memory() {
    if !has_kvm("a_guest_goes_on_over_the_same_memory") {
        return;
    }
    let bed = Bed::new(32);
    let (source, tick, state) = paused_state(&bed);
    drop(source);
    goes_on(&bed, &state, tick);
}

#[test]
fn a_guest_with_memory_above_the_gap_goes_on() {
    if !has_kvm("a_guest_with_memory_above_the_gap_goes_on") {
        return;
    }
    let bed = Bed::new(3 * 1024 + 256);
    let (source, tick, state) = paused_state(&bed);
    let mut client = source.client().unwrap();
    client.dirty_start().unwrap();
    let dirty = client.dirty_harvest().unwrap();
    assert!(
        dirty < 8 * 256 + 1024,
        "{dirty} pages of a guest that uses few"
    );
    drop(source);
    goes_on(&bed, &state, tick);
}

#[test]
fn a_guest_goes_on_over_a_copy_of_its_memory() {
    if !has_kvm("a_guest_goes_on_over_a_copy_of_its_memory") {
        return;
    }
    let mut bed = Bed::new(32);
    bed.vcpus = 3;
    let (_source, tick, state) = paused_state(&bed);
    goes_on(&bed.copy(), &state, tick);
}

#[test]
fn a_page_lost_on_the_way_is_noticed() {
    if !has_kvm("a_page_lost_on_the_way_is_noticed") {
        return;
    }
    let bed = Bed::new(32);
    let (_source, _, state) = paused_state(&bed);
    let copy = bed.copy();
    let memory = dwcp_memory::GuestMemory::map(
        copy.guest.memory.as_fd().try_clone_to_owned().unwrap(),
        copy.guest.size,
    );
    // The last page of the fill, which lies from 16 MiB on.
    memory
        .unwrap()
        .zero_pages(PageIndex((16 + 8) * 256 - 1), 1)
        .unwrap();
    let vmm = copy.incoming("incoming");
    let mut client = vmm.client().unwrap();
    client.load(file_of(&state).as_fd()).unwrap();
    client.run(2).unwrap();
    Serial::of(&vmm).wait_for_text("is not what was written");
}

#[test]
fn a_vm_can_be_saved_and_go_on_where_it_was() {
    if !has_kvm("a_vm_can_be_saved_and_go_on_where_it_was") {
        return;
    }
    let bed = Bed::new(32);
    let (vmm, tick, _) = paused_state(&bed);
    vmm.client().unwrap().resume(1).unwrap();
    assert_eq!(Serial::of(&vmm).wait_for_tick(tick + 1).bad, 0);
}

fn snapshot(guest: &GuestFiles) -> Vec<u8> {
    let fd = guest.memory.as_fd().try_clone_to_owned().unwrap();
    let mut bytes = vec![0; guest.size.bytes() as usize];
    MemoryView::new(fd, guest.size)
        .unwrap()
        .read_pages(PageIndex(0), &mut bytes)
        .unwrap();
    bytes
}

#[test]
fn every_changed_page_is_in_the_dirty_bitmap() {
    if !has_kvm("every_changed_page_is_in_the_dirty_bitmap") {
        return;
    }
    let bed = Bed::new(32);
    let fd = bed.guest.bitmap.as_fd().try_clone_to_owned().unwrap();
    let bitmap = DirtyBitmap::map(fd, bed.guest.size).unwrap();
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    let serial = Serial::of(&vmm);
    serial.wait_for_tick(0);
    client.pause().unwrap();
    let mut before = snapshot(&bed.guest);
    client.dirty_start().unwrap();
    // All that is there is dirty to a consumer that has nothing; a page that is not marked is a hole, and so zeros.
    for (page, content) in (0..).zip(before.chunks(PAGE_BYTES)) {
        let marked = bitmap.is_set(dwcp_memory::PageIndex(page));
        assert!(
            marked || content.iter().all(|byte| *byte == 0),
            "page {page}"
        );
    }
    assert!(bitmap.count() > 100);
    bitmap.clear_all();
    for round in 2..5 {
        let seen = serial.ticks().last().unwrap().tick;
        client.resume(round).unwrap();
        serial.wait_for_tick(seen + 1);
        client.pause().unwrap();
        let told = client.dirty_harvest().unwrap();
        let after = snapshot(&bed.guest);
        let dirty: BTreeSet<u64> = (0..bitmap.words())
            .filter_map(|word| bitmap.take_word(word))
            .flat_map(|taken| taken.pages())
            .map(|page| page.0)
            .collect();
        assert_eq!(told, dirty.len() as u64);
        let pages = before.chunks(PAGE_BYTES).zip(after.chunks(PAGE_BYTES));
        let changed: BTreeSet<u64> = (0..)
            .zip(pages)
            .filter(|(_, (old, new))| old != new)
            .map(|(page, _)| page)
            .collect();
        let missed: Vec<_> = changed.difference(&dirty).collect();
        assert!(missed.is_empty(), "changed, but not told: {missed:?}");
        // It writes to its working set, its sums and its stack, and to nothing else.
        assert!(
            changed.len() > 100 && dirty.len() < 512 + 32,
            "{} {}",
            changed.len(),
            dirty.len()
        );
        before = after;
    }
    client.dirty_stop().unwrap();
    assert!(matches!(
        client.dirty_harvest(),
        Err(ClientError::Refused(_))
    ));
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_a_good_one_still_taken() {
    if !has_kvm("a_state_that_does_not_fit_is_refused_and_a_good_one_still_taken") {
        return;
    }
    let bed = Bed::new(32);
    let (source, tick, state) = paused_state(&bed);
    drop(source);
    let vmm = bed.incoming("incoming");
    let mut client = vmm.client().unwrap();
    let mut refusal = |bytes: &[u8]| match client.load(file_of(bytes).as_fd()) {
        Err(ClientError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let mut damaged = state.clone();
    damaged[state.len() / 2] ^= 1;
    assert!(refusal(&damaged).contains("damaged"));
    assert!(refusal(&state[..state.len() - 1]).contains("cut off"));
    assert!(refusal(b"QEVM\0\0\0\x03 something else entirely").contains("no device state"));
    let mut newer = state.clone();
    newer[8] = 9;
    assert!(refusal(&newer).contains("newer"));

    let mut other = Bed::new(32);
    other.vcpus = 2;
    let other_vmm = other.incoming("other");
    let refused = other_vmm
        .client()
        .unwrap()
        .load(file_of(&state).as_fd())
        .unwrap_err();
    assert!(refused.to_string().contains("1 vCPUs"), "{refused}");

    assert_eq!(vmm.client().unwrap().status().unwrap().phase, Phase::Idle);
    drop(vmm);
    goes_on(&bed, &state, tick);
}
