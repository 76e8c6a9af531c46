//! Making a machine: template expanded, specification checked, policies asked, host chosen, capacity promised.

use dwcp_api::Fault;
use dwcp_api::service::{Answer, Principal};
use dwcp_control::Name;
use dwcp_control::records::{
    Desired, Placement, RestartPolicy, Template, Vm, VmCreate, VmPhase, VmSpec,
};
use dwcp_plugins::{Image, Restart, VmSpec as Expanded};

use crate::errors::{impossible, invalid, record};
use crate::node::Node;
use crate::state::{now_ms, object};
use crate::vms;

/// Does everything up to the durable record; nothing runs yet. Answers the machine and what policies warn of.
pub(crate) async fn create(
    node: &Node,
    who: &Principal,
    project: &Name,
    request: VmCreate,
) -> Answer<(Vm, Vec<String>)> {
    let at = object(project, &request.name);
    let (spec, template) = specification(node, &request, &at).await?;
    vms::check(&spec)?;
    for digest in std::iter::once(&spec.kernel).chain(&spec.initrd) {
        node.images.open_image(digest)?;
    }
    let warnings = node
        .policies
        .check_create(who, project, &request.name, &spec)
        .await?;
    let fleet = node.fleet().await?;
    let region = node.config.region.as_str();
    let placed = node.decider.place(fleet, region, &spec, &at).await?;
    let placement = placed.map(|placed| here(placed, &node.config.name));
    let vm = Vm {
        id: uuid::Uuid::now_v7().to_string(),
        project: project.clone(),
        name: request.name.clone(),
        spec,
        template,
        desired: if request.start {
            Desired::Running
        } else {
            Desired::Stopped
        },
        phase: VmPhase::Stopped,
        reason: "it was never started".into(),
        host: node.config.name.clone(),
        epoch: 1,
        created_ms: now_ms(),
        started_ms: 0,
        placement,
    };
    node.record_vm(&vm).await?;
    Ok((vm, warnings))
}

/// A placement on this host. A plugin that chose another, which it may not, costs its answer and not the request.
fn here(mut placed: Placement, this: &Name) -> Placement {
    if placed.host == *this {
        return placed;
    }
    let why = format!(
        "{} was chosen, which is not a host of this region: {this} is taken instead",
        placed.host
    );
    tracing::error!("{}: {why}", placed.plugin);
    placed.host = this.clone();
    placed.score = 0.0;
    placed.reasons.clear();
    placed.alternatives.insert(0, why);
    placed
}

/// The template's specification, if there is one, under what the request says itself.
async fn specification(
    node: &Node,
    request: &VmCreate,
    at: &str,
) -> Answer<(VmSpec, Option<String>)> {
    let (base, template) = match &request.template {
        Some(asked) => {
            let template = find(node, asked).await?;
            let expanded = node
                .decider
                .expand(&template, &request.parameters, at)
                .await?;
            let name = format!("{}@{}", template.name, template.version);
            (Some(from_template(&template, expanded)?), Some(name))
        }
        None if request.parameters.is_empty() => (None, None),
        None => return Err(invalid("Parameters are a template's: name a template too")),
    };
    let missing = |what: &str| {
        invalid(format!(
            "A machine without a template needs {what} (`--kernel FILE --memory SIZE`)"
        ))
    };
    let mut base = match base {
        Some(base) => base,
        None => VmSpec {
            kernel: request.kernel.clone().ok_or_else(|| missing("a kernel"))?,
            initrd: None,
            cmdline: String::new(),
            memory_bytes: request.memory_bytes.ok_or_else(|| missing("memory"))?,
            vcpus: 1,
            restart: RestartPolicy::Never,
            tags: Default::default(),
        },
    };
    if let Some(kernel) = &request.kernel {
        base.kernel.clone_from(kernel);
    }
    if request.initrd.is_some() {
        base.initrd.clone_from(&request.initrd);
    }
    if let Some(cmdline) = &request.cmdline {
        base.cmdline.clone_from(cmdline);
    }
    base.memory_bytes = request.memory_bytes.unwrap_or(base.memory_bytes);
    base.vcpus = request.vcpus.unwrap_or(base.vcpus);
    base.restart = request.restart.unwrap_or(base.restart);
    base.tags.extend(request.tags.clone());
    Ok((base, template))
}

async fn find(node: &Node, asked: &str) -> Answer<Template> {
    let (name, version) = match asked.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (asked, None),
    };
    let missing = || {
        Fault::not_found(format!(
            "template {asked} here: `dwcp plugin install {asked}` installs it from the marketplace"
        ))
    };
    let found = node.records.templates.get(name).await.map_err(record)?;
    let template = found.ok_or_else(missing)?.value;
    match version {
        Some(version) if version != template.version => Err(missing()),
        _ => Ok(template),
    }
}

fn from_template(template: &Template, expanded: Expanded) -> Answer<VmSpec> {
    let image = |image: Option<Image>, bundled: &Option<String>| match image {
        None => Ok(None),
        Some(Image::Stored(digest)) => Ok(Some(digest.trim_start_matches("sha256:").to_owned())),
        Some(Image::Bundled(title)) => match bundled {
            Some(digest) => Ok(Some(digest.clone())),
            None => Err(impossible(format!(
                "Template {} names an image {title} that it does not bring",
                template.name
            ))),
        },
    };
    if !expanded.volumes.is_empty() || !expanded.networks.is_empty() {
        return Err(impossible(format!(
            "Template {} wants disks or networks, which this version of DWCP does not have",
            template.name
        )));
    }
    Ok(VmSpec {
        kernel: image(expanded.kernel, &template.kernel)?
            .ok_or_else(|| impossible(format!("Template {} names no kernel", template.name)))?,
        initrd: image(expanded.initrd, &template.initrd)?,
        cmdline: expanded.cmdline,
        memory_bytes: u64::from(expanded.memory_mib) << 20,
        vcpus: u8::try_from(expanded.vcpus).map_err(|_| invalid("Too many virtual CPUs"))?,
        restart: match expanded.restart {
            Restart::Never => RestartPolicy::Never,
            Restart::OnFailure | Restart::Always => RestartPolicy::OnCrash,
        },
        tags: expanded.tags,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_choice_of_another_host_falls_back_to_this_one() {
        let this = Name::new("left").unwrap();
        let placed = |host: &str| Placement {
            decision: "d".into(),
            plugin: "dwcp/placement@1.0.0".into(),
            host: Name::new(host).unwrap(),
            score: 0.5,
            reasons: vec!["free 1.00".into()],
            alternatives: Vec::new(),
        };
        assert_eq!(here(placed("left"), &this), placed("left"));
        let fallen = here(placed("evil"), &this);
        assert_eq!(fallen.host, this);
        assert!(fallen.reasons.is_empty());
        assert!(fallen.alternatives[0].contains("evil"));
    }
}
