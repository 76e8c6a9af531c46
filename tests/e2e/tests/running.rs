//! What an operator does with a machine that runs: looks at it, pauses and resets it, takes memory and gives it back,
//! makes its disks longer, and connects to programs in its guest.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use dwcp_e2e::{Bed, BedOptions, Programs};
use dwcp_guest::Tick;
use dwcp_guest::said::{DiskLoop, DiskResized, VsockConnect};
use dwcp_sdk::Client;
use dwcp_sdk::types::{Desired, DiskSpec, Operation, SnapshotCreate, Vm, VmCreate, VmPhase};

const PROJECT: &str = "default";
const MIB: u64 = 1 << 20;
/// One generous deadline for what must happen at all.
const DEADLINE: Duration = Duration::from_secs(120);
/// The port of the guest at which what is said comes back.
const ECHO: u32 = 1234;
/// The port of its host to which the guest connects.
const HOST: u32 = 1235;

struct Rig {
    bed: Bed,
}

impl Rig {
    fn client(&self) -> &Client {
        self.bed.left().client()
    }

    async fn ends_well(&self, operation: &Operation) {
        self.client().operation_wait(&operation.id).await.unwrap();
    }

    async fn vm(&self) -> Vm {
        self.client().vm_get(PROJECT, "web").await.unwrap()
    }

    async fn create(&self, orders: &str, start: bool) -> Vm {
        let image = self.client().image_put("guest", dwcp_guest::elf()).await;
        let request = VmCreate {
            kernel: Some(image.unwrap().digest),
            cmdline: Some(format!("fill_mib=4 ws_mib=1 rate=200 {orders}")),
            memory_bytes: Some(128 * MIB),
            disks: vec![DiskSpec::empty("data", 16 * MIB)],
            start,
            ..VmCreate::new("web")
        };
        let created = self.client().vm_create(PROJECT, &request).await.unwrap();
        self.ends_well(&created.operation).await;
        created.vm
    }

    fn log(&self, vm: &Vm) -> String {
        self.bed.left().serial_log(&vm.id)
    }

