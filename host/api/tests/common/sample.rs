//! Records that the fake begins with, or makes.

use std::collections::BTreeMap;

use dwcp_control::Name;
use dwcp_control::records::{
    Capacity, CpuBaseline, Desired, DeviceStats, Host, HostCpu, MarketplaceItem, MigrateRequest,
    Migration, MigrationPhase, OfferedBaseline, Operation, OperationState, Origin, Placement,
    Progress, RestartPolicy, Round, Side, Snapshot, VcpuStats, Vm, VmCreate, VmPhase, VmSpec,
    VmStats,
};
use sha2::{Digest, Sha256};

/// A moment, ms: 14 November 2023, 22:13:20 UTC.
pub(super) const NOW_MS: u64 = 1_700_000_000_000;

/// SHA-256 in hexadecimal.
pub fn digest_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn this_host() -> Host {
    Host {
        name: name("left"),
        region: name("left"),
        address: "192.0.2.1:4600".into(),
        fingerprint: digest_of(b"left"),
        this: true,
        reachable: true,
        problem: None,
        rtt_ms: None,
        capacity: Some(Capacity {
            cpus: 8,
            vcpus_used: 2,
            memory_bytes: 16 << 30,
            memory_used_bytes: 1 << 30,
            vms: 1,
        }),
        cpu: Some(HostCpu {
            vendor: "AuthenticAMD".into(),
            limit: CpuBaseline::Host,
            baselines: vec![
                offered(CpuBaseline::Host, &["sse2", "ssse3"], &[]),
                offered(CpuBaseline::V2, &["sse2", "sse4_2", "ssse3"], &["sse4_2"]),
                offered(CpuBaseline::V1, &["sse2"], &[]),
            ],
        }),
    }
}

fn offered(name: CpuBaseline, features: &[&str], lacking: &[&str]) -> OfferedBaseline {
    let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    OfferedBaseline {
        name,
        features: all(features),
        lacking: all(lacking),
    }
}

pub(super) fn marketplace() -> Vec<MarketplaceItem> {
    let item = |reference: &str, kind: &str, world: &str, capabilities: &[&str]| MarketplaceItem {
        reference: reference.into(),
        digest: digest_of(reference.as_bytes()),
        kind: kind.into(),
        world: world.into(),
        description: format!("A {kind} for tests"),
        signed_by: Some("bundled (sha256:0123456789abcdef)".into()),
        signature_problem: None,
        capabilities: capabilities.iter().map(ToString::to_string).collect(),
        new_capabilities: capabilities.iter().map(ToString::to_string).collect(),
        installed: false,
    };
    let mut forged = item("mallory/evil@6.6.6", "plugin", "placement", &["network"]);
    forged.signed_by = None;
    forged.signature_problem = Some("No trusted key signed it".into());
    vec![
        item(
            "dwcp/placement-default@1.0.0",
            "plugin",
            "placement",
            &["log"],
        ),
        item("dwcp/worker@1.0.0", "template", "", &[]),
        forged,
    ]
}

pub(super) fn stats(vm: &Vm) -> VmStats {
    let device = |name: &str, operations| DeviceStats {
        name: name.into(),
        operations,
        from_guest_bytes: operations * 4096,
        to_guest_bytes: operations * 512,
        errors: 0,
        needs_reset: false,
    };
    VmStats {
        vcpus: vec![VcpuStats {
            exits: 48_211,
            cpu_ns: 1_250_000_000,
        }],
        memory_bytes: vm.spec.memory_bytes,
        balloon_target_bytes: 0,
        balloon_bytes: 0,
        console_bytes: 8_192,
        devices: vec![device("rng", 3), device("root", 1_904)],
    }
}

/// A fork of a machine.
pub(super) fn fork(template: &Vm, name: Name) -> Vm {
    Vm {
        id: format!("{}-{name}", template.id),
        name,
        phase: VmPhase::Running,
        placement: None,
        origin: Some(Origin {
            snapshot: template.name.clone(),
            snapshot_id: template.id.clone(),
            restore: "0".into(),
            template: true,
        }),
        ..template.clone()
    }
}

pub(super) fn snapshot(vm: &Vm, name: &Name) -> Snapshot {
    Snapshot {
        id: uuid::Uuid::now_v7().to_string(),
        project: vm.project.clone(),
        name: name.clone(),
        vm: vm.name.clone(),
        vm_id: vm.id.clone(),
        spec: vm.spec.clone(),
        origin: None,
        base: None,
        compressed: false,
        digest: digest_of(b"snapshot"),
        stored_bytes: 96 << 20,
        pause_ms: 180.0,
        created_ms: NOW_MS,
    }
}

