//! Steps 1 to 3: hosts, plugins, policy.

use anyhow::{Context, bail, ensure};
use dwcp_sdk::types::{Binding, PluginInstall, VmCreate};

use super::{Arguments, say};
use crate::bed::Bed;

/// What is installed, in this order: a template needs its expander.
const ARTIFACTS: [&str; 4] = [
    "dwcp/placement-default",
    "dwcp/policy-rego",
    "dwcp/template-default",
    "dwcp/worker",
];

/// The policy that is bound: the bundled one on tags.
const TAGS: &str = include_str!("../../../../policies/tags.rego");

pub(crate) async fn show_hosts(bed: &Bed, arguments: &Arguments) -> anyhow::Result<()> {
    for host in [bed.left(), bed.right()] {
        let about = host.client().host_this().await?;
        say::done(format!(
            "{:<6} {}  fingerprint {}…",
            host.name(),
            host.peer_address(),
            &about.fingerprint[..16]
        ));
    }
    let seen = bed.left().client().host_get("right").await?;
    say::done(format!(
        "introduced to each other over {} Mbit/s; round trip {:.0} ms measured, {:.0} ms asked for",
        arguments.rate_mbit,
        seen.rtt_ms.unwrap_or_default(),
        arguments.rtt_ms
    ));
    Ok(())
}

pub(crate) async fn install(bed: &Bed) -> anyhow::Result<()> {
    for host in [bed.left(), bed.right()] {
        for reference in ARTIFACTS {
            let item = host.client().marketplace_get(reference).await?;
            let Some(by) = &item.signed_by else {
                bail!("{reference} is not signed: {:?}", item.signature_problem);
            };
            let request = PluginInstall {
                reference: item.reference.clone(),
                digest: Some(item.digest.clone()),
                grant: item.capabilities.clone(),
            };
            let installed = host.client().plugin_install(&request).await?;
            ensure!(installed.installed, "{reference} is not installed");
            if host.name() == "left" {
                let wants = if item.capabilities.is_empty() {
                    "asks for no capability".to_owned()
                } else {
                    format!("asks for {}", item.capabilities.join(", "))
                };
                let by = by.split(' ').next().unwrap_or_default();
                say::done(format!(
                    "{:<28} signed by {by}, digest {}…, {wants}",
                    item.reference,
                    &item.digest[..12]
                ));
            }
        }
    }
    say::done("the same on right");
    Ok(())
}

pub(crate) async fn policy(bed: &Bed) -> anyhow::Result<()> {
    let client = bed.left().client();
    client.policy_apply("tags", TAGS).await?;
    let binding: Binding = serde_json::from_value(serde_json::json!({
        "policy": "tags",
        "action": "vm.create",
        "mode": "enforce",
    }))?;
    client.policy_bind(&binding).await?;
    say::done("policy tags is bound to vm.create");
    let request = VmCreate {
        template: Some("dwcp/worker".into()),
        ..VmCreate::new("untagged")
    };
    let refused = client.vm_create("default", &request).await;
    let Err(error) = refused else {
        bail!("The policy let a machine without tags pass");
    };
    let problem = error.problem().context("A refusal is a problem")?;
    ensure!(
        problem.status == 403,
        "Refused, but not by the policy: {error}"
    );
    say::done(format!("a machine without tags is refused: {error}"));
    for reason in error.reasons() {
        say::line(format!("- {reason}"));
    }
    Ok(())
}
