//! What guests are told of their CPU: a machine with a baseline moves to a host that offers less than its own, one
//! without is refused beforehand by what that host lacks, and so is one whose baseline nobody here has.
//!
//! The host on the right is the lesser one, by its configuration.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use dwcp_e2e::{Bed, BedOptions, Programs, TestHost};
use dwcp_guest::Tick;
use dwcp_guest::said::Cpuid;
use dwcp_sdk::Client;
use dwcp_sdk::types::{
    CpuBaseline, HostCpu, MigrateRequest, MigrationPhase, OfferedBaseline, Vm, VmCreate, VmPhase,
};

const PROJECT: &str = "default";
/// One generous deadline for what must happen at all.
const DEADLINE: Duration = Duration::from_secs(120);
/// Leaf 1, ecx: a feature of the second level, which every host of these tests has more or less by itself.
const CX16: u32 = 1 << 13;
/// The same: x2APIC, the deadline timer, and that there is a hypervisor.
const MADE_BY_KVM: u32 = 1 << 21 | 1 << 24 | 1 << 31;

/// Leaf 0x80000001, ecx: what tells of the topology.
const CORES_NOT_THREADS: u32 = 1 << 1;
/// Leaf 0x40000001, eax: KVM's clock, and no delays after port I/O.
const CLOCK: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 24;

/// A KVM without hardware support adds what programs can use of the bare CPU to what a guest was told in leaves 1 and 7,
/// for it could not keep it from them.
fn shows_the_bare_cpu() -> bool {
    std::path::Path::new("/sys/module/kvm_pvm").exists()
}

fn machine(name: &str, kernel: &str, cpu: Option<CpuBaseline>) -> VmCreate {
    let cmdline = "cpuid=1 cpuid=7 cpuid=d cpuid=80000000 cpuid=80000001 cpuid=40000001 fill_mib=4 ws_mib=1 rate=200";
    VmCreate {
        kernel: Some(kernel.to_owned()),
        cmdline: Some(cmdline.into()),
        memory_bytes: Some(64 << 20),
        cpu,
        ..VmCreate::new(name)
    }
}

async fn create(client: &Client, request: VmCreate) -> Vm {
    let created = client.vm_create(PROJECT, &request).await.unwrap();
    client.operation_wait(&created.operation.id).await.unwrap();
    client.vm_get(PROJECT, &request.name).await.unwrap()
}

