//! The host's side of all connections: where its programs connect, where it is asked for sockets, and the one
//! descriptor that waits for everything.
//!
//! Waiting is edge-triggered: what is not taken at once is remembered by the connection, so that one that may not go on
//! costs nothing.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use dwcp_jail::{Condition, allow};
use nix::fcntl::OFlag;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockFlag, UnixAddr, accept4, recvmsg, send};

use crate::devices::virtio::Rules;
use crate::vsock::{ANSWER_BYTES, Asked};

const LISTENER: u64 = 0;
const CONTROL: u64 = 1;
/// Ids of connections begin here.
pub const FIRST_ID: u64 = 2;
/// Most that is heard of at a time.
const EVENTS_MAX: usize = 32;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A program of the host has connected.
    Accepted(OwnedFd),
    /// The host answered what was asked under a number: with a socket, or not.
    Answered(u32, Option<OwnedFd>),
    /// To the socket of a connection.
    Socket {
        /// Whose.
        id: u64,
        /// There is something to read, be it the end.
        can_read: bool,
        /// There is room.
        can_write: bool,
        /// The other end is gone.
        has_hung_up: bool,
    },
}

/// The descriptors.
#[derive(Debug)]
pub struct Outside {
    epoll: Epoll,
    listener: OwnedFd,
    /// Kept also when the host has closed it, so that its number is nothing else's.
    control: OwnedFd,
    is_heard: bool,
    next: u32,
}

impl Outside {
    /// Programs connect to `listener`; sockets are asked for over `control`.
    pub fn new(listener: OwnedFd, control: OwnedFd) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, fcntl};
        let flags = OFlag::from_bits_retain(fcntl(&listener, FcntlArg::F_GETFL)?);
        fcntl(&listener, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        epoll.add(&control, EpollEvent::new(EpollFlags::EPOLLIN, CONTROL))?;
        Ok(Self {
            epoll,
            listener,
            control,
            is_heard: true,
            next: 0,
        })
    }

    /// Readable when something has happened.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Waits for the socket of a connection, too.
    pub fn add(&self, socket: &OwnedFd, id: u64) -> io::Result<()> {
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        let event = EpollEvent::new(interest | EpollFlags::EPOLLET, id);
        Ok(self.epoll.add(socket, event)?)
    }

    /// Waits for it no more; whoever gave it may have kept a copy, so closing it is not enough.
    pub fn remove(&self, socket: &OwnedFd) {
        let _ = self.epoll.delete(socket);
    }

    /// Asks over `host` from now on. What was asked before is answered no more. It takes the place of the socket before
    /// it, whose number is the one that may be received from.
    pub fn hear(&mut self, host: OwnedFd) -> io::Result<()> {
        self.close();
        nix::unistd::dup3(&host, &mut self.control, OFlag::O_CLOEXEC)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, CONTROL);
        self.epoll.add(&self.control, event)?;
        self.is_heard = true;
        Ok(())
    }

    /// Asks the host for a socket to what serves `port`; answers under which number.
    pub fn ask(&mut self, port: u32) -> Option<u32> {
        if !self.is_heard {
            return None;
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let message = Asked { number, port }.encode();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = send(self.control.as_raw_fd(), &message, flags);
        sent.is_ok().then_some(number)
    }

    /// What has happened since.
    pub fn happened(&mut self) -> Vec<Event> {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let count = self
            .epoll
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
        let mut happened = Vec::new();
        for event in &events[..count] {
            let flags = event.events();
            match event.data() {
                LISTENER => happened.extend(self.accept()),
                CONTROL => happened.extend(self.answered()),
                id => happened.push(Event::Socket {
                    id,
                    can_read: flags.intersects(
                        EpollFlags::EPOLLIN
                            | EpollFlags::EPOLLRDHUP
                            | EpollFlags::EPOLLHUP
                            | EpollFlags::EPOLLERR,
                    ),
                    can_write: flags.contains(EpollFlags::EPOLLOUT),
                    has_hung_up: flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR),
                }),
            }
        }
        happened
    }

    /// The system calls that this and the connections take: on sockets without a name only.
    pub fn rules(&self) -> Rules {
        let of = |call, fd: u32| allow(call).when(Condition::IntIs(0, fd));
        let epoll = self.epoll.0.as_raw_fd() as u32;
        let control = self.control.as_raw_fd() as u32;
        vec![
            of(libc::SYS_epoll_ctl, epoll),
            of(libc::SYS_epoll_wait, epoll),
            of(libc::SYS_accept4, self.listener.as_raw_fd() as u32),
            of(libc::SYS_recvmsg, control),
            allow(libc::SYS_dup3).when(Condition::IntIs(1, control)),
            allow(libc::SYS_recvfrom).when(Condition::Is(4, 0)),
            allow(libc::SYS_sendto).when(Condition::Is(4, 0)),
            allow(libc::SYS_shutdown),
        ]
    }

    fn accept(&self) -> Option<Event> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = accept4(self.listener.as_raw_fd(), flags).ok()?;
        // SAFETY: a descriptor that was just made, and is nobody else's.
        Some(Event::Accepted(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// One answer; a host that says something else, or nothing any more, is not asked again.
    fn answered(&mut self) -> Option<Event> {
        let mut bytes = [0; ANSWER_BYTES];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let (count, fds) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<UnixAddr>(
                self.control.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                flags,
            );
            let received = match received {
                Ok(received) => received,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return None,
                Err(_) => {
                    self.close();
                    return None;
                }
            };
            let mut fds = Vec::new();
            for message in received.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(numbers) = message {
                    // SAFETY: the kernel has just made these descriptors for us.
                    fds.extend(
                        numbers
                            .into_iter()
                            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                    );
                }
            }
            (received.bytes, fds)
        };
        if count != ANSWER_BYTES {
            self.close();
            return None;
        }
        Some(Event::Answered(
            u32::from_le_bytes(bytes),
            fds.into_iter().next(),
        ))
    }

    fn close(&mut self) {
        self.is_heard = false;
        let _ = self.epoll.delete(&self.control);
    }
}
