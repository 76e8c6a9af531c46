//! Which life of the machine it is: what is in the guest's memory, and how that changes with a move or a fork.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use common::{Bed, Serial, has_kvm};
use dwcp_memory::seal_template;
use dwcp_vmm::client::VmmClient;
use dwcp_vmm::config::Generation;
use dwcp_vmm::protocol::SnapshotOrder;
use dwcp_vmm::state::StateReader;

const SMALL: &str = "fill_mib=8 ws_mib=2 rate=500";
/// Where the guest is told that it is.
const PLACE: u64 = 0xf_f000;

fn in_memory(bed: &Bed) -> Generation {
    let file = std::fs::File::from(bed.guest.memory.as_fd().try_clone_to_owned().unwrap());
    let mut bytes = [0; 16];
    file.read_exact_at(&mut bytes, PLACE).unwrap();
    Generation(bytes)
}

#[test]
fn a_move_keeps_it_and_a_restore_with_another_one_changes_it() {
    if !has_kvm("a_move_keeps_it_and_a_restore_with_another_one_changes_it") {
        return;
    }
    let mut bed = Bed::new(32);
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    Serial::of(&vmm).wait_for_tick(0);
    let first = in_memory(&bed);
    assert_ne!(first, Generation::default());
    client.pause().unwrap();
    let (state, _) = client.save().unwrap();
    drop((client, vmm));

    let moved = bed.incoming("moved");
    moved.client().unwrap().load(state.as_fd()).unwrap();
    assert_eq!(in_memory(&bed), first);
    drop(moved);

    bed.generation = Some(Generation([7; 16]));
    let forked = bed.incoming("forked");
    let mut client = forked.client().unwrap();
    client.load(state.as_fd()).unwrap();
    assert_eq!(in_memory(&bed), Generation([7; 16]));
    // It goes on, with an interrupt that it did not ask for.
    client.run(2).unwrap();
    let serial = Serial::of(&forked);
    assert_eq!(serial.wait_for_tick(0).bad, 0);
    client.pause().unwrap();
    let (state, _) = client.save().unwrap();
    drop((client, forked));

    // And moves with the new one.
    bed.generation = None;
    let moved = bed.incoming("moved-again");
    moved.client().unwrap().load(state.as_fd()).unwrap();
    assert_eq!(in_memory(&bed), Generation([7; 16]));
}

/// The one that a VM has which runs: it is paused for that.
fn in_state(client: &mut VmmClient) -> Generation {
    client.pause().unwrap();
    let (state, bytes) = client.save().unwrap();
    let mut saved = vec![0; bytes as usize];
    File::from(state).read_exact_at(&mut saved, 0).unwrap();
    let mut reader = StateReader::new(&saved).unwrap();
    reader.take("generation", 1).unwrap()
}

#[test]
fn no_two_restored_or_forked_vms_share_one_although_none_was_chosen() {
    if !has_kvm("no_two_restored_or_forked_vms_share_one_although_none_was_chosen") {
        return;
    }
    let bed = Bed::new(32);
    let original = bed.fresh(SMALL);
    let mut client = original.client().unwrap();
    client.run(1).unwrap();
    Serial::of(&original).wait_for_tick(0);
    let mut all = vec![in_state(&mut client)];
    assert_eq!(all[0], in_memory(&bed));
    let snapshot = tempfile::tempfile().unwrap();
    let written = client.snapshot(snapshot.as_fd(), SnapshotOrder::default());
    written.unwrap();
    let (state, _) = client.save().unwrap();
    drop((client, original));
    seal_template(&bed.guest.memory).unwrap();
    for id in ["one", "two", "three", "four"] {
        let shell = bed.shell(id);
        let mut client = shell.client().unwrap();
        if id.len() == 3 {
            client.restore(&[snapshot.as_fd()]).unwrap();
        } else {
            client.fork(state.as_fd()).unwrap();
        }
        client.run(2).unwrap();
        let generation = in_state(&mut client);
        assert!(!all.contains(&generation), "{id}: {generation:?}");
        all.push(generation);
    }
}

#[test]
fn a_fresh_guest_has_the_one_that_was_chosen_or_one_of_its_own() {
    if !has_kvm("a_fresh_guest_has_the_one_that_was_chosen_or_one_of_its_own") {
        return;
    }
    let mut first = None;
    for _ in 0..2 {
        let bed = Bed::new(16);
        let vmm = bed.fresh(SMALL);
        vmm.client().unwrap().status().unwrap();
        assert_ne!(first.replace(in_memory(&bed)), Some(in_memory(&bed)));
    }
    let mut bed = Bed::new(16);
    bed.generation = Some(Generation([5; 16]));
    let vmm = bed.fresh(SMALL);
    vmm.client().unwrap().status().unwrap();
    assert_eq!(in_memory(&bed), Generation([5; 16]));
}
