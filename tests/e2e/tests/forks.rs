//! Machines go on from a template: each with memory, a disk and an address of its own, whoever dies meanwhile.
//!
//! The guest compares every block of its disk with what it last wrote there, and its memory with what it filled it with:
//! what is not of the template's moment, or is written by another fork, is found by the guest itself.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use dwcp_e2e::Bed;
use dwcp_e2e::steps::Steps;
use dwcp_guest::Tick;
use dwcp_guest::said::{DiskLoop, NetLease};
use dwcp_launch::protocol::{Child, ChildKind};
use dwcp_sdk::Client;
use dwcp_sdk::types::{
    DiskSpec, ForkRequest, MigrateRequest, Operation, SnapshotCreate, Vm, VmCreate, VmPhase,
};

const PROJECT: &str = "default";
const MIB: u64 = 1 << 20;
/// Transfers after which every block of the guest's disk was written anew, with all but certainty: it has 64.
const REWRITTEN: u64 = 1_000;
/// Shells that a daemon keeps for a template if nothing is said.
const SHELLS: usize = 2;
/// One generous deadline for what must happen at all.
const DEADLINE: Duration = Duration::from_secs(120);

struct Rig {
    bed: Bed,
    steps: Steps,
}

impl Rig {
    /// A host with a machine `web` that has a disk, a card and two processors.
    async fn start() -> Self {
        let (bed, steps) = Bed::near_with_steps().await.unwrap();
        let rig = Self { bed, steps };
        let image = rig.client().image_put("guest", dwcp_guest::elf()).await;
        let orders =
            "fill_mib=4 ws_mib=1 rate=200 disk=loop disk_mib=1 io_rate=2000 net=dhcp net=echo:7";
        let request = VmCreate {
            kernel: Some(image.unwrap().digest),
            cmdline: Some(orders.into()),
            memory_bytes: Some(64 * MIB),
            vcpus: Some(2),
            networks: Some(vec!["default".into()]),
            disks: vec![DiskSpec::empty("data", 16 * MIB)],
            ..VmCreate::new("web")
        };
        let created = rig.client().vm_create(PROJECT, &request).await.unwrap();
        rig.ends_well(&created.operation).await;
        rig.is_well_after(&created.vm, 0, 200).await;
        rig.answers(&created.vm);
        rig
    }

    fn client(&self) -> &Client {
        self.bed.left().client()
    }

    async fn ends_well(&self, operation: &Operation) {
        self.client().operation_wait(&operation.id).await.unwrap();
    }

    async fn vm(&self, name: &str) -> Vm {
        self.client().vm_get(PROJECT, name).await.unwrap()
    }

    async fn fork(&self, request: &ForkRequest) -> Vec<Vm> {
        let forked = self.client().vm_fork(PROJECT, "web", request).await;
        let forked = forked.unwrap();
        self.ends_well(&forked.operation).await;
        forked.vms
    }

    /// Why no fork is made of a machine.
    async fn refusal(&self, name: &str, request: &ForkRequest) -> String {
        let forked = self.client().vm_fork(PROJECT, name, request).await;
        forked.unwrap_err().to_string()
    }

    async fn delete(&self, name: &str) {
        self.client().vm_delete(PROJECT, name, true).await.unwrap();
    }

    fn log(&self, vm: &Vm) -> String {
        self.bed.left().serial_log(&vm.id)
    }

