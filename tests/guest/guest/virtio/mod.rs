//! virtio over PCI, modern only (virtio 1.3, 4.1): finding devices, agreeing on features, setting queues up.
//!
//! What a device does is known to the modules that drive it; here are the registers that all of them share.

pub mod dma;
mod hostile;
pub mod mmio;
pub mod msix;
pub mod pci;
mod probe;
pub mod queue;

pub use hostile::assault;

use core::fmt;

use dma::Arena;
use mmio::Window;
use pci::{Addresses, Function};
use queue::{Queue, SIZE_MAX, Style};

use crate::clock::Clock;
use crate::kind::Kind;

const VENDOR: u16 = 0x1af4;
/// Numbers of modern devices begin here; older ones, which can do both, are not driven.
const FIRST_MODERN_DEVICE: u16 = 0x1040;
const VENDOR_CAPABILITY: u8 = 0x09;
const RESET_MS: u64 = 5000;

/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;

/// The device has met something that it cannot go on with.
const NEEDS_RESET: u8 = 0x40;
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// Places in the common configuration (virtio 1.3, 4.1.4.3).
pub mod common {
    #![allow(missing_docs)]
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const NUM_QUEUES: u64 = 18;
    pub const STATUS: u64 = 20;
    pub const GENERATION: u64 = 21;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_MSIX_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESCRIPTORS: u64 = 32;
    pub const QUEUE_AVAILABLE: u64 = 40;
    pub const QUEUE_USED: u64 = 48;
}

/// Why a device cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A structure that virtio demands is missing or lies outside its memory.
    Structure(&'static str),
    /// It does not stop.
    Reset,
    /// It does not offer, or does not accept, what must be agreed.
    Features(u64),
    /// It has no such queue.
    Queue(u16),
    /// The guest has no memory left for it.
    Memory,
    /// It did not answer in time.
    Silent,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Structure(name) => write!(f, "its {name} structure cannot be used"),
            Self::Reset => write!(f, "it does not reset"),
            Self::Features(features) => write!(f, "it does not accept features {features:#x}"),
            Self::Queue(number) => write!(f, "it has no queue {number}"),
            Self::Memory => write!(f, "there is no memory left for it"),
            Self::Silent => write!(f, "no answer"),
        }
    }
}

/// What all devices of this machine share: time, memory, addresses, and what the command line says of queues.
#[derive(Debug)]
pub struct Platform {
    /// The time.
    pub clock: Clock,
    /// Memory for devices.
    pub arena: Arena,
    /// Addresses for registers.
    pub addresses: Addresses,
    /// Use VIRTIO_F_EVENT_IDX if it is offered.
    pub use_event_index: bool,
    /// Use VIRTIO_F_INDIRECT_DESC if it is offered.
    pub use_indirect: bool,
}

/// A device, reset and with features agreed.
#[derive(Debug)]
pub struct Device {
    common: Window,
    notify: Window,
    notify_multiplier: u32,
    config: Option<Window>,
    features: u64,
    style: Style,
}

/// The `number`th device of a kind, in the order of the bus.
pub fn find(kind: Kind, number: usize) -> Option<Function> {
    let is_meant = |function: &Function| {
        function.vendor() == VENDOR && function.device() == FIRST_MODERN_DEVICE + kind as u16
    };
    pci::functions().filter(is_meant).nth(number)
}

impl Device {
    /// Finds its structures and resets it.
    pub fn open(function: Function, platform: &mut Platform) -> Result<Self, Fault> {
        function.enable();
        let mut found: [Option<(Window, u8)>; 5] = [None; 5];
        for (number, at) in function.capabilities() {
            let header = function.read(at);
            let kind = (header >> 24) as usize;
            if number != VENDOR_CAPABILITY || !matches!(kind, 1..5) || found[kind].is_some() {
                continue;
            }
            let bar = function.read(at + 4) as u8;
            let (offset, bytes) = (function.read(at + 8), function.read(at + 12));
            let window = function.window(
                bar,
                offset.into(),
                bytes.into(),
                &mut platform.addresses,
                &mut platform.arena,
            );
            found[kind] = window.map(|window| (window, at));
        }
        let (common, _) = found[1].ok_or(Fault::Structure("common"))?;
        let (notify, notify_at) = found[2].ok_or(Fault::Structure("notification"))?;
        let device = Self {
            common,
            notify,
            notify_multiplier: function.read(notify_at + 16),
            config: found[4].map(|(window, _)| window),
            features: 0,
            style: Style::default(),
        };
        device.reset(platform.clock)?;
        Ok(device)
    }

    /// Stops it and waits until it has stopped.
    pub fn reset(&self, clock: Clock) -> Result<(), Fault> {
        self.common.write8(common::STATUS, 0);
        let deadline = clock.deadline_ms(RESET_MS);
        while self.status() != 0 {
            if deadline.is_over() {
                return Err(Fault::Reset);
            }
        }
        Ok(())
    }

    /// Its common configuration.
    fn common(&self) -> Window {
        self.common
    }

