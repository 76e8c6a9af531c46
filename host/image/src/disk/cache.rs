//! A few blocks of a disk kept in memory, and the account of how much was read.
//!
//! What always holds: a block is as large as a cluster of the image, so that a compressed cluster is not unpacked once
//! for every sector in it; the memory is bounded; every block that is fetched is paid for, and when nothing is left,
//! reading fails for good.

use std::io;

/// Smallest block.
const BLOCK_BYTES_MIN: u64 = 64 << 10;
/// Memory for blocks.
const CACHE_BYTES: u64 = 8 << 20;
/// Fewest blocks, however large they are.
const BLOCKS_MIN: u64 = 4;

/// Blocks that were read last.
#[derive(Debug)]
pub(super) struct Cache {
    block_bytes: u64,
    blocks_max: usize,
    /// The one used last is at the end.
    blocks: Vec<(u64, Box<[u8]>)>,
    bytes_left: u64,
}

impl Cache {
    /// A cache for a disk that is best read in blocks of `block_bytes`, from which at most `bytes_max` are read.
    pub(super) fn new(block_bytes: u64, bytes_max: u64) -> Self {
        let block_bytes = block_bytes.max(BLOCK_BYTES_MIN);
        Self {
            block_bytes,
            blocks_max: (CACHE_BYTES / block_bytes).max(BLOCKS_MIN) as usize,
            blocks: Vec::new(),
            bytes_left: bytes_max,
        }
    }

    /// Fills `buffer` from `offset` of a disk of `disk_bytes`; `fetch` reads at an offset.
    pub(super) fn read(
        &mut self,
        disk_bytes: u64,
        mut offset: u64,
        mut buffer: &mut [u8],
        fetch: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > disk_bytes) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "The image points beyond the end of the disk",
            ));
        }
        while !buffer.is_empty() {
            let number = offset / self.block_bytes;
            let start = (offset % self.block_bytes) as usize;
            let block = self.block(disk_bytes, number, &fetch)?;
            let length = buffer.len().min(block.len().saturating_sub(start));
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer[..length].copy_from_slice(&block[start..start + length]);
            buffer = &mut buffer[length..];
            offset += length as u64;
        }
        Ok(())
    }

    fn block(
        &mut self,
        disk_bytes: u64,
        number: u64,
        fetch: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<&[u8]> {
        let block = match self.blocks.iter().position(|(kept, _)| *kept == number) {
            Some(index) => self.blocks.remove(index).1,
            None => {
                let at = number * self.block_bytes;
                let bytes = self.block_bytes.min(disk_bytes - at);
                self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or_else(|| {
                    io::Error::other(
                        "The image makes too much work: the limit of bytes read is reached",
                    )
                })?;
                let mut block = if self.blocks.len() < self.blocks_max {
                    Vec::new()
                } else {
                    self.blocks.remove(0).1.into_vec()
                };
                block.resize(bytes as usize, 0);
                fetch(at, &mut block)?;
                block.into_boxed_slice()
            }
        };
        self.blocks.push((number, block));
        match self.blocks.last() {
            Some((_, block)) => Ok(block),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::cell::Cell;

    fn pattern(offset: u64) -> u8 {
        (offset % 251) as u8
    }

    #[test]
    fn reads_are_what_the_disk_holds_wherever_they_lie() {
        let bytes = 10 * BLOCK_BYTES_MIN + 17;
        let mut cache = Cache::new(0, u64::MAX);
        for (offset, length) in [
            (0, 1),
            (BLOCK_BYTES_MIN - 1, 2),
            (3, 200_000),
            (bytes - 17, 17),
            (0, bytes),
        ] {
            let mut buffer = vec![0xee; length as usize];
            cache
                .read(bytes, offset, &mut buffer, |at, block| {
                    for (index, byte) in block.iter_mut().enumerate() {
                        *byte = pattern(at + index as u64);
                    }
                    Ok(())
                })
                .unwrap();
            assert!((0..length).all(|index| buffer[index as usize] == pattern(offset + index)));
        }
    }

    #[test]
    fn beyond_the_end_is_an_error() {
        let mut cache = Cache::new(0, u64::MAX);
        for offset in [5, 10, u64::MAX] {
            let result = cache.read(10, offset, &mut [0; 6], |_, _| Ok(()));
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn what_is_kept_is_not_fetched_again_and_the_rest_is_paid_for() {
        let fetched = Cell::new(0);
        let fetch = |_: u64, _: &mut [u8]| {
            fetched.set(fetched.get() + 1);
            Ok(())
        };
        let mut cache = Cache::new(0, 3 * BLOCK_BYTES_MIN);
        for _ in 0..100 {
            cache.read(1 << 40, 0, &mut [0; 512], fetch).unwrap();
        }
        assert_eq!(fetched.get(), 1);
        cache.read(1 << 40, 1 << 30, &mut [0; 1], fetch).unwrap();
        cache.read(1 << 40, 1 << 31, &mut [0; 1], fetch).unwrap();
        assert!(cache.read(1 << 40, 1 << 32, &mut [0; 1], fetch).is_err());
    }
}
