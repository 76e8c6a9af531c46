//! What a guest's drivers do to virtio devices, and what a guest asks by DHCP.

use std::net::Ipv4Addr;

use dwcp_vmm::dhcp::{FRAME_BYTES_MAX, Responder};
use dwcp_vmm::fuzzing::{Played, play};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The first byte chooses the device; the rest is what its driver and its queues do.
pub(super) fn devices(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    let device: Played = Played::ALL[usize::from(*first) % Played::ALL.len()];
    play(device, rest);
}

/// A frame of the guest's.
pub(super) fn dhcp(input: &[u8]) {
    let address = Ipv4Addr::new(10, 83, 0, 5);
    let router = Some(Ipv4Addr::new(10, 83, 0, 1));
    let responder = match Responder::new(MAC, address, 24, router, &[], "guest", 1500) {
        Ok(responder) => responder,
        Err(error) => panic!("{error}"),
    };
    if let Some(answer) = responder.answer(input) {
        assert!(answer.len() <= FRAME_BYTES_MAX);
    }
}
