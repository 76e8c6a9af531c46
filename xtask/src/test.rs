//! `cargo xtask test`: everything is built once, then the test programs run tier by tier.
//!
//! What always holds: a tier that fails does not keep the next from running; what was skipped is listed with its
//! reason; the last line adds up passed, failed and skipped; the command fails if anything failed or nothing ran.
//!
//! What it must not know: what any test tests.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cargo::{self, Executable};
use crate::runner::{self, Show};
use crate::steps::{seconds, step};
use crate::summary::{self, Outcome};
use crate::tiers::Tier;
use crate::{cache, doctor, linux, packages, plugins};

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Run only this tier (may be given several times)
    #[arg(long, value_name = "TIER", value_enum)]
    only: Vec<Tier>,
    /// Run only tests, or whole test programs, whose name contains this
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

/// How the test programs are run: by `test` as they are, by `soak` for longer.
#[derive(Debug, Default)]
pub struct Plan {
    /// The tiers to run; all if empty.
    pub only: Vec<Tier>,
    /// Only tests or programs whose name contains this.
    pub filter: Option<String>,
    /// Test programs of other tiers to run as well, by package and name.
    pub also: Vec<(&'static str, &'static str)>,
    /// More environment for the test programs.
    pub environment: Vec<(String, String)>,
    /// By how much deadlines are longer than usual; 0 counts as 1.
    pub patience: u32,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let plan = Plan {
        only: arguments.only.clone(),
        filter: arguments.filter.clone(),
        ..Plan::default()
    };
    let stages = stages(&plan)?;
    let stages: Vec<_> = stages
        .iter()
        .map(|(name, outcome)| (*name, outcome.clone()))
        .collect();
    print!("{}", summary::report(&stages));
    Ok(verdict(&stages))
}

