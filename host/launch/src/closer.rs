//! A process that closes descriptors whose closing takes the kernel long.
//!
//! Whoever closes a tap's last descriptor waits, some 30 ms, until the kernel has forgotten the link. A VMM that did so
//! would be gone that much later, and the launcher would answer nobody meanwhile. So the launcher keeps a copy, and
//! sends it here when the VMM has ended. What always holds: a descriptor is closed also when this process is gone, by
//! the launcher. This process has no power, and ends with the launcher; one that is told to stop waits for it.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use crate::sandbox::drop_capabilities;

/// The launcher's end.
#[derive(Debug)]
pub struct Closer {
    /// Closed first of all at the end, by which the process knows.
    socket: Option<OwnedFd>,
    process: Option<Pid>,
}

impl Closer {
    /// Starts the process. To be done before this one has a second thread, and before it holds what the other should
    /// not.
    pub fn start() -> nix::Result<Self> {
        let (socket, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        // SAFETY: this process has one thread, so the other is a whole copy and may run ordinary code.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self {
                socket: Some(socket),
                process: Some(child),
            }),
            ForkResult::Child => {
                drop(socket);
                close_all(&theirs);
                // SAFETY: ends the copy without running what the launcher registered for its own end.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Has a descriptor closed.
    pub fn close(&self, descriptor: OwnedFd) {
        let Some(socket) = &self.socket else {
            return;
        };
        let rights = [descriptor.as_raw_fd()];
        // When it cannot be sent it is closed here, as it is when it was.
        let _ = sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&[0])],
            &[ControlMessage::ScmRights(&rights)],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            None,
        );
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.socket = None;
        if let Some(process) = self.process {
            while waitpid(process, None) == Err(Errno::EINTR) {}
        }
    }
}

/// Closes what comes, until the launcher's end is closed.
fn close_all(socket: &OwnedFd) {
    let _ = nix::sys::prctl::set_name(c"dwcp-closer");
    if drop_capabilities().is_err() {
        return;
    }
    loop {
        match receive(socket) {
            Ok(Some(descriptor)) => drop(descriptor),
            Ok(None) => return,
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn receive(socket: &OwnedFd) -> nix::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut room = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
    let descriptor = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(given) => given.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(descriptor.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_sent_is_closed_also_when_nobody_is_there_to() {
        let closer = Closer::start().unwrap();
        let (mut kept, sent) = UnixStream::pair().unwrap();
        closer.close(sent.into());
        // The other end is closed: nobody holds it any more.
        assert_eq!(kept.read(&mut [0]).unwrap(), 0);

        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let alone = Closer {
            socket: Some(ours.into()),
            process: None,
        };
        let (mut kept, sent) = UnixStream::pair().unwrap();
        alone.close(sent.into());
        assert_eq!(kept.read(&mut [0]).unwrap(), 0);
    }
}