pub(super) fn vm(project: &Name, request: &VmCreate, decision: &str) -> Vm {
    Vm {
        id: uuid::Uuid::now_v7().to_string(),
        project: project.clone(),
        name: request.name.clone(),
        spec: VmSpec {
            kernel: request
                .kernel
                .clone()
                .unwrap_or_else(|| digest_of(b"kernel")),
            initrd: request.initrd.clone(),
            cmdline: request.cmdline.clone().unwrap_or_default(),
            memory_bytes: request.memory_bytes.unwrap_or(512 << 20),
            vcpus: request.vcpus.unwrap_or(1),
            disks: request.disks.clone(),
            networks: Vec::new(),
            setup: request.setup.clone(),
            cpu: request.cpu.unwrap_or_default(),
            hugepages: request.hugepages,
            firmware: request.firmware.is_some(),
            restart: request.restart.unwrap_or(RestartPolicy::Never),
            tags: request.tags.clone(),
        },
        template: request.template.as_ref().map(|t| format!("{t}@1.0.0")),
        desired: if request.start {
            Desired::Running
        } else {
            Desired::Stopped
        },
        phase: if request.start {
            VmPhase::Running
        } else {
            VmPhase::Stopped
        },
        reason: String::new(),
        host: name("left"),
        epoch: 1,
        created_ms: NOW_MS,
        started_ms: if request.start { NOW_MS + 250 } else { 0 },
        memory_target_bytes: None,
        origin: None,
        placement: Some(Placement {
            decision: decision.into(),
            plugin: "dwcp/placement-default@1.0.0".into(),
            host: name("left"),
            score: 0.875,
            reasons: vec!["latency: it is here (0.30)".into()],
            alternatives: vec!["right: too little memory".into()],
        }),
    }
}

pub(super) fn operation(action: &str, object: &str) -> Operation {
    Operation {
        id: uuid::Uuid::now_v7().to_string(),
        action: action.into(),
        object: object.into(),
        state: OperationState::Running,
        message: String::new(),
        warnings: Vec::new(),
        started_ms: NOW_MS,
        ended_ms: None,
        migration: None,
    }
}

pub(super) fn migration(vm: &Vm, request: &MigrateRequest) -> Migration {
    Migration {
        id: uuid::Uuid::now_v7().to_string(),
        vm: vm.id.clone(),
        project: vm.project.clone(),
        vm_name: vm.name.clone(),
        from: vm.host.clone(),
        to: request.to.clone(),
        side: Side::Source,
        phase: MigrationPhase::Preparing,
        reason: String::new(),
        epoch: vm.epoch + 1,
        started_ms: NOW_MS,
        ended_ms: None,
        progress: Progress::default(),
        rounds: Vec::new(),
    }
}

/// The migration after one more round.
pub(super) fn next_round(mut migration: Migration, number: u32) -> Migration {
    migration.phase = MigrationPhase::Copying;
    let pages = 131_072 >> (4 * (number - 1));
    migration.rounds.push(Round {
        number,
        pages,
        zero_pages: pages / 2,
        wire_bytes: pages * 1_024,
        duration_ms: 1_000 / u64::from(number),
        dirty_pages: pages >> 4,
        decision: "another round: what is dirty does not fit the pause yet".into(),
    });
    migration.progress = Progress {
        round: number,
        pages_sent: pages,
        pages_total: pages,
        wire_bytes: migration.rounds.iter().map(|round| round.wire_bytes).sum(),
        dirty_pages_per_s: 2_000.0,
        rate_bytes_per_s: 12_500_000.0,
        remaining_ms: Some(2_000 / u64::from(number)),
        pause_ms: None,
    };
    migration
}

/// The migration at its good end.
pub(super) fn arrived(mut migration: Migration) -> Migration {
    migration.phase = MigrationPhase::Done;
    migration.ended_ms = Some(NOW_MS + 4_000);
    migration.progress.remaining_ms = None;
    migration.progress.pause_ms = Some(61.5);
    migration
}

/// Tags that the fake's policy wants.
pub(super) fn missing_tags(tags: &BTreeMap<String, String>) -> Vec<String> {
    ["owner", "project", "environment", "cost_center"]
        .into_iter()
        .filter(|tag| !tags.contains_key(*tag))
        .map(|tag| format!("The tag {tag} is missing"))
        .collect()
}
