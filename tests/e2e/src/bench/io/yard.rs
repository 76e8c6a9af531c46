//! Where the guests of row 20 are: a network namespace with one tap and an echo behind it, and one disk.
//!
//! What always holds: the namespace is this thread's and that of what it starts; it vanishes with them.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::bench::firecracker::ip;
use crate::bench::launcher::DISK_BYTES;

/// The tap's name.
pub const TAP: &str = "dwbn-io";
/// The card's address.
pub const MAC: &str = "02:00:00:00:00:02";
const HOST: &str = "10.99.1.1";
const GUEST: &str = "10.99.1.2";
const PORT: u16 = 7;
/// Bytes of the header before each frame: virtio 1.3, 5.1.6, `struct virtio_net_hdr` with `num_buffers`.
const HEADER_BYTES: libc::c_int = 12;
const OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_UFO;
/// How often the echo looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(200);

/// The place.
#[derive(Debug)]
pub struct Yard {
    dir: tempfile::TempDir,
    cmdline: String,
    /// Ticks of the guest's clock in a millisecond, once they are known.
    khz: Cell<Option<u64>>,
    is_over: Arc<AtomicBool>,
    echo: Option<std::thread::JoinHandle<()>>,
}

impl Yard {
    /// Moves this thread into a namespace of its own, and makes everything there.
    pub fn new(seconds: u64) -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)
            .context("A network namespace cannot be made: run this as root")?;
        ip(&["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])?;
        ip(&["addr", "add", &format!("{HOST}/24"), "dev", TAP])?;
        ip(&["link", "set", TAP, "up"])?;
        let dir = tempfile::Builder::new().prefix("dwcp-bench-").tempdir()?;
        std::fs::write(dir.path().join("guest.elf"), dwcp_guest::elf())?;
        // Holes would need no reading.
        let random = File::open("/dev/urandom")?;
        let mut disk = File::create(dir.path().join("disk.raw"))?;
        std::io::copy(&mut random.take(DISK_BYTES), &mut disk)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let echo = echo(Arc::clone(&is_over))?;
        Ok(Self {
            dir,
            cmdline: format!(
                "fill_mib=8 disk=bench:{seconds} net=bench:{seconds} ip={GUEST}/24 peer={HOST}:{PORT} then=reset"
            ),
            khz: Cell::new(None),
            is_over,
            echo: Some(echo),
        })
    }

    /// The directory of this run.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Our guest.
    pub fn kernel(&self) -> PathBuf {
        self.dir().join("guest.elf")
    }

    /// The disk.
    pub fn disk(&self) -> PathBuf {
        self.dir().join("disk.raw")
    }

    /// What the guest is asked on dwcp-vmm, which adds how fast its clock is.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// What the guest is asked elsewhere.
    pub fn cmdline_with_clock(&self) -> String {
        match self.khz.get() {
            Some(khz) => format!("{} tsc_khz={khz}", self.cmdline),
            None => self.cmdline.clone(),
        }
    }

    /// Notes how fast the guest's clock is, by what the guest said of it.
    pub fn learn_clock(&self, said: &str) -> anyhow::Result<()> {
        let khz = said.lines().find_map(|line| {
            let khz = line.trim_end().strip_prefix("guest: up tsc_khz ")?;
            khz.parse().ok()
        });
        ensure!(khz.is_some(), "The guest did not tell of its clock: {said}");
        self.khz.set(khz);
        Ok(())
    }

    /// The tap, as the launcher would hand it to a VMM.
    pub fn tap(&self) -> anyhow::Result<OwnedFd> {
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
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
}

impl Drop for Yard {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(echo) = self.echo.take() {
            let _ = echo.join();
        }
    }
}

/// Sends back what comes.
fn echo(is_over: Arc<AtomicBool>) -> anyhow::Result<std::thread::JoinHandle<()>> {
    let address: SocketAddr = format!("{HOST}:{PORT}").parse()?;
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(LOOK))?;
    let thread = std::thread::Builder::new().name("bench-echo".into());
    Ok(thread.spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while !is_over.load(Ordering::Relaxed) {
            if let Ok((count, from)) = socket.recv_from(&mut bytes) {
                // A datagram that does not fit into the queue is lost, as in any network.
                let _ = socket.send_to(&bytes[..count], from);
            }
        }
    })?)
}
