//! What is written to disks and sent through sockets: bytes that follow from a seed and their place, so that any part
//! can be made and checked without the rest. The host makes the same.

/// The eight bytes at place `word` (byte offset divided by eight) under a seed, little-endian: SplitMix64.
pub fn word(seed: u64, word: u64) -> u64 {
    let mut z = seed.wrapping_add(word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Fills `bytes` with the pattern from byte `offset` on, which must be a multiple of eight.
pub fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    for (number, chunk) in bytes.chunks_mut(8).enumerate() {
        let word = word(seed, offset / 8 + number as u64).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Counts the eight-byte words that are not the pattern from byte `offset` on, which must be a multiple of eight.
pub fn differences(seed: u64, offset: u64, bytes: &[u8]) -> u64 {
    let wrong = bytes.chunks(8).enumerate().filter(|(number, chunk)| {
        word(seed, offset / 8 + *number as u64).to_le_bytes()[..chunk.len()] != **chunk
    });
    wrong.count() as u64
}

/// Where a sum begins.
pub const SUM_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Adds bytes to a sum: FNV-1a, 64 bits.
pub fn add_to_sum(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Counts the bytes that are not the pattern from byte `offset` on, which may be any.
pub fn wrong_bytes(seed: u64, offset: u64, bytes: &[u8]) -> u64 {
    let wrong = (offset..)
        .zip(bytes)
        .filter(|(at, byte)| word(seed, at / 8).to_le_bytes()[(at % 8) as usize] != **byte);
    wrong.count() as u64
}
