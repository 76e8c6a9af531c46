//! Virtio devices over PCI (virtio 1.3): what is the same for all of them, and what each one is.
//!
//! ```text
//!   vCPU threads                                the device's own thread
//!   Transport: registers, features, status      Worker: queues, and a Backend that serves them
//!        | Activate (driver is ready) / Reset        |
//!        |------------------------------------------>|   answered before the guest's write is done
//!        | notify register: an event per queue       |
//!        |------------------------------------------>|
//!        |        interrupts, by Msix                |
//!        |<------------------------------------------|
//! ```
//!
//! The event loop pauses and resumes workers, asks them for their state, and asks for what an operator wants (a new
//! size, a limit). A worker that is paused has nothing in flight: what it took from a queue is done and given back.
//!
//! A driver that breaks the specification has its device marked as in need of a reset (2.1.2); nothing else of the VM
//! is touched.

mod balloon;
mod block;
mod console;
#[cfg(test)]
mod driver;
mod function;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod interrupts;
mod limit;
mod net;
mod own;
mod queue;
mod registers;
mod rng;
mod running;
mod vsock;
mod worker;

pub use balloon::Balloon;
pub use block::{Block, ChainDisk, Disk, RawDisk};
pub use console::{Console, Typed};
pub use function::{DeviceError, Function, FunctionState};
pub use interrupts::Interrupts;
pub use net::Net;
pub use own::OwnRegisters;
pub use queue::{Broken, Chain, Queue, QueueState};
pub use rng::Rng;
pub use running::Running;
pub use vsock::Vsock;
pub use worker::{
    ANSWER_TIMEOUT, Answer, Counters, Given, Order, SYNC_TIMEOUT, Worker, WorkerError,
};

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use dwcp_memory::GuestMemory;
use nix::poll::PollFlags;

/// Features of every device here (virtio 1.3, chapter 6).
pub const FEATURE_INDIRECT: u64 = 1 << 28;
/// The driver may say from which entry on it wants to be told.
pub const FEATURE_EVENT_INDEX: u64 = 1 << 29;
/// The device is as virtio 1.0 and later have it.
pub const FEATURE_VERSION_1: u64 = 1 << 32;

/// Which device it is (virtio 1.3, chapter 5), by its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// A network card.
    Net = 1,
    /// A disk.
    Block = 2,
    /// A console.
    Console = 3,
    /// Entropy.
    Rng = 4,
    /// Memory that the guest gives up.
    Balloon = 5,
    /// Sockets between host and guest.
    Vsock = 19,
}

impl Kind {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Block => "block",
            Self::Console => "console",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
            Self::Vsock => "vsock",
        }
    }

    /// Its PCI class, subclass and programming interface.
    fn class(self) -> u32 {
        match self {
            Self::Net => 0x02_00_00,
            Self::Block => 0x01_80_00,
            Self::Rng | Self::Balloon => 0xff_00_00,
            Self::Console | Self::Vsock => 0x07_80_00,
        }
    }
}

/// What a device thread keeps of its system calls, beyond what all of them need.
pub type Rules = Vec<dwcp_jail::Rule>;

/// Why a saved state of a device cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfit;

/// What makes a device the one that it is. Lives on the device's own thread.
///
/// A method that answers `Err` has met a driver that broke the specification: the device stops until it is reset.
pub trait Backend: Send + 'static {
    /// Which device.
    fn kind(&self) -> Kind;

    /// Features beyond those of every device.
    fn features(&self) -> u64;

    /// The longest that each queue may be.
    fn queues(&self) -> Vec<u16>;

    /// The device's own registers.
    fn registers(&self) -> Arc<OwnRegisters> {
        Arc::default()
    }

    /// Where it counts what it does.
    fn counters(&self) -> Arc<Counters> {
        Arc::default()
    }

    /// System calls that it needs beyond those of every device thread.
    fn rules(&self) -> Rules {
        Vec::new()
    }

    /// The same for what it does to the guest's memory as a whole.
    fn memory_rules(&self, _memory: &GuestMemory) -> Rules {
        Vec::new()
    }

    /// The driver is ready, or the device goes on after a pause: every queue is served right after this.
    fn begin(&mut self, _running: &mut Running) -> Result<(), Broken> {
        Ok(())
    }

    /// The driver reset the device.
    fn reset(&mut self) {}

    /// Makes durable what was written to what the device stands on, whatever its driver does. An error keeps a VM from
    /// being paused.
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The device is to be paused: whatever it took from a queue is done, or put back.
    fn rest(&mut self, _running: &mut Running) {}

    /// There may be new entries in a queue.
    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), Broken>;

    /// A descriptor to wait for, besides the queues.
    fn watch(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        None
    }

    /// The descriptor of [`Self::watch`] is ready.
    fn ready(&mut self, _running: &mut Running) -> Result<(), Broken> {
        Ok(())
    }

    /// When it wants to be called although nothing happens.
    fn wakes_at(&self) -> Option<Instant> {
        None
    }

    /// The time of [`Self::wakes_at`] has come.
    fn wake(&mut self, _running: &mut Running) -> Result<(), Broken> {
        Ok(())
    }

    /// Over which socket the host is asked from now on.
    fn hear(&mut self, _host: OwnedFd) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes what it stands on so long; answers whether its registers changed. An error if it cannot, or has nothing
    /// that has a size.
    fn resize(&mut self, _bytes: u64) -> io::Result<bool> {
        let why = "it stands on nothing that has a size";
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    /// The guest shall give up so many pages; answers whether its registers say so now.
    fn aim(&mut self, _pages: u32) -> bool {
        false
    }

    /// What it has to remember beyond its queues and registers.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes back what it remembered.
    fn load(&mut self, bytes: &[u8]) -> Result<(), Unfit> {
        if bytes.is_empty() { Ok(()) } else { Err(Unfit) }
    }
}
