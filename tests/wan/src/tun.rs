//! A TUN device in a namespace: made, addressed, and gone when its descriptor is closed.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// Largest IP packet, in bytes.
pub const MTU: usize = 1500;
/// The device's name in either namespace.
const NAME: &str = "wan";
/// Packets that wait in the kernel until we read them; the link's own queue is what is meant to be full.
const KERNEL_QUEUE_PACKETS: libc::c_int = 4096;

/// An IPv4 address and its prefix, such as `10.77.0.1/30`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    ip: Ipv4Addr,
    prefix: u32,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let Some((ip, prefix)) = text.split_once('/') else {
            bail!("An address is written with its prefix, such as 10.77.0.1/30");
        };
        let prefix = prefix.parse()?;
        ensure!((1..=31).contains(&prefix), "A prefix is 1 to 31");
        Ok(Self {
            ip: ip.parse()?,
            prefix,
        })
    }
}

/// Makes the device inside a namespace (a name that `ip netns` knows, or a path), with its address, up.
///
/// The descriptor is non-blocking: each read takes one packet, each write gives one.
pub fn create(namespace: &Path, address: Address) -> anyhow::Result<OwnedFd> {
    // A plain name becomes a path; a path stays one.
    let path = Path::new("/run/netns").join(namespace);
    let file = File::open(&path)
        .with_context(|| format!("There is no network namespace {}", path.display()))?;
    let thread = std::thread::spawn(move || -> anyhow::Result<OwnedFd> {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context("The namespace cannot be entered")?;
        let device = open().context("/dev/net/tun cannot be used")?;
        configure(address).context("The device cannot be given its address")?;
        Ok(device)
    });
    match thread.join() {
        Ok(result) => result,
        Err(_) => bail!("The thread that makes the device panicked"),
    }
}

fn open() -> io::Result<OwnedFd> {
    let device = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = request();
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is a whole ifreq with name and flags set; the kernel copies it.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &request) };
    Errno::result(result)?;
    Ok(device.into())
}

fn configure(address: Address) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let change = |number: libc::Ioctl, fill: &dyn Fn(&mut libc::ifreq)| {
        let mut request = request();
        fill(&mut request);
        // SAFETY: the request is a whole ifreq, and the field that this ioctl reads is set by `fill`.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), number, &request) };
        Errno::result(result).map(drop)
    };
    // Neighbour discovery would count as traffic. Where there is no IPv6, there is nothing to turn off.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{NAME}/disable_ipv6"), "1");
    let mask = Ipv4Addr::from(u32::MAX << (32 - address.prefix));
    change(libc::SIOCSIFADDR, &|request| {
        request.ifr_ifru.ifru_addr = socket_address(address.ip)
    })?;
    change(libc::SIOCSIFNETMASK, &|request| {
        request.ifr_ifru.ifru_netmask = socket_address(mask)
    })?;
    change(libc::SIOCSIFMTU, &|request| {
        request.ifr_ifru.ifru_mtu = MTU as libc::c_int
    })?;
    change(libc::SIOCSIFTXQLEN, &|request| {
        request.ifr_ifru.ifru_metric = KERNEL_QUEUE_PACKETS
    })?;
    change(libc::SIOCSIFFLAGS, &|request| {
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    })?;
    Ok(())
}

fn request() -> libc::ifreq {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn socket_address(ip: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(ip).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes, and the kernel reads the one as the other by its family.
    unsafe { std::mem::transmute(address) }
}
