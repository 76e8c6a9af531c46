//! What was typed for the guest's virtio console and has not reached it yet.
//!
//! The event loop adds, the device's thread takes. Nothing is added while the guest's driver gives no room for it: then
//! the serial port is typed to.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Most that may wait.
pub const TYPED_BYTES_MAX: usize = 4096;

/// The input, and the event that tells the device of it.
#[derive(Debug)]
pub struct Typed {
    bytes: Mutex<VecDeque<u8>>,
    is_wanted: AtomicBool,
    event: EventFd,
}

impl Typed {
    /// Nothing typed, and nothing wanted.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            bytes: Mutex::default(),
            is_wanted: AtomicBool::new(false),
            event: EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?,
        })
    }

    /// Readable when something was typed.
    pub fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the event is ours and stays open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }

    /// Clears the event.
    pub fn quiet(&self) {
        let _ = self.event.read();
    }

    /// How much may be typed now; `None` if the guest takes nothing here.
    pub fn room(&self) -> Option<usize> {
        let room = TYPED_BYTES_MAX - self.lock().len();
        self.is_wanted.load(Ordering::SeqCst).then_some(room)
    }

    /// Says whether the guest takes input here.
    pub fn want(&self, is_wanted: bool) {
        self.is_wanted.store(is_wanted, Ordering::SeqCst);
    }

    /// Adds input, as much as there is room for.
    pub fn add(&self, input: &[u8]) {
        let mut bytes = self.lock();
        let room = TYPED_BYTES_MAX - bytes.len();
        bytes.extend(&input[..input.len().min(room)]);
        drop(bytes);
        // Fails only when the counter is full, and then the device is being told already.
        let _ = self.event.write(1);
    }

    /// Takes at most `most` bytes.
    pub fn take(&self, most: usize) -> Vec<u8> {
        let mut bytes = self.lock();
        let count = most.min(bytes.len());
        bytes.drain(..count).collect()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// What waits.
    pub fn save(&self) -> Vec<u8> {
        self.lock().iter().copied().collect()
    }

    /// Replaces what waits, by at most [`TYPED_BYTES_MAX`] bytes; answers whether it fits.
    pub fn load(&self, saved: &[u8]) -> bool {
        let fits = saved.len() <= TYPED_BYTES_MAX;
        if fits {
            *self.lock() = saved.iter().copied().collect();
        }
        fits
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
