//! `cargo xtask soak`: the tests that need longer, and the page of the book that shows how the last run went. Its part
//! `fuzz` has a module and a page of its own.
//!
//! What always holds: the page says what was run, with which seed, on which machine, and what came of it, failures
//! included; it is written only after everything ran; what can be wrong with what was asked for is found before any of
//! it runs.
//!
//! What it must not know: what the tests do with seeds and counts.

use std::fmt::Write;
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::parts::Part;
use crate::steps::seconds;
use crate::summary::{self, Outcome};
use crate::test::{self, Plan};
use crate::tiers;
use crate::{cache, fuzz, machine};

/// The page without its figures.
const PAGE: &str = include_str!("soak.md");

/// Where the page goes, from the root of the clone.
const PAGE_PATH: &str = "docs/src/reference/soak.md";

/// How much longer than usual a program may take.
const PATIENCE: u32 = 12;

/// What to run, and how much of it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Kills and cuts in each round of the fault tests
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    faults: u32,
    /// Rounds, each under a seed of its own
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Random cases for each property test in each round
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    cases: u32,
    /// The first round's seed; the next rounds count on from it (default: from the clock)
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Run only these parts (default: unit, faults, the property tests of other tiers, and fuzz)
    #[arg(long, value_name = "PART", value_enum)]
    only: Vec<Part>,
    #[command(flatten)]
    fuzz: fuzz::Wanted,
    /// Do not write the results into the book
    #[arg(long)]
    no_page: bool,
}

