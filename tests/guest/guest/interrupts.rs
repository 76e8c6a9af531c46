//! Message-signalled interrupts, for as long as somebody wants to count them.
//!
//! Ring 3 has no right to open itself to interrupts; an exception handler does it (see `boot.rs`).

use crate::boot;
use crate::ports::out8;
use crate::virtio::Platform;
use crate::virtio::mmio::Window;

const LOCAL_APIC: u64 = 0xfee0_0000;
const SPURIOUS: u64 = 0xf0;
const ID: u64 = 0x20;
const SOFTWARE_ENABLE: u32 = 0x100;
const CONTROLLER_MASKS: [u16; 2] = [0x21, 0xa1];

/// Interrupts are open while this lives.
pub struct Interrupts {
    apic: Window,
    before: u64,
}

impl Interrupts {
    /// Opens this CPU to interrupts. Those of the old controllers are masked: nobody here wants them.
    pub fn on(platform: &mut Platform) -> Option<Self> {
        let apic = Window::map(LOCAL_APIC, 0x400, &mut platform.arena)?;
        CONTROLLER_MASKS
            .into_iter()
            .for_each(|port| out8(port, 0xff));
        apic.write32(SPURIOUS, SOFTWARE_ENABLE | boot::SPURIOUS_VECTOR);
        let before = boot::interrupts();
        boot::toggle_interrupts();
        Some(Self { apic, before })
    }

    /// Address and data of the message that interrupts this CPU.
    pub fn message(&self) -> (u64, u32) {
        let id = u64::from(self.apic.read32(ID) >> 24);
        (LOCAL_APIC | id << 12, boot::DEVICE_VECTOR)
    }

    /// Interrupts since they were opened.
    pub fn count(&self) -> u64 {
        boot::interrupts() - self.before
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        boot::toggle_interrupts();
    }
}
