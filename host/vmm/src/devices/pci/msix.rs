//! Message-signalled interrupts of one PCI function: the table, and what is pending (PCI 3.0, 6.8.2).
//!
//! Written by vCPU threads, used by the device's own thread. A vector that is masked is remembered and sent when it is
//! unmasked; so none is lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::kvm::{Message, Vm};

/// Most vectors of a function: as many as one word of pending bits holds.
pub const VECTORS_MAX: u16 = 64;
/// Bytes of one entry of the table.
const ENTRY_BYTES: usize = 16;
const CONTROL: usize = 12;
const MASKED: u32 = 1;
/// In the capability's message control register.
const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

/// One entry of the table, as the guest sees it: address low and high, data, control.
type Entry = [u32; 4];

/// Table, pending bits and control register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    table: Vec<Entry>,
    pending: u64,
    control: u16,
}

/// Who takes messages to the CPUs.
pub trait Deliver: std::fmt::Debug + Send + Sync {
    /// Sends one; it may be lost, as on hardware, when no CPU listens.
    fn deliver(&self, message: Message);
}

impl Deliver for Vm {
    fn deliver(&self, message: Message) {
        // Refused only when the guest has switched its local APICs off; then a real interrupt is lost too.
        let _ = self.send_message(message);
    }
}

/// The interrupts of one function.
#[derive(Debug)]
pub struct Msix {
    state: Mutex<MsixState>,
    cpus: Arc<dyn Deliver>,
}

impl Msix {
    /// `vectors` of them, at most [`VECTORS_MAX`], all masked.
    pub fn new(cpus: Arc<dyn Deliver>, vectors: u16) -> Self {
        debug_assert!((1..=VECTORS_MAX).contains(&vectors));
        let state = MsixState {
            table: vec![[0, 0, 0, MASKED]; vectors.into()],
            pending: 0,
            control: 0,
        };
        Self {
            state: Mutex::new(state),
            cpus,
        }
    }

