//! Named steps with their times, so that a long command always says what it is doing.
//!
//! What always holds: a step that began also says how it ended.
//!
//! What it must not know: what the steps do.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Runs `work` as one named step; prints its name before and its time after.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {name}");
    let start = Instant::now();
    let done = work();
    let outcome = if done.is_ok() {
        "done in"
    } else {
        "FAILED after"
    };
    eprintln!("    {outcome} {}", seconds(start.elapsed()));
    done
}

/// A duration for people: `0.8 s`, `42 s`, `3 min 05 s`.
pub fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    if whole >= 60 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else if whole >= 10 {
        format!("{whole} s")
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(seconds(Duration::from_millis(840)), "0.8 s");
        assert_eq!(seconds(Duration::from_secs(42)), "42 s");
        assert_eq!(seconds(Duration::from_secs(185)), "3 min 05 s");
    }
}
