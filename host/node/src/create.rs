//! Making a machine: template expanded, specification checked, policies asked, host chosen, capacity promised.

use dwcp_api::Fault;
use dwcp_api::service::{Answer, Principal};
use dwcp_control::Name;
use dwcp_control::records::{
    CpuBaseline, Desired, DiskSpec, GuestSetup, NetworkSpec, Origin, Placement, RestartPolicy,
    Template, Vm, VmCreate, VmPhase, VmSpec,
};
use dwcp_plugins::{Image, Restart, VmSpec as Expanded};

use crate::cards::{self, DEFAULT_NETWORK};
use crate::errors::{impossible, invalid, record};
use crate::hardware;
use crate::node::Node;
use crate::state::{now_ms, object};
use crate::vms;

/// Memory of a machine from an image, if nothing is said.
const IMAGE_MEMORY_BYTES: u64 = 1 << 30;

/// Does everything up to the durable record; nothing runs yet. Answers the machine and what policies warn of.
pub(crate) async fn create(
    node: &Node,
    who: &Principal,
    project: &Name,
    request: VmCreate,
) -> Answer<(Vm, Vec<String>)> {
    let at = object(project, &request.name);
    let id = uuid::Uuid::now_v7().to_string();
    let _uses = node.snapshot_uses.read().await;
    let Wanted {
        mut spec,
        template,
        near,
        networks,
        known,
        origin,
    } = specification(node, project, &request, &at).await?;
    vms::check(&spec)?;
    node.check_baseline(spec.cpu).await?;
    cards::check(networks.len())?;
    hardware::check_setup(&spec, &id, &request.name)?;
    for digest in std::iter::once(&spec.kernel).chain(&spec.initrd) {
        node.images.open_image(digest)?;
    }
    let warnings = node
        .policies
        .check_create(who, project, &request.name, &spec, &networks)
        .await?;
    // Held until the machine is recorded, so that no other gets the same addresses.
    let _addresses = match networks.is_empty() {
        true => None,
        false => Some(node.addresses.lock().await),
    };
    spec.networks = node.wish_networks(&id, &networks, &known).await?;
    let fleet = node.fleet().await?;
    let region = node.config.region.as_str();
    let placed = node.decider.place(fleet, region, &spec, near, &at).await?;
    let placement = placed.map(|placed| here(placed, &node.config.name));
    let vm = Vm {
        id,
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
        memory_target_bytes: None,
        origin,
    };
    node.record_vm(&vm).await?;
    Ok((vm, warnings))
}

/// A request as the audit log keeps it, for ever: without what a guest is told.
pub(crate) fn described(request: &VmCreate) -> serde_json::Value {
    let mut described = serde_json::json!(request);
    withhold(&mut described, request.setup.as_ref());
    described
}

