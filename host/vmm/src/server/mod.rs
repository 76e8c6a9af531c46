//! The event loop: control connections, what the guest says and what is typed for it, and the end of the guest.
//!
//! One thread serves everything in turn. What may take long is bounded: a client that stops in the middle of a message
//! is dropped after [`MESSAGE_TIMEOUT`], a console that does not read loses bytes.

mod answer;
mod consoles;
mod log;

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use dwcp_channel::Channel;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::end::GuestEnd;
use crate::machine::Machine;
use consoles::Consoles;

pub use log::SerialLog;

/// Most control connections at a time; a further one is closed at once.
const CONNECTIONS_MAX: usize = 8;
/// How long a client may take to send the rest of a message, or to take a reply.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// After serial output was taken, more is left to gather for this long: a line costs one turn, not one a byte.
const GATHER: Duration = Duration::from_millis(5);

/// Everything that the loop serves.
#[derive(Debug)]
pub struct Server {
    machine: Machine,
    listener: UnixListener,
    connections: Vec<Connection>,
    consoles: Consoles,
    log: SerialLog,
    gathering_until: Option<Instant>,
}

#[derive(Debug)]
struct Connection {
    channel: Channel,
    has_greeted: bool,
}

/// What to do with a connection after a request.
enum Next {
    Keep,
    Drop,
    End(GuestEnd),
}

/// What became readable.
#[derive(Default)]
struct Ready {
    end: bool,
    console: bool,
    listener: bool,
    connections: Vec<usize>,
    consoles: Vec<usize>,
    /// Whether the consoles were asked for input; if not, they were only watched for hanging up.
    asked_for_input: bool,
}

impl Server {
    /// A server for a machine that is built.
    pub fn new(machine: Machine, listener: UnixListener, log: SerialLog) -> Self {
        Self {
            machine,
            listener,
            connections: Vec::new(),
            consoles: Consoles::default(),
            log,
            gathering_until: None,
        }
    }

    /// Serves until the guest ends, or somebody ends it.
    pub fn serve(mut self) -> GuestEnd {
        let end = loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => break GuestEnd::Failed(format!("The event loop failed: {error}")),
            };
            if ready.console
                || self
                    .gathering_until
                    .is_some_and(|until| Instant::now() >= until)
            {
                self.take_output();
            }
            self.pass_input(&ready.consoles, ready.asked_for_input);
            if let Some(end) = self.serve_connections(ready.connections) {
                break end;
            }
            if ready.listener {
                self.accept();
            }
            if let (true, Some(end)) = (ready.end, self.machine.end().get()) {
                break end.clone();
            }
        };
        self.take_output();
        end
    }

    fn wait(&self) -> Result<Ready, Errno> {
        let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let end = std::sync::Arc::clone(self.machine.end());
        let console = std::sync::Arc::clone(self.machine.console());
        let has_room = self.machine.input_room() > 0;
        let mut fds = vec![wanted(end.event()), wanted(self.listener.as_fd())];
        fds.extend(
            self.connections
                .iter()
                .map(|connection| wanted(connection.channel.as_fd())),
        );
        // While the guest's input is full, consoles wait; only a hang-up is of interest.
        let interest = if has_room {
            PollFlags::POLLIN
        } else {
            PollFlags::empty()
        };
        fds.extend(self.consoles.fds().map(|fd| PollFd::new(fd, interest)));
        let mut timeout = PollTimeout::NONE;
        match self.gathering_until {
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                // Rounded up, so that the time is over when the wait is.
                timeout = PollTimeout::from(left.as_millis() as u8 + 1);
            }
            None => fds.push(wanted(console.event())),
        }
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => return Ok(Ready::default()),
            other => other?,
        };
        let is_ready = |at: usize| fds[at].any().unwrap_or(false);
        let consoles_start = 2 + self.connections.len();
        let console_event = consoles_start + self.consoles.count();
        Ok(Ready {
            end: is_ready(0),
            listener: is_ready(1),
            connections: (0..self.connections.len())
                .filter(|at| is_ready(2 + at))
                .collect(),
            consoles: (0..self.consoles.count())
                .filter(|at| is_ready(consoles_start + at))
                .collect(),
            console: self.gathering_until.is_none() && is_ready(console_event),
            asked_for_input: has_room,
        })
    }

    /// Takes the guest's output to the log and to the consoles.
    fn take_output(&mut self) {
        let console = self.machine.console();
        console.quiet();
        let output = console.take();
        self.gathering_until = (!output.is_empty()).then(|| Instant::now() + GATHER);
        if !output.is_empty() {
            self.consoles.show(&output);
            self.log.append(&output, self.consoles.scrollback());
        }
    }

    /// Takes the consoles' input to the guest, as much as it has room for.
    fn pass_input(&mut self, ready: &[usize], asked_for_input: bool) {
        // From the last to the first, so that dropping one does not move those still to be served.
        for at in ready.iter().rev() {
            if !asked_for_input {
                self.consoles.detach(*at);
                continue;
            }
            let room = self.machine.input_room();
            if room > 0
                && let Some(input) = self.consoles.read(*at, room)
            {
                self.machine.input(&input);
            }
        }
    }

    fn serve_connections(&mut self, ready: Vec<usize>) -> Option<GuestEnd> {
        // From the last to the first, so that dropping one does not move those still to be served.
        for at in ready.into_iter().rev() {
            match self.serve_one(at) {
                Next::Keep => {}
                Next::Drop => drop(self.connections.swap_remove(at)),
                Next::End(end) => return Some(end),
            }
        }
        None
    }

    fn accept(&mut self) {
        let Ok((socket, _)) = self.listener.accept() else {
            return;
        };
        if self.connections.len() < CONNECTIONS_MAX && set_timeouts(&socket).is_ok() {
            self.connections.push(Connection {
                channel: Channel::new(socket),
                has_greeted: false,
            });
        }
    }
}

fn set_timeouts(socket: &UnixStream) -> std::io::Result<()> {
    socket.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
    socket.set_write_timeout(Some(MESSAGE_TIMEOUT))
}
