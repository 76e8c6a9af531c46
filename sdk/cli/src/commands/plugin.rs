//! `dwcp plugin`: what is installed, what the marketplace offers, and installing with open eyes.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::bail;
use clap::{Args, Subcommand};
use dwcp_sdk::types::{MarketplaceItem, Plugin, PluginInstall};

use crate::context::Context;
use crate::{colour, table, units};

/// Commands about plugins.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// List installed plugins
    List,
    /// Show an installed plugin
    Show {
        /// As PUBLISHER/NAME
        name: String,
    },
    /// List what the marketplace offers
    Search {
        /// Only what has this in its name or description
        word: Option<String>,
    },
    /// Install a plugin or a template; its signature, digest and capabilities are shown first
    #[command(after_help = "Examples:
  dwcp plugin install dwcp/placement-default
  dwcp plugin install dwcp/worker@0.1.0 --yes")]
    Install(InstallArgs),
    /// Remove a plugin or a template
    #[command(visible_alias = "rm")]
    Remove {
        /// As PUBLISHER/NAME
        name: String,
    },
}

/// What to install.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// As PUBLISHER/NAME[@VERSION]
    reference: String,
    /// Install without asking, and grant every capability that was shown
    #[arg(short, long, conflicts_with = "grant")]
    yes: bool,
    /// Install without asking, and grant this capability only; may be given several times
    #[arg(long, value_name = "CAPABILITY")]
    grant: Vec<String>,
}

/// Does it.
pub async fn run(context: &Context, command: PluginCommand) -> anyhow::Result<()> {
    let (client, output) = (&context.client, context.output);
    match command {
        PluginCommand::List => {
            let plugins = client.plugin_list().all().await?;
            let headings = [
                "NAME",
                "VERSION",
                "WORLD",
                "ACTIVE",
                "CALLS",
                "FAULTS",
                "SIGNED BY",
            ];
            output.list(&plugins, &headings, row)
        }
        PluginCommand::Show { name } => output.object(&client.plugin_get(&name).await?, facts),
        PluginCommand::Search { word } => {
            let mut items = client.marketplace_list().all().await?;
            if let Some(word) = word {
                items.retain(|item| {
                    item.reference.contains(&word) || item.description.contains(&word)
                });
            }
            let headings = ["REFERENCE", "KIND", "WORLD", "INSTALLED", "DESCRIPTION"];
            output.list(&items, &headings, offer)
        }
        PluginCommand::Install(args) => install(context, args).await,
        PluginCommand::Remove { name } => {
            client.plugin_remove(&name).await?;
            output.gone(&format!("{name} is removed"))
        }
    }
}

async fn install(context: &Context, args: InstallArgs) -> anyhow::Result<()> {
    let item = context.client.marketplace_get(&args.reference).await?;
    let style = colour::Style::on(std::io::stderr().is_terminal());
    eprint!("{}", table::facts(style, &shown(&item)));
    if let Some(problem) = &item.signature_problem {
        bail!(
            "{} is not installed, because its signature is not good: {problem}",
            item.reference
        );
    }
    let grant = if !args.grant.is_empty() {
        args.grant
    } else if args.yes || confirmed(&item)? {
        item.capabilities.clone()
    } else {
        bail!("{} is not installed", item.reference);
    };
    let request = PluginInstall {
        reference: item.reference.clone(),
        // What is installed is what was shown, or nothing.
        digest: Some(item.digest.clone()),
        grant,
    };
    let item = context.client.plugin_install(&request).await?;
    let sentence = format!("{} is installed", item.reference);
    context.output.done(&item, &sentence)
}

fn confirmed(item: &MarketplaceItem) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "There is nobody to ask: say --yes, or --grant CAPABILITY, to install {}",
            item.reference
        );
    }
    let question = if item.capabilities.is_empty() {
        "Install it?"
    } else {
        "Install it and grant these capabilities?"
    };
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn shown(item: &MarketplaceItem) -> Vec<(&'static str, String)> {
    let signature = match (&item.signature_problem, &item.signed_by) {
        (Some(problem), _) => format!("NOT GOOD: {problem}"),
        (None, Some(key)) => format!("good, by {key}"),
        (None, None) => "NOT GOOD: there is none".to_owned(),
    };
    let capabilities: Vec<String> = item
        .capabilities
        .iter()
        .map(|capability| {
            let new = item.new_capabilities.contains(capability);
            format!("{capability}{}", if new { " (new)" } else { "" })
        })
        .collect();
    let capabilities = if capabilities.is_empty() {
        "none".to_owned()
    } else {
        capabilities.join("\n")
    };
    vec![
        ("reference", item.reference.clone()),
        ("kind", item.kind.clone()),
        ("world", item.world.clone()),
        ("description", item.description.clone()),
        ("digest", format!("sha256:{}", item.digest)),
        ("signature", signature),
        ("capabilities", capabilities),
    ]
}

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "-" }.to_owned()
}

fn row(plugin: &Plugin) -> Vec<String> {
    vec![
        plugin.name.clone(),
        plugin.version.clone(),
        plugin.world.clone(),
        yes(plugin.active),
        plugin.calls.to_string(),
        plugin.faults.to_string(),
        plugin.signed_by.clone(),
    ]
}

fn facts(plugin: &Plugin) -> Vec<(&'static str, String)> {
    vec![
        ("name", plugin.name.clone()),
        ("version", plugin.version.clone()),
        ("world", plugin.world.clone()),
        ("digest", format!("sha256:{}", plugin.digest)),
        ("signed by", plugin.signed_by.clone()),
        ("capabilities", plugin.capabilities.join("\n")),
        ("active", yes(plugin.active)),
        ("installed", units::moment(plugin.installed_ms)),
        ("calls", plugin.calls.to_string()),
        ("faults", plugin.faults.to_string()),
    ]
}

fn offer(item: &MarketplaceItem) -> Vec<String> {
    vec![
        item.reference.clone(),
        item.kind.clone(),
        item.world.clone(),
        yes(item.installed),
        item.description.clone(),
    ]
}
