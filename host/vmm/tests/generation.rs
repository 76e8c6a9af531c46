//! Which life of the machine it is: what is in the guest's memory, and how that changes with a move or a fork.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use common::{Bed, Serial, has_kvm};
use dwcp_vmm::config::Generation;

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
