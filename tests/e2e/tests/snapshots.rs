//! A machine is kept as it is at one moment, and goes on from there: itself, or another one made from it.
//!
//! The guest compares every block of its disk with what it last wrote there, and its memory with what it filled it with.
//! So a disk that is not of the same moment as the memory is found by the guest itself.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dwcp_e2e::Bed;
use dwcp_e2e::steps::Steps;
use dwcp_guest::Tick;
use dwcp_guest::said::DiskLoop;
use dwcp_sdk::Client;
use dwcp_sdk::types::{
    DiskSpec, MigrateRequest, Operation, Snapshot, SnapshotCreate, Vm, VmCreate, VmPhase,
};

const PROJECT: &str = "default";
const MIB: u64 = 1 << 20;
/// Transfers after which every block of the guest's disk was written anew, with all but certainty: it has 64.
const REWRITTEN: u64 = 1_000;
/// One generous deadline for what must happen at all.
const DEADLINE: Duration = Duration::from_secs(120);

struct Rig {
    bed: Bed,
    steps: Steps,
}

impl Rig {
    /// A machine that writes to its disk as well as to its memory.
    async fn start() -> Self {
        Self::with(VmCreate {
            cmdline: Some("fill_mib=4 ws_mib=1 rate=200 disk=loop disk_mib=1 io_rate=2000".into()),
            disks: vec![DiskSpec::empty("data", 16 * MIB)],
            ..VmCreate::new("web")
        })
        .await
    }

    async fn without_disks() -> Self {
        Self::with(VmCreate {
            cmdline: Some("fill_mib=4 ws_mib=1 rate=200".into()),
            ..VmCreate::new("web")
        })
        .await
    }

