//! `dwcp template`: what machines are made from. Templates are installed as plugins are.

use clap::Subcommand;
use dwcp_sdk::types::Template;

use crate::context::Context;
use crate::units;

/// Commands about templates.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// List installed templates
    List,
    /// Show a template and its document
    Show {
        /// As PUBLISHER/NAME
        name: String,
    },
}

/// Does it.
pub async fn run(context: &Context, command: TemplateCommand) -> anyhow::Result<()> {
    let (client, output) = (&context.client, context.output);
    match command {
        TemplateCommand::List => {
            let templates = client.template_list().all().await?;
            output.list(
                &templates,
                &["NAME", "VERSION", "EXPANDED BY", "DESCRIPTION"],
                |template| {
                    vec![
                        template.name.clone(),
                        template.version.clone(),
                        template.plugin.clone(),
                        template.description.clone(),
                    ]
                },
            )
        }
        TemplateCommand::Show { name } => {
            let template = client.template_get(&name).await?;
            output.object(&template, facts)?;
            if !output.json() {
                output.text(&format!("\n{}\n", template.document.trim_end()))?;
            }
            Ok(())
        }
    }
}

fn facts(template: &Template) -> Vec<(&'static str, String)> {
    let optional = |text: &Option<String>| text.clone().unwrap_or_default();
    vec![
        ("name", template.name.clone()),
        ("version", template.version.clone()),
        ("description", template.description.clone()),
        ("expanded by", template.plugin.clone()),
        ("digest", format!("sha256:{}", template.digest)),
        ("signed by", template.signed_by.clone()),
        ("kernel", optional(&template.kernel)),
        ("initrd", optional(&template.initrd)),
        ("installed", units::moment(template.installed_ms)),
    ]
}
