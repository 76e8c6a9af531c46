//! The part `fuzz` of `cargo xtask soak`: each fuzz target searched for bad inputs, one after the other.
//!
//! What always holds: a target is searched only after the engine has found a mistake that was planted for it, so that a
//! build which is not instrumented fails; an input that was found is kept as a file whose path is printed, and is tried
//! again by every later search, which is bad until it is mended; what was built, and the inputs that a search goes on
//! from, live in the cache directory.
//!
//! What it must not know: what the targets read.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::steps::step;
use crate::summary::Outcome;
use crate::{cache, cargo};

/// The page without its figures.
const PAGE: &str = include_str!("fuzz.md");

/// Where the page goes, from the root of the clone.
const PAGE_PATH: &str = "docs/src/reference/fuzz.md";

/// The target in which a mistake was planted, and how long it may take to find it.
const PLANTED: &str = "planted";
const PLANTED_SECONDS: u32 = 120;

/// How the code is instrumented: counters on edges, and operands of comparisons. These flags replace those of
/// `.cargo/config.toml`: libFuzzer looks up the C library's functions at run time, so this one program is not static.
const RUST_FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// One input that takes longer than this is a finding.
const INPUT_SECONDS: u32 = 10;

/// A process that grows beyond this has found one too.
const MEMORY_MIB: u32 = 1024;

/// How much of a failed search's output is shown, in lines.
const SHOWN_LINES: usize = 40;

/// What to search, and for how long.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Wanted {
    /// Seconds for which each fuzz target is searched
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    fuzz_seconds: u32,
    /// Search only this fuzz target (may be given several times)
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
}

/// What came of one target.
#[derive(Debug, Default, PartialEq, Eq)]
struct Search {
    name: String,
    inputs: u64,
    per_second: u64,
    coverage: u64,
    kept: u64,
    memory_mib: u64,
    /// The input that was found, and what the code said.
    finding: Option<String>,
}

/// A target as the program lists it.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    name: String,
    input_bytes_max: u64,
}

/// What a page says of the run as a whole.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Date in UTC.
    pub date: &'a str,
    /// The commit that was tested.
    pub commit: &'a str,
    /// The machine.
    pub machine: &'a str,
    /// The seed of every search.
    pub seed: u64,
}

impl Wanted {
    /// Whether targets were asked for by name.
    pub fn names_targets(&self) -> bool {
        !self.target.is_empty()
    }
}

/// What is searched: the program that was built, and its targets that are wanted.
#[derive(Debug)]
pub struct Prepared {
    program: PathBuf,
    targets: Vec<Listed>,
}

/// Builds the targets and chooses those that are wanted.
pub fn prepare(wanted: &Wanted) -> Result<Prepared> {
    let program = step("Building the fuzz targets, instrumented", build)?;
    let targets = chosen(list(&program)?, &wanted.target)?;
    Ok(Prepared { program, targets })
}

/// Searches the targets, and writes the page if it is wanted. What goes wrong is part of the outcome: other parts have
/// one too.
pub fn run(prepared: &Prepared, wanted: &Wanted, about: Run<'_>, write_page: bool) -> Outcome {
    let start = Instant::now();
    let mut searches = Vec::new();
    let done = search_all(prepared, wanted, about, write_page, &mut searches);
    outcome(&searches, done, start.elapsed())
}

fn search_all(
    prepared: &Prepared,
    wanted: &Wanted,
    about: Run<'_>,
    write_page: bool,
    searches: &mut Vec<Search>,
) -> Result<()> {
    let program = &prepared.program;
    step("Letting the engine find the planted mistake", || {
        find_planted(program, about.seed)
    })?;
    for target in &prepared.targets {
        let search = step(&format!("Searching {}", target.name), || {
            search(program, target, wanted.fuzz_seconds, about.seed)
        })?;
        println!("    {}", line(&search));
        searches.push(search);
    }
    if write_page {
        let path = cache::workspace().join(PAGE_PATH);
        fs::write(&path, page(wanted, about, searches))
            .with_context(|| format!("Cannot write {}.", path.display()))?;
        println!("Results of fuzzing are in {PAGE_PATH}.");
    }
    Ok(())
}

