//! `dwcp vm console`: the machine's serial line on this terminal.
//!
//! The terminal is raw while attached, so every key goes to the guest but one: Ctrl-] detaches. It is given back as it
//! was, however the command ends.

use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use dwcp_sdk::{ConsoleInput, ConsoleOutput};
use nix::sys::termios::{self, SetArg, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::units;

/// Ctrl-].
const DETACH: u8 = 0x1d;

/// Which console.
#[derive(Debug, Args)]
#[command(
    after_help = "Ctrl-] detaches; the machine runs on. What is piped in is typed into the console, and its output goes on
until the machine stops, --for has passed, or Ctrl-C.

Examples:
  dwcp vm console web
  echo uptime | dwcp vm console web --for 5s"
)]
pub struct ConsoleArgs {
    /// The machine
    name: String,
    /// Detach after this long, such as 5s
    #[arg(long = "for", value_name = "DURATION", value_parser = units::parse_duration)]
    duration: Option<Duration>,
}

/// How it ended.
enum End {
    Detached,
    Stopped,
}

/// Attaches.
pub async fn run(context: &Context, args: ConsoleArgs) -> anyhow::Result<()> {
    let console = context
        .client
        .vm_console(&context.project, &args.name)
        .await?;
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        eprintln!(
            "Attached to {}. Press Ctrl-] to detach; the machine runs on.",
            args.name
        );
    }
    let raw = terminal.then(Raw::enter).transpose()?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let deadline = async {
        match args.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        end = show(context, console.output) => end,
        end = type_in(console.input, keys(terminal)) => end,
        () = deadline => Ok(End::Detached),
        _ = interrupt.recv() => Ok(End::Detached),
        _ = terminate.recv() => Ok(End::Detached),
    };
    drop(raw);
    match end? {
        End::Detached if terminal => eprintln!("\nDetached from {}; it runs on.", args.name),
        End::Stopped if terminal => eprintln!("\n{} stopped.", args.name),
        End::Detached | End::Stopped => {}
    }
    Ok(())
}

async fn show(context: &Context, mut output: ConsoleOutput) -> anyhow::Result<End> {
    while let Some(bytes) = output.next().await.context("The console broke")? {
        context.output.bytes(&bytes)?;
    }
    Ok(End::Stopped)
}

async fn type_in(
    mut input: ConsoleInput,
    mut keys: mpsc::Receiver<Vec<u8>>,
) -> anyhow::Result<End> {
    while let Some(bytes) = keys.recv().await {
        let detach = bytes.iter().position(|byte| *byte == DETACH);
        let typed = &bytes[..detach.unwrap_or(bytes.len())];
        if input.send(typed).await.is_err() {
            // The other direction tells why.
            break;
        }
        if detach.is_some() {
            // The host notices by itself if the farewell is lost.
            let _ = input.close().await;
            return Ok(End::Detached);
        }
    }
    // Input ended; output goes on.
    let _kept = input;
    std::future::pending().await
}

/// What is typed, read in a thread of its own, because reading a terminal cannot be given up.
fn keys(terminal: bool) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = input.read(&mut piece) {
            // Only a person detaches; a pipe may hold any byte, but this one would end it for a guest as well.
            let bytes = piece[..read].to_vec();
            let bytes = if terminal {
                bytes
            } else {
                bytes.into_iter().filter(|b| *b != DETACH).collect()
            };
            if sender.blocking_send(bytes).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The terminal in raw mode, until dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        let before =
            termios::tcgetattr(stdin.as_fd()).context("The terminal's mode could not be read")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw)
            .context("The terminal could not be made raw")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0);
    }
}
