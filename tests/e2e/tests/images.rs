//! A vendor's disk image becomes a machine: its kernel is found, its disk is written over, its network card has an
//! address, and what is on its disk outlives its processes.

#![allow(clippy::unwrap_used)]

#[path = "images/vendor.rs"]
mod vendor;

use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use dwcp_e2e::{Bed, BedOptions, Programs};
use dwcp_guest::pattern;
use dwcp_guest::said::{BalloonReported, DiskRead, DiskStep, NetLease};
use dwcp_sdk::Client;
use dwcp_sdk::types::{DiskSpec, GuestSetup, MigrateRequest, VmCreate};
use futures::StreamExt;
use vendor::{TOOLS, is_there, run, vendor};

const PROJECT: &str = "default";
const MIB: u64 = 1 << 20;
const SEED: u64 = 99;
/// One generous deadline for what must happen at all.
const DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_vendors_image_becomes_a_machine() {
    const NAME: &str = "a_vendors_image_becomes_a_machine";
    if let Some(tool) = TOOLS.iter().find(|tool| !is_there(tool)) {
        println!("SKIPPED {NAME}: there is no {tool} (Debian's packages e2fsprogs and qemu-utils)");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let bed = bed().await;
    let client = bed.left().client();

    // The kernel is found, by what the image's boot loader would do.
    let vendor = std::fs::read(vendor(scratch.path())).unwrap();
    let image = client.image_put("vendor", vendor).await.unwrap();
    let disk = image.disk.clone().unwrap();
    assert_eq!((disk.format.as_str(), disk.size_bytes), ("qcow2", 32 * MIB));
    assert!(disk.kernel.is_some() && disk.initrd.is_none());
    assert!(disk.cmdline.contains("disk=check"), "{}", disk.cmdline);

    // An image that names files of its own is refused, and nothing of it stays.
    let told = run(
        "qemu-img",
        &["create", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"],
        &scratch.path().join("names.qcow2"),
    );
    let refused = client
        .image_put("names", std::fs::read(told).unwrap())
        .await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("/etc/passwd"), "{said}");
    let stored = client.image_list().all().await.unwrap();
    assert!(stored.iter().all(|image| image.label != "names"));

    machine(client, &image.digest).await;
    is_reached(&bed).await;
    goes_on(&bed).await;
    is_bound(&bed).await;
    as_many_disks_as_are_allowed(client, &image.digest).await;
    client.vm_delete(PROJECT, "web", true).await.unwrap();
    client.image_delete(&image.digest).await.unwrap();
}

/// A machine from the image, with one more disk and a key.
async fn machine(client: &Client, digest: &str) {
    let request = VmCreate {
        image: Some(digest.to_owned()),
        root_bytes: Some(48 * MIB),
        memory_bytes: Some(64 * MIB),
        disks: vec![DiskSpec::empty("data", 16 * MIB)],
        setup: Some(GuestSetup {
            ssh_keys: vec![KEY.into()],
            user_data: None,
        }),
        ..VmCreate::new("web")
    };
    let bad = VmCreate {
        setup: Some(GuestSetup {
            ssh_keys: vec!["no key".into()],
            user_data: None,
        }),
        ..request.clone()
    };
    let refused = client.vm_create(PROJECT, &bad).await.unwrap_err();
    assert!(refused.to_string().contains("SSH key 1"), "{refused}");
    let created = client.vm_create(PROJECT, &request).await.unwrap();
    client.operation_wait(&created.operation.id).await.unwrap();
    let lines = said_until(client, "check finished", 1).await;
    let good = lines.iter().filter_map(|line| DiskStep::parse(line));
    let good = good.filter(|step| step.number == 1 && step.outcome == "ok");
    assert!(good.count() >= 6, "{lines:#?}");
    // What it does not use, it gives back.
    let reported = said_until(client, ": reported ", 1).await;
    let reported = reported
        .iter()
        .find_map(|line| BalloonReported::parse(line));
    assert!(reported.is_some_and(|balloon| balloon.reported > 0));
    let vm = client.vm_get(PROJECT, "web").await.unwrap();
    let names: Vec<_> = vm.spec.disks.iter().map(|disk| &*disk.name).collect();
    assert_eq!(names, ["root", "data"]);
    assert_eq!(vm.spec.networks.len(), 1);
    assert!(vm.spec.networks[0].address.ends_with(".2/24"));
    // The address is taken.
    let second = VmCreate {
        start: false,
        setup: None,
        ..VmCreate {
            name: "second".into(),
            ..request
        }
    };
    client.vm_create(PROJECT, &second).await.unwrap();
    let second = client.vm_get(PROJECT, "second").await.unwrap();
    assert!(second.spec.networks[0].address.ends_with(".3/24"));
    client.vm_delete(PROJECT, "second", false).await.unwrap();
}

/// The machine has learnt its address, and answers its host under it.
async fn is_reached(bed: &Bed) {
    let client = bed.left().client();
    let vm = client.vm_get(PROJECT, "web").await.unwrap();
    let lines = said_until(client, ": dhcp ", 1).await;
    let lease = lines.iter().find_map(|line| NetLease::parse(line)).unwrap();
    assert_eq!(lease.address, vm.spec.networks[0].address);
    let (address, _) = lease.address.split_once('/').unwrap();
    let echoed = bed.left().namespace().enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let until = Instant::now() + DEADLINE;
        let mut answer = [0; 64];
        // Datagrams may be lost, and the guest may not listen yet.
        while Instant::now() < until {
            socket.send_to(b"are you there", (address, 7)).unwrap();
            if let Ok(count) = socket.recv(&mut answer) {
                return answer[..count].to_vec();
            }
        }
        Vec::new()
    });
    assert_eq!(echoed.unwrap(), b"are you there");
}