/// Builds the program; it and everything below it in a target directory of its own, for the flags differ.
fn build() -> Result<PathBuf> {
    let target = cache::directory()?.join("fuzz-target");
    let environment = [
        ("RUSTFLAGS", OsString::from(RUST_FLAGS)),
        ("CARGO_TARGET_DIR", target.into()),
    ];
    let arguments = [
        "-p",
        "dwcp-fuzz",
        "--features",
        "engine",
        "--profile",
        "fuzz",
    ];
    let made = cargo::build_with(&arguments, &environment)?;
    Ok(cargo::program(&made, "dwcp-fuzz")?.to_owned())
}

fn list(program: &Path) -> Result<Vec<Listed>> {
    let out = Command::new(program)
        .arg("--list")
        .output()
        .context("Cannot start dwcp-fuzz.")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let rows: Option<Vec<Listed>> = text.lines().map(listed).collect();
    rows.filter(|rows| !rows.is_empty() && out.status.success())
        .context("dwcp-fuzz --list is not what was expected.")
}

fn listed(row: &str) -> Option<Listed> {
    let (name, bytes) = row.split_once(' ')?;
    Some(Listed {
        name: name.to_owned(),
        input_bytes_max: bytes.parse().ok()?,
    })
}

/// The targets asked for, or all but the one with the planted mistake.
fn chosen(mut have: Vec<Listed>, asked: &[String]) -> Result<Vec<Listed>> {
    have.retain(|target| target.name != PLANTED);
    for name in asked {
        if !have.iter().any(|target| target.name == *name) {
            let names: Vec<&str> = have.iter().map(|target| target.name.as_str()).collect();
            bail!(
                "There is no fuzz target {name}; there are: {}.",
                names.join(", ")
            );
        }
    }
    have.retain(|target| asked.is_empty() || asked.contains(&target.name));
    Ok(have)
}

/// Fails unless the engine finds what was planted.
fn find_planted(program: &Path, seed: u64) -> Result<()> {
    let work = cache::directory()?.join("fuzz").join(PLANTED);
    let (kept, findings) = (work.join("kept"), work.join("findings"));
    empty(&kept)?;
    empty(&findings)?;
    let planted = Listed {
        name: PLANTED.into(),
        input_bytes_max: 64,
    };
    let folders = seeds(kept, &[], PLANTED);
    let out = engine(
        program,
        &planted,
        PLANTED_SECONDS,
        seed,
        &findings,
        &folders,
    )?;
    if !out.contains("the planted mistake") {
        bail!(
            "The engine did not find the planted mistake in {PLANTED_SECONDS} s: the build is not instrumented.\n{}",
            end_of(&out)
        );
    }
    Ok(())
}

/// Searches one target, from the corpus in the clone and from what earlier searches kept and found.
fn search(program: &Path, target: &Listed, seconds: u32, seed: u64) -> Result<Search> {
    let work = cache::directory()?.join("fuzz");
    let kept = work.join("corpus").join(&target.name);
    let findings = work.join("findings").join(&target.name);
    for folder in [&kept, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("Cannot make {}.", folder.display()))?;
    }
    let folders = seeds(kept, std::slice::from_ref(&findings), &target.name);
    let out = engine(program, target, seconds, seed, &findings, &folders)?;
    let mut search = read(&target.name, &out);
    if let Some(finding) = &search.finding {
        println!("{}", end_of(&out));
        println!("{} reads this wrongly: {finding}", target.name);
        println!(
            "Mend it, and keep the input in tests/fuzz/regressions/{}/.",
            target.name
        );
    } else if !out.contains("Done ") {
        search.finding = Some("the search ended early, and kept no input".into());
        println!("{}", end_of(&out));
    }
    Ok(search)
}

