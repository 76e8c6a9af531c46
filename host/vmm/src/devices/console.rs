//! The guest's output on its way to the log and to consoles, from the serial port and the virtio console alike.
//!
//! A vCPU or a device only appends here; the event loop takes everything at once. When the loop is late for longer than the
//! buffer lasts, the oldest bytes are lost and counted: the guest never waits.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::virtio::Typed;

/// Output that may wait for the event loop, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// Where all of the guest's consoles end.
#[derive(Debug, Clone)]
pub struct Terminal {
    /// What the guest says.
    pub output: Arc<ConsoleBuffer>,
    /// What is typed for its virtio console.
    pub typed: Arc<Typed>,
}

impl Terminal {
    /// With nothing said and nothing typed.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            output: Arc::new(ConsoleBuffer::new()?),
            typed: Arc::new(Typed::new()?),
        })
    }
}

/// The buffer, and the event that wakes the loop.
#[derive(Debug)]
pub struct ConsoleBuffer {
    output: Mutex<VecDeque<u8>>,
    event: EventFd,
    written: AtomicU64,
}

impl ConsoleBuffer {
    /// An empty buffer.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            output: Mutex::default(),
            event: EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?,
            written: AtomicU64::new(0),
        })
    }

    /// Readable when there is output, or when input is wanted.
    pub fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the event is ours and stays open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }

    /// Bytes that the guest wrote so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Wakes the event loop.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then the loop is being woken already.
        let _ = self.event.write(1);
    }

    /// Clears the event.
    pub fn quiet(&self) {
        let _ = self.event.read();
    }

    /// Appends output.
    pub fn push(&self, bytes: &[u8]) {
        let mut output = self.lock();
        let was_empty = output.is_empty();
        output.extend(bytes);
        let lost = output.len().saturating_sub(OUTPUT_BYTES_MAX);
        output.drain(..lost);
        drop(output);
        self.written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if was_empty {
            self.wake();
        }
    }

    /// Takes all output.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.lock()).into()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
