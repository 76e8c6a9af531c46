//! `dwcp decision`: what plugins and policies were asked and what they answered.

use clap::{Args, Subcommand};
use dwcp_sdk::types::Decision;

use crate::context::Context;
use crate::units;

/// Commands about decisions.
#[derive(Debug, Subcommand)]
pub enum DecisionCommand {
    /// List decisions, newest first
    List(ListArgs),
    /// Show a decision: its input and its answer
    Show {
        /// Its id
        id: String,
    },
}

/// Which decisions.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those about this machine of the project
    #[arg(long, value_name = "NAME", conflicts_with = "subject")]
    vm: Option<String>,
    /// Only those about this object, such as projects/default/vms/web
    #[arg(long, value_name = "OBJECT")]
    subject: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// Does it.
pub async fn run(context: &Context, command: DecisionCommand) -> anyhow::Result<()> {
    let (client, output) = (&context.client, context.output);
    match command {
        DecisionCommand::List(args) => {
            let of_vm = args
                .vm
                .map(|vm| format!("projects/{}/vms/{vm}", context.project));
            let subject = args.subject.or(of_vm);
            let listing = client.decision_list(subject.as_deref());
            let decisions = listing.first(args.limit).await?;
            let headings = [
                "ID",
                "TIME",
                "WORLD",
                "SUBJECT",
                "DECIDED BY",
                "TOOK",
                "OUTCOME",
            ];
            output.list(&decisions, &headings, row)
        }
        DecisionCommand::Show { id } => output.object(&client.decision_get(&id).await?, facts),
    }
}

/// How it came out, where that is one word.
fn outcome(decision: &Decision) -> &'static str {
    let is_empty = |part: &str| {
        let part = decision.answer.get(part).and_then(|part| part.as_array());
        part.is_none_or(Vec::is_empty)
    };
    let allowed = decision.answer.get("allowed");
    match allowed.and_then(serde_json::Value::as_bool) {
        _ if decision.fault => "fault",
        Some(false) => "denied",
        Some(true) if !is_empty("warnings") => "warned",
        Some(true) => "allowed",
        None => "answered",
    }
}

fn row(decision: &Decision) -> Vec<String> {
    vec![
        decision.id.clone(),
        units::moment(decision.time_ms),
        decision.world.clone(),
        decision.subject.clone(),
        decision.plugin.clone(),
        format!("{} µs", decision.duration_us),
        outcome(decision).into(),
    ]
}

fn facts(decision: &Decision) -> Vec<(&'static str, String)> {
    let pretty = |value| serde_json::to_string_pretty(value).unwrap_or_default();
    vec![
        ("id", decision.id.clone()),
        ("time", units::moment(decision.time_ms)),
        ("world", decision.world.clone()),
        ("subject", decision.subject.clone()),
        ("decided by", decision.plugin.clone()),
        ("digest", format!("sha256:{}", decision.digest)),
        ("configuration", decision.configuration.clone()),
        ("took", format!("{} µs", decision.duration_us)),
        ("outcome", outcome(decision).into()),
        ("input", pretty(&decision.input)),
        (
            "fleet",
            decision.fleet.as_ref().map(pretty).unwrap_or_default(),
        ),
        ("answer", pretty(&decision.answer)),
    ]
}