    /// All that can be written to, for who wants to misuse it.
    fn windows(&self) -> [Window; 3] {
        let config = self.config.unwrap_or(self.common);
        [self.common, self.notify, config]
    }

    /// Its status byte.
    fn status(&self) -> u8 {
        self.common.read8(common::STATUS)
    }

    /// What it offers.
    pub fn offered(&self) -> u64 {
        let half = |number| {
            self.common.write32(common::DEVICE_FEATURE_SELECT, number);
            u64::from(self.common.read32(common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// What was agreed.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether something was agreed.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Agrees on what is wanted and offered, and what the transport needs.
    pub fn agree(&mut self, wanted: u64, platform: &Platform) -> Result<(), Fault> {
        self.common.write8(common::STATUS, ACKNOWLEDGE);
        self.common.write8(common::STATUS, ACKNOWLEDGE | DRIVER);
        let mut wanted = wanted | VERSION_1 | ACCESS_PLATFORM;
        if platform.use_event_index {
            wanted |= EVENT_IDX;
        }
        if platform.use_indirect {
            wanted |= INDIRECT_DESC;
        }
        let features = wanted & self.offered();
        for number in [0, 1] {
            self.common.write32(common::DRIVER_FEATURE_SELECT, number);
            let half = (features >> (32 * number)) as u32;
            self.common.write32(common::DRIVER_FEATURE, half);
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        self.common.write8(common::STATUS, status);
        if features & VERSION_1 == 0 || self.status() & FEATURES_OK == 0 {
            return Err(Fault::Features(features));
        }
        self.features = features;
        self.style = Style {
            event_index: features & EVENT_IDX != 0,
            indirect: features & INDIRECT_DESC != 0,
            interrupts: self.style.interrupts,
        };
        Ok(())
    }

    /// From now on queues are made so that the device interrupts.
    fn want_interrupts(&mut self) {
        self.style.interrupts = true;
    }

    /// How many queues it has.
    pub fn queues(&self) -> u16 {
        self.common.read16(common::NUM_QUEUES)
    }

    /// Makes a queue of at most `size` entries and tells the device of it.
    pub fn queue(
        &mut self,
        number: u16,
        size: u16,
        platform: &mut Platform,
    ) -> Result<Queue, Fault> {
        self.common.write16(common::QUEUE_SELECT, number);
        let longest = self.common.read16(common::QUEUE_SIZE);
        if longest == 0 {
            return Err(Fault::Queue(number));
        }
        let size = longest.min(size).min(SIZE_MAX);
        let size = 1 << size.max(1).ilog2();
        let notify_off = self.common.read16(common::QUEUE_NOTIFY_OFF);
        let offset = u64::from(notify_off) * u64::from(self.notify_multiplier);
        let notify = self
            .notify
            .part(offset, 4)
            .filter(|window| window.bytes() >= 2)
            .ok_or(Fault::Structure("notification"))?;
        let queue = Queue::new(size, number, self.style, notify, &mut platform.arena)
            .ok_or(Fault::Memory)?;
        self.place(&queue);
        Ok(queue)
    }

    /// Tells the device where a queue is.
    fn place(&self, queue: &Queue) {
        self.misplace(queue, &queue.addresses());
    }

    /// Tells the device that a queue is somewhere, right or wrong.
    fn misplace(&self, queue: &Queue, addresses: &queue::Addresses) {
        let common = &self.common;
        common.write16(common::QUEUE_SELECT, queue.number());
        common.write16(common::QUEUE_SIZE, queue.size());
        common.write64(common::QUEUE_DESCRIPTORS, addresses.descriptors);
        common.write64(common::QUEUE_AVAILABLE, addresses.available);
        common.write64(common::QUEUE_USED, addresses.used);
        common.write16(common::QUEUE_ENABLE, 1);
    }

    /// Everything is set up: it may begin.
    pub fn begin(&self) {
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        self.common.write8(common::STATUS, status);
    }

    /// A byte of its own configuration; 0 if there is none.
    pub fn config8(&self, offset: u64) -> u8 {
        self.config.map_or(0, |config| config.read8(offset))
    }

    /// Two bytes of its own configuration.
    pub fn config16(&self, offset: u64) -> u16 {
        self.config.map_or(0, |config| config.read16(offset))
    }

    /// Four bytes of its own configuration.
    pub fn config32(&self, offset: u64) -> u32 {
        self.config.map_or(0, |config| config.read32(offset))
    }

    /// Eight bytes of its own configuration, read until they did not change meanwhile; a few times at most.
    pub fn config64(&self, offset: u64) -> u64 {
        let mut value = 0;
        for _ in 0..8 {
            let before = self.common.read8(common::GENERATION);
            let (low, high) = (self.config32(offset), self.config32(offset + 4));
            value = u64::from(high) << 32 | u64::from(low);
            if self.common.read8(common::GENERATION) == before {
                break;
            }
        }
        value
    }

    /// Writes four bytes of its own configuration.
    pub fn set_config32(&self, offset: u64, value: u32) {
        if let Some(config) = self.config {
            config.write32(offset, value);
        }
    }
}
