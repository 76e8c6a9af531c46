//! `dwcp host`: this host and those it was introduced to.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use dwcp_sdk::types::{Host, HostAdd, OfferedBaseline};

use crate::args::digest;
use crate::context::Context;
use crate::units;

/// Commands about hosts.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List this host and those it was introduced to
    List,
    /// Show a host: its address, fingerprint and capacity
    #[command(after_help = "Examples:
  dwcp host show          the host of the profile, with the fingerprint that others need
  dwcp host show right    another one, as this host knows it")]
    Show {
        /// Its name; this host if absent
        name: Option<String>,
    },
    /// List the CPU baselines that machines can be made with (`dwcp vm create --cpu`), and what the host lacks of others
    #[command(
        after_help = "A machine with a baseline is told of exactly that, and can move to every host that offers it and
has a CPU of the same maker. One without (`host`) is told of all that its host offers. With
`-o json` the features of each are listed."
    )]
    Cpu,
    /// Introduce another host, by address and fingerprint
    #[command(after_help = "Examples:
  dwcp --profile right host show      prints the fingerprint of the other host
  dwcp host add right --address 192.0.2.7:4600 --fingerprint 3b1f…")]
    Add(AddArgs),
    /// Forget a host
    #[command(visible_alias = "rm")]
    Remove {
        /// Its name here
        name: String,
    },
}

/// The host to introduce.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// What it is called here
    name: String,
    /// IP:PORT of its DWCP port
    #[arg(long)]
    address: String,
    /// SHA-256 of its identity certificate, as `dwcp host show` prints it there
    #[arg(long, value_name = "SHA256", value_parser = digest)]
    fingerprint: String,
}

/// Does it.
pub async fn run(context: &Context, command: HostCommand) -> anyhow::Result<()> {
    let (client, output) = (&context.client, context.output);
    match command {
        HostCommand::List => {
            let hosts = client.host_list().all().await?;
            let headings = [
                "NAME",
                "REGION",
                "ADDRESS",
                "ANSWERS",
                "ROUND TRIP",
                "VMS",
                "VCPUS",
                "MEMORY FREE",
            ];
            output.list(&hosts, &headings, row)
        }
        HostCommand::Show { name } => {
            let host = match name {
                Some(name) => client.host_get(&name).await?,
                None => client.host_this().await?,
            };
            output.object(&host, facts)
        }
        HostCommand::Cpu => {
            let host = client.host_this().await?;
            let cpu = host.cpu.with_context(|| {
                format!(
                    "What CPU machines can have is not known on {}: its log says why",
                    host.name
                )
            })?;
            output.list(&cpu.baselines, &["BASELINE", "OFFERED"], baseline_row)
        }
        HostCommand::Add(args) => {
            let host = HostAdd {
                name: args.name,
                address: args.address,
                fingerprint: args.fingerprint,
            };
            let host = client.host_add(&host).await?;
            output.done(&host, &added(&host))
        }
        HostCommand::Remove { name } => {
            client.host_remove(&name).await?;
            output.gone(&format!("{name} is forgotten"))
        }
    }
}

/// What came of an introduction: only what is known.
fn added(host: &Host) -> String {
    let Host { name, address, .. } = host;
    if host.reachable {
        return format!("{name} is known: it answered at {address} with the right fingerprint");
    }
    let why = host.problem.as_deref().unwrap_or("no answer");
    format!(
        "{name} is known, and was not reached at {address} yet: {why}\n\
         It answers once this host was introduced there too; `dwcp host show {name}` asks again"
    )
}

fn answers(host: &Host) -> &'static str {
    if host.reachable { "yes" } else { "no" }
}

fn round_trip(host: &Host) -> String {
    host.rtt_ms
        .map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms"))
}

fn row(host: &Host) -> Vec<String> {
    let name = if host.this {
        format!("{} (this)", host.name)
    } else {
        host.name.clone()
    };
    let capacity = host.capacity;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    vec![
        name,
        host.region.clone(),
        host.address.clone(),
        answers(host).into(),
        round_trip(host),
        or_none(capacity.map(|c| c.vms.to_string())),
        or_none(capacity.map(|c| format!("{} of {}", c.vcpus_used, c.cpus))),
        or_none(capacity.map(|c| units::size(c.memory_bytes.saturating_sub(c.memory_used_bytes)))),
    ]
}

fn baseline_row(baseline: &OfferedBaseline) -> Vec<String> {
    let offered = match baseline.lacking.as_slice() {
        [] => "yes".to_owned(),
        lacking => format!("no: lacks {}", lacking.join(", ")),
    };
    vec![baseline.name.to_string(), offered]
}

fn facts(host: &Host) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("name", host.name.clone()),
        ("region", host.region.clone()),
        ("address", host.address.clone()),
        ("fingerprint", host.fingerprint.clone()),
        ("answers", answers(host).to_owned()),
    ];
    if let Some(problem) = &host.problem {
        facts.push(("because", problem.clone()));
    }
    if !host.this {
        facts.push(("round trip", round_trip(host)));
    }
    if let Some(cpu) = &host.cpu {
        let offered = cpu.baselines.iter().filter(|b| b.lacking.is_empty());
        let names: Vec<_> = offered.map(|b| b.name.as_str()).collect();
        facts.push(("cpu", format!("{}: {}", cpu.vendor, names.join(", "))));
    }
    if let Some(capacity) = host.capacity {
        facts.push(("machines", capacity.vms.to_string()));
        facts.push((
            "vcpus",
            format!(
                "{} promised, {} processors",
                capacity.vcpus_used, capacity.cpus
            ),
        ));
        facts.push((
            "memory",
            format!(
                "{} promised of {}",
                units::size(capacity.memory_used_bytes),
                units::size(capacity.memory_bytes)
            ),
        ));
    }
    facts
}