/// Of what a guest is told, leaves only how much it is: a key that was given by mistake, or a password in user data, is
/// no business of those who read logs and decisions.
pub(crate) fn withhold(described: &mut serde_json::Value, setup: Option<&GuestSetup>) {
    if let Some(setup) = setup {
        described["setup"] = serde_json::json!({
            "ssh_keys": setup.ssh_keys.len(),
            "user_data_bytes": setup.user_data.as_ref().map_or(0, String::len),
        });
    }
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

/// What a request comes to.
struct Wanted {
    spec: VmSpec,
    /// The template, with its version.
    template: Option<String>,
    /// The region whose users it serves, for placement.
    near: Option<String>,
    /// The networks it is to be on.
    networks: Vec<Name>,
    /// As what its guest knows its cards, if it goes on with them.
    known: Vec<NetworkSpec>,
    /// The snapshot it goes on from.
    origin: Option<Origin>,
}

/// The template's specification, if there is one, under what the request says itself.
async fn specification(
    node: &Node,
    project: &Name,
    request: &VmCreate,
    at: &str,
) -> Answer<Wanted> {
    if let Some(name) = &request.snapshot {
        let (mut spec, origin) = node.machine_of(project, name, request).await?;
        let known = std::mem::take(&mut spec.networks);
        return Ok(Wanted {
            spec,
            template: None,
            near: None,
            networks: known.iter().map(|card| card.network.clone()).collect(),
            known,
            origin: Some(origin),
        });
    }
    let (base, template, near) = match &request.template {
        Some(asked) => {
            let template = find(node, asked).await?;
            let expanded = node
                .decider
                .expand(&template, &request.parameters, at)
                .await?;
            let name = format!("{}@{}", template.name, template.version);
            let near = expanded.placement.near.clone();
            let spec = from_template(&template, expanded, &node.config.region)?;
            (Some(spec), Some(name), near)
        }
        None if request.parameters.is_empty() => (None, None, None),
        None => return Err(invalid("Parameters are a template's: name a template too")),
    };
    let (mut base, mut networks) = match base {
        Some(base) => base,
        None => (bare(node, request).await?, Vec::new()),
    };
    node.wish_hardware(&mut base, request).await?;
    if request.image.is_some() {
        networks.push(Name::new(DEFAULT_NETWORK).map_err(|error| invalid(error.to_string()))?);
        base.setup.get_or_insert_default();
    }
    if let Some(setup) = &request.setup {
        base.setup = Some(setup.clone());
    }
    if let Some(kernel) = &request.kernel {
        base.kernel.clone_from(kernel);
    }
    if let Some(firmware) = &request.firmware {
        if request.kernel.is_some() {
            return Err(invalid("A machine has a kernel or a firmware, not both"));
        }
        base.kernel.clone_from(firmware);
        base.initrd = None;
        base.cmdline.clear();
        base.firmware = true;
    }
    if request.initrd.is_some() {
        base.initrd.clone_from(&request.initrd);
    }
    if let Some(cmdline) = &request.cmdline {
        base.cmdline.clone_from(cmdline);
    }
    base.memory_bytes = request.memory_bytes.unwrap_or(base.memory_bytes);
    base.vcpus = request.vcpus.unwrap_or(base.vcpus);
    base.cpu = request.cpu.unwrap_or(base.cpu);
    base.hugepages |= request.hugepages;
    base.restart = request.restart.unwrap_or(base.restart);
    base.tags.extend(request.tags.clone());
    Ok(Wanted {
        spec: base,
        template,
        near,
        networks: request.networks.clone().unwrap_or(networks),
        known: Vec::new(),
        origin: None,
    })
}

/// A machine without a template: from a disk image, or from a kernel.
async fn bare(node: &Node, request: &VmCreate) -> Answer<VmSpec> {
    let missing = |what: &str| {
        invalid(format!(
            "A machine without a template needs {what} (`--image FILE`, or `--kernel FILE --memory SIZE`)"
        ))
    };
    let found = match &request.image {
        Some(digest) => Some(node.disk_image(digest).await?),
        None => None,
    };
    let kernel = match (
        request.kernel.as_ref().or(request.firmware.as_ref()),
        &found,
    ) {
        (Some(kernel), _) => kernel.clone(),
        (None, Some(disk)) => disk.kernel.clone().ok_or_else(|| {
            invalid(format!(
                "The image cannot be booted: {}",
                disk.remarks.join(" ")
            ))
        })?,
        (None, None) => return Err(missing("a kernel")),
    };
    // Found files belong together: with a kernel of one's own goes an initial RAM disk of one's own.
    let found = found.filter(|_| request.kernel.is_none() && request.firmware.is_none());
    let memory_bytes = match (request.memory_bytes, &request.image) {
        (Some(bytes), _) => bytes,
        (None, Some(_)) => IMAGE_MEMORY_BYTES,
        (None, None) => return Err(missing("memory")),
    };
    Ok(VmSpec {
        kernel,
        initrd: found.as_ref().and_then(|disk| disk.initrd.clone()),
        cmdline: found.map(|disk| disk.cmdline).unwrap_or_default(),
        memory_bytes,
        vcpus: 1,
        cpu: CpuBaseline::Host,
        hugepages: false,
        firmware: false,
        disks: Vec::new(),
        networks: Vec::new(),
        setup: None,
        restart: RestartPolicy::Never,
        tags: Default::default(),
    })
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

/// The specification, and the networks to be on.
fn from_template(
    template: &Template,
    expanded: Expanded,
    region: &Name,
) -> Answer<(VmSpec, Vec<Name>)> {
    served(template, &expanded, region)?;
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
    let disks = expanded.volumes.into_iter().map(|volume| {
        Ok(DiskSpec {
            name: volume.name,
            image: image(volume.image, &None)?,
            size_bytes: volume.size_mib.saturating_mul(1 << 20),
            read_only: volume.read_only,
            operations_per_second: None,
            bytes_per_second: None,
        })
    });
    let networks = expanded.networks.into_iter();
    let networks: Answer<Vec<Name>> = networks
        .map(|name| Name::new(&name).map_err(|error| invalid(error.to_string())))
        .collect();
    let spec = VmSpec {
        disks: disks.collect::<Answer<_>>()?,
        networks: Vec::new(),
        setup: None,
        kernel: image(expanded.kernel, &template.kernel)?
            .ok_or_else(|| impossible(format!("Template {} names no kernel", template.name)))?,
        initrd: image(expanded.initrd, &template.initrd)?,
        cmdline: expanded.cmdline,
        memory_bytes: u64::from(expanded.memory_mib) << 20,
        vcpus: u8::try_from(expanded.vcpus).map_err(|_| invalid("Too many virtual CPUs"))?,
        cpu: CpuBaseline::Host,
        hugepages: false,
        firmware: false,
        restart: match expanded.restart {
            Restart::Never => RestartPolicy::Never,
            Restart::OnFailure => RestartPolicy::OnCrash,
            Restart::Always => RestartPolicy::Always,
        },
        tags: expanded.tags,
    };
    Ok((spec, networks?))
}

/// A template gets what it asks for, or is refused with what is missing: nothing of it is dropped in silence.
fn served(template: &Template, expanded: &Expanded, region: &Name) -> Answer<()> {
    let wishes = &expanded.placement;
    let lacking = [
        (!wishes.labels.is_empty(), "labels of hosts"),
        (
            !wishes.groups.is_empty() || !wishes.apart_from.is_empty(),
            "groups of machines",
        ),
    ];
    let lacking = lacking.iter().filter(|(wanted, _)| *wanted);
    let lacking: Vec<&str> = lacking.map(|(_, what)| *what).collect();
    if !lacking.is_empty() {
        return Err(impossible(format!(
            "Template {} wants {}, which this version of DWCP does not have",
            template.name,
            lacking.join(" and ")
        )));
    }
    if !wishes.regions.is_empty()
        && !wishes
            .regions
            .iter()
            .any(|wanted| wanted == region.as_str())
    {
        return Err(impossible(format!(
            "Template {} wants to be in {}, and this host is of region {region}: create it there",
            template.name,
            wishes.regions.join(" or ")
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn template() -> Template {
        Template {
            name: "dwcp/worker".into(),
            version: "1.0.0".into(),
            description: String::new(),
            plugin: "dwcp/template-default".into(),
            digest: String::new(),
            signed_by: String::new(),
            media_type: String::new(),
            installed_ms: 0,
            document: String::new(),
            kernel: Some("k".repeat(64)),
            initrd: None,
        }
    }

    fn expanded() -> Expanded {
        Expanded {
            vcpus: 1,
            memory_mib: 64,
            kernel: Some(Image::Bundled("kernel".into())),
            initrd: None,
            cmdline: String::new(),
            volumes: Vec::new(),
            networks: Vec::new(),
            tags: Default::default(),
            restart: Restart::OnFailure,
            placement: Default::default(),
        }
    }

    #[test]
    fn what_a_template_wants_is_served_or_refused() {
        type Change = fn(&mut Expanded);
        let left = Name::new("left").unwrap();
        let with = |change: Change| {
            let mut expanded = expanded();
            change(&mut expanded);
            from_template(&template(), expanded, &left).map_err(|fault| fault.message)
        };
        let good: [Change; 3] = [
            |_| {},
            |vm| vm.placement.near = Some("far".into()),
            |vm| vm.placement.regions = vec!["right".into(), "left".into()],
        ];
        for change in good {
            assert_eq!(with(change).unwrap().0.restart, RestartPolicy::OnCrash);
        }
        let (_, networks) = with(|vm| vm.networks = vec!["lan".into()]).unwrap();
        assert_eq!(networks, [Name::new("lan").unwrap()]);
        let always = with(|vm| vm.restart = Restart::Always).unwrap().0;
        assert_eq!(always.restart, RestartPolicy::Always);
        let bad: [(Change, &str); 4] = [
            (|vm| vm.placement.regions = vec!["right".into()], "right"),
            (|vm| vm.placement.labels = vec!["gpu=yes".into()], "labels"),
            (|vm| vm.placement.groups = vec!["web".into()], "groups"),
            (|vm| vm.placement.apart_from = vec!["web".into()], "groups"),
        ];
        for (change, what) in bad {
            let message = with(change).unwrap_err();
            assert!(message.contains(what), "{message}");
        }
    }

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
