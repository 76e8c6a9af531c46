//! `cargo xtask bench`: the published targets, measured in a release build.
//!
//! What always holds: a figure that was not measured is absent, never zero; the file holds what the table shows;
//! each figure carries the command and the machine that produced it.
//!
//! What it must not know: how a row is measured. `dwcp-bench ROW` measures, and prints each figure as one line of
//! JSON on standard output; `dwcp-bench --list` prints the rows and names that it has.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::steps::step;
use crate::{cargo, machine, plugins, test};

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Rows (numbers) or figures (names); all that there are if none is given
    #[arg(value_name = "ROW|NAME")]
    rows: Vec<String>,
    /// Write the figures to this file, as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A firecracker binary to measure beside ours
    #[arg(long, value_name = "PATH")]
    firecracker: Option<PathBuf>,
}

/// A figure, as the file holds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figure {
    /// The row of the published targets.
    target: u32,
    /// The figure's name there.
    what: String,
    value: f64,
    unit: String,
    /// What was to be reached, as text: `<= 10`, `stated`.
    goal: String,
    /// The reference's name and version, or that it was not run.
    reference: Option<String>,
    reference_value: Option<f64>,
    ratio: Option<f64>,
    runs: u32,
    /// The lowest and the highest of the runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    low: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    high: Option<f64>,
    /// Under which conditions, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    /// Share of processor time that was stolen from this machine meanwhile, percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    steal_percent: Option<f64>,
    /// Load average over one minute before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    load_before: Option<f64>,
    #[serde(default)]
    command: String,
    #[serde(default)]
    machine: String,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let made = step("Building the programs for release", || {
        cargo::build(&["--workspace", "--exclude", "xtask", "--bins", "--release"])
    })?;
    let built = step("Building plugins and templates", || {
        plugins::build(&plugins::Options::default())
    })?;
    let program = cargo::program(&made, "dwcp-bench")?;
    let start = |rest: &[OsString]| {
        let mut command = Command::new(program);
        command
            .args(rest)
            .envs(test::plugins_environment(&built))
            .env("DWCP_BIN_DIR", program.parent().unwrap_or(Path::new(".")));
        command
    };
    let rows = rows(arguments, &listed(start(&["--list".into()]))?)?;

    let mut figures = Vec::new();
    let mut failed = Vec::new();
    for row in &rows {
        let mut rest: Vec<OsString> = vec![row.into()];
        rest.extend(references(arguments));
        let again = again(&rest);
        match step(&format!("Measuring row {row}"), || {
            measure(start(&rest), &again)
        }) {
            Ok(found) => figures.extend(found),
            Err(error) => {
                eprintln!("{error:#}");
                failed.push(row.clone());
            }
        }
    }
    print!("{}", table(&figures));
    if let Some(file) = &arguments.json {
        let mut text = serde_json::to_string_pretty(&figures).context("Cannot write JSON.")?;
        text.push('\n');
        fs::write(file, text).with_context(|| format!("Cannot write {}.", file.display()))?;
    }
    if failed.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        bail!("Not measured: {}.", failed.join(", "));
    }
}

/// One row of `dwcp-bench --list`.
#[derive(Debug, Deserialize)]
struct Listed {
    target: u32,
    what: Vec<String>,
}

/// The rows that the program has.
fn listed(mut command: Command) -> Result<Vec<Listed>> {
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .context("Cannot start dwcp-bench.")?;
    if !out.status.success() {
        bail!("dwcp-bench --list failed.");
    }
    serde_json::from_slice(&out.stdout).context("dwcp-bench --list is not what was expected.")
}

/// The rows asked for, or all that there are. A name stands for its row.
fn rows(arguments: &Arguments, have: &[Listed]) -> Result<Vec<String>> {
    let mut rows: Vec<String> = Vec::new();
    for asked in &arguments.rows {
        let found = have
            .iter()
            .find(|row| row.target.to_string() == *asked || row.what.contains(asked));
        let Some(found) = found else {
            let names: Vec<String> = have
                .iter()
                .map(|row| format!("{} ({})", row.target, row.what.join(", ")))
                .collect();
            bail!("There is no row {asked}; there are: {}.", names.join("; "));
        };
        let row = found.target.to_string();
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    if rows.is_empty() {
        rows = have.iter().map(|row| row.target.to_string()).collect();
    }
    Ok(rows)
}

fn references(arguments: &Arguments) -> Vec<OsString> {
    let one = |flag: &str, path: &Option<PathBuf>| {
        path.iter()
            .flat_map(|path| [flag.into(), path.clone().into_os_string()])
            .collect::<Vec<OsString>>()
    };
    one("--firecracker", &arguments.firecracker)
}

/// The command that measures the same again.
fn again(rest: &[OsString]) -> String {
    let words = rest.iter().map(|word| word.to_string_lossy());
    words.fold("cargo xtask bench".into(), |line, word| {
        format!("{line} {word}")
    })
}

/// Runs one row and reads its figures; `again` is how a person would.
fn measure(mut command: Command, again: &str) -> Result<Vec<Figure>> {
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .context("Cannot start dwcp-bench.")?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        bail!("`{again}` could not be measured: {}.", out.status);
    }
    let figures = figures(&text, again, &machine::one_line())?;
    Ok(figures)
}

