//! Reading an input as numbers, pieces and messages.
//!
//! Always holds: an input that is too short reads as zeros and empty pieces, so that every input means something.
//! Must not know any target.

use serde::{Serialize, de::DeserializeOwned};

/// An input being read from its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// The next `bytes` bytes, or what is left.
    pub(crate) fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A piece with its length (two bytes) before it.
    pub(crate) fn piece(&mut self) -> &'a [u8] {
        let bytes = self.u16();
        self.take(bytes.into())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}

/// Reads bytes as the JSON of one message type; what is read must survive being sent on.
pub(crate) fn read_json<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let message: T = serde_json::from_slice(bytes).ok()?;
    let written = write_json(&message);
    let again: T = match serde_json::from_str(&written) {
        Ok(again) => again,
        Err(error) => panic!("{written} was written and cannot be read: {error}"),
    };
    assert_eq!(written, write_json(&again));
    Some(message)
}

fn write_json<T: Serialize>(message: &T) -> String {
    match serde_json::to_string(message) {
        Ok(text) => text,
        Err(error) => panic!("what was read cannot be written: {error}"),
    }
}
