//! Attached consoles: raw bytes both ways, with what was said lately first.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

/// What a console gets first, in bytes.
const SCROLLBACK_BYTES: usize = 64 << 10;
/// Most consoles at a time.
const CONSOLES_MAX: usize = 8;
/// Most input taken from one console at a time, in bytes.
const INPUT_BYTES: usize = 256;
const NOW: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// All consoles, and the scrollback.
#[derive(Debug, Default)]
pub struct Consoles {
    attached: Vec<OwnedFd>,
    scrollback: VecDeque<u8>,
}

impl Consoles {
    /// How many are attached.
    pub fn count(&self) -> usize {
        self.attached.len()
    }

    /// What to wait on, one per console.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.attached.iter().map(AsFd::as_fd)
    }

    /// The latest output.
    pub fn scrollback(&mut self) -> &[u8] {
        self.scrollback.make_contiguous()
    }

    /// Attaches one more; answers its end.
    pub fn attach(&mut self) -> std::io::Result<OwnedFd> {
        if self.attached.len() >= CONSOLES_MAX {
            return Err(std::io::Error::other(format!(
                "{CONSOLES_MAX} consoles are attached already"
            )));
        }
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        // A fresh socket has room for all of it.
        let _ = send(ours.as_raw_fd(), self.scrollback(), NOW);
        self.attached.push(ours);
        Ok(theirs)
    }

    /// Shows output on every console; one that does not read loses it.
    pub fn show(&mut self, output: &[u8]) {
        self.scrollback.extend(output);
        let excess = self.scrollback.len().saturating_sub(SCROLLBACK_BYTES);
        self.scrollback.drain(..excess);
        for console in &self.attached {
            let _ = send(console.as_raw_fd(), output, NOW);
        }
    }

    /// Reads at most `room` bytes of input; forgets a console that has hung up.
    pub fn read(&mut self, at: usize, room: usize) -> Option<Vec<u8>> {
        let mut buffer = [0; INPUT_BYTES];
        let room = room.min(INPUT_BYTES);
        // Without room only a hang-up can have woken us: looking at one byte tells it from input.
        let flags = if room == 0 {
            NOW | MsgFlags::MSG_PEEK
        } else {
            NOW
        };
        let got = recv(
            self.attached[at].as_raw_fd(),
            &mut buffer[..room.max(1)],
            flags,
        );
        match got {
            Ok(0) => {
                self.attached.swap_remove(at);
                None
            }
            Ok(count) if room > 0 => Some(buffer[..count].to_vec()),
            Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => None,
            Err(_) => {
                self.attached.swap_remove(at);
                None
            }
        }
    }
}
