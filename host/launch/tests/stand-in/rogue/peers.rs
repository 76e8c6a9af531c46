//! Whoever connects to the control socket: what is answered, and what can be learned of them.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::{Report, apart, call, outcome};

/// `SO_PEERPIDFD`, since Linux 6.5.
const PEER_PIDFD: libc::c_int = 77;
/// As many descriptors as the kernel takes in one message.
const DESCRIPTORS_AT_ONCE: usize = 250;

/// Accepts one connection.
pub fn answer(what: &str, listener: &OwnedFd) -> Option<Report> {
    let listener = UnixListener::from(listener.try_clone().ok()?);
    let (mut peer, _) = listener.accept().ok()?;
    let mut report = Report::new();
    let sent = match what {
        "garbage" => peer.write_all(&[0xfe; 64 << 10]),
        "huge" => peer.write_all(&u32::MAX.to_le_bytes()),
        "half" => peer.write_all(&[9, 0]),
        "no-json" => peer.write_all(&[&4u32.to_le_bytes()[..], b"\xff{]\""].concat()),
        "deep" => deep(&mut peer),
        "descriptors" => descriptors(&peer),
        "handle" => {
            learn(&peer, &mut report);
            Ok(())
        }
        _ => return None,
    };
    let sent = sent.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)));
    report.insert("sent".into(), outcome(sent));
    Some(report)
}

/// More brackets than a reader has stack.
fn deep(peer: &mut UnixStream) -> std::io::Result<()> {
    let text = vec![b'['; 1 << 20];
    peer.write_all(&(text.len() as u32).to_le_bytes())?;
    peer.write_all(&text)
}

/// A message with far more descriptors than any may have.
fn descriptors(peer: &UnixStream) -> std::io::Result<()> {
    let all = [peer.as_raw_fd() as RawFd; DESCRIPTORS_AT_ONCE];
    let length = 2u32.to_le_bytes();
    sendmsg::<()>(
        peer.as_raw_fd(),
        &[std::io::IoSlice::new(&length)],
        &[ControlMessage::ScmRights(&all)],
        MsgFlags::empty(),
        None,
    )?;
    (&*peer).write_all(b"[]")
}

/// The kernel hands out a descriptor of the peer's process: what is it good for?
fn learn(peer: &UnixStream, report: &mut Report) {
    let mut fd: RawFd = -1;
    let mut size = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: the kernel writes one int and its size.
    let result = unsafe {
        libc::getsockopt(
            peer.as_raw_fd(),
            libc::SOL_SOCKET,
            PEER_PIDFD,
            (&raw mut fd).cast(),
            &raw mut size,
        )
    };
    report.insert("have".into(), outcome(Errno::result(result)));
    let fd = fd as usize;
    let everything = (libc::CLONE_NEWNS | libc::CLONE_NEWUSER) as usize;
    for (name, number, arguments) in [
        ("signal", libc::SYS_pidfd_send_signal, [fd, 0, 0, 0]),
        ("take a descriptor", libc::SYS_pidfd_getfd, [fd, 0, 0, 0]),
        ("enter", libc::SYS_setns, [fd, everything, 0, 0]),
        ("reap its memory", libc::SYS_process_mrelease, [fd, 0, 0, 0]),
    ] {
        report.insert(name.into(), apart(|| call(number, arguments)));
    }
}