/// Where a search begins: what is kept, what was found, and what is in the clone. libFuzzer writes into the first folder
/// only.
fn seeds(kept: PathBuf, found: &[PathBuf], target: &str) -> Vec<PathBuf> {
    let clone = cache::workspace().join("tests/fuzz");
    let folders = ["corpus", "regressions"].map(|folder| clone.join(folder).join(target));
    std::iter::once(kept)
        .chain(found.iter().cloned())
        .chain(folders.into_iter().filter(|folder| folder.is_dir()))
        .collect()
}

/// Runs libFuzzer and returns what it said.
fn engine(
    program: &Path,
    target: &Listed,
    seconds: u32,
    seed: u64,
    findings: &Path,
    folders: &[PathBuf],
) -> Result<String> {
    // Zero means a seed of its own making.
    let seed = (seed as u32).max(1);
    let out = Command::new(program)
        .arg(&target.name)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.input_bytes_max))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-seed={seed}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args(["-print_final_stats=1", "-verbosity=1"])
        .args(folders)
        .output()
        .context("Cannot start dwcp-fuzz.")?;
    Ok(String::from_utf8_lossy(&out.stderr).into_owned())
}

/// Makes a folder, without what may be in it.
fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("Cannot empty {}.", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("Cannot make {}.", folder.display()))
}

/// What libFuzzer's output says.
fn read(name: &str, output: &str) -> Search {
    let statistic = |which: &str| {
        let rows = output.lines().filter_map(|row| row.strip_prefix("stat::"));
        rows.filter_map(|row| row.split_once(':'))
            .find(|(what, _)| *what == which)
            .and_then(|(_, value)| value.trim().parse().ok())
            .unwrap_or(0)
    };
    // `#4096 NEW cov: 66 ft: 78 corp: 5/47b lim: 43 …`; the last one counts.
    let after = |word: &str| {
        let rows = output.lines().rev().filter(|row| row.starts_with('#'));
        let mut values = rows.filter_map(|row| row.split_once(word));
        values.find_map(|(_, rest)| rest.trim().split([' ', '/']).next()?.parse().ok())
    };
    let written = output
        .lines()
        .find_map(|row| row.split_once("Test unit written to "));
    let mut said = output
        .lines()
        .skip_while(|row| !row.contains(" panicked at "));
    let said = said.nth(1);
    Search {
        name: name.to_owned(),
        inputs: statistic("number_of_executed_units"),
        per_second: statistic("average_exec_per_sec"),
        coverage: after(" cov: ").unwrap_or(0),
        kept: after(" corp: ").unwrap_or(0),
        memory_mib: statistic("peak_rss_mb"),
        finding: written.map(|(_, path)| match said {
            Some(said) => format!("{path} ({said})"),
            None => path.to_owned(),
        }),
    }
}

