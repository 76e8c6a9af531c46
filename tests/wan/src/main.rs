//! `dwcp-wan`: an emulated WAN link between two network namespaces, until it is told to end.

mod bottleneck;
mod control;
mod forward;
mod tun;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use dwcp_wan::{Direction, Queue, Settings};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::control::Controlled;
use crate::forward::{Forwarder, Shared};
use crate::tun::Address;

/// Joins two network namespaces by a link with a rate, a delay, a queue and loss. Prints `ready` when it carries
/// packets; ends on SIGTERM or SIGINT, and its devices (`wan` in each namespace) with it.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The left namespace: a name that `ip netns` knows, or a path.
    #[arg(long, value_name = "NETNS")]
    left: PathBuf,
    /// The right namespace.
    #[arg(long, value_name = "NETNS")]
    right: PathBuf,
    /// Address of the left end, with its prefix.
    #[arg(long, value_name = "IP/PREFIX", default_value = "10.77.0.1/30")]
    left_addr: Address,
    /// Address of the right end.
    #[arg(long, value_name = "IP/PREFIX", default_value = "10.77.0.2/30")]
    right_addr: Address,
    /// Rate of the bottleneck in each direction, in 10^6 bits of IP packets a second.
    #[arg(long, value_name = "N", default_value_t = 100.0)]
    rate_mbit: f64,
    /// Round trip without any queue, in ms.
    #[arg(long, value_name = "N", default_value_t = 100.0)]
    rtt_ms: f64,
    /// Share of packets that are lost in each direction, from 0 to 1.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    loss: f64,
    /// Queue in front of the bottleneck, in ms of its rate.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 200.0,
        conflicts_with = "queue_bytes"
    )]
    queue_ms: f64,
    /// Queue in front of the bottleneck, in bytes.
    #[arg(long, value_name = "N")]
    queue_bytes: Option<u64>,
    /// Seed of random loss.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Unix socket on which the link is controlled.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// End when standard input does, so that the link ends with the process that started it.
    #[arg(long)]
    until_stdin_closes: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let settings = Settings {
        rate_mbit: arguments.rate_mbit,
        rtt_ms: arguments.rtt_ms,
        loss: arguments.loss,
        queue: match arguments.queue_bytes {
            Some(bytes) => Queue::Bytes(bytes),
            None => Queue::Ms(arguments.queue_ms),
        },
    }
    .checked()?;
    // Blocked before any thread is started, so that only the main thread hears them.
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.add(Signal::SIGINT);
    stop.thread_block()?;
    let signals = SignalFd::with_flags(&stop, SfdFlags::SFD_CLOEXEC)?;
    let left = tun::create(&arguments.left, arguments.left_addr).context("The left end")?;
    let right = tun::create(&arguments.right, arguments.right_addr).context("The right end")?;
    let controlled = Arc::new(Controlled {
        shared: Shared {
            settings: Mutex::new(settings),
            turns: AtomicU64::new(0),
        },
        left_to_right: Mutex::new(Direction::default()),
        right_to_left: Mutex::new(Direction::default()),
    });
    let socket = arguments.control.as_deref().map(listen).transpose()?;
    let failures = start_forwarding(&controlled, (left, right), settings, arguments.seed)?;
    if let Some(socket) = &socket {
        let listener = socket.listener.try_clone()?;
        let controlled = Arc::clone(&controlled);
        std::thread::spawn(move || control::serve(&listener, &controlled));
    }
    writeln!(std::io::stdout(), "ready")?;
    wait_for_end(&signals, arguments.until_stdin_closes, &failures)
}

/// Starts both directions. What makes one fail comes out of the receiver.
fn start_forwarding(
    controlled: &Arc<Controlled>,
    (left, right): (OwnedFd, OwnedFd),
    settings: Settings,
    seed: u64,
) -> anyhow::Result<mpsc::Receiver<anyhow::Error>> {
    let (report, failures) = mpsc::sync_channel(2);
    let (left, right) = (File::from(left), File::from(right));
    let directions = [
        (left.try_clone()?, right.try_clone()?, true),
        (right, left, false),
    ];
    for (from, to, rightwards) in directions {
        let controlled = Arc::clone(controlled);
        let report = report.clone();
        let forwarder = Forwarder::new(from, to, settings, seed.wrapping_add(rightwards.into()));
        std::thread::spawn(move || {
            let counts = if rightwards {
                &controlled.left_to_right
            } else {
                &controlled.right_to_left
            };
            if let Err(error) = forwarder.run(&controlled.shared, counts) {
                let _ = report.send(error);
            }
        });
    }
    Ok(failures)
}

/// Returns on a signal, on the end of standard input if that was asked for, or with what made a direction fail.
fn wait_for_end(
    signals: &SignalFd,
    until_stdin_closes: bool,
    failures: &mpsc::Receiver<anyhow::Error>,
) -> anyhow::Result<()> {
    const LOOK_FOR_FAILURES_EVERY: Duration = Duration::from_millis(200);
    let stdin = std::io::stdin();
    loop {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if until_stdin_closes {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        let timeout = PollTimeout::try_from(LOOK_FOR_FAILURES_EVERY)?;
        // Nobody writes to our input: when it is readable, it has ended.
        if poll(&mut fds, timeout)? > 0 {
            return Ok(());
        }
        if let Ok(error) = failures.try_recv() {
            return Err(error);
        }
    }
}

/// The control socket; its file is removed when this is dropped.
#[derive(Debug)]
struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> anyhow::Result<ControlSocket> {
    let listener = UnixListener::bind(path)
        .with_context(|| format!("The control socket {} cannot be made", path.display()))?;
    Ok(ControlSocket {
        listener,
        path: path.to_owned(),
    })
}