/// What is on the disks is there at the next start: what the guest wrote, and a mark of ours where it only reads.
async fn goes_on(bed: &Bed) {
    const MARK_AT: u64 = 10 * MIB;
    const READ: &str = "disk 1: read bytes ";
    let client = bed.left().client();
    let stopped = client.vm_stop(PROJECT, "web", true).await.unwrap();
    client.operation_wait(&stopped.id).await.unwrap();
    let vm = client.vm_get(PROJECT, "web").await.unwrap();
    let dir = bed.left().dir().join("state/vms").join(&vm.id);
    // By its name each time: a start that made a new file would leave an open one as it was.
    let open = || {
        let mut options = std::fs::File::options();
        options.read(true).write(true);
        options.open(dir.join("disk-data.raw")).unwrap()
    };
    let data = open();
    let mut half = vec![0; MIB as usize];
    data.read_exact_at(&mut half, MIB).unwrap();
    assert_eq!(pattern::differences(SEED + 1, MIB, &half), 0);
    data.write_all_at(b"the mark", MARK_AT).unwrap();
    drop(data);
    // The log goes on too, so what the first run said is in it already.
    let said = said(client).await;
    let before: Vec<_> = said.lines().filter_map(DiskRead::parse).collect();
    assert_eq!(before.len(), 1, "{said}");
    let started = client.vm_start(PROJECT, "web").await.unwrap();
    client.operation_wait(&started.id).await.unwrap();
    let lines = said_until(client, READ, before.len() + 1).await;
    let mut read = lines.iter().filter_map(|line| DiskRead::parse(line));
    let read = read.next_back().unwrap();
    assert_eq!((read.number, &*read.outcome), (1, "ok"));
    let mut content = vec![0; read.bytes as usize];
    open().read_exact_at(&mut content, 0).unwrap();
    let mark = &content[MARK_AT as usize..][..8];
    assert_eq!(mark, b"the mark");
    // The guest saw the same, and not what there was before.
    let sum = pattern::add_to_sum(pattern::SUM_START, &content);
    assert_eq!(read.sum, sum);
    assert_ne!(read.sum, before[0].sum);
}

/// The most that a machine may have starts, and one more is refused before anything is made.
async fn as_many_disks_as_are_allowed(client: &Client, digest: &str) {
    let disk = |number| DiskSpec {
        name: format!("disk-{number}"),
        image: Some(digest.to_owned()),
        size_bytes: 0,
        read_only: false,
        operations_per_second: None,
        bytes_per_second: None,
    };
    let mut request = VmCreate {
        image: Some(digest.to_owned()),
        memory_bytes: Some(64 * MIB),
        disks: (1..16).map(disk).collect(),
        networks: Some(vec!["default".into(); 4]),
        ..VmCreate::new("many")
    };
    let created = client.vm_create(PROJECT, &request).await.unwrap();
    client.operation_wait(&created.operation.id).await.unwrap();
    let vm = client.vm_get(PROJECT, "many").await.unwrap();
    assert_eq!((vm.spec.disks.len(), vm.phase.as_str()), (16, "running"));
    client.vm_delete(PROJECT, "many", true).await.unwrap();
    request.disks.push(disk(16));
    let refused = client.vm_create(PROJECT, &request).await.unwrap_err();
    assert!(refused.to_string().contains("16 disks"), "{refused}");
}

/// What is of its host cannot move, and says so.
async fn is_bound(bed: &Bed) {
    let request = MigrateRequest {
        to: "right".into(),
        streams: None,
        pause_ms: None,
    };
    let client = bed.left().client();
    let moving = client.vm_migrate(PROJECT, "web", &request).await.unwrap();
    let refused = client.operation_wait(&moving.id).await.unwrap_err();
    assert!(refused.to_string().contains("disks"), "{refused}");
    let vm = client.vm_get(PROJECT, "web").await.unwrap();
    assert_eq!(vm.phase.as_str(), "running");
}

/// All that the machine has said, in this run and in earlier ones.
async fn said(client: &Client) -> String {
    let mut log = Box::pin(client.vm_log(PROJECT, "web", false).await.unwrap());
    let mut bytes = Vec::new();
    while let Some(piece) = log.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The lines that the machine has said, once `text` is there so many times.
async fn said_until(client: &Client, text: &str, times: usize) -> Vec<String> {
    let until = Instant::now() + DEADLINE;
    loop {
        let all = said(client).await;
        // The last line may not be whole yet.
        let whole = all.rfind('\n').map_or("", |end| &all[..end]);
        if whole.matches(text).count() >= times {
            return whole.lines().map(str::to_owned).collect();
        }
        assert!(Instant::now() < until, "no {text:?} in time:\n{all}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn bed() -> Bed {
    let programs = Programs::find().unwrap();
    let bed = Bed::start(&programs, Bed::run_id().unwrap(), &BedOptions::near()).await;
    bed.unwrap()
}

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl test";
