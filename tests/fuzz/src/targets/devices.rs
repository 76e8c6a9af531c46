//! Virtio devices: what a guest's driver writes to registers and memory, when it kicks, and what comes from outside
//! meanwhile; and what a guest asks by DHCP.
//!
//! The VMM's own door makes a guest of the input; here each device gets a target of its own, so that a search learns
//! one device's order of things.

use std::net::Ipv4Addr;

use dwcp_vmm::dhcp::{FRAME_BYTES_MAX, Responder};
use dwcp_vmm::fuzzing::{Played, play};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(super) fn balloon(input: &[u8]) {
    play(Played::Balloon, input);
}

/// The first byte says whether the disk may be changed.
pub(super) fn block(input: &[u8]) {
    match input.split_first() {
        Some((0, rest)) => play(Played::ReadOnlyBlock, rest),
        Some((_, rest)) => play(Played::Block, rest),
        None => {}
    }
}

pub(super) fn console(input: &[u8]) {
    play(Played::Console, input);
}

pub(super) fn net(input: &[u8]) {
    play(Played::Net, input);
}

pub(super) fn rng(input: &[u8]) {
    play(Played::Rng, input);
}

pub(super) fn vsock(input: &[u8]) {
    play(Played::Vsock, input);
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
