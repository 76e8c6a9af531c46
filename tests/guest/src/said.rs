//! Lines in which the guest tells of devices: `guest: SUBJECT: …`, mostly pairs of a name and a value.
//!
//! A line of another kind, or without all of its fields, is `None`, never half a record.

/// Any such line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said<'a> {
    /// What it is about: `disk 0`, `net 0`, `bench disk 0 random-1`.
    pub subject: &'a str,
    /// What is said of it.
    pub text: &'a str,
}

impl<'a> Said<'a> {
    /// Reads a line.
    pub fn parse(line: &'a str) -> Option<Self> {
        let (subject, text) = line.trim_end().strip_prefix("guest: ")?.split_once(": ")?;
        Some(Self { subject, text })
    }

    /// Reads a line about a device of a kind: its number, and what is said.
    fn of(line: &'a str, kind: &str) -> Option<(usize, Self)> {
        let said = Self::parse(line)?;
        let number = said.subject.strip_prefix(kind)?.strip_prefix(' ')?;
        Some((number.parse().ok()?, said))
    }

    /// The word after the word `name`.
    pub fn word(&self, name: &str) -> Option<&'a str> {
        let mut words = self.text.split(' ');
        words.find(|word| *word == name)?;
        words.next()
    }

    /// The number after the word `name`; decimal, or hexadecimal after `0x`.
    pub fn number(&self, name: &str) -> Option<u64> {
        let word = self.word(name)?;
        match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        }
    }
}

/// `rng=`: what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RngRead {
    /// Which entropy device.
    pub number: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Not all bytes were the same.
    pub is_varied: bool,
}

impl RngRead {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let (number, said) = Said::of(line, "rng")?;
        Some(Self {
            number,
            bytes: said.number("bytes")?,
            is_varied: said.number("varied")? != 0,
        })
    }
}

/// A disk as the guest found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFound {
    /// Which disk, in the order of the bus.
    pub number: usize,
    /// Its length, in sectors of 512 bytes.
    pub sectors: u64,
    /// What guest and device agreed on.
    pub features: u64,
    /// Queues in use.
    pub queues: u64,
    /// It takes no writes.
    pub is_read_only: bool,
    /// What it calls itself.
    pub id: String,
}

impl DiskFound {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let (number, said) = Said::of(line, "disk")?;
        Some(Self {
            number,
            sectors: said.number("sectors")?,
            features: said.number("features")?,
            queues: said.number("queues")?,
            is_read_only: said.number("read_only")? != 0,
            id: said
                .word("id")?
                .strip_prefix('"')?
                .strip_suffix('"')?
                .to_owned(),
        })
    }
}

/// A step of `disk=check`: `write`, `flush`, `verify`, `frames`, `discard`, `zeroes`, `last`, `beyond`, `nonsense`, and
/// `check` at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStep {
    /// Which disk.
    pub number: usize,
    /// What was done.
    pub step: String,
    /// `ok`, `ioerr`, `unsupp`, `status-N`, `silent`; `differs` (content), `absent` (not offered), `finished` (`check`).
    pub outcome: String,
}

impl DiskStep {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let (number, said) = Said::of(line, "disk")?;
        let (step, outcome) = said.text.split_once(' ')?;
        (!outcome.contains(' ')).then(|| Self {
            number,
            step: step.to_owned(),
            outcome: outcome.to_owned(),
        })
    }
}

/// `disk=read:`: what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRead {
    /// Which disk.
    pub number: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Their sum, by [`crate::pattern::add_to_sum`].
    pub sum: u64,
    /// Eight-byte words that are not the pattern of the seed.
    pub wrong: u64,
    /// Of the last transfer, as in [`DiskStep`].
    pub outcome: String,
}

impl DiskRead {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let (number, said) = Said::of(line, "disk")?;
        Some(Self {
            number,
            bytes: said.number("bytes")?,
            sum: said.number("sum")?,
            wrong: said.number("wrong")?,
            outcome: said.word("outcome")?.to_owned(),
        })
    }
}

/// `disk=loop`, once a second: counts since the start, but for the slowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLoop {
    /// Which disk.
    pub number: usize,
    /// Requests that ended.
    pub transfers: u64,
    /// Blocks that were not as they were last written.
    pub bad: u64,
    /// Requests that ended otherwise than well.
    pub errors: u64,
    /// The longest request since the last such line, in microseconds.
    pub slow_us: u64,
}

impl DiskLoop {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let (number, said) = Said::of(line, "disk")?;
        Some(Self {
            number,
            transfers: said.number("transfers")?,
            bad: said.number("bad")?,
            errors: said.number("errors")?,
            slow_us: said.number("slow_us")?,
        })
    }
}

/// A measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bench {
    /// What was measured: `disk 0 random-1`, `disk 0 random-32`, `disk 0 sequential-8`.
    pub name: String,
    /// Operations that ended.
    pub operations: u64,
    /// Bytes they moved.
    pub bytes: u64,
    /// Time from the first beginning to the last end, in microseconds.
    pub elapsed_us: u64,
    /// Median of the time that one took, in microseconds.
    pub median_us: u64,
    /// 99th percentile of it, in microseconds.
    pub p99_us: u64,
}

impl Bench {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let said = Said::parse(line)?;
        Some(Self {
            name: said.subject.strip_prefix("bench ")?.to_owned(),
            operations: said.number("operations")?,
            bytes: said.number("bytes")?,
            elapsed_us: said.number("elapsed_us")?,
            median_us: said.number("median_us")?,
            p99_us: said.number("p99_us")?,
        })
    }

    /// Operations per second.
    pub fn operations_per_s(&self) -> f64 {
        per_s(self.operations, self.elapsed_us)
    }

    /// Bytes per second.
    pub fn bytes_per_s(&self) -> f64 {
        per_s(self.bytes, self.elapsed_us)
    }
}

fn per_s(count: u64, elapsed_us: u64) -> f64 {
    count as f64 * 1e6 / elapsed_us.max(1) as f64
}