    /// Waits until the guest has said, after the first `from` bytes of its log, that so many transfers are done, and
    /// that all of them, and its memory, were good.
    async fn is_well_after(&self, vm: &Vm, from: usize, transfers: u64) {
        let until = Instant::now() + DEADLINE;
        loop {
            let log = self.log(vm);
            let new = log.get(from..).unwrap_or_default();
            let ticks: Vec<_> = new.lines().filter_map(Tick::parse).collect();
            let loops: Vec<_> = new.lines().filter_map(DiskLoop::parse).collect();
            assert!(ticks.iter().all(|tick| tick.bad == 0), "{new}");
            assert!(loops.iter().all(|l| l.bad == 0 && l.errors == 0), "{new}");
            let last = loops.last().map_or(0, |last| last.transfers);
            if loops.len() > 1 && ticks.len() > 1 && last >= transfers {
                return;
            }
            assert!(Instant::now() < until, "it does not come on: {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the guest answers the host at the address that is its own.
    fn answers(&self, vm: &Vm) {
        let (address, _) = vm.spec.networks[0].address.split_once('/').unwrap();
        let echoed = self.bed.left().namespace().enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let patience = Some(Duration::from_millis(500));
            socket.set_read_timeout(patience).unwrap();
            let until = Instant::now() + DEADLINE;
            let mut answer = [0; 64];
            // Datagrams may be lost, and the guest may not listen yet.
            while Instant::now() < until {
                socket.send_to(b"are you there", (address, 7)).unwrap();
                if let Ok((count, from)) = socket.recv_from(&mut answer) {
                    return (answer[..count].to_vec(), from.ip().to_string());
                }
            }
            Default::default()
        });
        assert_eq!(echoed.unwrap(), (b"are you there".to_vec(), address.into()));
    }

    async fn becomes(&self, name: &str, phase: VmPhase) -> Vm {
        let until = Instant::now() + DEADLINE;
        loop {
            let vm = self.vm(name).await;
            if vm.phase == phase {
                return vm;
            }
            assert!(Instant::now() < until, "it does not become {phase}: {vm:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn vmms(&self) -> Vec<Child> {
        let children = self.bed.left().children().unwrap();
        let vmms = children.into_iter();
        vmms.filter(|child| child.kind == ChildKind::Vmm).collect()
    }

    /// Waits until as many processes as this run for no machine that is recorded; answers of which ids.
    async fn shells(&self, count: usize) -> BTreeSet<String> {
        let until = Instant::now() + DEADLINE;
        loop {
            let vms = self.client().vm_list(PROJECT).all().await.unwrap();
            let known: BTreeSet<_> = vms.into_iter().map(|vm| vm.id).collect();
            let vmms = self.vmms().into_iter().filter(Child::is_running);
            let ids = vmms.map(|child| child.id.as_str().to_owned());
            let ids: BTreeSet<_> = ids.filter(|id| !known.contains(id)).collect();
            if ids.len() == count {
                return ids;
            }
            assert!(Instant::now() < until, "shells: {ids:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The directories of machines.
    fn dirs(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.bed.left().dir().join("state/vms")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

fn many(count: u32) -> ForkRequest {
    ForkRequest {
        count: Some(count),
        ..ForkRequest::default()
    }
}

fn sealing(count: u32) -> ForkRequest {
    ForkRequest {
        seal: true,
        ..many(count)
    }
}

fn named(name: &str) -> ForkRequest {
    ForkRequest {
        name: Some(name.into()),
        ..ForkRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_go_on_from_a_template() {
    let rig = Rig::start().await;
    let web = rig.vm("web").await;
    let refused = rig.refusal("web", &many(3)).await;
    assert!(refused.contains("--seal"), "{refused}");
    assert_eq!(rig.vm("web").await.phase, VmPhase::Running);
    let too_many = rig.refusal("web", &sealing(65)).await;
    assert!(too_many.contains("64"), "{too_many}");

    let forks = rig.fork(&sealing(3)).await;
    let names: Vec<_> = forks.iter().map(|fork| fork.name.as_str()).collect();
    assert_eq!(names, ["web-1", "web-2", "web-3"]);
    let waiting = rig.shells(SHELLS).await;
    let by_name = rig.fork(&named("api-test")).await;
    // By a process that waited for it.
    assert!(waiting.contains(&by_name[0].id), "{waiting:?}");
    let forks = [forks, by_name].concat();
    let mut addresses = BTreeSet::from([web.spec.networks[0].address.clone()]);
    for fork in &forks {
        rig.is_well_after(fork, 0, REWRITTEN).await;
        assert!(!rig.log(fork).contains("guest: boot"), "it booted");
        rig.answers(fork);
        let card = &fork.spec.networks[0];
        let inside = card.inside.as_ref().unwrap();
        assert_eq!(inside.address, web.spec.networks[0].address);
        assert_eq!(inside.mac, web.spec.networks[0].mac);
        assert!(addresses.insert(card.address.clone()), "{addresses:?}");
    }
    it_never_runs_again(&rig, &web).await;
    what_forks_can_do(&rig, &forks[0]).await;
    they_go_one_after_the_other(&rig, &forks).await;
}

/// What stands still for ever says so, whatever is asked of it.
async fn it_never_runs_again(rig: &Rig, web: &Vm) {
    let client = rig.client();
    let template = rig.vm("web").await;
    assert_eq!(template.phase, VmPhase::Template);
    let ended = rig.vmms().into_iter().find(|vmm| vmm.id.as_str() == web.id);
    assert!(!ended.unwrap().is_running());
    let says = |refused: dwcp_sdk::Error| {
        let refused = refused.to_string();
        assert!(refused.contains("template"), "{refused}");
    };
    for operation in [
        client.vm_pause(PROJECT, "web").await.unwrap(),
        client.vm_resume(PROJECT, "web").await.unwrap(),
        client.vm_reset(PROJECT, "web").await.unwrap(),
    ] {
        says(client.operation_wait(&operation.id).await.unwrap_err());
    }
    let to = MigrateRequest {
        to: "right".into(),
        streams: None,
        pause_ms: None,
    };
    says(client.vm_migrate(PROJECT, "web", &to).await.unwrap_err());
    says(client.vm_stop(PROJECT, "web", true).await.unwrap_err());
    says(client.vm_start(PROJECT, "web").await.unwrap_err());
    says(client.vm_stats(PROJECT, "web").await.unwrap_err());
    let snapshot = client
        .snapshot_create(PROJECT, &SnapshotCreate::new("none", "web"))
        .await;
    says(snapshot.unwrap_err());
    let longer = client.vm_disk_resize(PROJECT, "web", "data", 32 * MIB);
    says(longer.await.unwrap_err());
    says(
        client
            .vm_memory(PROJECT, "web", 32 * MIB)
            .await
            .unwrap_err(),
    );
    for refused in [
        client.vm_delete(PROJECT, "web", true).await.unwrap_err(),
        client.vm_start(PROJECT, "web").await.unwrap_err(),
    ] {
        assert!(refused.to_string().contains("stands"), "{refused}");
    }
}

/// A fork is a machine like others: it is kept as it is, others are made from that, and it boots.
async fn what_forks_can_do(rig: &Rig, fork: &Vm) {
    let client = rig.client();
    let refused = rig.refusal(&fork.name, &sealing(1)).await;
    assert!(refused.contains("snapshot"), "{refused}");
    rig.is_well_after(fork, rig.log(fork).len(), 0).await;
    let taking = client
        .snapshot_create(PROJECT, &SnapshotCreate::new("kept", &fork.name))
        .await;
    rig.ends_well(&taking.unwrap()).await;
    let request = VmCreate {
        snapshot: Some("kept".into()),
        ..VmCreate::new("other")
    };
    let created = client.vm_create(PROJECT, &request).await.unwrap();
    rig.ends_well(&created.operation).await;
    let other = created.vm;
    rig.is_well_after(&other, 0, REWRITTEN).await;
    assert!(!rig.log(&other).contains("guest: boot"), "it booted");
    // Both are there, and their guests know the same card.
    let (card, theirs) = (&other.spec.networks[0], &fork.spec.networks[0]);
    assert_eq!(card.inside, theirs.inside);
    assert_ne!(card.address, theirs.address);
    rig.answers(&other);
    rig.answers(fork);
    rig.delete("other").await;

    let stopping = client.vm_stop(PROJECT, &fork.name, true).await.unwrap();
    rig.ends_well(&stopping).await;
    let before = rig.log(fork).len();
    let starting = client.vm_start(PROJECT, &fork.name).await.unwrap();
    rig.ends_well(&starting).await;
    rig.is_well_after(fork, before, 100).await;
    let log = rig.log(fork);
    let lease = log[before..].lines().find_map(NetLease::parse).unwrap();
    assert_eq!(lease.address, theirs.inside.as_ref().unwrap().address);
    rig.answers(fork);
}

/// The template goes last, and nothing of it stays.
async fn they_go_one_after_the_other(rig: &Rig, forks: &[Vm]) {
    let client = rig.client();
    for fork in forks {
        let refused = client.vm_delete(PROJECT, "web", true).await.unwrap_err();
        assert!(refused.to_string().contains("stands"), "{refused}");
        rig.delete(&fork.name).await;
    }
    // A snapshot of a fork stands on its disks too.
    let refused = client.vm_delete(PROJECT, "web", true).await.unwrap_err();
    assert!(refused.to_string().contains("snapshot kept"), "{refused}");
    client.snapshot_delete(PROJECT, "kept").await.unwrap();
    rig.shells(SHELLS).await;
    rig.delete("web").await;
    rig.shells(0).await;
    assert_eq!(rig.vmms(), []);
    assert_eq!(rig.dirs(), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_is_a_fork_or_nothing() {
    let mut rig = Rig::start().await;
    let client = rig.client().clone();
    let web = rig.vm("web").await;

    // Until its record says that it is a template, it is none.
    let before = rig.log(&web).len();
    cut_off(&mut rig, "template.saved", sealing(1)).await;
    rig.becomes("web", VmPhase::Running).await;
    rig.is_well_after(&web, before, 1).await;
    assert_eq!(client.vm_list(PROJECT).all().await.unwrap().len(), 1);
    // From then on it is one, whoever had to seal it.
    cut_off(&mut rig, "template.recorded", sealing(1)).await;
    rig.becomes("web", VmPhase::Template).await;
    let old = rig.shells(SHELLS).await;
    assert_eq!(client.vm_list(PROJECT).all().await.unwrap().len(), 1);

    // A fork that is recorded comes to run; what waited for the daemon that is gone does not stay.
    for (step, name) in [("restore.loaded", "one"), ("restore.recorded", "two")] {
        cut_off(&mut rig, step, named(name)).await;
        let fork = rig.becomes(name, VmPhase::Running).await;
        rig.is_well_after(&fork, 0, REWRITTEN).await;
        rig.answers(&fork);
    }
    let new = rig.shells(SHELLS).await;
    assert!(old.is_disjoint(&new), "{old:?} {new:?}");
    let vms = client.vm_list(PROJECT).all().await.unwrap();
    let expected: BTreeSet<_> = vms.into_iter().map(|vm| vm.id).chain(new).collect();
    assert_eq!(rig.dirs(), expected);

    // The launcher kept the memory. What is on disks stays.
    rig.bed.host_mut(0).kill_launcher().unwrap();
    rig.becomes("one", VmPhase::Crashed).await;
    rig.bed.host_mut(0).restart_launcher().unwrap();
    let until = Instant::now() + DEADLINE;
    while !rig.vm("web").await.reason.contains("memory went") {
        assert!(Instant::now() < until, "{:?}", rig.vm("web").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = rig.refusal("web", &many(1)).await;
    assert!(refused.contains("memory went"), "{refused}");
    let one = rig.vm("one").await;
    let before = rig.log(&one).len();
    let starting = client.vm_start(PROJECT, "one").await.unwrap();
    rig.ends_well(&starting).await;
    rig.is_well_after(&one, before, 100).await;
    let refused = client.vm_start(PROJECT, "web").await.unwrap_err();
    assert!(refused.to_string().contains("stands"), "{refused}");
    for name in ["one", "two"] {
        rig.delete(name).await;
    }
    let before = rig.log(&web).len();
    let starting = client.vm_start(PROJECT, "web").await.unwrap();
    rig.ends_well(&starting).await;
    rig.is_well_after(&web, before, 100).await;
    rig.answers(&web);
}

/// Asks for forks, and kills the daemon at a step of that.
async fn cut_off(rig: &mut Rig, step: &str, request: ForkRequest) {
    let caught = rig.steps.catch(step);
    let client = rig.client().clone();
    let asked = tokio::spawn(async move { client.vm_fork(PROJECT, "web", &request).await });
    let caught = tokio::time::timeout(DEADLINE, caught).await;
    let caught = caught.unwrap().unwrap();
    rig.bed.host_mut(0).kill_daemon().unwrap();
    drop(caught);
    asked.abort();
    rig.bed.host_mut(0).restart_daemon().unwrap();
}
