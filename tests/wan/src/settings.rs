//! What a link is like and what it has carried: the values that both sides of the control socket share.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a link behaves, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Rate of the bottleneck, in Mbit/s (10^6 bits of IP packets a second); above 0, at most 10,000.
    pub rate_mbit: f64,
    /// Round trip without any queue, in ms; half of it each way; at most 5,000.
    pub rtt_ms: f64,
    /// Share of packets that are lost, from 0 to 1.
    pub loss: f64,
    /// How much the bottleneck holds before it drops what comes.
    pub queue: Queue,
}

/// Size of the queue in front of the bottleneck.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Queue {
    /// What the link sends in so many milliseconds.
    Ms(f64),
    /// So many bytes.
    Bytes(u64),
}

/// A value is out of range, or text is no setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Out of range.
    #[error(
        "{0} is out of range: rate-mbit above 0 to 10000, rtt-ms 0 to 5000, loss 0 to 1, queue-ms 1 to 10000"
    )]
    Range(&'static str),
    /// Not understood.
    #[error(
        "{0:?} is no setting: write rate-mbit=N, rtt-ms=N, loss=N, queue-ms=N or queue-bytes=N"
    )]
    Syntax(String),
}

impl Settings {
    /// Checks every value.
    pub fn checked(self) -> Result<Self, SettingsError> {
        let within = |value: f64, low: f64, high: f64| (low..=high).contains(&value);
        if !within(self.rate_mbit, 0.001, 10_000.0) {
            return Err(SettingsError::Range("The rate"));
        }
        if !within(self.rtt_ms, 0.0, 5_000.0) {
            return Err(SettingsError::Range("The round trip"));
        }
        if !within(self.loss, 0.0, 1.0) {
            return Err(SettingsError::Range("The loss"));
        }
        if !within(self.queue_time().as_secs_f64() * 1000.0, 0.0, 10_000.0) {
            return Err(SettingsError::Range("The queue"));
        }
        Ok(self)
    }

    /// Rate in bits a second.
    pub fn bits_per_s(&self) -> f64 {
        self.rate_mbit * 1e6
    }

    /// Delay in one direction.
    pub fn delay(&self) -> Duration {
        Duration::from_secs_f64(self.rtt_ms / 2000.0)
    }

    /// How long the bottleneck takes to send a full queue.
    pub fn queue_time(&self) -> Duration {
        let seconds = match self.queue {
            Queue::Ms(ms) => ms / 1000.0,
            Queue::Bytes(bytes) => bytes as f64 * 8.0 / self.bits_per_s(),
        };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// What is to be different from now on; `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Changes {
    /// See [`Settings::rate_mbit`].
    pub rate_mbit: Option<f64>,
    /// See [`Settings::rtt_ms`].
    pub rtt_ms: Option<f64>,
    /// See [`Settings::loss`].
    pub loss: Option<f64>,
    /// See [`Settings::queue`].
    pub queue: Option<Queue>,
}

impl Changes {
    /// The settings with these changes.
    pub fn apply(&self, to: Settings) -> Result<Settings, SettingsError> {
        Settings {
            rate_mbit: self.rate_mbit.unwrap_or(to.rate_mbit),
            rtt_ms: self.rtt_ms.unwrap_or(to.rtt_ms),
            loss: self.loss.unwrap_or(to.loss),
            queue: self.queue.unwrap_or(to.queue),
        }
        .checked()
    }
}

impl FromStr for Changes {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let mut changes = Self::default();
        for word in text.split_whitespace() {
            let wrong = || SettingsError::Syntax(word.chars().take(64).collect());
            let (name, value) = word.split_once('=').ok_or_else(wrong)?;
            let number: f64 = value.parse().map_err(|_| wrong())?;
            match name {
                "rate-mbit" => changes.rate_mbit = Some(number),
                "rtt-ms" => changes.rtt_ms = Some(number),
                "loss" => changes.loss = Some(number),
                "queue-ms" => changes.queue = Some(Queue::Ms(number)),
                "queue-bytes" => {
                    changes.queue = Some(Queue::Bytes(value.parse().map_err(|_| wrong())?));
                }
                _ => return Err(wrong()),
            }
        }
        Ok(changes)
    }
}

impl std::fmt::Display for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers = [
            ("rate-mbit", self.rate_mbit),
            ("rtt-ms", self.rtt_ms),
            ("loss", self.loss),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                write!(f, "{name}={value} ")?;
            }
        }
        match self.queue {
            Some(Queue::Ms(ms)) => write!(f, "queue-ms={ms}"),
            Some(Queue::Bytes(bytes)) => write!(f, "queue-bytes={bytes}"),
            None => Ok(()),
        }
    }
}

/// What one direction has carried and dropped since the last reset. Bytes are those of IP packets, headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// Packets taken from the sending namespace, whatever becomes of them.
    pub taken: u64,
    /// Packets delivered.
    pub packets: u64,
    /// Bytes delivered.
    pub bytes: u64,
    /// Packets that found the queue full.
    pub dropped_queue: u64,
    /// Packets lost at random.
    pub dropped_loss: u64,
    /// Packets lost because the link was cut.
    pub dropped_cut: u64,
    /// Packets that the receiving namespace did not take.
    pub dropped_refused: u64,
}

/// What a link has carried, and whether it is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// From the left namespace to the right.
    pub left_to_right: Direction,
    /// From the right namespace to the left.
    pub right_to_left: Direction,
    /// Whether the link is cut now.
    pub cut: bool,
}

impl Stats {
    /// Bytes delivered in both directions.
    pub fn bytes(&self) -> u64 {
        self.left_to_right.bytes + self.right_to_left.bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SETTINGS: Settings = Settings {
        rate_mbit: 100.0,
        rtt_ms: 100.0,
        loss: 0.0,
        queue: Queue::Ms(200.0),
    };

    #[test]
    fn changes_are_written_as_they_are_read() {
        for text in [
            "",
            "rate-mbit=1.5",
            "rtt-ms=10 loss=0.01 queue-bytes=64000",
            "queue-ms=5",
        ] {
            let changes: Changes = text.parse().unwrap();
            assert_eq!(changes.to_string().parse::<Changes>().unwrap(), changes);
        }
        for bad in [
            "rate-mbit",
            "rate-mbit=",
            "speed=1",
            "rate-mbit=fast",
            "queue-bytes=-1",
        ] {
            assert!(bad.parse::<Changes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for bad in [
            "rate-mbit=0",
            "rate-mbit=nan",
            "rtt-ms=-1",
            "loss=1.1",
            "rtt-ms=inf",
            "queue-bytes=9999999999",
        ] {
            let changes: Changes = bad.parse().unwrap();
            assert!(changes.apply(SETTINGS).is_err(), "{bad}");
        }
        let changes: Changes = "rate-mbit=10".parse().unwrap();
        assert_eq!(changes.apply(SETTINGS).unwrap().rate_mbit, 10.0);
        assert_eq!(SETTINGS.delay(), Duration::from_millis(50));
        assert_eq!(SETTINGS.queue_time(), Duration::from_millis(200));
    }
}
