//! The entropy device (virtio 1.3, 5.4): one queue of buffers to be filled.

use core::fmt::Write;

use crate::serial::Serial;
use crate::virtio::pci::Function;
use crate::virtio::queue::Piece;
use crate::virtio::{Device, Fault, Platform};

const PAGE_BYTES: usize = 4096;
const ANSWER_MS: u64 = 10_000;

/// What came.
struct Entropy {
    bytes: u64,
    /// Not all bytes are the same.
    is_varied: bool,
}

/// Reads `wanted` bytes and tells of them.
pub fn run(number: usize, function: Function, wanted: u64, platform: &mut Platform) {
    let _ = match read(function, wanted, platform) {
        Ok(entropy) => {
            let varied = u8::from(entropy.is_varied);
            let bytes = entropy.bytes;
            writeln!(Serial, "guest: rng {number}: bytes {bytes} varied {varied}")
        }
        Err(fault) => writeln!(Serial, "guest: rng {number}: fault: {fault}"),
    };
}

fn read(function: Function, wanted: u64, platform: &mut Platform) -> Result<Entropy, Fault> {
    let mut device = Device::open(function, platform)?;
    device.agree(0, platform)?;
    let mut queue = device.queue(0, 8, platform)?;
    let buffer = platform.arena.take(PAGE_BYTES).ok_or(Fault::Memory)?;
    device.begin();
    let mut entropy = Entropy {
        bytes: 0,
        is_varied: false,
    };
    let mut first = None;
    while entropy.bytes < wanted {
        let length = (wanted - entropy.bytes).min(PAGE_BYTES as u64) as usize;
        queue.add(&[Piece::writable(buffer.address(), length)]);
        queue.notify();
        let deadline = platform.clock.deadline_ms(ANSWER_MS);
        let written = loop {
            if let Some((_, written)) = queue.take_used() {
                break (written as usize).min(length);
            }
            if deadline.is_over() {
                return Err(Fault::Silent);
            }
        };
        for byte in &buffer.slice()[..written] {
            entropy.is_varied |= *byte != *first.get_or_insert(*byte);
        }
        entropy.bytes += written as u64;
        if written == 0 {
            break;
        }
    }
    device.reset(platform.clock)?;
    Ok(entropy)
}
