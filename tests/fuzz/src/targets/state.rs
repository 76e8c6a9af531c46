//! A device state: what another host saved, up to where KVM and the devices take its values.

use dwcp_vmm::fuzzing::read_device_state;
use sha2::{Digest, Sha256};

const HASH_BYTES: usize = 32;

/// A whole state; its hash is no secret, so it is also made right.
pub(super) fn device_state(input: &[u8]) {
    check(input);
    if let Some(split) = input.len().checked_sub(HASH_BYTES) {
        let mut bytes = input[..split].to_vec();
        bytes.extend(Sha256::digest(&input[..split]));
        check(&bytes);
    }
}

fn check(bytes: &[u8]) {
    let Ok(written) = read_device_state(bytes) else {
        return;
    };
    // Numbers may have been longer than they need be; once written, they are what they are.
    match read_device_state(&written) {
        Ok(again) => assert!(again == written, "what was read is written otherwise"),
        Err(error) => panic!("what was written is refused: {error}"),
    }
}
