//! Proves that a device interrupts by MSI-X (PCI Local Bus 3.0, 6.8.2): that each request brings one interrupt, and
//! that a masked one is held back until it is let go.

use core::fmt::Write;

use super::pci::Function;
use super::probe::{self, Probe};
use super::{Device, Fault, Platform, common};
use crate::interrupts::Interrupts;
use crate::kind::Kind;
use crate::serial::Serial;

const CAPABILITY: u8 = 0x11;
const ENABLE: u32 = 1 << 31;
const MASK_ALL: u32 = 1 << 30;
const ENTRY_BYTES: u64 = 16;
const NO_VECTOR: u16 = 0xffff;
const REQUESTS: u64 = 3;
const ARRIVAL_MS: u64 = 5000;
/// An interrupt that does not come in this time is held back.
const HELD_MS: u64 = 50;

/// Tells of a device whether it interrupts.
pub fn run(kind: Kind, number: usize, function: Function, platform: &mut Platform) {
    let name = kind.name();
    let _ = match measure(kind, function, platform) {
        Ok((interrupts, held)) => writeln!(
            Serial,
            "guest: {name} {number}: msix requests {REQUESTS} interrupts {interrupts} held {}",
            u8::from(held)
        ),
        Err(fault) => writeln!(Serial, "guest: {name} {number}: fault: {fault}"),
    };
}

fn measure(kind: Kind, function: Function, platform: &mut Platform) -> Result<(u64, bool), Fault> {
    const MISSING: Fault = Fault::Structure("MSI-X");
    let (_, at) = function
        .capabilities()
        .find(|(number, _)| *number == CAPABILITY)
        .ok_or(MISSING)?;
    let place = function.read(at + 4);
    let table = function
        .window(
            (place & 7) as u8,
            u64::from(place & !7),
            ENTRY_BYTES,
            &mut platform.addresses,
            &mut platform.arena,
        )
        .ok_or(MISSING)?;
    let mut device = Device::open(function, platform)?;
    device.want_interrupts();
    device.agree(0, platform)?;
    let interrupts = Interrupts::on(platform).ok_or(Fault::Memory)?;
    let (address, data) = interrupts.message();
    table.write64(0, address);
    table.write32(8, data);
    table.write32(12, 0);
    let control = function.read(at);
    function.write(at, control & !MASK_ALL | ENABLE);
    let probe = Probe::new(kind, &mut platform.arena)?;
    let common = device.common();
    let mut queues = probe::queues(&mut device, platform)?;
    common.write16(common::QUEUE_SELECT, probe.queue);
    common.write16(common::QUEUE_MSIX_VECTOR, 0);
    if common.read16(common::QUEUE_MSIX_VECTOR) == NO_VECTOR {
        return Err(MISSING);
    }
    device.begin();
    let queue = queues[usize::from(probe.queue)]
        .as_mut()
        .ok_or(Fault::Queue(probe.queue))?;
    for request in 0..REQUESTS {
        probe.run(queue, platform)?;
        let deadline = platform.clock.deadline_ms(ARRIVAL_MS);
        while interrupts.count() <= request && !deadline.is_over() {}
    }
    let counted = interrupts.count();
    table.write32(12, 1);
    probe.run(queue, platform)?;
    let deadline = platform.clock.deadline_ms(HELD_MS);
    while interrupts.count() == counted && !deadline.is_over() {}
    let is_held = interrupts.count() == counted;
    table.write32(12, 0);
    let deadline = platform.clock.deadline_ms(ARRIVAL_MS);
    while interrupts.count() == counted && !deadline.is_over() {}
    let is_let_go = interrupts.count() == counted + 1;
    device.reset(platform.clock)?;
    function.write(at, control & !ENABLE);
    Ok((counted, is_held && is_let_go))
}
