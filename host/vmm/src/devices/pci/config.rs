//! The configuration space of one PCI function: 256 bytes, of which the guest may write some bits (PCI 3.0, chapter 6).
//!
//! What always holds: bits that are not marked writable never change after the function was made.

use serde::{Deserialize, Serialize};

/// Offset of the command register.
pub const COMMAND: usize = 0x04;
/// Offset of the first base address register.
pub const BAR0: usize = 0x10;
/// Command: memory accesses are answered.
pub const MEMORY_ENABLE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const INTX_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const STATUS: usize = 0x06;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where the first capability lies.
const FIRST_CAPABILITY: usize = 0x40;
const BYTES: usize = 256;

/// Who a function says it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, as in `0x06_00_00`.
    pub class: u32,
    /// Subsystem vendor and device.
    pub subsystem: (u16, u16),
}

/// What the guest wrote, for the state of a VM: every writable byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState(Vec<u8>);

/// A configuration space.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    next_capability: usize,
    last_link: usize,
}

impl ConfigSpace {
    /// A function without base addresses and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            next_capability: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &[identity.revision]);
        space.put(0x09, &identity.class.to_le_bytes()[..3]);
        space.put(0x2c, &identity.subsystem.0.to_le_bytes());
        space.put(0x2e, &identity.subsystem.1.to_le_bytes());
        let command = MEMORY_ENABLE | BUS_MASTER | INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Gives it a 32-bit memory window of `bytes` (a power of two) at `address`.
    pub fn set_bar0(&mut self, address: u32, bytes: u32) {
        debug_assert!(bytes.is_power_of_two() && address.is_multiple_of(bytes));
        self.put(BAR0, &address.to_le_bytes());
        self.allow(BAR0, &(!(bytes - 1)).to_le_bytes());
    }

    /// Adds a capability, `body` without its first two bytes; answers its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next_capability;
        debug_assert!(at + 2 + body.len() <= BYTES);
        self.put(self.last_link, &[at as u8]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Lets the guest write bits from `offset` on.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// The guest reads.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// The guest writes.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..BYTES).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
    }

    /// Two bytes of it.
    pub fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// Four bytes of it.
    pub fn double_word(&self, offset: usize) -> u32 {
        u32::from(self.word(offset)) | u32::from(self.word(offset + 2)) << 16
    }

    /// Where its memory window lies, if it answers there.
    pub fn window(&self) -> Option<u32> {
        let is_on = self.word(COMMAND) & MEMORY_ENABLE != 0;
        is_on.then(|| self.double_word(BAR0) & !0xf)
    }

    /// What the guest wrote.
    pub fn save(&self) -> ConfigState {
        ConfigState(self.bytes.to_vec())
    }

    /// Puts back what a guest wrote; what it cannot write is kept as it is.
    pub fn load(&mut self, state: &ConfigState) {
        self.write(0, &state.0);
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_00_00,
            subsystem: (1, 2),
        });
        space.set_bar0(0xe000_0000, 0x8000);
        space
    }

    #[test]
    fn a_guest_learns_the_size_of_a_window_as_on_hardware() {
        let mut space = space();
        space.write(BAR0, &[0xff; 4]);
        assert_eq!(space.double_word(BAR0), 0xffff_8000);
        space.write(BAR0, &0xe123_4567u32.to_le_bytes());
        assert_eq!(space.double_word(BAR0), 0xe123_0000);
        assert_eq!(space.window(), None);
        space.write(COMMAND, &MEMORY_ENABLE.to_le_bytes());
        assert_eq!(space.window(), Some(0xe123_0000));
    }

    #[test]
    fn what_is_not_writable_stays() {
        let mut space = space();
        let at = space.add_capability(9, &[1, 2, 3]);
        let mut before = [0; 256];
        space.read(0, &mut before);
        space.write(0, &[0xff; 256]);
        let mut after = [0; 256];
        space.read(0, &mut after);
        assert_eq!(before[..4], after[..4]);
        assert_eq!(before[at..at + 5], after[at..at + 5]);
        assert_eq!((before[0x34], before[6] & 0x10), (at as u8, 0x10));
    }

    proptest! {
        #[test]
        fn no_write_changes_what_is_not_writable(
            writes in prop::collection::vec((0..300usize, prop::collection::vec(any::<u8>(), 0..9)), 0..40),
            reads in prop::collection::vec((0..300usize, 0..9usize), 40),
        ) {
            let mut space = space();
            let at = space.add_capability(0x11, &[3, 0, 0, 0, 0, 0]);
            space.allow(at + 2, &[0, 0xc0]);
            let before = space.bytes;
            for ((offset, data), (from, count)) in writes.into_iter().zip(reads) {
                space.write(offset, &data);
                for (at, (old, new)) in before.iter().zip(&space.bytes).enumerate() {
                    prop_assert_eq!((old ^ new) & !space.writable[at], 0, "at {:#x}", at);
                }
                let mut read = vec![0; count];
                space.read(from, &mut read);
                for (at, byte) in (from..).zip(read) {
                    prop_assert_eq!(byte, space.bytes.get(at).copied().unwrap_or(0xff));
                }
                // A window is where it was put, in steps of its size.
                prop_assert!(space.window().is_none_or(|at| at % 0x8000 == 0));
            }
            // What is saved is put back, whatever was there.
            let saved = space.save();
            let mut other = self::space();
            other.add_capability(0x11, &[3, 0, 0, 0, 0, 0]);
            other.allow(at + 2, &[0, 0xc0]);
            other.load(&saved);
            prop_assert_eq!(other.bytes, space.bytes);
        }

        #[test]
        fn a_state_of_any_length_is_taken_as_far_as_it_fits(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut space = space();
            space.load(&ConfigState(bytes));
            prop_assert_eq!(space.word(0), 0x1af4);
        }
    }
}