/// One round's seed and what came of each of its stages.
struct Round {
    seed: u64,
    stages: Vec<(&'static str, Outcome)>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let first = arguments.seed.unwrap_or(since_epoch.as_secs());
    let parts = match &arguments.only[..] {
        [] => &Part::USUAL,
        only => only,
    };
    let fuzz = prepare_fuzz(&arguments.fuzz, parts)?;
    let has_tiers = parts.iter().any(|part| part.tier().is_some());
    let mut rounds = Vec::new();
    for number in 0..if has_tiers { arguments.rounds } else { 0 } {
        let seed = first.wrapping_add(u64::from(number));
        println!(
            "==> Round {} of {}, seed {seed}",
            number + 1,
            arguments.rounds
        );
        let stages = test::stages(&plan(arguments, parts, seed))?;
        rounds.push(Round { seed, stages });
    }
    let (date, commit, machine) = (date(since_epoch), commit(), machine::one_line());
    if has_tiers && !arguments.no_page {
        let path = cache::workspace().join(PAGE_PATH);
        let page = page(arguments, &rounds, &date, &machine);
        std::fs::write(&path, page).with_context(|| format!("Cannot write {}.", path.display()))?;
        println!("Results are in {PAGE_PATH}.");
    }
    let mut stages: Vec<_> = rounds.into_iter().flat_map(|round| round.stages).collect();
    if let Some(prepared) = fuzz {
        let about = fuzz::Run {
            date: &date,
            commit: &commit,
            machine: &machine,
            seed: first,
        };
        let outcome = fuzz::run(&prepared, &arguments.fuzz, about, !arguments.no_page);
        stages.push(("fuzz", outcome));
    }
    print!("{}", summary::report(&stages));
    Ok(test::verdict(&stages))
}

/// Builds and chooses what is to be searched, if anything is.
fn prepare_fuzz(wanted: &fuzz::Wanted, parts: &[Part]) -> Result<Option<fuzz::Prepared>> {
    match parts.contains(&Part::Fuzz) {
        true => fuzz::prepare(wanted).map(Some),
        false if wanted.names_targets() => {
            bail!("--target names fuzz targets, and nothing is searched without --only fuzz.")
        }
        false => Ok(None),
    }
}

/// The environment by which tests learn that they have time.
fn plan(arguments: &Arguments, parts: &[Part], seed: u64) -> Plan {
    let only = parts.iter().filter_map(|part| part.tier()).collect();
    let also = match arguments.only.is_empty() {
        true => tiers::PROPERTIES.to_vec(),
        false => Vec::new(),
    };
    let set = |name: &str, value: String| (name.to_owned(), value);
    Plan {
        only,
        also,
        filter: None,
        environment: vec![
            set("DWCP_SEED", seed.to_string()),
            set("DWCP_FAULT_SEED", seed.to_string()),
            set("DWCP_FAULTS", arguments.faults.to_string()),
            set("PROPTEST_RNG_SEED", seed.to_string()),
            set("PROPTEST_CASES", arguments.cases.to_string()),
            set("DWCP_SOAK_CASES", arguments.cases.to_string()),
        ],
        patience: PATIENCE,
    }
}

/// The page for the book.
fn page(arguments: &Arguments, rounds: &[Round], date: &str, machine: &str) -> String {
    let mut rows = String::new();
    for round in rounds {
        for (stage, outcome) in &round.stages {
            // Writing to a String cannot fail.
            let _ = writeln!(
                rows,
                "| {} | {stage} | {} | {} | {} | {} |",
                round.seed,
                outcome.passed,
                outcome.failed,
                outcome.skipped.len(),
                seconds(outcome.time)
            );
        }
    }
    let mut failures = String::new();
    for (_, outcome) in rounds.iter().flat_map(|round| &round.stages) {
        for failure in &outcome.failures {
            let _ = writeln!(failures, "- {failure}");
        }
    }
    if failures.is_empty() {
        failures.push_str("Nothing failed.\n");
    }
    let first = rounds.first().map_or(0, |round| round.seed);
    PAGE.replace("{date}", date)
        .replace("{commit}", &commit())
        .replace("{machine}", machine)
        .replace("{seed}", &first.to_string())
        .replace("{rounds}", &arguments.rounds.to_string())
        .replace("{faults}", &arguments.faults.to_string())
        .replace("{cases}", &arguments.cases.to_string())
        .replace("{rows}", rows.trim_end())
        .replace("{failures}", failures.trim_end())
}

/// The commit that was tested, with `-dirty` if files had been changed since.
fn commit() -> String {
    Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(cache::workspace())
        .output()
        .ok()
        .filter(|out| out.status.success())
        .map_or_else(
            || "unknown".into(),
            |out| String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        )
}

/// A time since 1970 as `YYYY-MM-DD` in UTC (days to civil date, after Howard Hinnant's `civil_from_days`).
fn date(since_epoch: Duration) -> String {
    let days = since_epoch.as_secs() / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_civil() {
        assert_eq!(date(Duration::ZERO), "1970-01-01");
        assert_eq!(date(Duration::from_secs(951_782_400)), "2000-02-29");
        assert_eq!(date(Duration::from_secs(1_795_506_574)), "2026-11-24");
    }

    #[test]
    fn targets_are_refused_where_nothing_is_searched() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            soak: Arguments,
        }
        let prepare = |more: &[&str]| {
            let words = ["soak", "--only", "unit"].iter().chain(more);
            let soak = <Line as clap::Parser>::parse_from(words).soak;
            prepare_fuzz(&soak.fuzz, &soak.only)
        };
        assert!(prepare(&[]).is_ok_and(|prepared| prepared.is_none()));
        assert!(prepare(&["--target", "kernel"]).is_err());
    }

    #[test]
    fn a_seed_repeats_a_round() {
        let arguments = Arguments {
            faults: 10,
            rounds: 1,
            cases: 100,
            seed: Some(7),
            only: Vec::new(),
            fuzz: fuzz::Wanted::default(),
            no_page: true,
        };
        let plan = plan(&arguments, &Part::USUAL, 7);
        for name in ["DWCP_SEED", "DWCP_FAULT_SEED", "PROPTEST_RNG_SEED"] {
            let set = plan.environment.iter().find(|(key, _)| key == name);
            assert_eq!(set.map(|(_, value)| value.as_str()), Some("7"), "{name}");
        }
        assert!(plan.also.contains(&("dwcp-vmm", "state_format")));
    }

    #[test]
    fn the_page_has_no_placeholder_left() {
        let arguments = Arguments {
            faults: 10,
            rounds: 1,
            cases: 100,
            seed: Some(7),
            only: Vec::new(),
            fuzz: fuzz::Wanted::default(),
            no_page: false,
        };
        let rounds = [Round {
            seed: 7,
            stages: vec![("unit", Outcome::default())],
        }];
        let page = page(&arguments, &rounds, "2026-11-24", "a machine");
        assert!(!page.contains('{') && !page.contains('}'), "{page}");
        assert!(page.contains("| 7 | unit | 0 | 0 | 0 |"));
    }
}