/// Good only if something ran and nothing failed.
pub fn verdict(stages: &[(&str, Outcome)]) -> ExitCode {
    let failed: u64 = stages.iter().map(|(_, outcome)| outcome.failed).sum();
    let passed: u64 = stages.iter().map(|(_, outcome)| outcome.passed).sum();
    if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Builds, prepares and runs what the plan asks for; one outcome for each stage, in order.
pub fn stages(plan: &Plan) -> Result<Vec<(&'static str, Outcome)>> {
    let wanted = |tier: Tier| plan.only.is_empty() || plan.only.contains(&tier);
    let mut stages = Vec::new();
    let mut environment = plan.environment.clone();

    // Tests of several tiers use the marketplace, so it is built whichever tier was asked for; warm, it takes a
    // moment.
    let (mut outcome, bundle) = build_plugins();
    environment.extend(bundle);
    if wanted(Tier::Plugins) {
        outcome.add(run_plugins_tests(plan)?);
    }
    stages.push((Tier::Plugins.name(), outcome));

    let start = Instant::now();
    let mut made = step("Building programs and tests", || {
        cargo::build(&["--workspace", "--bins", "--tests", "--examples"])
    })?;
    made.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    let build = Outcome {
        time: start.elapsed(),
        ..Outcome::default()
    };
    stages.push(("build", build));
    if let Some(folder) = cargo::program(&made, "dwcpd")?.parent() {
        environment.push(("DWCP_BIN_DIR".into(), folder.display().to_string()));
    }

    stages.push(("tools", prepare_tools()));
    for tier in Tier::ALL {
        if tier == Tier::Plugins || !wanted(tier) {
            continue;
        }
        stages.push((tier.name(), run_tier(tier, &made, &environment, plan)?));
    }
    if !plan.also.is_empty() {
        stages.push(("properties", run_also(&made, &environment, plan)?));
    }
    Ok(stages)
}

/// Installs what tests need. Where that cannot be, the tests that need it say so themselves, and are skipped.
fn prepare_tools() -> Outcome {
    let start = Instant::now();
    let mut outcome = Outcome::default();
    if let Err(error) = step("Preparing the tools that tests use", || {
        packages::ensure(&packages::TESTS)
    }) {
        println!("{error:#}");
        unprepared(&mut outcome, "tools", &doctor::tools_skipped(), &error);
    }
    outcome.time = start.elapsed();
    outcome
}

/// Runs the programs that the plan names besides its tiers; one that is not there is a failure.
fn run_also(made: &[Executable], environment: &[(String, String)], plan: &Plan) -> Result<Outcome> {
    println!("==> Property tests of other tiers");
    let start = Instant::now();
    let mut total = Outcome::default();
    for (package, target) in &plan.also {
        let is = |one: &&Executable| one.test && one.package == *package && one.target == *target;
        let Some(one) = made.iter().find(is) else {
            total.failed += 1;
            let failure = format!("{package} {target}: there is no such test program");
            total.failures.push(failure);
            continue;
        };
        let tier = Tier::of(one);
        let deadline = tier.deadline() * plan.patience.max(1);
        let filter = plan.filter.as_deref();
        total.add(run_program(one, tier, environment, filter, deadline)?);
    }
    total.time = start.elapsed();
    Ok(total)
}

/// Builds the marketplace; a failure is an outcome, so that the other tiers still run.
fn build_plugins() -> (Outcome, Vec<(String, String)>) {
    let start = Instant::now();
    let built = step("Building plugins and templates", || {
        plugins::build(&plugins::Options::default())
    });
    let mut outcome = Outcome::default();
    let environment = match built {
        Ok(built) => {
            outcome.passed = 1;
            plugins_environment(&built)
        }
        Err(error) => {
            println!("{error:#}");
            outcome.failed = 1;
            outcome.failures.push("plugins: they do not build".into());
            Vec::new()
        }
    };
    outcome.time = start.elapsed();
    (outcome, environment)
}

/// Runs the plugins' own tests, natively: the same code, another target.
fn run_plugins_tests(plan: &Plan) -> Result<Outcome> {
    let mut command = cargo::cargo();
    command
        .current_dir(cache::workspace().join("plugins"))
        .env(
            "CARGO_TARGET_DIR",
            cache::directory()?.join("plugins-native"),
        )
        .envs(plan.environment.iter().map(|(key, value)| (key, value)))
        .args(["test", "--workspace", "--locked", "--"])
        .args(&plan.filter);
    let deadline = Tier::Plugins.deadline() * plan.patience.max(1);
    let outcome = runner::run("plugins, natively", command, Show::OnFailure, deadline)?;
    println!("    {}", line("plugins, natively", &outcome));
    Ok(outcome)
}

/// Runs the test programs of one tier, and the documentation's examples with the unit tests.
fn run_tier(
    tier: Tier,
    made: &[Executable],
    environment: &[(String, String)],
    plan: &Plan,
) -> Result<Outcome> {
    println!("==> Tier {}", tier.name());
    let start = Instant::now();
    let mut total = Outcome::default();
    let mut environment = environment.to_vec();
    if tier == Tier::Nested {
        match step(
            "Preparing the emulated machine and Debian's kernel",
            nested_needs,
        ) {
            Ok(folder) => {
                environment.push(("DWCP_LINUX_DIR".into(), folder.display().to_string()));
            }
            Err(error) => {
                println!("{error:#}");
                unprepared(&mut total, "nested tier", &doctor::nested_skipped(), &error);
                total.time = start.elapsed();
                return Ok(total);
            }
        }
    }
    let deadline = tier.deadline() * plan.patience.max(1);
    for one in made.iter().filter(|one| one.test && Tier::of(one) == tier) {
        total.add(run_program(
            one,
            tier,
            &environment,
            plan.filter.as_deref(),
            deadline,
        )?);
    }
    if tier == Tier::Unit {
        total.add(run_examples(plan.filter.as_deref(), deadline)?);
    }
    total.time = start.elapsed();
    Ok(total)
}

/// What could not be prepared is skipped only on a machine where `doctor` says so beforehand; elsewhere it has failed.
fn unprepared(outcome: &mut Outcome, what: &str, reasons: &[String], error: &anyhow::Error) {
    if reasons.is_empty() {
        outcome.failed += 1;
        let failure = format!("{what}: preparation failed: {error:#}");
        outcome.failures.push(failure);
    } else {
        outcome.skipped.push(format!("{what}: {error:#}"));
    }
}

/// Runs one test program as `cargo test` would.
fn run_program(
    one: &Executable,
    tier: Tier,
    environment: &[(String, String)],
    filter: Option<&str>,
    deadline: Duration,
) -> Result<Outcome> {
    let name = format!("{} {}", one.package, one.target);
    let mut command = Command::new(&one.path);
    command
        .current_dir(&one.folder)
        .env("CARGO_MANIFEST_DIR", &one.folder)
        .envs(environment.iter().map(|(key, value)| (key, value)));
    command.args(filter.filter(|filter| !name.contains(filter)));
    let show = if tier.streams() {
        command.arg("--nocapture");
        Show::AsItComes
    } else {
        // What passed tests printed comes too, for the lines that say they were skipped.
        command.arg("--show-output");
        Show::OnFailure
    };
    let outcome = runner::run(&name, command, show, deadline)?;
    if outcome.passed + outcome.failed > 0 || !outcome.skipped.is_empty() {
        println!("    {}", line(&name, &outcome));
    }
    Ok(outcome)
}

/// Runs the examples in documentation comments.
fn run_examples(filter: Option<&str>, deadline: Duration) -> Result<Outcome> {
    let mut command = cargo::cargo();
    command.args(["test", "--workspace", "--doc", "--locked", "--quiet", "--"]);
    command.args(filter);
    let outcome = runner::run("documentation", command, Show::OnFailure, deadline)?;
    println!("    {}", line("examples in the documentation", &outcome));
    Ok(outcome)
}

/// What the nested tier needs; returns where Debian's kernel is.
fn nested_needs() -> Result<PathBuf> {
    packages::ensure(&packages::NESTED)?;
    linux::ensure()
}

fn line(name: &str, outcome: &Outcome) -> String {
    let mut text = format!("{name}: {} passed", outcome.passed);
    if outcome.failed > 0 {
        text += &format!(", {} FAILED", outcome.failed);
    }
    if !outcome.skipped.is_empty() {
        text += &format!(", {} skipped", outcome.skipped.len());
    }
    text + &format!(" in {}", seconds(outcome.time))
}

/// How programs learn where the marketplace and the components are.
pub fn plugins_environment(built: &plugins::Built) -> Vec<(String, String)> {
    let set = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
    vec![
        set("DWCP_MARKETPLACE", &built.layout),
        set("DWCP_PLUGINS_DIR", &built.components),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_prepared_here_and_was_not_has_failed() {
        let error = anyhow::anyhow!("apt-get install failed");
        let mut outcome = Outcome::default();
        unprepared(&mut outcome, "tools", &[], &error);
        assert_eq!((outcome.failed, outcome.skipped.len()), (1, 0));
        assert!(outcome.failures[0].starts_with("tools: "));
        let unit = Outcome {
            passed: 1,
            ..Outcome::default()
        };
        let stages = [("tools", outcome), ("unit", unit.clone())];
        assert_eq!(verdict(&stages), ExitCode::FAILURE);
        let mut outcome = Outcome::default();
        unprepared(&mut outcome, "tools", &["no apt".into()], &error);
        assert_eq!((outcome.failed, outcome.skipped.len()), (0, 1));
        assert_eq!(
            verdict(&[("tools", outcome), ("unit", unit)]),
            ExitCode::SUCCESS
        );
    }
}
