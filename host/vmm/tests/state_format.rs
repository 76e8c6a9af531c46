//! The device-state format: what was written is read, and nothing else is.
#![allow(clippy::unwrap_used)]

use dwcp_vmm::state::{FORMAT, StateError, StateReader, StateWriter};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

fn sample(bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = StateWriter::new();
    for (index, body) in bodies.iter().enumerate() {
        writer.put(&format!("device.{index}"), 1, body).unwrap();
    }
    writer.finish()
}

/// Changes bytes and puts the hash right again, as a hostile author would.
fn rehashed(state: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut content = state[..state.len() - 32].to_vec();
    change(&mut content);
    let hash = Sha256::digest(&content);
    content.extend(hash);
    content
}

proptest! {
    #[test]
    fn sections_are_read_as_written(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
        let state = sample(&bodies);
        let mut reader = StateReader::new(&state).unwrap();
        for (index, body) in bodies.iter().enumerate().rev() {
            let read: Vec<u8> = reader.take(&format!("device.{index}"), 1).unwrap();
            prop_assert_eq!(&read, body);
        }
        reader.finish().unwrap();
    }

    #[test]
    fn any_changed_byte_is_noticed(at in any::<prop::sample::Index>(), bits in 1..=255u8) {
        let mut state = sample(&[vec![1; 50], vec![2; 60]]);
        let at = at.index(state.len());
        state[at] ^= bits;
        prop_assert!(StateReader::new(&state).is_err());
    }

    #[test]
    fn any_cut_is_noticed(length in any::<prop::sample::Index>()) {
        let state = sample(&[vec![1; 50], vec![2; 60]]);
        let length = length.index(state.len());
        prop_assert!(StateReader::new(&state[..length]).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), as_state in any::<bool>()) {
        let state = match as_state {
            true => rehashed(&sample(&[]), |content| content[12..].fill(3)),
            false => bytes.clone(),
        };
        let state = if as_state { rehashed(&state, |content| content.extend(&bytes)) } else { state };
        if let Ok(mut reader) = StateReader::new(&state) {
            let _ = reader.take::<Vec<u64>>("device.0", 1);
            let _ = reader.finish();
        }
    }
}

#[test]
fn what_is_newer_or_foreign_is_named() {
    let state = sample(&[vec![]]);
    let newer = rehashed(&state, |content| content[8] = FORMAT as u8 + 1);
    assert_eq!(
        StateReader::new(&newer).unwrap_err(),
        StateError::Newer(FORMAT + 1)
    );
    assert_eq!(
        StateReader::new(b"QEMU state").unwrap_err(),
        StateError::Foreign
    );
    assert_eq!(
        StateReader::new(&state[..20]).unwrap_err(),
        StateError::Truncated
    );

    let mut writer = StateWriter::new();
    writer.put("serial", 7, &0u8).unwrap();
    let state = writer.finish();
    let mut reader = StateReader::new(&state).unwrap();
    let newer = reader.take::<u8>("serial", 6).unwrap_err();
    assert_eq!(
        newer,
        StateError::NewerSection {
            name: "serial".into(),
            found: 7,
            known: 6
        }
    );
    let mut reader = StateReader::new(&state).unwrap();
    assert_eq!(
        reader.take::<u8>("clock", 1).unwrap_err(),
        StateError::Missing("clock".into())
    );
    assert_eq!(
        reader.finish().unwrap_err(),
        StateError::Unknown("serial".into())
    );
    let mut reader = StateReader::new(&state).unwrap();
    assert_eq!(
        reader.take::<(u8, u8)>("serial", 7).unwrap_err(),
        StateError::Damaged
    );
}

#[test]
fn two_sections_of_one_name_are_refused() {
    let mut writer = StateWriter::new();
    writer.put("serial", 1, &0u8).unwrap();
    writer.put("serial", 1, &1u8).unwrap();
    let state = writer.finish();
    assert_eq!(StateReader::new(&state).unwrap_err(), StateError::Damaged);
}