/// The last lines of an output.
fn end_of(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

fn line(search: &Search) -> String {
    let found = search.finding.as_deref().unwrap_or("nothing found");
    format!(
        "{}: {} inputs, coverage {}, {found}",
        search.name, search.inputs, search.coverage
    )
}

/// A target passes when nothing was found; what kept others from being searched is one more failure.
fn outcome(searches: &[Search], done: Result<()>, time: Duration) -> Outcome {
    let failures = searches.iter().filter_map(|search| {
        let finding = search.finding.as_ref()?;
        Some(format!("fuzz: {}: {finding}", search.name))
    });
    let mut failures: Vec<String> = failures.collect();
    let passed = (searches.len() - failures.len()) as u64;
    if let Err(error) = done {
        println!("{error:#}");
        failures.push(format!("fuzz: {error:#}"));
    }
    Outcome {
        passed,
        failed: failures.len() as u64,
        failures,
        time,
        ..Outcome::default()
    }
}

/// The page for the book.
fn page(wanted: &Wanted, about: Run<'_>, searches: &[Search]) -> String {
    let (mut rows, mut findings) = (String::new(), String::new());
    for search in searches {
        let found = if search.finding.is_some() {
            "yes"
        } else {
            "no"
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            rows,
            "| `{}` | {} | {} | {} | {} | {} MiB | {found} |",
            search.name,
            search.inputs,
            search.per_second,
            search.coverage,
            search.kept,
            search.memory_mib
        );
        if let Some(finding) = &search.finding {
            let _ = writeln!(findings, "- `{}`: {finding}", search.name);
        }
    }
    if findings.is_empty() {
        findings.push_str("No input was found that is read wrongly.\n");
    }
    let targets: String = wanted
        .target
        .iter()
        .map(|name| format!(" --target {name}"))
        .collect();
    PAGE.replace("{date}", about.date)
        .replace("{commit}", about.commit)
        .replace("{machine}", about.machine)
        .replace("{seed}", &about.seed.to_string())
        .replace("{seconds}", &wanted.fuzz_seconds.to_string())
        .replace("{targets}", &targets)
        .replace("{rows}", rows.trim_end())
        .replace("{findings}", findings.trim_end())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "#2\tINITED cov: 60 ft: 61 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        #4096\tNEW    cov: 66 ft: 78 corp: 5/47b lim: 43 exec/s: 0 rss: 32Mb L: 9/9 MS: 1 CopyPart-\n\
        #9999\tDONE   cov: 67 ft: 79 corp: 6/47b lim: 43 exec/s: 4999 rss: 32Mb\n\
        Done 9999 runs in 2 second(s)\nstat::number_of_executed_units: 9999\n\
        stat::average_exec_per_sec:     4999\nstat::peak_rss_mb:              32\n";

    const BAD: &str = "#2\tINITED cov: 60 ft: 61 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        thread '<unnamed>' (7) panicked at host/x.rs:1:1:\nattempt to add with overflow\n\
        ==7== ERROR: libFuzzer: deadly signal\n\
        artifact_prefix='f/'; Test unit written to f/crash-1\nstat::number_of_executed_units: 77\n";

    #[test]
    fn figures_are_read() {
        let search = read("x", GOOD);
        let expected = Search {
            name: "x".into(),
            inputs: 9999,
            per_second: 4999,
            coverage: 67,
            kept: 6,
            memory_mib: 32,
            finding: None,
        };
        assert_eq!(search, expected);
    }

    #[test]
    fn a_finding_fails_its_target_and_says_where_it_is() {
        let searches = [read("x", GOOD), read("y", BAD)];
        let outcome = outcome(&searches, Ok(()), Duration::ZERO);
        assert_eq!((outcome.passed, outcome.failed), (1, 1));
        assert_eq!(
            outcome.failures,
            ["fuzz: y: f/crash-1 (attempt to add with overflow)"]
        );
    }

    #[test]
    fn what_ends_the_searches_fails_and_what_they_found_before_counts() {
        let searches = [read("x", GOOD), read("y", BAD)];
        let error = anyhow::anyhow!("no room").context("Cannot make z.");
        let outcome = outcome(&searches, Err(error), Duration::ZERO);
        assert_eq!((outcome.passed, outcome.failed), (1, 2));
        assert_eq!(outcome.failures[1], "fuzz: Cannot make z.: no room");
    }

    #[test]
    fn what_was_found_is_searched_from_and_not_written_over() {
        let folders = seeds("kept".into(), &["findings".into()], "none such");
        assert_eq!(folders, [PathBuf::from("kept"), PathBuf::from("findings")]);
    }

    #[test]
    fn the_page_has_no_placeholder_left() {
        let about = Run {
            date: "2026-11-24",
            commit: "abc",
            machine: "a machine",
            seed: 7,
        };
        let page = page(
            &Wanted::default(),
            about,
            &[read("x", GOOD), read("y", BAD)],
        );
        assert!(!page.contains('{') && !page.contains('}'), "{page}");
        assert!(page.contains("| `x` | 9999 | 4999 | 67 | 6 | 32 MiB | no |"));
        assert!(page.contains("- `y`: f/crash-1"));
    }

    #[test]
    fn targets_are_chosen_by_name() {
        let have = || {
            ["a 1", "planted 64", "b 2"]
                .map(|row| listed(row).unwrap())
                .into()
        };
        assert_eq!(chosen(have(), &[]).unwrap().len(), 2);
        assert_eq!(chosen(have(), &["b".into()]).unwrap()[0].input_bytes_max, 2);
        assert!(chosen(have(), &["c".into()]).is_err());
    }
}
