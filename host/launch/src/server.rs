//! The launcher's loop: one thread that waits for clients, for children's ends, for others' changes of the packet
//! filter and for a signal to stop.
//!
//! Nothing in here blocks on a client: half a message, or a client that does not read, is dropped after
//! [`PEER_TIMEOUT`]. A client that sends nothing may stay.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use dwcp_channel::{ChannelError, Mailbox};
use dwcp_launch::protocol::{
    CONNECTIONS_MAX, ChildId, Needs, REQUEST_BYTES_MAX, Reply, Request, VERSION,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::children::{Children, KVM, Refusal, USERFAULTFD, open_device};

/// How long a client may owe the rest of a message or the reading of a reply.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes that wait for a client that does not read; a full list of children fits several times.
const UNSENT_BYTES_MAX: usize = 2 << 20;

/// The launcher at work.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    signals: SignalFd,
    allowed_uid: u32,
    children: Children,
    connections: BTreeMap<u64, Connection>,
    next_number: u64,
}

#[derive(Debug)]
struct Connection {
    mailbox: Mailbox,
    phase: Phase,
    /// Since when the client owes something.
    waiting_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Greeted,
    Watching,
}

/// What has something to say.
#[derive(Debug)]
enum Event {
    Stop,
    Client,
    Connection(u64),
    End(ChildId),
    Rules,
}

impl Server {
    /// Ready to serve. The listener must be non-blocking; the signals are those that end the launcher.
    pub fn new(
        listener: UnixListener,
        signals: SignalFd,
        allowed_uid: u32,
        children: Children,
    ) -> Self {
        Self {
            listener,
            signals,
            allowed_uid,
            children,
            connections: BTreeMap::new(),
            next_number: 0,
        }
    }

    /// Serves until a signal says to stop; then ends every child.
    pub fn run(mut self) -> Result<(), Errno> {
        loop {
            for event in self.wait()? {
                match event {
                    Event::Stop => {
                        self.children.end_all();
                        return Ok(());
                    }
                    Event::Client => self.accept(),
                    Event::Connection(number) => self.serve(number),
                    Event::End(id) => self.tell_end(&id),
                    // Below, where time may be the reason too.
                    Event::Rules => {}
                }
            }
            self.children.networks_mut().keep_rules();
            self.drop_overdue();
        }
    }

    /// Waits until something can be done, the first client is overdue, or rules are to be looked at.
    fn wait(&self) -> Result<Vec<Event>, Errno> {
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        let mut events = Vec::new();
        let mut add = |fd, flags, event| {
            fds.push(PollFd::new(fd, flags));
            events.push(event);
        };
        add(self.signals.as_fd(), PollFlags::POLLIN, Event::Stop);
        if let Some(fd) = self.children.networks().changes() {
            add(fd, PollFlags::POLLIN, Event::Rules);
        }
        for (id, fd) in self.children.ends() {
            add(fd, PollFlags::POLLIN, Event::End(id.clone()));
        }
        for (number, connection) in &self.connections {
            let (fd, flags) = connection.interest();
            add(fd, flags, Event::Connection(*number));
        }
        if self.connections.len() < CONNECTIONS_MAX {
            add(self.listener.as_fd(), PollFlags::POLLIN, Event::Client);
        }
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        events.retain(|_| ready.next().unwrap_or(false));
        Ok(events)
    }

    fn timeout(&self) -> PollTimeout {
        let since = self.connections.values().filter_map(|c| c.waiting_since);
        let ends = since.map(|since| since + PEER_TIMEOUT);
        let Some(first) = ends.chain(self.children.networks().rests_until()).min() else {
            return PollTimeout::NONE;
        };
        let left = first.saturating_duration_since(Instant::now());
        // Rounded up, so that the wait does not end before the time has come.
        PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    }

    fn accept(&mut self) {
        let socket = match self.listener.accept() {
            Ok((socket, _)) => socket,
            Err(_) => return,
        };
        match getsockopt(&socket, PeerCredentials) {
            // Root could do all of this itself: an operator who looks what runs is root.
            Ok(peer) if peer.uid() == self.allowed_uid || peer.uid() == 0 => {}
            Ok(peer) => {
                eprintln!("dwcp-launch: User {} was turned away", peer.uid());
                return;
            }
            Err(_) => return,
        }
        if let Ok(connection) = Connection::new(socket) {
            self.connections.insert(self.next_number, connection);
            self.next_number += 1;
        }
    }

    /// Sends what waits, then answers at most one request: no client keeps the others waiting.
    fn serve(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if let Err(error) = connection.serve(&mut self.children) {
            if !matches!(error, ChannelError::Closed) {
                eprintln!("dwcp-launch: A client was dropped: {}", describe(&error));
            }
            self.connections.remove(&number);
        }
    }

    fn tell_end(&mut self, id: &ChildId) {
        let Some(child) = self.children.record_end(id) else {
            return;
        };
        let news = Reply::Exited { child };
        self.connections.retain(|_, connection| {
            connection.phase != Phase::Watching || connection.send(&news).is_ok()
        });
    }

    fn drop_overdue(&mut self) {
        let now = Instant::now();
        self.connections.retain(|_, connection| {
            connection
                .waiting_since
                .is_none_or(|since| now < since + PEER_TIMEOUT)
        });
    }
}

