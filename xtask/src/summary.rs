//! What test programs say of themselves, read and added up.
//!
//! What always holds: a program that failed without saying so counts as one failure; a test that says it was
//! skipped does not count as passed.
//!
//! What it must not know: how the programs were started.

use std::fmt::Write;
use std::time::Duration;

use crate::steps::seconds;

/// What came of one test program, or of several added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tests that ran and passed.
    pub passed: u64,
    /// Tests that failed, and programs that ended badly without naming one.
    pub failed: u64,
    /// One line for each test that did not run: its name and why.
    pub skipped: Vec<String>,
    /// The names of what failed.
    pub failures: Vec<String>,
    /// Wall time.
    pub time: Duration,
}

impl Outcome {
    /// Reads the output of a test program called `program`, which ended well or not.
    pub fn read(program: &str, output: &str, ended_well: bool, time: Duration) -> Outcome {
        let mut outcome = Outcome {
            time,
            ..Outcome::default()
        };
        for line in output.lines() {
            outcome.read_line(program, line);
        }
        let skipped = outcome.skipped.len() as u64;
        let ignored = outcome.skipped.iter().filter(|one| one.ends_with(IGNORED));
        // A skipped test returns early, so its harness takes it for passed; an ignored one it does not count.
        let taken_for_passed = skipped - ignored.count() as u64;
        outcome.passed = outcome.passed.saturating_sub(taken_for_passed);
        if !ended_well && outcome.failed == 0 {
            outcome.failed = 1;
            outcome
                .failures
                .push(format!("{program}: ended badly without naming a test"));
        }
        outcome
    }

    /// Adds another outcome to this one.
    pub fn add(&mut self, other: Outcome) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.failures.extend(other.failures);
        self.time += other.time;
    }

    fn read_line(&mut self, program: &str, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += count(result, " passed");
            self.failed += count(result, " failed");
            return;
        }
        if let Some(skip) = skip(line) {
            let skip = skip.to_owned();
            if !self.skipped.contains(&skip) {
                self.skipped.push(skip);
            }
            return;
        }
        let Some((name, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        else {
            return;
        };
        if result == "FAILED" {
            self.failures.push(format!("{program}: {name}"));
        } else if result.starts_with("ignored") {
            self.skipped.push(format!("{program} {name}: {IGNORED}"));
        }
    }
}

/// Why a test that its author marked `#[ignore]` did not run.
const IGNORED: &str = "marked #[ignore]";

/// What follows `SKIPPED ` where a line begins with it, or where a single-threaded harness put its own words first.
fn skip(line: &str) -> Option<&str> {
    let own = match line.strip_prefix("test ") {
        Some(rest) => rest.split_once(" ... ")?.1,
        None => line,
    };
    own.strip_prefix("SKIPPED ")
        .filter(|rest| rest.contains(": "))
}

/// The number before ` passed` or ` failed` in a result line.
fn count(result: &str, what: &str) -> u64 {
    result
        .split([';', '.'])
        .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
        .unwrap_or(0)
}

/// The closing table (a row for each stage), what failed, what was skipped, and the line that says how many of each.
pub fn report(stages: &[(&str, Outcome)]) -> String {
    let mut out = String::new();
    let mut total = Outcome::default();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "\n{:<10}{:>8}{:>8}{:>9}{:>14}",
        "stage", "passed", "failed", "skipped", "time"
    );
    for (stage, outcome) in stages {
        let _ = writeln!(
            out,
            "{:<10}{:>8}{:>8}{:>9}{:>14}",
            stage,
            outcome.passed,
            outcome.failed,
            outcome.skipped.len(),
            seconds(outcome.time)
        );
        total.add(outcome.clone());
    }
    let _ = writeln!(out, "{:<35}{:>14}", "all", seconds(total.time));
    for failure in &total.failures {
        let _ = writeln!(out, "FAILED {failure}");
    }
    for skip in &total.skipped {
        let _ = writeln!(out, "SKIPPED {skip}");
    }
    let _ = writeln!(
        out,
        "{} passed, {} failed, {} skipped",
        total.passed,
        total.failed,
        total.skipped.len()
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";

    #[test]
    fn results_are_counted_and_failures_named() {
        let outcome = Outcome::read("p", TWO, false, Duration::ZERO);
        assert_eq!((outcome.passed, outcome.failed), (1, 1));
        assert_eq!(outcome.failures, ["p: b"]);
    }

    #[test]
    fn a_crash_without_a_result_is_a_failure() {
        let outcome = Outcome::read("p", "running 1 test\n", false, Duration::ZERO);
        assert_eq!(outcome.failed, 1);
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let text = "test a ... SKIPPED a: no /dev/kvm\nok\nSKIPPED b: not root\n\
            test c ... ignored\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        let outcome = Outcome::read("p", text, true, Duration::ZERO);
        assert_eq!(outcome.passed, 1);
        assert_eq!(
            outcome.skipped,
            ["a: no /dev/kvm", "b: not root", "p c: marked #[ignore]"]
        );
    }

    #[test]
    fn the_last_line_adds_everything_up() {
        let one = Outcome::read("p", TWO, false, Duration::from_secs(2));
        let text = report(&[("unit", one.clone()), ("kvm", one)]);
        assert!(
            text.ends_with("\n2 passed, 2 failed, 0 skipped\n"),
            "{text}"
        );
    }
}
