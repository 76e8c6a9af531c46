//! How a guest's connections to the host come about, seen from the host.
//!
//! The VMM opens nothing by name. When the guest connects to a port of the host (address 2), the VMM asks over a
//! `SOCK_SEQPACKET` socket; whoever holds the other end decides, and passes a connected stream socket or nothing:
//!
//! ```text
//! VMM                                    host
//!   | number: u32, port: u32              |     little-endian, one packet
//!   |------------------------------------>|
//!   |     number: u32 [+ one descriptor]  |     without a descriptor it is a refusal
//!   |<------------------------------------|
//! ```
//!
//! An answer after 5 seconds is too late: the guest was refused by then. When the host closes its end, every further
//! connection of the guest is refused; those that are open go on.
//!
//! The other way round there is nothing to decide: a program connects to the listening socket that the VMM was given,
//! says `CONNECT 1234` and a line feed, and reads `OK` and the number of its own port, if the guest accepts. While the VM
//! is paused, or its driver not ready, programs wait. Connections end when a VM goes on in another process.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recv, sendmsg};

/// Length of a question.
pub const ASKED_BYTES: usize = 8;
/// Length of an answer, without its descriptor.
pub const ANSWER_BYTES: usize = 4;

/// A guest wants to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// By which the answer is known.
    pub number: u32,
    /// To which port of the host.
    pub port: u32,
}

impl Asked {
    /// As it is sent.
    pub fn encode(&self) -> [u8; ASKED_BYTES] {
        (u64::from(self.number) | u64::from(self.port) << 32).to_le_bytes()
    }

    /// As it was sent.
    pub fn decode(bytes: [u8; ASKED_BYTES]) -> Self {
        let both = u64::from_le_bytes(bytes);
        Self {
            number: both as u32,
            port: (both >> 32) as u32,
        }
    }

    /// Waits for the next question; `None` when the VMM has ended.
    pub fn receive(control: impl AsFd) -> io::Result<Option<Self>> {
        let mut bytes = [0; ASKED_BYTES];
        loop {
            match recv(control.as_fd().as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(ASKED_BYTES) => return Ok(Some(Self::decode(bytes))),
                Ok(0) => return Ok(None),
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Lets the guest have a connected stream socket, or refuses it. The socket is copied.
    pub fn answer(&self, control: impl AsFd, socket: Option<impl AsFd>) -> io::Result<()> {
        let bytes = self.number.to_le_bytes();
        let fds: Vec<_> = socket
            .iter()
            .map(|socket| socket.as_fd().as_raw_fd())
            .collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        let control = control.as_fd().as_raw_fd();
        let parts = [IoSlice::new(&bytes)];
        sendmsg::<UnixAddr>(control, &parts, rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }
}
