//! Word from the kernel that somebody changed the packet filter, and when to look what became of the rules.
//!
//! What always holds: however often the filter changes, there is a reason to look at most every [`PAUSE`], and no
//! change is missed: what is told meanwhile waits. What changed is not read here: the tables themselves say it. This
//! module must not know which rules there should be.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::netlink::NetlinkError;

/// From one look to the next. Somebody who flushes all the time costs us four runs of `nft` a second.
const PAUSE: Duration = Duration::from_millis(250);
/// After a look that failed, when nobody may ever tell anything again.
const RETRY: Duration = Duration::from_secs(10);
/// Most messages that are taken off at a time; the rest is a reason for the next look.
const MESSAGES_MAX: usize = 4096;

/// Listens, in the network namespace that the caller is in.
#[derive(Debug)]
pub struct Watch {
    socket: OwnedFd,
    rests_until: Option<Instant>,
    has_failed: bool,
}

impl Watch {
    /// Hears of every change from now on.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkNetFilter,
        )?;
        let groups = 1 << (libc::NFNLGRP_NFTABLES - 1);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self {
            socket,
            rests_until: None,
            has_failed: false,
        })
    }

    /// What becomes readable with a change; nothing while this rests.
    pub fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.rests_until.is_none().then(|| self.socket.as_fd())
    }

    /// When to ask again whether a look is due, whatever has come.
    pub fn rests_until(&self) -> Option<Instant> {
        self.rests_until
    }

    /// Whether to look now. Who does says afterwards how it went, by [`Watch::rest`].
    pub fn is_due(&mut self) -> bool {
        if self.rests_until.is_some_and(|end| Instant::now() < end) {
            return false;
        }
        self.rests_until = None;
        self.take_messages() || self.has_failed
    }

    /// Lets some time pass until the next look, which comes in any case after one that failed.
    pub fn rest(&mut self, has_failed: bool) {
        let time = if has_failed { RETRY } else { PAUSE };
        self.rests_until = Some(Instant::now() + time);
        self.has_failed = has_failed;
    }

    /// Takes off what has been told; whether that was anything.
    fn take_messages(&self) -> bool {
        // The rest of a message is thrown away with it.
        let mut start = [0; 16];
        for count in 0..MESSAGES_MAX {
            // What is lost because more was told than the kernel keeps is an error here, and news as well.
            let taken = recv(self.socket.as_raw_fd(), &mut start, MsgFlags::MSG_DONTWAIT);
            if taken == Err(Errno::EAGAIN) {
                return count > 0;
            }
        }
        true
    }
}
