//! `dwcp vm fork`: machines that go on from where a template stands still.

use clap::Args;
use dwcp_sdk::types::{ForkRequest, Vm};

use super::vm::{wait, warn};
use crate::context::Context;

/// What is forked.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// The template
    template: String,
    /// What the fork is called; without it TEMPLATE-1, TEMPLATE-2 and so on, whatever is free
    name: Option<String>,
    /// How many to make, 1 to 64
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64), conflicts_with = "name")]
    count: Option<u32>,
    /// Make it a template if it is none: it stands still from now on, and never runs again
    #[arg(long)]
    seal: bool,
}

/// Does it.
pub async fn run(context: &Context, args: ForkArgs) -> anyhow::Result<()> {
    let (client, project) = (&context.client, &context.project);
    let request = ForkRequest {
        name: args.name,
        count: args.count,
        seal: args.seal,
    };
    let forked = client.vm_fork(project, &args.template, &request).await?;
    warn(&forked.operation);
    wait(context, &forked.operation, "starting").await?;
    let mut forks: Vec<Vm> = Vec::new();
    for fork in &forked.vms {
        forks.push(client.vm_get(project, &fork.name).await?);
    }
    let names: Vec<_> = forks.iter().map(|fork| fork.name.as_str()).collect();
    let verb = match names.len() {
        1 => "runs",
        _ => "run",
    };
    let sentence = format!("{} {verb}, forked from {}", names.join(", "), args.template);
    context.output.done(&forks, &sentence)
}
