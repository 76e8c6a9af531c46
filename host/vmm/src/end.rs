//! How a guest ends, told once to the event loop.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use dwcp_jail::Kind;
use vmm_sys_util::eventfd::EventFd;

/// Why no more instruction of the guest will run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEnd {
    /// It switched itself off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// It crashed beyond its own exception handling.
    TripleFault,
    /// It was told to stop at once.
    Stopped,
    /// It cannot go on, for a reason that lies in KVM or in this process.
    Failed(String),
}

impl GuestEnd {
    /// What to say last.
    pub fn last_words(&self) -> (Kind, &str) {
        match self {
            Self::PowerOff => (Kind::Guest, "power-off"),
            Self::Reset => (Kind::Guest, "reset"),
            Self::TripleFault => (Kind::Guest, "triple-fault"),
            Self::Stopped => (Kind::Guest, "stopped"),
            Self::Failed(why) => (Kind::Error, why),
        }
    }

    /// Whether this is an end of the guest's or the operator's own making.
    pub fn is_orderly(&self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}

/// Where a vCPU leaves the news; the first one counts.
#[derive(Debug)]
pub struct EndNotice {
    end: OnceLock<GuestEnd>,
    event: EventFd,
}

impl EndNotice {
    /// No end yet.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            end: OnceLock::new(),
            event: EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?,
        })
    }

    /// Leaves the news.
    pub fn tell(&self, end: GuestEnd) {
        if self.end.set(end).is_ok() {
            // Cannot fail: this is the only write.
            let _ = self.event.write(1);
        }
    }

    /// The news, if there are any.
    pub fn get(&self) -> Option<&GuestEnd> {
        self.end.get()
    }

    /// Readable once the guest has ended.
    pub fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the event is ours and stays open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}