    async fn with(request: VmCreate) -> Self {
        let (bed, steps) = Bed::near_with_steps().await.unwrap();
        let rig = Self { bed, steps };
        let image = rig.client().image_put("guest", dwcp_guest::elf()).await;
        let request = VmCreate {
            kernel: Some(image.unwrap().digest),
            memory_bytes: Some(64 * MIB),
            ..request
        };
        let created = rig.client().vm_create(PROJECT, &request).await.unwrap();
        rig.ends_well(&created.operation).await;
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

    async fn snapshot(&self, name: &str) -> Snapshot {
        self.take(&SnapshotCreate::new(name, "web")).await
    }

    async fn take(&self, request: &SnapshotCreate) -> Snapshot {
        let client = self.client();
        let taking = client.snapshot_create(PROJECT, request).await.unwrap();
        self.ends_well(&taking).await;
        client.snapshot_get(PROJECT, &request.name).await.unwrap()
    }

    async fn stop(&self, name: &str) {
        let stopping = self.client().vm_stop(PROJECT, name, true).await.unwrap();
        self.ends_well(&stopping).await;
    }

    async fn restore(&self, snapshot: &str) {
        let restoring = self.client().vm_restore(PROJECT, "web", snapshot).await;
        self.ends_well(&restoring.unwrap()).await;
    }

    fn log(&self, vm: &Vm) -> String {
        self.bed.left().serial_log(&vm.id)
    }

    /// Waits until the guest has said, after the first `from` bytes of its log, that so many transfers are done, and
    /// that all of them, and its memory, were good.
    async fn is_well_after(&self, vm: &Vm, from: usize, transfers: u64) -> u64 {
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
                return last;
            }
            assert!(Instant::now() < until, "it does not come on: {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the guest has said on a host, after the first `from` bytes of its log there, that its memory is good;
    /// answers what it said last.
    async fn ticks_after(&self, side: usize, id: &str, from: usize) -> Tick {
        let host = [self.bed.left(), self.bed.right()][side];
        let until = Instant::now() + DEADLINE;
        loop {
            let log = host.serial_log(id);
            let new = log.get(from..).unwrap_or_default();
            let ticks: Vec<_> = new.lines().filter_map(Tick::parse).collect();
            assert!(ticks.iter().all(|tick| tick.bad == 0), "{new}");
            if ticks.len() > 2
                && let Some(last) = ticks.last()
            {
                return *last;
            }
            assert!(Instant::now() < until, "it does not come on: {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn runs_again(&self, name: &str) -> Vm {
        self.becomes(name, VmPhase::Running).await
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

    fn state(&self) -> PathBuf {
        self.bed.left().dir().join("state")
    }

    fn snapshot_dirs(&self) -> usize {
        std::fs::read_dir(self.state().join("snapshots"))
            .unwrap()
            .count()
    }

    /// The files that the machine's disks are written to.
    fn disk_files(&self, vm: &Vm) -> Vec<String> {
        let entries = std::fs::read_dir(self.state().join("vms").join(&vm.id)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("disk-")).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_on_from_its_snapshots_and_others_do() {
    let rig = Rig::start().await;
    let client = rig.client().clone();
    let vm = rig.vm("web").await;
    rig.is_well_after(&vm, 0, 200).await;

    let first = rig.snapshot("first").await;
    assert!(
        first.pause_ms > 0.0 && first.stored_bytes > 4 * MIB,
        "{first:?}"
    );
    assert_eq!((first.vm.as_str(), first.spec.disks.len()), ("web", 1));
    let again = client
        .snapshot_create(PROJECT, &SnapshotCreate::new("first", "web"))
        .await;
    assert!(again.unwrap_err().to_string().contains("already"));
    // It went on, and wrote over all that the snapshot holds of its disk.
    let at_first = rig.is_well_after(&vm, rig.log(&vm).len(), 0).await;
    let after = rig.is_well_after(&vm, 0, at_first + REWRITTEN).await;

    let refused = client
        .vm_restore(PROJECT, "web", "first")
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("stop it first"), "{refused}");
    rig.stop("web").await;
    let before = rig.log(&vm).len();
    rig.restore("first").await;
    let back = rig.is_well_after(&vm, before, 1).await;
    assert!(back < after, "it did not go back: {back} after {after}");
    rig.is_well_after(&vm, before, after + REWRITTEN).await;
    let restored = rig.vm("web").await;
    assert_eq!(restored.origin.as_ref().unwrap().snapshot_id, first.id);
    assert_eq!(rig.disk_files(&vm).len(), 1, "{:?}", rig.disk_files(&vm));

    // A snapshot of a machine that stands on one, and back, and forth.
    let second = rig.snapshot("second").await;
    assert_eq!(second.origin.as_ref().unwrap().snapshot_id, first.id);
    for name in ["first", "second"] {
        rig.stop("web").await;
        let before = rig.log(&vm).len();
        rig.restore(name).await;
        rig.is_well_after(&vm, before, REWRITTEN).await;
    }

    others_are_made(&rig, &first).await;
    it_boots_again(&rig, &vm).await;
}

/// Machines that are made from a snapshot have memory and disks of their own.
async fn others_are_made(rig: &Rig, first: &Snapshot) {
    let client = rig.client();
    let twin = |name: &str| VmCreate {
        snapshot: Some("second".into()),
        ..VmCreate::new(name)
    };
    let refused = VmCreate {
        vcpus: Some(2),
        ..twin("other")
    };
    let refused = client.vm_create(PROJECT, &refused).await.unwrap_err();
    assert!(refused.to_string().contains("vcpus"), "{refused}");
    let mut twins = Vec::new();
    for name in ["one", "two", "three"] {
        let created = client.vm_create(PROJECT, &twin(name)).await.unwrap();
        rig.ends_well(&created.operation).await;
        twins.push(created.vm);
    }
    for vm in &twins {
        rig.is_well_after(vm, 0, REWRITTEN).await;
        assert!(!rig.log(vm).contains("guest: boot"), "it booted");
    }
    let web = rig.vm("web").await;
    rig.is_well_after(&web, rig.log(&web).len(), 0).await;
    for (name, user) in [("second", "stands on it"), ("first", "stands on it")] {
        let refused = client.snapshot_delete(PROJECT, name).await.unwrap_err();
        assert!(refused.to_string().contains(user), "{refused}");
    }
    for vm in &twins {
        client.vm_delete(PROJECT, &vm.name, true).await.unwrap();
    }
    assert!(rig.state().join("snapshots").join(&first.id).exists());
}

/// What it went on from does not keep it from booting, and what stands on nothing can go.
async fn it_boots_again(rig: &Rig, vm: &Vm) {
    let client = rig.client();
    rig.stop("web").await;
    let before = rig.log(vm).len();
    let starting = client.vm_start(PROJECT, "web").await.unwrap();
    rig.ends_well(&starting).await;
    rig.is_well_after(vm, before, 100).await;
    client.vm_delete(PROJECT, "web", true).await.unwrap();
    client.snapshot_delete(PROJECT, "second").await.unwrap();
    client.snapshot_delete(PROJECT, "first").await.unwrap();
    assert_eq!(rig.snapshot_dirs(), 0);
}

/// Only what changed is written, again and again; whatever lies in how many files, the guest finds its memory whole.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_changes_are_kept_and_gone_on_from() {
    let mut rig = Rig::start().await;
    let client = rig.client().clone();
    let vm = rig.vm("web").await;
    rig.is_well_after(&vm, 0, 200).await;
    let change = |name: &str| SnapshotCreate {
        incremental: true,
        ..SnapshotCreate::new(name, "web")
    };

    // One that was not asked to keep changes is no base.
    rig.snapshot("plain").await;
    let monday = rig.take(&change("monday")).await;
    assert_eq!(monday.base, None);
    let before = rig.log(&vm).len();
    rig.is_well_after(&vm, before, 1).await;
    // Its process knows, whoever asked it.
    rig.bed.host_mut(0).kill_daemon().unwrap();
    rig.bed.host_mut(0).restart_daemon().unwrap();
    rig.runs_again("web").await;
    let tuesday = rig.take(&change("tuesday")).await;
    assert_eq!(tuesday.base.unwrap().snapshot_id, monday.id);
    assert!(tuesday.stored_bytes < monday.stored_bytes * 3 / 4);
    let refused = client.snapshot_delete(PROJECT, "monday").await.unwrap_err();
    assert!(
        refused.to_string().contains("tuesday holds only"),
        "{refused}"
    );

    // Until there are too many on each other: then one is full by itself.
    let mut depth = 2;
    let mut last = "tuesday".to_owned();
    let full = loop {
        let before = rig.log(&vm).len();
        rig.is_well_after(&vm, before, 1).await;
        let next = rig.take(&change(&format!("day-{depth}"))).await;
        match &next.base {
            None => break next,
            Some(base) => assert_eq!(base.snapshot, last),
        }
        depth += 1;
        last = next.name;
        assert!(depth <= 16, "it goes on for ever");
    };
    assert_eq!(depth, 16);

    // A compressed one on one that is not: its memory comes while the guest runs.
    let packed = SnapshotCreate {
        compressed: true,
        ..change("packed")
    };
    let packed = rig.take(&packed).await;
    assert!(packed.compressed, "{packed:?}");
    assert_eq!(packed.base.unwrap().snapshot, full.name);
    for name in [last.as_str(), "tuesday", "packed", &full.name] {
        rig.stop("web").await;
        let before = rig.log(&vm).len();
        rig.restore(name).await;
        rig.is_well_after(&vm, before, REWRITTEN).await;
    }
    // One that is on another can go, and then the other.
    client.vm_delete(PROJECT, "web", true).await.unwrap();
    for depth in (2..depth).rev() {
        let name = format!("day-{depth}");
        client.snapshot_delete(PROJECT, &name).await.unwrap();
    }
    for name in ["tuesday", "monday", "plain", "packed", &full.name] {
        client.snapshot_delete(PROJECT, name).await.unwrap();
    }
    assert_eq!(rig.snapshot_dirs(), 0);
}

/// What is compressed takes less room, and is gone on from before it is unpacked. Damage in it is found when it comes,
/// and ends the guest with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn compressed_snapshots_are_gone_on_from() {
    let rig = Rig::start().await;
    let client = rig.client().clone();
    let vm = rig.vm("web").await;
    rig.is_well_after(&vm, 0, 200).await;
    let plain = rig.snapshot("plain").await;
    let request = SnapshotCreate {
        compressed: true,
        ..SnapshotCreate::new("packed", "web")
    };
    let packed = rig.take(&request).await;
    assert!(packed.stored_bytes < plain.stored_bytes, "{packed:?}");
    rig.stop("web").await;
    let before = rig.log(&vm).len();
    rig.restore("packed").await;
    rig.is_well_after(&vm, before, REWRITTEN).await;
    // All has come by then, and is kept.
    let again = rig.snapshot("again").await;
    let before = rig.log(&vm).len();
    rig.stop("web").await;
    rig.restore("again").await;
    rig.is_well_after(&vm, before, REWRITTEN).await;
    assert_eq!(again.origin.unwrap().snapshot_id, packed.id);

    rig.stop("web").await;
    let memory = rig.state().join("snapshots").join(&packed.id);
    let memory = memory.join("memory.snapshot");
    std::fs::set_permissions(&memory, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut options = std::fs::File::options();
    let file = options.read(true).write(true).open(&memory).unwrap();
    // In what is stored of its memory, wherever the guest needs that.
    let mut byte = [0];
    let at = file.metadata().unwrap().len() / 2;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    drop(file);
    let restoring = client.vm_restore(PROJECT, "web", "packed").await.unwrap();
    let refused = client.operation_wait(&restoring.id).await;
    let vm = match refused {
        // It was met before the guest ran.
        Err(refused) => {
            assert!(refused.to_string().contains("damaged"), "{refused}");
            return;
        }
        Ok(_) => rig.becomes("web", VmPhase::Crashed).await,
    };
    assert!(vm.reason.contains("damaged"), "{}", vm.reason);
}

/// A machine that went on from a snapshot moves like any other, and takes along what it did not boot with.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_restored_moves_to_another_host() {
    let rig = Rig::without_disks().await;
    let client = rig.client().clone();
    let vm = rig.vm("web").await;
    rig.ticks_after(0, &vm.id, 0).await;
    rig.snapshot("kept").await;
    rig.stop("web").await;
    rig.restore("kept").await;
    let restored = rig.log(&vm).len();
    rig.ticks_after(0, &vm.id, restored).await;
    let request = MigrateRequest {
        to: "right".into(),
        streams: None,
        pause_ms: None,
    };
    let moving = client.vm_migrate(PROJECT, "web", &request).await.unwrap();
    rig.ends_well(&moving).await;
    let there = rig.bed.right().client();
    let moved = there.vm_get(PROJECT, "web").await.unwrap();
    assert_eq!((moved.phase, moved.origin), (VmPhase::Running, None));
    let tick = rig.ticks_after(1, &vm.id, 0).await;
    assert!(tick.tick > 2, "it began anew: {tick:?}");

    // What it stood on is not needed any more.
    client.snapshot_delete(PROJECT, "kept").await.unwrap();
    let before = rig.bed.right().serial_log(&vm.id).len();
    rig.ticks_after(1, &vm.id, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_or_damaged_costs_nothing() {
    let mut rig = Rig::start().await;
    let client = rig.client().clone();
    let vm = rig.vm("web").await;
    rig.is_well_after(&vm, 0, 100).await;

    // The daemon dies while the machine stands still, and when only the record is missing.
    for step in ["snapshot.written", "snapshot.finished"] {
        let caught = rig.steps.catch(step);
        client
            .snapshot_create(PROJECT, &SnapshotCreate::new("cut", "web"))
            .await
            .unwrap();
        let caught = tokio::time::timeout(DEADLINE, caught)
            .await
            .unwrap()
            .unwrap();
        rig.bed.host_mut(0).kill_daemon().unwrap();
        drop(caught);
        let before = rig.log(&vm).len();
        rig.bed.host_mut(0).restart_daemon().unwrap();
        rig.runs_again("web").await;
        rig.is_well_after(&vm, before, 1).await;
        assert!(
            client
                .snapshot_get(PROJECT, "cut")
                .await
                .unwrap_err()
                .is_not_found()
        );
        assert_eq!(rig.snapshot_dirs(), 0, "{step}");
    }

    // It dies during a restore: before the record says so, the machine is as it was; afterwards it goes on.
    let kept = rig.snapshot("kept").await;
    rig.stop("web").await;
    let stopped = rig.disk_files(&vm);
    for (step, phase) in [
        ("restore.loaded", VmPhase::Stopped),
        ("restore.recorded", VmPhase::Running),
    ] {
        let caught = rig.steps.catch(step);
        let before = rig.log(&vm).len();
        client.vm_restore(PROJECT, "web", "kept").await.unwrap();
        let caught = tokio::time::timeout(DEADLINE, caught)
            .await
            .unwrap()
            .unwrap();
        rig.bed.host_mut(0).kill_daemon().unwrap();
        drop(caught);
        rig.bed.host_mut(0).restart_daemon().unwrap();
        let now = rig.becomes("web", phase).await;
        if phase == VmPhase::Running {
            rig.is_well_after(&vm, before, 1).await;
        } else {
            assert_eq!(now.origin, None);
            let files = rig.disk_files(&vm);
            assert!(files.contains(&stopped[0]), "{files:?}");
        }
    }

    // A snapshot that was changed is refused, and the machine stays.
    rig.stop("web").await;
    let memory = rig
        .state()
        .join("snapshots")
        .join(&kept.id)
        .join("memory.snapshot");
    std::fs::set_permissions(&memory, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&memory)
        .unwrap();
    let mut byte = [0];
    let mut at = 2 * MIB;
    while byte[0] == 0 {
        at += 4096;
        file.read_exact_at(&mut byte, at).unwrap();
    }
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let restoring = client.vm_restore(PROJECT, "web", "kept").await.unwrap();
    let refused = client.operation_wait(&restoring.id).await.unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
    let stays = rig.vm("web").await;
    assert_eq!(stays.phase, VmPhase::Stopped, "{stays:?}");
    let before = rig.log(&vm).len();
    let starting = client.vm_start(PROJECT, "web").await.unwrap();
    rig.ends_well(&starting).await;
    rig.is_well_after(&vm, before, 100).await;
}