impl Connection {
    fn new(socket: UnixStream) -> Result<Self, ChannelError> {
        Ok(Self {
            mailbox: Mailbox::new(socket, REQUEST_BYTES_MAX, UNSENT_BYTES_MAX)?,
            phase: Phase::New,
            waiting_since: None,
        })
    }

    /// While replies wait, no further request is read.
    fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = if self.mailbox.has_unsent() {
            PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        };
        (self.mailbox.as_fd(), flags)
    }

    fn serve(&mut self, children: &mut Children) -> Result<(), ChannelError> {
        let result = self.serve_one(children);
        self.note_debt();
        result
    }

    fn serve_one(&mut self, children: &mut Children) -> Result<(), ChannelError> {
        self.mailbox.flush()?;
        if self.mailbox.has_unsent() {
            return Ok(());
        }
        let (request, descriptors) = match self.mailbox.receive() {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(error @ ChannelError::Malformed(_)) => {
                let reason = describe(&error);
                return self.mailbox.send(&Reply::Refused { reason });
            }
            Err(error) => return Err(error),
        };
        let (reply, exits) = self.answer(request, descriptors, children);
        self.mailbox.send(&reply)?;
        for exit in exits {
            self.mailbox.send(&exit)?;
        }
        Ok(())
    }

    /// Carries out one request. The second part follows the reply on a connection that begins to watch.
    fn answer(
        &mut self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        children: &mut Children,
    ) -> (Reply, Vec<Reply>) {
        let refused = |reason: &str| {
            (
                Reply::Refused {
                    reason: reason.to_owned(),
                },
                Vec::new(),
            )
        };
        match (self.phase, request) {
            (Phase::Watching, _) => refused("A watching connection takes no requests"),
            (_, Request::Hello { version: VERSION }) => {
                self.phase = Phase::Greeted;
                let hello = Reply::Hello {
                    version: VERSION,
                    kvm: open_device(KVM).is_ok(),
                    userfaultfd: open_device(USERFAULTFD).is_ok(),
                };
                (hello, Vec::new())
            }
            (_, Request::Hello { version }) => refused(&format!(
                "Version {version} is not spoken here, only {VERSION}: use a launcher and a daemon of the same release"
            )),
            (Phase::New, _) => refused("The first request must be Hello"),
            (Phase::Greeted, Request::Watch) => {
                self.phase = Phase::Watching;
                let ended = children
                    .list()
                    .into_iter()
                    .filter(|child| !child.is_running());
                (
                    Reply::Done,
                    ended.map(|child| Reply::Exited { child }).collect(),
                )
            }
            (Phase::Greeted, request) => {
                let reply = carry_out(request, descriptors, children).unwrap_or_else(|refusal| {
                    Reply::Refused {
                        reason: describe(&refusal),
                    }
                });
                (reply, Vec::new())
            }
        }
    }

    fn send(&mut self, news: &Reply) -> Result<(), ChannelError> {
        let result = self.mailbox.send(news);
        self.note_debt();
        result
    }

    fn note_debt(&mut self) {
        self.waiting_since = if self.mailbox.is_waiting_on_peer() {
            self.waiting_since.or_else(|| Some(Instant::now()))
        } else {
            None
        };
    }
}

fn carry_out(
    request: Request,
    descriptors: Vec<OwnedFd>,
    children: &mut Children,
) -> Result<Reply, Refusal> {
    match request {
        Request::SpawnVmm {
            id,
            template,
            memory_bytes,
            config,
            file_bytes,
            huge_pages,
            vcpus,
            nics,
        } => {
            let needs = Needs {
                memory_bytes,
                huge_pages,
                vcpus,
                file_bytes,
            };
            let pid =
                children.spawn_vmm(id, needs, template.as_ref(), &config, descriptors, &nics)?;
            Ok(Reply::Spawned { pid })
        }
        Request::Seal { id } => children.seal(&id).map(|()| Reply::Done),
        Request::SpawnReader { id, config } => {
            let pid = children.spawn_reader(id, &config, descriptors)?;
            Ok(Reply::Spawned { pid })
        }
        Request::SpawnMover {
            id,
            vm,
            side,
            config,
        } => {
            let pid = children.spawn_mover(id, vm, side, &config, descriptors)?;
            Ok(Reply::Spawned { pid })
        }
        Request::Lengthen { id, file_bytes } => {
            children.lengthen(&id, file_bytes).map(|()| Reply::Done)
        }
        Request::List => Ok(Reply::Children {
            children: children.list(),
        }),
        Request::Kill { id } => children.kill(&id).map(|()| Reply::Done),
        Request::Forget { id } => children.forget(&id).map(|()| Reply::Done),
        Request::EnsureNetwork { name, kind, subnet } => {
            let network = children.networks_mut().ensure(&name, kind, subnet)?;
            Ok(Reply::Network { network })
        }
        Request::RemoveNetwork { name } => {
            children.networks_mut().remove(&name)?;
            Ok(Reply::Done)
        }
        // Answered where the connection's phase is known.
        Request::Hello { .. } | Request::Watch => Ok(Reply::Done),
    }
}

/// An error and all its sources, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