/// Reads figures, one a line, and notes where they come from.
fn figures(text: &str, again: &str, machine: &str) -> Result<Vec<Figure>> {
    text.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| {
            let mut figure: Figure = serde_json::from_str(line)
                .with_context(|| format!("`{again}` printed a figure that is none: {line}"))?;
            figure.command = again.to_owned();
            figure.machine = machine.to_owned();
            Ok(figure)
        })
        .collect()
}

fn table(figures: &[Figure]) -> String {
    let number = |value: f64| format!("{value:.2}");
    let maybe = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
    let mut out = format!(
        "\n{:>3}  {:<20}{:>10}{:>10}{:>10}  {:<4}  {:<20}{:>10}{:>7}{:>6}{:>8}{:>7}  {}\n",
        "row",
        "what",
        "value",
        "low",
        "high",
        "unit",
        "goal",
        "reference",
        "ratio",
        "runs",
        "steal %",
        "load",
        "against"
    );
    for one in figures {
        out += &format!(
            "{:>3}  {:<20}{:>10}{:>10}{:>10}  {:<4}  {:<20}{:>10}{:>7}{:>6}{:>8}{:>7}  {}\n",
            one.target,
            one.what,
            number(one.value),
            maybe(one.low),
            maybe(one.high),
            one.unit,
            one.goal,
            maybe(one.reference_value),
            maybe(one.ratio),
            one.runs,
            maybe(one.steal_percent),
            maybe(one.load_before),
            one.reference.as_deref().unwrap_or("reference not run")
        );
    }
    out += "\n";
    let mut noted: Vec<&str> = Vec::new();
    for one in figures {
        // A figure that several references stand beside has one note.
        if let Some(note) = &one.note
            && !noted.contains(&one.what.as_str())
        {
            noted.push(&one.what);
            out += &format!("{}: {note}\n", one.what);
        }
    }
    if let Some(one) = figures.first() {
        out += &format!("Measured on {}.\n", one.machine);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LINE: &str = r#"{"target":9,"what":"call_us","value":0.8,"unit":"us","goal":"<= 1",
        "reference":"wasmtime 48.0.8","reference_value":0.7,"ratio":1.14,"runs":5}"#;

    fn arguments(rows: &[&str]) -> Arguments {
        Arguments {
            rows: rows.iter().map(|&row| row.into()).collect(),
            json: None,
            firecracker: None,
        }
    }

    #[test]
    fn a_figure_is_read_and_marked_with_its_origin() {
        let text = format!("steal 3 %\n{}\n", LINE.replace('\n', ""));
        let found = figures(&text, "cargo xtask bench 9", "here").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].machine, "here");
        assert_eq!(found[0].command, "cargo xtask bench 9");
        assert!(table(&found).contains("call_us"));
    }

    #[test]
    fn a_damaged_figure_is_an_error() {
        assert!(figures("{\"target\":9}\n", "cargo xtask bench 9", "here").is_err());
    }

    #[test]
    fn what_was_seen_beside_a_figure_is_kept() {
        let line = LINE.replace('\n', "").replace(
            "\"runs\":5",
            "\"runs\":5,\"steal_percent\":3.5,\"note\":\"alone\"",
        );
        let found = figures(&line, "cargo xtask bench 9", "here").unwrap();
        assert!(table(&found).contains("call_us: alone") && table(&found).contains("3.50"));
        let twice = [found.clone(), found.clone()].concat();
        assert_eq!(table(&twice).matches("call_us: alone").count(), 1);
        let text = serde_json::to_string(&found).unwrap();
        assert!(text.contains("\"steal_percent\":3.5") && !text.contains("\"low\""));
    }

    #[test]
    fn the_command_is_the_one_that_measures_the_same() {
        let rest = ["1", "--firecracker", "/opt/fc"].map(OsString::from);
        assert_eq!(again(&rest), "cargo xtask bench 1 --firecracker /opt/fc");
    }

    #[test]
    fn rows_go_by_number_or_name() {
        let have: Vec<Listed> = serde_json::from_str(
            r#"[{"target":1,"what":["start_ms"]},{"target":9,"what":["call_us"]}]"#,
        )
        .unwrap();
        assert_eq!(rows(&arguments(&["call_us", "9"]), &have).unwrap(), ["9"]);
        assert_eq!(rows(&arguments(&[]), &have).unwrap(), ["1", "9"]);
        assert!(rows(&arguments(&["77"]), &have).is_err());
    }
}
