//! Streams between programs of the host and programs in a guest (virtio-vsock), in the manner known from Firecracker.
//!
//! ```text
//! vms/ID/vsock.sock         whoever connects says `CONNECT PORT` and a line feed; the guest's program answers, after
//!                           `OK` and a number
//! vms/ID/vsock.sock_PORT    whoever listens there is connected to when the guest connects to PORT of its host
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_vmm::vsock::Asked;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The name of the socket by which guests are connected to.
pub(crate) const SOCKET: &str = "vsock.sock";
/// How long a guest may take to accept a connection.
const ACCEPT: Duration = Duration::from_secs(10);
/// Longest answer to `CONNECT`.
const LINE_BYTES_MAX: usize = 64;

/// The two ends of what is asked over.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    Ok(socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Answers a guest until its process ends, or another end was given to it. In a thread: there is one wait at a time.
pub(crate) fn answer(asking: OwnedFd, dir: PathBuf) -> io::Result<()> {
    let serve = move || {
        while let Ok(Some(asked)) = Asked::receive(&asking) {
            // One that takes no connections is not waited for.
            let path = dir.join(format!("{SOCKET}_{}", asked.port));
            let socket = dwcp_vmm::client::connect(&path);
            if asked.answer(&asking, socket.ok()).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("guest".into());
    thread.spawn(serve).map(drop)
}

/// Connects to what listens on a port in the guest. [`io::ErrorKind::ConnectionRefused`] if nothing does.
pub(crate) async fn connect(dir: &Path, port: u32) -> io::Result<tokio::net::UnixStream> {
    let connected = async {
        let mut stream = tokio::net::UnixStream::connect(dir.join(SOCKET)).await?;
        let wanted = format!("CONNECT {port}\n");
        stream.write_all(wanted.as_bytes()).await?;
        let mut line = Vec::new();
        loop {
            // What comes after the line is the program's.
            match stream.read_u8().await {
                Ok(b'\n') if line.starts_with(b"OK ") => return Ok(stream),
                Ok(byte) if byte != b'\n' && line.len() < LINE_BYTES_MAX => line.push(byte),
                _ => return Err(io::ErrorKind::ConnectionRefused.into()),
            }
        }
    };
    match tokio::time::timeout(ACCEPT, connected).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
