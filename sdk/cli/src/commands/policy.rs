//! `dwcp policy`: policies and where they act.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use dwcp_sdk::types::{Binding, BindingMode, Policy};

use crate::context::Context;
use crate::units;

/// Commands about policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Store a policy, or a new version of it, from a file of Rego
    #[command(after_help = "Example:
  dwcp policy apply required-tags ./required-tags.rego")]
    Apply {
        /// Its name
        name: String,
        /// The Rego source
        file: PathBuf,
    },
    /// Let a policy decide about an action, from the next request on
    #[command(after_help = "Example:
  dwcp policy bind required-tags --to vm.create --mode warn")]
    Bind(BindArgs),
    /// Let a policy no longer decide about an action
    Unbind {
        /// Its name
        name: String,
        /// The action, such as vm.create
        #[arg(long, value_name = "ACTION")]
        from: String,
    },
    /// List policies and where they act
    List,
    /// Show a policy and its source
    Show {
        /// Its name
        name: String,
    },
    /// Remove a policy that is not bound
    #[command(visible_alias = "rm")]
    Remove {
        /// Its name
        name: String,
    },
}

/// Where a policy is to act.
#[derive(Debug, Args)]
pub struct BindArgs {
    /// Its name
    name: String,
    /// The action that it decides about, such as vm.create
    #[arg(long, value_name = "ACTION")]
    to: String,
    /// What its answer does
    #[arg(long, value_enum, default_value = "enforce")]
    mode: Mode,
    /// Only in this project; everywhere if absent
    #[arg(long = "in", value_name = "PROJECT")]
    within: Option<String>,
}

/// What an answer does.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    /// A denial refuses the request
    Enforce,
    /// A denial is told as a warning
    Warn,
    /// A denial is only recorded
    DryRun,
}

/// A policy with its bindings, as it is listed.
#[derive(serde::Serialize)]
struct Listed {
    #[serde(flatten)]
    policy: Policy,
    bindings: Vec<Binding>,
}

/// Does it.
pub async fn run(context: &Context, command: PolicyCommand) -> anyhow::Result<()> {
    let (client, output) = (&context.client, context.output);
    match command {
        PolicyCommand::Apply { name, file } => {
            let source = std::fs::read_to_string(&file)
                .with_context(|| format!("{} could not be read", file.display()))?;
            let policy = client.policy_apply(&name, &source).await?;
            let sentence = format!(
                "{} is stored as sha256:{}",
                policy.name,
                units::short(&policy.digest)
            );
            output.done(&policy, &sentence)
        }
        PolicyCommand::Bind(args) => {
            let binding = Binding {
                policy: args.name,
                action: args.to,
                project: args.within,
                mode: match args.mode {
                    Mode::Enforce => BindingMode::Enforce,
                    Mode::Warn => BindingMode::Warn,
                    Mode::DryRun => BindingMode::DryRun,
                },
            };
            let binding = client.policy_bind(&binding).await?;
            let sentence = format!(
                "{} decides about {} from now on ({})",
                binding.policy, binding.action, binding.mode
            );
            output.done(&binding, &sentence)
        }
        PolicyCommand::Unbind { name, from } => {
            client.policy_unbind(&name, &from).await?;
            output.gone(&format!("{name} no longer decides about {from}"))
        }
        PolicyCommand::List => list(context).await,
        PolicyCommand::Show { name } => {
            let policy = client.policy_get(&name).await?;
            output.object(&policy, facts)?;
            if !output.json() {
                output.text(&format!("\n{}\n", policy.source.trim_end()))?;
            }
            Ok(())
        }
        PolicyCommand::Remove { name } => {
            client.policy_remove(&name).await?;
            output.gone(&format!("{name} is gone"))
        }
    }
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let bindings = context.client.binding_list().all().await?;
    let policies = context.client.policy_list().all().await?;
    let listed: Vec<Listed> = policies
        .into_iter()
        .map(|policy| Listed {
            bindings: bindings
                .iter()
                .filter(|binding| binding.policy == policy.name)
                .cloned()
                .collect(),
            policy,
        })
        .collect();
    let headings = ["NAME", "DECIDES ABOUT", "DIGEST", "APPLIED"];
    context.output.list(&listed, &headings, |listed| {
        let bound: Vec<String> = listed.bindings.iter().map(binding).collect();
        vec![
            listed.policy.name.clone(),
            if bound.is_empty() {
                "-".into()
            } else {
                bound.join(", ")
            },
            units::short(&listed.policy.digest).to_owned(),
            units::moment(listed.policy.applied_ms),
        ]
    })
}

fn binding(binding: &Binding) -> String {
    let project = binding.project.as_ref();
    let within = project.map(|project| format!(" in {project}"));
    format!(
        "{}{} ({})",
        binding.action,
        within.unwrap_or_default(),
        binding.mode
    )
}

fn facts(policy: &Policy) -> Vec<(&'static str, String)> {
    vec![
        ("name", policy.name.clone()),
        ("digest", format!("sha256:{}", policy.digest)),
        ("facts", policy.facts.join("\n")),
        ("applied", units::moment(policy.applied_ms)),
    ]
}
