//! What is said of disks.

use super::{Said, record};

record! {
    /// A disk as the guest found it.
    DiskFound, "disk", "sectors" {
        /// Its length, in sectors of 512 bytes.
        sectors: u64,
        /// What guest and device agreed on.
        features: u64,
        /// Queues in use.
        queues: u64,
        /// It takes no writes.
        read_only: bool,
        /// What it calls itself.
        id: String,
    }
}

/// A step of `disk=check`: `write`, `flush`, `verify`, `frames`, `discard`, `zeroes`, `last`, `beyond`, `nonsense`, and
/// `check` at the end; `loop` if a disk that takes no writes was to be looped over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStep {
    /// Which disk.
    pub number: usize,
    /// What was done.
    pub step: String,
    /// `ok`, `ioerr`, `unsupp`, `status-N`, `silent`; `differs` (content), `absent` (not offered, or impossible), `finished` (`check`).
    pub outcome: String,
}

impl DiskStep {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let (step, outcome) = Said::parse(line)?.text.split_once(' ')?;
        let (number, _) = Said::of(line, "disk", step)?;
        (!outcome.contains(' ')).then(|| Self {
            number,
            step: step.to_owned(),
            outcome: outcome.to_owned(),
        })
    }
}

record! {
    /// `disk=read:`: what was there.
    DiskRead, "disk", "read" {
        /// Bytes read.
        bytes: u64,
        /// Their sum, by [`crate::pattern::add_to_sum`].
        sum: u64,
        /// Eight-byte words that are not the pattern of the seed.
        wrong: u64,
        /// Of the last transfer, as in [`DiskStep`].
        outcome: String,
    }
}

record! {
    /// `disk=loop`, once a second: counts since the start, but for the slowest.
    DiskLoop, "disk", "loop" {
        /// Requests that ended.
        transfers: u64,
        /// Blocks that were not as they were last written.
        bad: u64,
        /// Requests that ended otherwise than well.
        errors: u64,
        /// The longest request since the last such line, in microseconds.
        slow_us: u64,
    }
}

record! {
    /// A disk whose length has changed, noticed by `disk=loop`.
    DiskResized, "disk", "resized" {
        /// Its length, in sectors of 512 bytes.
        sectors: u64,
    }
}