/// Waits until a guest has said what it was told of its CPU and works; its answers.
fn told(host: &TestHost, vm: &Vm) -> Vec<Cpuid> {
    let until = Instant::now() + DEADLINE;
    loop {
        let log = host.serial_log(&vm.id);
        if log.lines().any(|line| Tick::parse(line).is_some()) {
            return log.lines().filter_map(Cpuid::parse).collect();
        }
        assert!(Instant::now() < until, "the guest said only: {log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn leaf(said: &[Cpuid], leaf: u32) -> [u32; 4] {
    said.iter()
        .find(|said| said.leaf == leaf)
        .unwrap()
        .registers
}

async fn cpu(host: &TestHost) -> HostCpu {
    host.client().host_this().await.unwrap().cpu.unwrap()
}

fn baseline(cpu: &HostCpu, name: CpuBaseline) -> &OfferedBaseline {
    cpu.baselines.iter().find(|b| b.name == name).unwrap()
}

async fn migrate(client: &Client, name: &str) -> Result<(), String> {
    let request = MigrateRequest {
        to: "right".into(),
        streams: None,
        pause_ms: None,
    };
    let moving = client.vm_migrate(PROJECT, name, &request).await.unwrap();
    let ended = client.operation_wait(&moving.id).await;
    ended.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_machine_with_a_baseline_goes_where_one_without_cannot() {
    let programs = Programs::find().unwrap();
    let options = BedOptions {
        config: [String::new(), "[cpu]\nbaseline = \"x86-64\"\n".into()],
        ..BedOptions::near()
    };
    let run = Bed::run_id().unwrap();
    let bed = Bed::start(&programs, run, &options).await.unwrap();
    let (left, right) = (bed.left(), bed.right());
    let client = left.client();
    let image = client.image_put("guest", dwcp_guest::elf()).await.unwrap();
    let kernel = image.digest.as_str();

    // What hosts say that they offer.
    let (here, there) = (cpu(left).await, cpu(right).await);
    assert_eq!(
        (here.limit, there.limit),
        (CpuBaseline::Host, CpuBaseline::V1)
    );
    let cx16 = "cx16".to_owned();
    assert!(baseline(&here, CpuBaseline::Host).features.contains(&cx16));
    assert!(!baseline(&there, CpuBaseline::Host).features.contains(&cx16));
    assert!(baseline(&here, CpuBaseline::V1).lacking.is_empty());
    assert!(baseline(&there, CpuBaseline::V1).lacking.is_empty());
    assert!(baseline(&there, CpuBaseline::V2).lacking.contains(&cx16));

    // A baseline that a host does not have is refused at once, by what it lacks.
    let beyond = here.baselines.iter().find(|b| !b.lacking.is_empty());
    if let Some(beyond) = beyond {
        let request = machine("beyond", kernel, Some(beyond.name));
        let refused = client
            .vm_create(PROJECT, &request)
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains(&beyond.lacking[0]), "{refused}");
    }
    right
        .client()
        .image_put("guest", dwcp_guest::elf())
        .await
        .unwrap();
    let request = machine("beyond", kernel, Some(CpuBaseline::V2));
    let refused = right
        .client()
        .vm_create(PROJECT, &request)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("cx16") && refused.contains("cpu.baseline"),
        "{refused}"
    );

    // What guests see.
    let whole = create(client, machine("whole", kernel, None)).await;
    let masked = create(client, machine("masked", kernel, Some(CpuBaseline::V1))).await;
    assert_eq!(masked.spec.cpu, CpuBaseline::V1);
    let (all, some) = (told(left, &whole), told(left, &masked));
    assert_eq!(leaf(&all, 1)[2] & CX16, CX16);
    assert_eq!(leaf(&some, 1)[2] & (CX16 | MADE_BY_KVM), MADE_BY_KVM);
    assert_eq!(leaf(&some, 0x8000_0000)[0], 0x8000_0008);
    assert_eq!(leaf(&some, 0x8000_0001)[2] & !CORES_NOT_THREADS, 0);
    assert_eq!(leaf(&some, 0x4000_0001)[0], CLOCK);
    if !shows_the_bare_cpu() {
        assert_eq!(leaf(&some, 1)[2], MADE_BY_KVM);
        assert_eq!(leaf(&some, 7), [0; 4]);
        assert_eq!(leaf(&some, 0xd), [0; 4]);
    }

    // The one is refused before anything is sent, and goes on; the other arrives, and goes on there.
    let refused = migrate(client, "whole").await.unwrap_err();
    assert!(refused.contains("cx16"), "{refused}");
    let failed = client.migration_list(PROJECT).all().await.unwrap();
    let [failed] = failed.as_slice() else {
        panic!("{failed:?}")
    };
    assert_eq!(failed.phase, MigrationPhase::Failed);
    assert_eq!((failed.progress.wire_bytes, failed.progress.round), (0, 0));
    let stays = client.vm_get(PROJECT, "whole").await.unwrap();
    assert_eq!((stays.phase, stays.epoch), (VmPhase::Running, whole.epoch));
    assert!(right.client().vm_get(PROJECT, "whole").await.is_err());
    migrate(client, "masked").await.unwrap();
    let moved = right.client().vm_get(PROJECT, "masked").await.unwrap();
    assert_eq!(
        (moved.phase, moved.spec.cpu),
        (VmPhase::Running, CpuBaseline::V1)
    );
    told_nothing_new(right, &moved);

    // On the lesser host a machine that asks for nothing gets what the host gives.
    let lesser = create(right.client(), machine("lesser", kernel, None)).await;
    assert_eq!(leaf(&told(right, &lesser), 1), leaf(&some, 1));
}

/// A guest that moved works on, and does not boot.
fn told_nothing_new(host: &TestHost, vm: &Vm) {
    assert!(told(host, vm).is_empty());
}