    /// Waits until the guest has said something of a kind, in the part of its log after `from` bytes.
    async fn said<T>(&self, vm: &Vm, from: usize, find: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            let log = self.log(vm);
            let new = log.get(from..).unwrap_or_default();
            if let Some(found) = new.lines().filter_map(&find).last() {
                return found;
            }
            assert!(Instant::now() < until, "it does not say it: {log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn waits_for(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let until = Instant::now() + DEADLINE;
        while !is_so().await {
            assert!(Instant::now() < until, "{what}: {:?}", self.vm().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn rig() -> Rig {
    let programs = Programs::find().unwrap();
    let bed = Bed::start(&programs, Bed::run_id().unwrap(), &BedOptions::near()).await;
    Rig { bed: bed.unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_handled() {
    let rig = rig().await;
    let vm = rig
        .create("disk=loop disk_mib=1 io_rate=500 balloon=follow", true)
        .await;
    rig.said(&vm, 0, DiskLoop::parse).await;
    it_is_looked_at(&rig).await;
    it_is_paused(&rig, &vm).await;
    it_gives_memory(&rig).await;
    its_disk_grows(&rig, &vm).await;
    it_is_reset(&rig, &vm).await;
    a_device_that_is_misused_is_told(&rig).await;
    one_that_resets_itself_boots_again(&rig).await;
}

async fn it_is_looked_at(rig: &Rig) {
    let stats = rig.client().vm_stats(PROJECT, "web").await.unwrap();
    let names: Vec<_> = stats.devices.iter().map(|of| of.name.as_str()).collect();
    assert_eq!(names, ["rng", "balloon", "console", "data", "vsock"]);
    let disk = &stats.devices[3];
    assert!(disk.operations > 0 && disk.from_guest_bytes > 0, "{disk:?}");
    assert!(
        stats.vcpus[0].cpu_ns > 0 && stats.console_bytes > 0,
        "{stats:?}"
    );
    assert_eq!(stats.memory_bytes, 128 * MIB);
}

async fn it_is_paused(rig: &Rig, vm: &Vm) {
    let client = rig.client();
    let pausing = client.vm_pause(PROJECT, "web").await.unwrap();
    rig.ends_well(&pausing).await;
    assert_eq!(rig.vm().await.phase, VmPhase::Paused);
    let silent = rig.log(vm).len();
    let exits = || async { client.vm_stats(PROJECT, "web").await.unwrap().vcpus };
    let before = exits().await;
    let again = client.vm_pause(PROJECT, "web").await.unwrap();
    assert!(client.operation_wait(&again.id).await.is_err());
    // What needs a machine that runs says so.
    let refused = client
        .snapshot_create(PROJECT, &SnapshotCreate::new("none", "web"))
        .await;
    assert!(refused.unwrap_err().to_string().contains("running machine"));
    assert_eq!(exits().await, before);
    assert_eq!(rig.log(vm).len(), silent);
    let resuming = client.vm_resume(PROJECT, "web").await.unwrap();
    rig.ends_well(&resuming).await;
    let tick = rig.said(vm, silent, Tick::parse).await;
    assert_eq!(tick.bad, 0);
    assert_eq!(rig.vm().await.phase, VmPhase::Running);
}

async fn it_gives_memory(rig: &Rig) {
    let client = rig.client();
    let refused = client.vm_memory(PROJECT, "web", MIB).await.unwrap_err();
    assert!(refused.to_string().contains("16 to 128 MiB"), "{refused}");
    let vm = client.vm_memory(PROJECT, "web", 120 * MIB).await.unwrap();
    assert_eq!(vm.memory_target_bytes, Some(120 * MIB));
    let held = || async { client.vm_stats(PROJECT, "web").await.unwrap().balloon_bytes };
    rig.waits_for("it gives up what it is asked for", async || {
        held().await == 8 * MIB
    })
    .await;
    client.vm_memory(PROJECT, "web", 128 * MIB).await.unwrap();
    rig.waits_for("it has all back", async || held().await == 0)
        .await;
    assert_eq!(rig.vm().await.memory_target_bytes, None);
    // It is asked again when it starts.
    client.vm_memory(PROJECT, "web", 124 * MIB).await.unwrap();
}

async fn its_disk_grows(rig: &Rig, vm: &Vm) {
    let client = rig.client();
    let smaller = client.vm_disk_resize(PROJECT, "web", "data", 8 * MIB).await;
    assert!(smaller.unwrap_err().to_string().contains("longer"));
    let none = client
        .vm_disk_resize(PROJECT, "web", "root", 32 * MIB)
        .await;
    assert!(none.unwrap_err().is_not_found());
    let grown = async |size: u64| {
        let longer = client.vm_disk_resize(PROJECT, "web", "data", size).await?;
        assert_eq!(longer.spec.disks[0].size_bytes, size);
        let is_told = || async { rig.said(vm, 0, DiskResized::parse).await.sectors };
        rig.waits_for("the guest is told", async || is_told().await == size / 512)
            .await;
        Ok::<_, dwcp_sdk::Error>(())
    };
    grown(64 * MIB).await.unwrap();
    // Longer than its process might write when it was started: that takes a right that root need not have.
    let longer = grown(1024 * MIB).await;
    if may_raise_limits() {
        longer.unwrap();
    } else {
        let refused = longer.unwrap_err().to_string();
        assert!(refused.contains("CAP_SYS_RESOURCE"), "{refused}");
        assert_eq!(rig.vm().await.spec.disks[0].size_bytes, 64 * MIB);
    }
}

async fn it_is_reset(rig: &Rig, vm: &Vm) {
    let client = rig.client();
    let before = rig.log(vm).len();
    let resetting = client.vm_reset(PROJECT, "web").await.unwrap();
    rig.ends_well(&resetting).await;
    let done = rig.said(vm, before, DiskLoop::parse).await;
    assert_eq!((done.bad, done.errors), (0, 0));
    let target = client.vm_stats(PROJECT, "web").await.unwrap();
    assert_eq!(target.balloon_target_bytes, 4 * MIB, "{target:?}");
    // While it does not run, a disk can be made longer too.
    let stopping = client.vm_stop(PROJECT, "web", true).await.unwrap();
    rig.ends_well(&stopping).await;
    assert!(client.vm_stats(PROJECT, "web").await.is_err());
    // It was told to stop, so it has not crashed; and it is told once.
    let events = client.event_list(0, 1000).await.unwrap();
    let told = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
    assert_eq!(
        (told("vm.crashed"), told("vm.stopped")),
        (0, 1),
        "{events:?}"
    );
    client
        .vm_disk_resize(PROJECT, "web", "data", 1536 * MIB)
        .await
        .unwrap();
    let path = rig.bed.left().dir().join("state/vms").join(&vm.id);
    let length = std::fs::metadata(path.join("disk-data.raw")).unwrap().len();
    assert_eq!(length, 1536 * MIB);
}

async fn a_device_that_is_misused_is_told(rig: &Rig) {
    let client = rig.client();
    let request = VmCreate {
        kernel: Some(rig.vm().await.spec.kernel),
        cmdline: Some("fill_mib=1 virtio=hostile:loop:rng".into()),
        memory_bytes: Some(32 * MIB),
        ..VmCreate::new("hostile")
    };
    let created = client.vm_create(PROJECT, &request).await.unwrap();
    rig.ends_well(&created.operation).await;
    let is_told = async || {
        let events = client.event_list(0, 1000).await.unwrap();
        let mut told = events.iter().filter(|of| of.kind == "vm.device-errors");
        told.any(|of| of.message.contains("hostile: 1 ") && of.message.contains("device rng"))
    };
    rig.waits_for("its operator is told", is_told).await;
    let stats = client.vm_stats(PROJECT, "hostile").await.unwrap();
    assert!(stats.devices[0].errors > 0, "{stats:?}");
    client.vm_delete(PROJECT, "hostile", true).await.unwrap();
}

async fn one_that_resets_itself_boots_again(rig: &Rig) {
    let client = rig.client();
    let request = VmCreate {
        kernel: Some(rig.vm().await.spec.kernel),
        cmdline: Some("fill_mib=1 rng=16 then=reset".into()),
        memory_bytes: Some(32 * MIB),
        ..VmCreate::new("again")
    };
    let created = client.vm_create(PROJECT, &request).await.unwrap();
    rig.ends_well(&created.operation).await;
    let boots = || rig.log(&created.vm).matches("guest: rng").count();
    rig.waits_for("it boots again", async || boots() >= 2).await;
    let events = client.event_list(0, 1000).await.unwrap();
    assert!(events.iter().any(|event| event.kind == "vm.reset"));
    // It can be told to stop at any moment, also while it waits for its next start.
    let stopping = client.vm_stop(PROJECT, "again", false).await.unwrap();
    client.operation_wait(&stopping.id).await.unwrap();
    let stopped = client.vm_get(PROJECT, "again").await.unwrap();
    assert_eq!(
        (stopped.phase, stopped.desired),
        (VmPhase::Stopped, Desired::Stopped)
    );
    let again = client.vm_stop(PROJECT, "again", false).await.unwrap();
    client.operation_wait(&again.id).await.unwrap();
    client.vm_delete(PROJECT, "again", false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_host_and_guest_speak() {
    let mut rig = rig().await;
    let orders = format!("vsock=listen:{ECHO} vsock=connect:{HOST}:100000");
    let vm = rig.create(&orders, false).await;
    let dir = rig.bed.left().dir().join("state/vms").join(&vm.id);
    std::fs::create_dir_all(&dir).unwrap();
    nix::unistd::chown(&dir, Some(64_100.into()), Some(64_100.into())).unwrap();
    let socket = dir.join(format!("vsock.sock_{HOST}"));
    let listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut piece = vec![0; 4096];
        let mut count = 0;
        while let Ok(read @ 1..) = stream.read(&mut piece) {
            stream.write_all(&piece[..read]).unwrap();
            count += read;
        }
        count
    });
    let starting = rig.client().vm_start(PROJECT, "web").await.unwrap();
    rig.ends_well(&starting).await;
    rig.said(&vm, 0, Tick::parse).await;
    let told = rig.said(&vm, 0, VsockConnect::parse).await;
    assert_eq!(told.outcome, "ok", "{told:?}");
    assert_eq!(echo.join().unwrap(), 100_000);
    speaks(&rig).await;
    let refused = rig.client().vm_connect(PROJECT, "web", 9).await;
    let refused = format!("{:?}", refused.unwrap_err());
    assert!(refused.contains("vsock port 9"), "{refused}");
    rig.bed.host_mut(0).kill_daemon().unwrap();
    rig.bed.host_mut(0).restart_daemon().unwrap();
    speaks(&rig).await;
}

fn may_raise_limits() -> bool {
    const SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    u64::from_str_radix(held.unwrap().trim(), 16).unwrap() & SYS_RESOURCE != 0
}

/// What is said to the guest comes back, over the API.
async fn speaks(rig: &Rig) {
    let until = Instant::now() + DEADLINE;
    let mut stream = loop {
        match rig.client().vm_connect(PROJECT, "web", ECHO).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    stream.input.send(b"is anybody there").await.unwrap();
    let mut heard = Vec::new();
    while heard.len() < b"is anybody there".len() {
        let piece = tokio::time::timeout(DEADLINE, stream.output.next()).await;
        heard.extend(piece.unwrap().unwrap().expect("the guest goes on"));
    }
    assert_eq!(heard, b"is anybody there");
}
