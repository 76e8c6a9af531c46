//! Guest RAM that is filled as it is touched: Linux's userfaultfd, in missing mode.
//!
//! What always holds for whoever uses this: pages enter by [`FaultChannel::copy`] or [`FaultChannel::zero`] and by no
//! other way, which never overwrite a page that is there; somebody keeps a descriptor open until the last page has
//! come, because when the last one closes, what is missing reads as zeros without a word.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::{HostMap, MemoryError, PAGE_BYTES, PageIndex};

/// Numbers and structures of `include/uapi/linux/userfaultfd.h`.
mod uapi {
    pub const API: u64 = 0xaa;
    pub const REGISTER_MODE_MISSING: u64 = 1;
    pub const EVENT_PAGEFAULT: u8 = 0x12;
    pub const USER_MODE_ONLY: libc::c_int = 1;
    /// Length of a message.
    pub const MESSAGE_BYTES: usize = 32;

    #[repr(C)]
    pub struct Api {
        pub api: u64,
        pub features: u64,
        pub ioctls: u64,
    }

    #[repr(C)]
    pub struct Range {
        pub start: u64,
        pub len: u64,
    }

    #[repr(C)]
    pub struct Register {
        pub range: Range,
        pub mode: u64,
        pub ioctls: u64,
    }

    #[repr(C)]
    pub struct Copy {
        pub dst: u64,
        pub src: u64,
        pub len: u64,
        pub mode: u64,
        pub copied: i64,
    }

    #[repr(C)]
    pub struct Zero {
        pub range: Range,
        pub mode: u64,
        pub zeroed: i64,
    }

    nix::ioctl_write_int_bad!(new, nix::request_code_none!(0xaa, 0x00));
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, Api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, Register);
    nix::ioctl_read!(unregister, 0xaa, 0x01, Range);
    nix::ioctl_read!(wake, 0xaa, 0x02, Range);
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, Copy);
    nix::ioctl_readwrite!(zero, 0xaa, 0x04, Zero);
}

/// Number of the `ioctl` by which memory begins to be watched, for filters of system calls.
pub const WATCH_REQUEST: u32 =
    nix::request_code_readwrite!(0xaa, 0x00, size_of::<uapi::Register>()) as u32;
/// Numbers of those by which it is filled.
pub const FILL_REQUESTS: [u32; 4] = [
    nix::request_code_read!(0xaa, 0x01, size_of::<uapi::Range>()) as u32,
    nix::request_code_read!(0xaa, 0x02, size_of::<uapi::Range>()) as u32,
    nix::request_code_readwrite!(0xaa, 0x03, size_of::<uapi::Copy>()) as u32,
    nix::request_code_readwrite!(0xaa, 0x04, size_of::<uapi::Zero>()) as u32,
];

/// Where missing pages are told, and where they enter.
#[derive(Debug)]
pub struct FaultChannel {
    file: File,
}

