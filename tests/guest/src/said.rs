//! Lines in which the guest tells of devices: `guest: KIND NUMBER: …`, a word that says what is told, then mostly pairs
//! of a name and a value.
//!
//! A line of another kind, or without all of its fields, is `None`, never half a record.

mod cpuid;
mod disk;
mod memory;
mod net;
mod transport;
mod vsock;

use std::net::Ipv4Addr;

pub use cpuid::Cpuid;
pub use disk::{DiskFound, DiskLoop, DiskRead, DiskResized, DiskStep};
pub use memory::{BalloonFollow, BalloonFound, BalloonReported};
pub use net::{NetEcho, NetFound, NetLease, NetLoop, NetSend};
pub use transport::{Hostile, Msix};
pub use vsock::{VsockConnect, VsockFound, VsockReset, VsockServed};

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

    /// Reads a line about a device of a kind that begins with a word: the device's number, and what is said.
    fn of(line: &'a str, kind: &str, first: &str) -> Option<(usize, Self)> {
        let said = Self::parse(line)?;
        let number = said.subject.strip_prefix(kind)?.strip_prefix(' ')?;
        let is_meant = said.text.split(' ').next() == Some(first);
        Some((number.parse().ok().filter(|_| is_meant)?, said))
    }

    /// The word after the word `name`.
    pub fn word(&self, name: &str) -> Option<&'a str> {
        let mut words = self.text.split(' ');
        words.find(|word| *word == name)?;
        words.next()
    }

    /// The value after the word `name`.
    fn value<V: Value>(&self, name: &str) -> Option<V> {
        V::read(self.word(name)?)
    }
}

/// What a word can mean.
trait Value: Sized {
    fn read(word: &str) -> Option<Self>;
}

impl Value for u64 {
    /// Decimal, or hexadecimal after `0x`.
    fn read(word: &str) -> Option<Self> {
        match word.strip_prefix("0x") {
            Some(digits) => Self::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        }
    }
}

impl Value for bool {
    fn read(word: &str) -> Option<Self> {
        match word {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        }
    }
}

impl Value for String {
    fn read(word: &str) -> Option<Self> {
        let quoted = word.strip_prefix('"').and_then(|w| w.strip_suffix('"'));
        Some(quoted.unwrap_or(word).to_owned())
    }
}

impl Value for Ipv4Addr {
    fn read(word: &str) -> Option<Self> {
        word.parse().ok()
    }
}

macro_rules! record {
    ($(#[$about:meta])* $name:ident, $kind:literal, $first:literal { $($(#[$what:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            /// Which device of its kind, in the order of the bus.
            pub number: usize,
            $($(#[$what])* pub $field: $type,)*
        }

        impl $name {
            /// Reads a line.
            pub fn parse(line: &str) -> Option<Self> {
                let (number, said) = Said::of(line, $kind, $first)?;
                Some(Self { number, $($field: said.value(stringify!($field))?,)* })
            }
        }
    };
}

use record;

record! {
    /// `rng=`: what came of it.
    RngRead, "rng", "bytes" {
        /// Bytes read.
        bytes: u64,
        /// Not all bytes were the same.
        varied: bool,
    }
}

/// A measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bench {
    /// What was measured: `disk 0 random-1`, `disk 0 random-32`, `disk 0 sequential-8`, `net 0 udp-1`, `net 0 udp-64`;
    /// the last number says how many operations were under way at once.
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
            operations: said.value("operations")?,
            bytes: said.value("bytes")?,
            elapsed_us: said.value("elapsed_us")?,
            median_us: said.value("median_us")?,
            p99_us: said.value("p99_us")?,
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
