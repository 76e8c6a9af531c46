//! Taps: Ethernet interfaces of this host whose other end is a descriptor.
//!
//! What always holds: a tap is never persistent as it is made, so it vanishes with the last copy of its descriptor.
//! This module must not know who gets it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

/// Bytes of the header before each frame: virtio 1.3, 5.1.6, `struct virtio_net_hdr` with `num_buffers`.
const HEADER_BYTES: libc::c_int = 12;
/// What the host may leave to the guest, and the guest to the host: checksums, and segments of TCP and UDP.
const OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_UFO;

/// Lets a tap vanish with its last descriptor, whatever somebody who has one said meanwhile.
pub fn let_vanish(device: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the argument is a number.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 0) }).map(drop)
}

/// Makes a tap of that name, which must be free ([`Errno::EBUSY`]). It is down and belongs to nothing.
///
/// The descriptor is non-blocking: each read takes one frame, each write gives one, with its header before it.
pub fn create(name: &str) -> std::io::Result<OwnedFd> {
    let device = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENAMETOOLONG.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    let fd = device.as_raw_fd();
    // SAFETY: the request is a whole ifreq with name and flags; the kernel copies it.
    Errno::result(unsafe { libc::ioctl(fd, libc::TUNSETIFF, &raw const request) })?;
    let header_bytes = HEADER_BYTES;
    // SAFETY: the kernel reads one int.
    Errno::result(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const header_bytes) })?;
    let offloads = libc::c_ulong::from(OFFLOADS);
    // SAFETY: the argument is a number.
    Errno::result(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, offloads) })?;
    Ok(device.into())
}