    /// Whether the table has such a vector.
    pub fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.lock().table.len()
    }

    /// Sends the interrupt of a vector, now or once it is unmasked. No vector, or none enabled, no interrupt.
    pub fn signal(&self, vector: u16) {
        let mut state = self.lock();
        if usize::from(vector) < state.table.len() && state.control & ENABLE != 0 {
            state.pending |= 1 << vector;
            self.deliver(&mut state);
        }
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        let state = self.lock();
        for (at, byte) in (offset..).zip(data) {
            let entry = state.table.get(at / ENTRY_BYTES);
            let word = entry.map_or(0, |entry| entry[at % ENTRY_BYTES / 4]);
            *byte = word.to_le_bytes()[at % 4];
        }
    }

    /// The guest writes the table.
    pub fn write_table(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        for (at, byte) in (offset..).zip(data) {
            let Some(entry) = state.table.get_mut(at / ENTRY_BYTES) else {
                break;
            };
            let word = &mut entry[at % ENTRY_BYTES / 4];
            let mut bytes = word.to_le_bytes();
            bytes[at % 4] = *byte;
            *word = u32::from_le_bytes(bytes);
            if at % ENTRY_BYTES >= CONTROL {
                *word &= MASKED;
            }
        }
        self.deliver(&mut state);
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let bytes = self.lock().pending.to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// The guest wrote the capability's control register.
    pub fn set_control(&self, control: u16) {
        let mut state = self.lock();
        state.control = control;
        self.deliver(&mut state);
    }

    /// Table and pending bits now.
    pub fn save(&self) -> MsixState {
        self.lock().clone()
    }

    /// Puts a saved table in place; answers whether it fits.
    #[must_use]
    pub fn load(&self, saved: MsixState) -> bool {
        let mut state = self.lock();
        let fits = saved.table.len() == state.table.len();
        if fits {
            *state = saved;
        }
        fits
    }

    /// Sends what is pending and not masked.
    fn deliver(&self, state: &mut MsixState) {
        if state.control & ENABLE == 0 || state.control & MASK_ALL != 0 {
            return;
        }
        for (vector, [low, high, data, control]) in state.table.iter().enumerate() {
            if state.pending & 1 << vector == 0 || control & MASKED != 0 {
                continue;
            }
            state.pending &= !(1 << vector);
            if *high == 0 {
                let message = Message {
                    address: *low,
                    data: *data,
                };
                self.cpus.deliver(message);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, MsixState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// Keeps what it is given.
    #[derive(Debug, Default)]
    struct Cpus(Mutex<Vec<u32>>);

    impl Deliver for Cpus {
        fn deliver(&self, message: Message) {
            self.0.lock().unwrap().push(message.data);
        }
    }

    const VECTORS: u16 = 3;

    fn msix() -> (Msix, Arc<Cpus>) {
        let cpus = Arc::new(Cpus::default());
        (Msix::new(Arc::clone(&cpus) as _, VECTORS), cpus)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Signal(u16),
        Mask(u16, bool),
        Control(bool, bool),
        Load,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..VECTORS + 1).prop_map(Step::Signal),
            3 => (0..VECTORS, any::<bool>()).prop_map(|(vector, is_masked)| Step::Mask(vector, is_masked)),
            2 => (prop::bool::weighted(0.9), any::<bool>()).prop_map(|(is_on, masks)| Step::Control(is_on, masks)),
            1 => Just(Step::Load),
        ]
    }

    proptest! {
        /// While interrupts are enabled none is lost, and none is sent that is masked.
        #[test]
        fn masked_interrupts_wait(steps in prop::collection::vec(step(), 0..60)) {
            let (mut msix, mut cpus) = msix();
            for vector in 0..VECTORS {
                msix.write_table(usize::from(vector) * 16 + 8, &u32::from(vector).to_le_bytes());
            }
            let (mut pending, mut masked) = ([false; 3], [true; 3]);
            let (mut is_on, mut masks_all) = (false, false);
            for step in steps {
                match step {
                    Step::Signal(vector) => {
                        msix.signal(vector);
                        if let (true, Some(waits)) = (is_on, pending.get_mut(usize::from(vector))) {
                            *waits = true;
                        }
                    }
                    Step::Mask(vector, is_masked) => {
                        // The other bits of the control word are not there.
                        let value = u32::from(is_masked) | 0xffff_fffe;
                        msix.write_table(usize::from(vector) * 16 + 12, &value.to_le_bytes());
                        masked[usize::from(vector)] = is_masked;
                    }
                    Step::Control(on, masks) => {
                        msix.set_control(u16::from(on) << 15 | u16::from(masks) << 14);
                        (is_on, masks_all) = (on, masks);
                    }
                    Step::Load => {
                        let (other, others) = self::msix();
                        prop_assert!(other.load(msix.save()));
                        (msix, cpus) = (other, others);
                    }
                }
                let mut expected = Vec::new();
                for vector in 0..3 {
                    if is_on && !masks_all && pending[vector] && !masked[vector] {
                        pending[vector] = false;
                        expected.push(vector as u32);
                    }
                }
                prop_assert_eq!(std::mem::take(&mut *cpus.0.lock().unwrap()), expected);
                let mut bits = [0; 8];
                msix.read_pending(0, &mut bits);
                let waiting = (0..3).fold(0, |bits, vector| bits | u8::from(pending[vector]) << vector);
                prop_assert_eq!(bits, [waiting, 0, 0, 0, 0, 0, 0, 0]);
            }
        }

        #[test]
        fn no_access_makes_it_panic(
            accesses in prop::collection::vec((0..0x1000usize, prop::collection::vec(any::<u8>(), 0..9)), 0..40),
        ) {
            let (msix, _) = msix();
            msix.set_control(1 << 15);
            for (offset, data) in accesses {
                msix.write_table(offset, &data);
                let mut read = data;
                msix.read_pending(offset, &mut read);
                msix.read_table(offset, &mut read);
                msix.signal(offset as u16);
            }
        }
    }

    #[test]
    fn a_table_of_another_size_is_not_taken() {
        let (msix, cpus) = msix();
        let other = Msix::new(cpus, 2);
        assert!(!msix.load(other.save()));
        assert!(msix.load(msix.save()));
    }
}