impl FaultChannel {
    /// Makes one for this process. With `/dev/userfaultfd` it serves every access; without, only those made in user
    /// mode, and KVM's own are not among them.
    pub fn create(device: Option<BorrowedFd<'_>>) -> Result<Self, MemoryError> {
        let refused = |errno| MemoryError::system("make a userfaultfd", errno);
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let made = match device {
            // SAFETY: plain system call; a descriptor that is another device refuses it.
            Some(device) => unsafe { uapi::new(device.as_raw_fd(), flags) }.map_err(refused)?,
            None => {
                // SAFETY: plain system call.
                let made =
                    unsafe { libc::syscall(libc::SYS_userfaultfd, flags | uapi::USER_MODE_ONLY) };
                Errno::result(made).map_err(refused)? as libc::c_int
            }
        };
        // SAFETY: the kernel has just made it, and nothing else owns it.
        let channel = Self::from(unsafe { OwnedFd::from_raw_fd(made) });
        let mut api = uapi::Api {
            api: uapi::API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the structure is as the kernel defines it.
        unsafe { uapi::api(channel.raw(), &raw mut api) }.map_err(refused)?;
        Ok(channel)
    }

    /// Begins to hold back whoever touches a missing page among `count` from `first` on.
    pub fn watch(&self, hosts: &HostMap, first: PageIndex, count: u64) -> Result<(), MemoryError> {
        for (start, len) in hosts.spans(first, count) {
            let mut register = uapi::Register {
                range: uapi::Range { start, len },
                mode: uapi::REGISTER_MODE_MISSING,
                ioctls: 0,
            };
            // SAFETY: the structure is as the kernel defines it; no memory is changed by this.
            unsafe { uapi::register(self.raw(), &raw mut register) }
                .map_err(|errno| MemoryError::system("watch guest memory for faults", errno))?;
        }
        Ok(())
    }

    /// Ends that, and lets everybody go on who was held back. What is still missing reads as zeros from now on.
    pub fn release(
        &self,
        hosts: &HostMap,
        first: PageIndex,
        count: u64,
    ) -> Result<(), MemoryError> {
        for (start, len) in hosts.spans(first, count) {
            let mut range = uapi::Range { start, len };
            // SAFETY: the structure is as the kernel defines it.
            unsafe { uapi::unregister(self.raw(), &raw mut range) }
                .map_err(|errno| MemoryError::system("end watching guest memory", errno))?;
        }
        Ok(())
    }

    /// Lets everybody go on who was held back in a range: who still misses a page is told anew.
    pub fn wake(&self, hosts: &HostMap, first: PageIndex, count: u64) -> Result<(), MemoryError> {
        for (start, len) in hosts.spans(first, count) {
            let mut range = uapi::Range { start, len };
            // SAFETY: the structure is as the kernel defines it.
            unsafe { uapi::wake(self.raw(), &raw mut range) }
                .map_err(|errno| MemoryError::system("wake a guest", errno))?;
        }
        Ok(())
    }

    /// The address of a missing page that somebody touched, if there is news. Does not wait.
    pub fn next(&self) -> Result<Option<u64>, MemoryError> {
        let mut message = [0u8; uapi::MESSAGE_BYTES];
        loop {
            return match (&self.file).read(&mut message) {
                Ok(uapi::MESSAGE_BYTES) if message[0] == uapi::EVENT_PAGEFAULT => {
                    // event (8 bytes with what is reserved), flags, address.
                    let mut address = [0; 8];
                    address.copy_from_slice(&message[16..24]);
                    Ok(Some(u64::from_ne_bytes(address)))
                }
                // No other event was asked for.
                Ok(_) => continue,
                Err(error) => match error.kind() {
                    std::io::ErrorKind::WouldBlock => Ok(None),
                    std::io::ErrorKind::Interrupted => continue,
                    _ => Err(MemoryError::system("tell of a page fault", error)),
                },
            };
        }
    }

    /// Puts whole pages in place, from `first` on, and lets everybody go on who waits for them. A page that is there
    /// already stays as it is.
    pub fn copy(&self, hosts: &HostMap, first: PageIndex, bytes: &[u8]) -> Result<(), MemoryError> {
        if !bytes.len().is_multiple_of(PAGE_BYTES) {
            return Err(MemoryError::PartialPage(bytes.len()));
        }
        let mut rest = bytes;
        for (start, len) in hosts.spans(first, (bytes.len() / PAGE_BYTES) as u64) {
            let (now, later) = rest.split_at(rest.len().min(len as usize));
            self.enter(start, now.len() as u64, |at, left| {
                let done = now.len() - left as usize;
                let mut copy = uapi::Copy {
                    dst: at,
                    src: now[done..].as_ptr() as u64,
                    len: left,
                    mode: 0,
                    copied: 0,
                };
                // SAFETY: the source is `left` bytes of `now`; the destination is checked by the kernel to be watched.
                let result = unsafe { uapi::copy(self.raw(), &raw mut copy) };
                (result, copy.copied)
            })?;
            rest = later;
        }
        Ok(())
    }

    /// As [`FaultChannel::copy`], with zeros.
    pub fn zero(&self, hosts: &HostMap, first: PageIndex, count: u64) -> Result<(), MemoryError> {
        for (start, len) in hosts.spans(first, count) {
            self.enter(start, len, |at, left| {
                let mut zero = uapi::Zero {
                    range: uapi::Range {
                        start: at,
                        len: left,
                    },
                    mode: 0,
                    zeroed: 0,
                };
                // SAFETY: the structure is as the kernel defines it.
                let result = unsafe { uapi::zero(self.raw(), &raw mut zero) };
                (result, zero.zeroed)
            })?;
        }
        Ok(())
    }

    /// The descriptor, to be handed on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Repeats a request that may do a part: each turn gets at least one page further, or the address space was
    /// changing and it is asked again.
    fn enter(
        &self,
        start: u64,
        len: u64,
        mut step: impl FnMut(u64, u64) -> (nix::Result<libc::c_int>, i64),
    ) -> Result<(), MemoryError> {
        let page = PAGE_BYTES as u64;
        let mut done = 0;
        while done < len {
            let (result, part) = step(start + done, len - done);
            done += match (result, u64::try_from(part)) {
                (Ok(_), _) => len - done,
                // A part was done; what stopped it is met at the next turn.
                (Err(Errno::EAGAIN), Ok(part)) if part > 0 => part,
                (Err(Errno::EAGAIN), _) => {
                    std::thread::yield_now();
                    0
                }
                // It is there already; who waits for it may go on.
                (Err(Errno::EEXIST), _) => {
                    let mut range = uapi::Range {
                        start: start + done,
                        len: page,
                    };
                    // SAFETY: the structure is as the kernel defines it.
                    let woken = unsafe { uapi::wake(self.raw(), &raw mut range) };
                    woken.map_err(|errno| MemoryError::system("wake a guest", errno))?;
                    page
                }
                (Err(errno), _) => {
                    return Err(MemoryError::system("put a page in place", errno));
                }
            };
        }
        Ok(())
    }

    fn raw(&self) -> libc::c_int {
        self.file.as_raw_fd()
    }
}

/// One that was made elsewhere, for the memory of the process that made it.
impl From<OwnedFd> for FaultChannel {
    fn from(fd: OwnedFd) -> Self {
        Self {
            file: File::from(fd),
        }
    }
}

impl AsFd for FaultChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}
