//! Memory that our guest gives up, or says that it does not use, is the host's again.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use common::{Bed, DEADLINE, Serial, has_kvm};
use dwcp_guest::said::Said;
use dwcp_vmm::client::ClientError;
use dwcp_vmm::config::Device;
use dwcp_vmm::protocol::BalloonStatus;
use dwcp_vmm::spawn::Spawned;

const NAME: &str = "balloon-2";

fn bed() -> Bed {
    let mut bed = Bed::new(48);
    bed.devices = vec![Device::Rng, Device::Balloon];
    bed
}

/// Pages of the guest's memory that the host keeps.
fn pages(bed: &Bed) -> u64 {
    let file = File::from(bed.guest.memory.as_fd().try_clone_to_owned().unwrap());
    file.metadata().unwrap().blocks() * 512 / 4096
}

/// A number that the guest says of its balloon.
fn said(vmm: &Spawned, word: &str) -> u64 {
    Serial::of(vmm).wait(word, |serial| {
        let text = serial.text();
        let mut said = text.lines().filter_map(Said::parse);
        said.find_map(|said| said.word(word)?.parse().ok())
    })
}

fn balloon(vmm: &Spawned) -> BalloonStatus {
    let devices = vmm.client().unwrap().status().unwrap().devices;
    devices[1].balloon.unwrap()
}

fn wait_for(vmm: &Spawned, pages: u32) {
    Serial::of(vmm).wait("full balloon", |_| {
        let now = balloon(vmm);
        assert_eq!(now.target_pages, pages);
        (now.actual_pages == pages).then_some(())
    });
}

#[test]
fn what_is_reported_as_free_goes_back_to_the_host() {
    if !has_kvm("what_is_reported_as_free_goes_back_to_the_host") {
        return;
    }
    let bed = bed();
    let vmm = bed.fresh("fill_mib=4 balloon=report");
    vmm.client().unwrap().run(1).unwrap();
    let reported = said(&vmm, "reported");
    let touched = said(&vmm, "touched");
    assert!(reported > 4000 && reported <= touched, "{reported}");
    // What was touched and not reported, and the rest of the guest; a page of each block was touched again.
    let tick = Serial::of(&vmm).wait_for_tick(0);
    let kept = pages(&bed);
    assert!(
        kept < touched - reported + 2500,
        "{kept} of {touched}, {reported}"
    );
    let status = vmm.client().unwrap().status().unwrap();
    assert_eq!(status.devices[1].read_bytes, reported * 4096);
    assert_eq!((status.devices[1].errors, tick.bad), (0, 0));
}

#[test]
fn a_guest_gives_up_what_it_is_asked_for_and_has_it_back_on_another_host() {
    if !has_kvm("a_guest_gives_up_what_it_is_asked_for_and_has_it_back_on_another_host") {
        return;
    }
    let bed = bed();
    let vmm = bed.fresh("fill_mib=4 balloon=report balloon=follow");
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    said(&vmm, "reported");
    assert_eq!(
        balloon(&vmm),
        BalloonStatus {
            target_pages: 0,
            actual_pages: 0
        }
    );
    for pages in [1000, 3000] {
        client.balloon(NAME, pages).unwrap();
        wait_for(&vmm, pages);
    }
    client.pause().unwrap();
    let (state, _) = client.save().unwrap();
    drop((client, vmm));

    let vmm = bed.incoming("elsewhere");
    let mut client = vmm.client().unwrap();
    client.load(state.as_fd()).unwrap();
    assert_eq!(
        balloon(&vmm),
        BalloonStatus {
            target_pages: 3000,
            actual_pages: 3000
        }
    );
    client.run(2).unwrap();
    let before = pages(&bed);
    client.balloon(NAME, 500).unwrap();
    wait_for(&vmm, 500);
    // It writes to what it has back, of which the host had all.
    assert!(pages(&bed) >= before + 2500, "{before}, {}", pages(&bed));
    let serial = Serial::of(&vmm);
    let tick = serial.wait_for_tick(0);
    assert_eq!(serial.wait_for_tick(tick.tick).bad, 0);
    client.console().unwrap();
    client.stop(true).unwrap();
    vmm.wait(DEADLINE).unwrap();
}

#[test]
fn only_a_balloon_gives_up_memory_and_never_all() {
    if !has_kvm("only_a_balloon_gives_up_memory_and_never_all") {
        return;
    }
    let bed = bed();
    let vmm = bed.fresh("fill_mib=4");
    let mut client = vmm.client().unwrap();
    for (device, pages, reason) in [
        ("balloon-1", 1, "no device balloon-1"),
        ("rng-1", 1, "is no balloon"),
        (NAME, 48 * 256, "ask for fewer"),
    ] {
        match client.balloon(device, pages) {
            Err(ClientError::Refused(told)) => assert!(told.contains(reason), "{told}"),
            other => panic!("{other:?}"),
        }
    }
    client.balloon(NAME, 48 * 256 - 1).unwrap();
    assert_eq!(balloon(&vmm).target_pages, 48 * 256 - 1);
}
