//! Attached consoles: raw bytes both ways, with what was said lately first.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
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

    /// Forgets a console.
    pub fn detach(&mut self, at: usize) {
        self.attached.swap_remove(at);
    }

    /// Reads at most `room` bytes of input, which must not be 0; forgets a console that has hung up.
    pub fn read(&mut self, at: usize, room: usize) -> Option<Vec<u8>> {
        let mut buffer = [0; INPUT_BYTES];
        let room = room.min(INPUT_BYTES);
        match recv(self.attached[at].as_raw_fd(), &mut buffer[..room], NOW) {
            Ok(count @ 1..) => Some(buffer[..count].to_vec()),
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Ok(0) | Err(_) => {
                self.detach(at);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_console_that_does_not_read_loses_bytes_and_holds_up_nobody() {
        let mut consoles = Consoles::default();
        consoles.show(b"before");
        let (sleepy, mut alert) = (
            UnixStream::from(consoles.attach().unwrap()),
            UnixStream::from(consoles.attach().unwrap()),
        );
        let line = [b'x'; 1000];
        let mut seen = vec![0; 6];
        alert.read_exact(&mut seen).unwrap();
        assert_eq!(seen, b"before");
        for _ in 0..2000 {
            consoles.show(&line);
            let mut got = [0; 1000];
            alert.read_exact(&mut got).unwrap();
        }
        assert_eq!(consoles.count(), 2);
        drop((sleepy, alert));
        assert_eq!(consoles.read(1, 10), None);
        assert_eq!(consoles.read(0, 10), None);
        assert_eq!(consoles.count(), 0);
    }

    #[test]
    fn scrollback_and_consoles_are_bounded() {
        let mut consoles = Consoles::default();
        for _ in 0..100 {
            consoles.show(&[b'y'; 1000]);
        }
        assert_eq!(consoles.scrollback().len(), SCROLLBACK_BYTES);
        let attached: Vec<_> = (0..CONSOLES_MAX)
            .map(|_| consoles.attach().unwrap())
            .collect();
        assert!(consoles.attach().is_err());
        drop(attached);
    }
}
