//! What the machine was like while something was measured: stolen time, and how loaded it was before.

use std::fs;

use anyhow::Context;

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Share of all processors' time that the hypervisor below took away, percent.
    pub steal_percent: f64,
    /// Load average over one minute before.
    pub load_before: f64,
}

/// Counters at the beginning.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    before: Times,
    load_before: f64,
}

/// Time of all processors since boot, in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    all: u64,
    stolen: u64,
}

impl Watch {
    /// Begins to watch.
    pub fn start() -> anyhow::Result<Self> {
        let load = fs::read_to_string("/proc/loadavg").context("The load cannot be read")?;
        let first = load.split(' ').next().unwrap_or_default();
        Ok(Self {
            before: now()?,
            load_before: first.parse().context("The load cannot be understood")?,
        })
    }

    /// What was seen since.
    pub fn end(self) -> anyhow::Result<Seen> {
        Ok(Seen {
            steal_percent: share(self.before, now()?),
            load_before: self.load_before,
        })
    }
}

fn now() -> anyhow::Result<Times> {
    let text = fs::read_to_string("/proc/stat").context("Processor times cannot be read")?;
    times(&text).context("Processor times cannot be understood")
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal. Guest time, which follows, is
/// part of user time.
fn times(text: &str) -> Option<Times> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map(|word| word.parse().ok())
        .collect::<Option<_>>()?;
    Some(Times {
        all: fields.iter().sum(),
        stolen: *fields.get(7)?,
    })
}

fn share(before: Times, after: Times) -> f64 {
    let all = after.all.saturating_sub(before.all).max(1);
    after.stolen.saturating_sub(before.stolen) as f64 * 100.0 / all as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stolen_time_is_a_share_of_all_time() {
        let before = times("cpu  10 0 10 70 0 0 0 10 5 0\ncpu0 1\n").unwrap();
        assert_eq!(
            before,
            Times {
                all: 100,
                stolen: 10
            }
        );
        let after = times("cpu  20 0 20 130 0 0 0 30 9 0\n").unwrap();
        assert_eq!(share(before, after), 20.0);
        assert_eq!(share(after, after), 0.0);
        assert!(times("cpu  1 2 3\n").is_none());
        assert!(Watch::start().unwrap().end().unwrap().steal_percent >= 0.0);
    }
}
