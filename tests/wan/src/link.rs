//! A running link, held by whoever started it: it ends when this is dropped, or when its holder dies.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use crate::namespace::Namespace;
use crate::settings::{Changes, Queue, Settings, Stats};

/// The link answers within milliseconds; one that takes this long is broken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a link could not be started or asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The program did not come up; its own words.
    #[error("The link did not come up: {0}")]
    Start(String),
    /// The program is not there any more, or was never found.
    #[error("The link cannot be reached")]
    Io(#[from] io::Error),
    /// The link declined; its own words.
    #[error("The link refused: {0}")]
    Refused(String),
    /// The answer was not understood.
    #[error("The link's answer could not be understood")]
    Answer(#[from] serde_json::Error),
}

/// How to start a link.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// The program `dwcp-wan`.
    pub program: PathBuf,
    /// Where to put the control socket; its directory must exist.
    pub control: PathBuf,
    /// Address of the left end with its prefix, such as `10.77.0.1/30`.
    pub left_address: String,
    /// Address of the right end.
    pub right_address: String,
    /// What the link is like.
    pub settings: Settings,
    /// Seed of random loss.
    pub seed: u64,
}

/// A running link.
#[derive(Debug)]
pub struct Link {
    process: Child,
    control: BufReader<UnixStream>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Error { error: String },
    Stats(Stats),
}

impl Link {
    /// Starts a link between two namespaces and waits until it carries packets.
    pub fn start(
        left: &Namespace,
        right: &Namespace,
        options: &LinkOptions,
    ) -> Result<Self, LinkError> {
        let settings = options.settings;
        let mut command = Command::new(&options.program);
        command
            .arg("--left")
            .arg(left.path())
            .arg("--right")
            .arg(right.path())
            .args(["--left-addr", &options.left_address])
            .args(["--right-addr", &options.right_address])
            .args(["--rate-mbit", &settings.rate_mbit.to_string()])
            .args(["--rtt-ms", &settings.rtt_ms.to_string()])
            .args(["--loss", &settings.loss.to_string()])
            .args(["--seed", &options.seed.to_string()])
            .arg("--control")
            .arg(&options.control)
            .arg("--until-stdin-closes");
        match settings.queue {
            Queue::Ms(ms) => command.args(["--queue-ms", &ms.to_string()]),
            Queue::Bytes(bytes) => command.args(["--queue-bytes", &bytes.to_string()]),
        };
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        if line.trim() != "ready" {
            let output = process.wait_with_output()?;
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(LinkError::Start(words));
        }
        // From here on it has nothing to say, and must not wait for somebody to listen.
        process.stderr = None;
        let control = UnixStream::connect(&options.control)?;
        control.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            process,
            control: BufReader::new(control),
        })
    }

    /// Cuts the link: what is under way is lost, and what is sent from now on.
    pub fn cut(&mut self) -> Result<(), LinkError> {
        self.ask("cut").map(drop)
    }

    /// Makes a cut link whole.
    pub fn restore(&mut self) -> Result<(), LinkError> {
        self.ask("restore").map(drop)
    }

    /// What has been carried since the start or the last reset.
    pub fn stats(&mut self) -> Result<Stats, LinkError> {
        self.ask("stats")
    }

    /// Sets every count to zero; answers what they were.
    pub fn reset_stats(&mut self) -> Result<Stats, LinkError> {
        self.ask("reset-stats")
    }

    /// Changes what the link is like, for packets that come from now on.
    pub fn set(&mut self, changes: Changes) -> Result<(), LinkError> {
        let mut order = String::from("set ");
        let _ = write!(order, "{changes}");
        self.ask(&order).map(drop)
    }

    fn ask(&mut self, order: &str) -> Result<Stats, LinkError> {
        self.control
            .get_mut()
            .write_all(format!("{order}\n").as_bytes())?;
        let mut line = String::new();
        if self.control.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_str(&line)? {
            Answer::Stats(stats) => Ok(stats),
            Answer::Error { error } => Err(LinkError::Refused(error)),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Its devices are gone when it is.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
