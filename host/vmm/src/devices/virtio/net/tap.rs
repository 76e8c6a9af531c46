//! What a card sets on its tap (Linux, include/uapi/linux/if_tun.h).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// `TUNSETOFFLOAD`.
pub const SET_OFFLOAD: libc::c_ulong = 0x4004_54d0;
const CHECKSUM: libc::c_uint = 1;
const TSO4: libc::c_uint = 2;
const TSO6: libc::c_uint = 4;

/// What the reader of frames can do itself.
#[derive(Debug, Clone, Copy)]
pub struct Offload {
    /// Take frames whose checksum is not complete.
    pub checksum: bool,
    /// Take TCP over IPv4 that is not cut into segments.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
}

/// Says what the guest can do; segmentation needs checksums.
pub fn set_offload(tap: impl AsFd, offload: Offload) -> io::Result<()> {
    let bit = |is_set: bool, bit: libc::c_uint| if is_set { bit } else { 0 };
    let flags = bit(offload.checksum, CHECKSUM)
        | bit(offload.checksum && offload.tso4, TSO4)
        | bit(offload.checksum && offload.tso6, TSO6);
    // SAFETY: the request takes a number, no pointer.
    let result = unsafe {
        libc::ioctl(
            tap.as_fd().as_raw_fd(),
            SET_OFFLOAD,
            libc::c_ulong::from(flags),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Frames are taken when there are some, never waited for.
pub fn set_non_blocking(tap: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&tap, FcntlArg::F_GETFL)?);
    fcntl(&tap, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
