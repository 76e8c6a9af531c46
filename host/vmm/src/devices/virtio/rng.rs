//! Entropy (virtio 1.3, 5.4): random bytes of the host's kernel.

use super::{Backend, Broken, Chain, Kind, Running, queue};

/// Most bytes for one request; a driver that wants more asks again.
const BYTES_MAX: usize = 4096;
const QUEUE_SIZE: u16 = 64;

/// The device.
#[derive(Debug, Default)]
pub struct Rng;

impl Backend for Rng {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), Broken> {
        running.each(queue, |memory, chain: &Chain| {
            let mut bytes = [0; BYTES_MAX];
            let wanted = chain.writable_bytes().min(BYTES_MAX as u64) as usize;
            // SAFETY: the buffer is ours, and as long as is said; up to 256 bytes and after boot this never fails.
            let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), wanted, 0) };
            let got = usize::try_from(got).unwrap_or(0).min(wanted);
            queue::scatter(memory, &chain.writable, &bytes[..got])
        })
    }
}
