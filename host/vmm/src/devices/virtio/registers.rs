//! The common configuration registers (virtio 1.3, 4.1.4.3), and what writing them asks for.
//!
//! Pure: what has to be done is answered as an [`Effect`]. Accesses of another width than the register's do nothing,
//! but 64-bit registers may be accessed by halves.

use serde::{Deserialize, Serialize};

use super::{Backend, FEATURE_EVENT_INDEX, FEATURE_INDIRECT, FEATURE_VERSION_1, QueueState};

const ACKNOWLEDGE_TO_FEATURES: u8 = 1 | 2;
/// Status: the device accepted the driver's features.
pub const FEATURES_OK: u8 = 8;
/// Status: the driver is ready.
pub const DRIVER_OK: u8 = 4;
/// Status: the device does not go on until it is reset.
pub const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    /// What the driver accepted.
    pub driver_features: u64,
    /// The device's status, without [`NEEDS_RESET`].
    pub status: u8,
    /// As the driver set them up.
    pub queues: Vec<QueueState>,
}

/// What does not change.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Features.
    pub features: u64,
    /// The longest that each queue may be.
    pub queues: Vec<u16>,
}

/// What a write asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing more.
    None,
    /// The device is to be reset.
    Reset,
    /// The driver is ready.
    Activate,
    /// A vector was chosen, for a queue or for the registers.
    Vector(Option<usize>, u16),
}

/// What is read besides the registers themselves.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    /// The chosen vector of the registers.
    pub configuration_vector: u16,
    /// The chosen vector of the selected queue.
    pub queue_vector: u16,
    /// Changes when the device's own registers do.
    pub generation: u8,
    /// Whether the device waits for a reset.
    pub needs_reset: bool,
}

impl Offer {
    /// What a device offers, with what every device here does.
    pub fn of(backend: &dyn Backend) -> Self {
        let common = FEATURE_VERSION_1 | FEATURE_EVENT_INDEX | FEATURE_INDIRECT;
        Self {
            features: backend.features() | common,
            queues: backend.queues(),
        }
    }
}

