//! Buffers that the guest gave for frames and that no frame has filled yet, in the order in which they were given.

use std::collections::VecDeque;

use dwcp_memory::GuestRange;

use crate::devices::virtio::Chain;

/// As many as a queue has entries.
const COUNT_MAX: usize = 256;
/// As many pieces as one call of the kernel takes.
const RANGES_MAX: usize = dwcp_memory::RANGES_MAX;

/// The buffers.
#[derive(Debug, Default)]
pub struct Posted {
    chains: VecDeque<Chain>,
    bytes: u64,
}

impl Posted {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.chains.len()
    }

    /// Whether no more may be taken.
    pub fn is_full(&self) -> bool {
        self.count() >= COUNT_MAX
    }

    /// How many bytes fit.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds one.
    pub fn add(&mut self, chain: Chain) {
        self.bytes += chain.writable_bytes();
        self.chains.push_back(chain);
    }

    /// The pieces of the first `most` of them, until `needed` bytes fit.
    pub fn ranges(&self, needed: u64, most: usize) -> Vec<GuestRange> {
        let mut ranges = Vec::new();
        let mut bytes = 0;
        for chain in self.chains.iter().take(most) {
            if bytes >= needed || ranges.len() + chain.writable.len() > RANGES_MAX {
                break;
            }
            bytes += chain.writable_bytes();
            ranges.extend_from_slice(&chain.writable);
        }
        ranges
    }

    /// Takes those that a frame of so many bytes filled: their heads, and how much is in each.
    pub fn take(&mut self, bytes: u64) -> Vec<(u16, u32)> {
        let (mut left, mut used) = (bytes, Vec::new());
        while left > 0
            && let Some(chain) = self.chains.pop_front()
        {
            let room = chain.writable_bytes();
            let here = left.min(room);
            self.bytes -= room;
            left -= here;
            used.push((chain.head, u32::try_from(here).unwrap_or(u32::MAX)));
        }
        used
    }
}