impl Registers {
    /// As after a reset.
    pub fn new(offer: &Offer) -> Self {
        let fresh = |size: &u16| QueueState {
            size: *size,
            ..QueueState::default()
        };
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            driver_features: 0,
            status: 0,
            queues: offer.queues.iter().map(fresh).collect(),
        }
    }

    /// The queue that is selected, if there is such a queue.
    pub fn selected(&self) -> Option<usize> {
        let at = usize::from(self.queue_select);
        (at < self.queues.len()).then_some(at)
    }

    /// The driver reads.
    pub fn read(&self, offset: usize, data: &mut [u8], offer: &Offer, beside: Beside) {
        let half = |value: u64, select: u32| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        let queue = self
            .selected()
            .map(|at| self.queues[at])
            .unwrap_or_default();
        let reset = if beside.needs_reset { NEEDS_RESET } else { 0 };
        let mut all = [0u8; 0x40];
        let mut put = |at: usize, bytes: &[u8]| all[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_feature_select.to_le_bytes());
        let offered = half(offer.features, self.device_feature_select);
        put(0x04, &offered.to_le_bytes());
        put(0x08, &self.driver_feature_select.to_le_bytes());
        let accepted = half(self.driver_features, self.driver_feature_select);
        put(0x0c, &accepted.to_le_bytes());
        put(0x10, &beside.configuration_vector.to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[self.status | reset, beside.generation]);
        put(0x16, &self.queue_select.to_le_bytes());
        put(0x18, &queue.size.to_le_bytes());
        put(0x1a, &beside.queue_vector.to_le_bytes());
        put(0x1c, &u16::from(queue.enabled).to_le_bytes());
        put(0x1e, &self.queue_select.to_le_bytes()); // each queue has a notify address of its own
        put(0x20, &queue.descriptors.to_le_bytes());
        put(0x28, &queue.driver.to_le_bytes());
        put(0x30, &queue.device.to_le_bytes());
        for (at, byte) in (offset..).zip(data) {
            *byte = all.get(at).copied().unwrap_or(0);
        }
    }

    /// The driver writes.
    pub fn write(&mut self, offset: usize, data: &[u8], offer: &Offer) -> Effect {
        match *data {
            [status] if offset == 0x14 => self.write_status(status, offer),
            [a, b] => self.write_16(offset, u16::from_le_bytes([a, b]), offer),
            [a, b, c, d] => {
                self.write_32(offset, u32::from_le_bytes([a, b, c, d]));
                Effect::None
            }
            [a, b, c, d, e, f, g, h] if offset >= 0x20 => {
                self.write_32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_32(offset + 4, u32::from_le_bytes([e, f, g, h]));
                Effect::None
            }
            _ => Effect::None,
        }
    }

    fn write_status(&mut self, status: u8, offer: &Offer) -> Effect {
        if status == 0 {
            *self = Self::new(offer);
            return Effect::Reset;
        }
        // The driver may only add bits (2.1.1); what it takes away stays.
        let added = status & !self.status & !NEEDS_RESET;
        let mut status = self.status | added;
        let is_known = self.driver_features & !offer.features == 0;
        let is_modern = self.driver_features & FEATURE_VERSION_1 != 0;
        if added & FEATURES_OK != 0 && !(is_known && is_modern) {
            status &= !FEATURES_OK;
        }
        let before = ACKNOWLEDGE_TO_FEATURES | FEATURES_OK;
        let begins = added & DRIVER_OK != 0 && status & (before | FAILED) == before;
        if added & DRIVER_OK != 0 && !begins {
            status &= !DRIVER_OK;
        }
        self.status = status;
        if begins {
            Effect::Activate
        } else {
            Effect::None
        }
    }

    fn write_16(&mut self, offset: usize, value: u16, offer: &Offer) -> Effect {
        let is_ready = self.status & DRIVER_OK != 0;
        match (offset, self.selected()) {
            (0x10, _) => return Effect::Vector(None, value),
            (0x16, _) => self.queue_select = value,
            (0x1a, Some(at)) => return Effect::Vector(Some(at), value),
            (0x18, Some(at)) if !is_ready && value <= offer.queues[at] => {
                self.queues[at].size = value;
            }
            (0x1c, Some(at)) if !is_ready && value == 1 => self.queues[at].enabled = true,
            _ => {}
        }
        Effect::None
    }

    fn write_32(&mut self, offset: usize, value: u32) {
        let is_open = self.status & (FEATURES_OK | DRIVER_OK) == 0;
        match offset {
            0x00 => self.device_feature_select = value,
            0x08 => self.driver_feature_select = value,
            0x0c if is_open && self.driver_feature_select < 2 => {
                set_half(
                    &mut self.driver_features,
                    self.driver_feature_select == 1,
                    value,
                );
            }
            0x20..=0x34 if self.status & DRIVER_OK == 0 => {
                let Some(at) = self.selected() else { return };
                let queue = &mut self.queues[at];
                match offset {
                    0x20 | 0x24 => set_half(&mut queue.descriptors, offset == 0x24, value),
                    0x28 | 0x2c => set_half(&mut queue.driver, offset == 0x2c, value),
                    0x30 | 0x34 => set_half(&mut queue.device, offset == 0x34, value),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

fn set_half(number: &mut u64, is_high: bool, value: u32) {
    let shift = if is_high { 32 } else { 0 };
    *number = *number & !(0xffff_ffff << shift) | u64::from(value) << shift;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offer() -> Offer {
        Offer {
            features: FEATURE_VERSION_1 | 0b101,
            queues: vec![64, 128],
        }
    }

    fn accept(registers: &mut Registers, features: u64) {
        for (half, value) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            registers.write(0x08, &half.to_le_bytes(), &offer());
            registers.write(0x0c, &value.to_le_bytes(), &offer());
        }
    }

    #[test]
    fn a_driver_comes_up_step_by_step() {
        let mut registers = Registers::new(&offer());
        registers.write(0x14, &[1], &offer());
        registers.write(0x14, &[3], &offer());
        accept(&mut registers, FEATURE_VERSION_1 | 1);
        registers.write(0x14, &[11], &offer());
        assert_eq!(registers.status, 11);
        registers.write(0x16, &1u16.to_le_bytes(), &offer());
        registers.write(0x18, &32u16.to_le_bytes(), &offer());
        registers.write(0x20, &0x1_2000_3000u64.to_le_bytes(), &offer());
        registers.write(0x1c, &1u16.to_le_bytes(), &offer());
        assert_eq!(registers.write(0x14, &[15], &offer()), Effect::Activate);
        let queue = registers.queues[1];
        assert_eq!((queue.size, queue.descriptors), (32, 0x1_2000_3000));
        // A queue in use does not change.
        registers.write(0x20, &[0; 8], &offer());
        assert_eq!(registers.queues[1], queue);
        assert_eq!(registers.write(0x14, &[0], &offer()), Effect::Reset);
        assert_eq!(registers, Registers::new(&offer()));
    }

    #[test]
    fn features_that_were_not_offered_are_not_accepted() {
        for features in [FEATURE_VERSION_1 | 2, 1, 0] {
            let mut registers = Registers::new(&offer());
            registers.write(0x14, &[3], &offer());
            accept(&mut registers, features);
            registers.write(0x14, &[11], &offer());
            assert_eq!(registers.status, 3, "{features:#x}");
            assert_eq!(registers.write(0x14, &[15], &offer()), Effect::None);
            assert_eq!(registers.status & DRIVER_OK, 0);
        }
    }

    #[test]
    fn a_queue_that_is_not_there_has_no_size() {
        let mut registers = Registers::new(&offer());
        registers.write(0x16, &9u16.to_le_bytes(), &offer());
        registers.write(0x18, &8u16.to_le_bytes(), &offer());
        registers.write(0x1c, &1u16.to_le_bytes(), &offer());
        let beside = Beside {
            configuration_vector: 7,
            queue_vector: 0xffff,
            generation: 3,
            needs_reset: true,
        };
        let mut all = [0; 0x40];
        registers.read(0, &mut all, &offer(), beside);
        assert_eq!(all[0x18..0x1a], [0, 0]);
        assert_eq!(all[0x10..0x16], [7, 0, 2, 0, NEEDS_RESET, 3]);
    }

    /// A write that means something, more often than any bytes would.
    fn write() -> impl Strategy<Value = (usize, Vec<u8>)> {
        let status = prop_oneof![Just(1u8), Just(3), Just(11), Just(15), Just(0), any::<u8>()];
        let short = |offset: usize, value: u16| (offset, value.to_le_bytes().to_vec());
        let half = prop::sample::select(vec![0u32, 1, 5, u32::MAX]);
        prop_oneof![
            3 => status.prop_map(|status| (0x14, vec![status])),
            1 => (0..3u16).prop_map(move |queue| short(0x16, queue)),
            1 => any::<u16>().prop_map(move |size| short(0x18, size % 200)),
            1 => Just(short(0x1c, 1)),
            1 => (prop::sample::select(vec![0x08, 0x0c]), half)
                .prop_map(|(offset, value)| (offset, value.to_le_bytes().to_vec())),
            3 => (0..0x60usize, prop::collection::vec(any::<u8>(), 0..10)),
            1 => (any::<usize>(), prop::collection::vec(any::<u8>(), 0..10)),
        ]
    }

    proptest! {
        #[test]
        fn a_queue_in_use_stays_and_nothing_is_accepted_that_was_not_offered(
            writes in prop::collection::vec(write(), 0..60),
            reads in prop::collection::vec((any::<u16>(), 0..10usize), 60),
        ) {
            let offer = offer();
            let mut registers = Registers::new(&offer);
            for ((offset, data), (at, count)) in writes.into_iter().zip(reads) {
                let before = registers.clone();
                let effect = registers.write(offset, &data, &offer);
                let is_reset = effect == Effect::Reset;
                prop_assert_eq!(is_reset, (offset, &data[..]) == (0x14, &[0][..]));
                let (was_ready, is_ready) = (before.status & DRIVER_OK, registers.status & DRIVER_OK);
                prop_assert_eq!(effect == Effect::Activate, is_ready > was_ready);
                if is_reset {
                    prop_assert_eq!(&registers, &Registers::new(&offer));
                } else if was_ready != 0 {
                    prop_assert_eq!(&registers.queues, &before.queues);
                    prop_assert_eq!(registers.driver_features, before.driver_features);
                }
                if registers.status & FEATURES_OK != 0 {
                    prop_assert_eq!(registers.driver_features & !offer.features, 0);
                }
                prop_assert_eq!(registers.status & NEEDS_RESET, 0);
                for (queue, offered) in registers.queues.iter().zip(&offer.queues) {
                    prop_assert!(queue.size <= *offered);
                }
                let beside = Beside { configuration_vector: 0, queue_vector: 0, generation: 0, needs_reset: false };
                registers.read(at.into(), &mut vec![0; count], &offer, beside);
            }
        }
    }
}
