//! Machines of other kinds than the usual: with memory of huge pages, with a firmware instead of a kernel, and with a
//! policy that starts them again.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::{Duration, Instant};

use dwcp_e2e::{Bed, BedOptions, Programs, TestHost};
use dwcp_guest::Tick;
use dwcp_sdk::Client;
use dwcp_sdk::types::{
    DiskSpec, ForkRequest, MigrateRequest, RestartPolicy, SnapshotCreate, Vm, VmCreate, VmPhase,
};

const PROJECT: &str = "default";
const MIB: u64 = 1 << 20;
/// One generous deadline for what must happen at all.
const DEADLINE: Duration = Duration::from_secs(120);
/// How many huge pages there are, used ones too.
const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

async fn bed() -> Bed {
    let programs = Programs::find().unwrap();
    let run = Bed::run_id().unwrap();
    Bed::start(&programs, run, &BedOptions::near())
        .await
        .unwrap()
}

async fn guest(client: &Client) -> String {
    client
        .image_put("guest", dwcp_guest::elf())
        .await
        .unwrap()
        .digest
}

fn machine(name: &str, kernel: &str) -> VmCreate {
    VmCreate {
        kernel: Some(kernel.to_owned()),
        cmdline: Some("fill_mib=4 ws_mib=1 rate=200".into()),
        memory_bytes: Some(64 * MIB),
        ..VmCreate::new(name)
    }
}

async fn create(client: &Client, request: &VmCreate) -> Result<Vm, String> {
    let created = client.vm_create(PROJECT, request).await;
    let created = created.map_err(|error| error.to_string())?;
    let started = client.operation_wait(&created.operation.id).await;
    started.map_err(|error| error.to_string())?;
    Ok(client.vm_get(PROJECT, &request.name).await.unwrap())
}

/// Waits until a guest's log shows what is looked for.
fn wait_for(host: &TestHost, vm: &Vm, what: impl Fn(&str) -> bool) -> String {
    let until = Instant::now() + DEADLINE;
    loop {
        let log = host.serial_log(&vm.id);
        if what(&log) {
            return log;
        }
        assert!(Instant::now() < until, "the guest said only: {log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn works(log: &str) -> bool {
    let ticks: Vec<_> = log.lines().filter_map(Tick::parse).collect();
    assert!(ticks.iter().all(|tick| tick.bad == 0), "{log}");
    ticks.len() > 1
}

/// Huge pages that were reserved for a test, given back when it ends.
struct Reserved {
    before: u64,
}

impl Reserved {
    fn add(pages: u64) -> Self {
        let before = fs::read_to_string(RESERVED)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let reserved = Self { before };
        fs::write(RESERVED, (before + pages).to_string()).unwrap();
        let now: u64 = fs::read_to_string(RESERVED)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(
            now,
            before + pages,
            "this machine has no room for huge pages"
        );
        reserved
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = fs::write(RESERVED, self.before.to_string());
    }
}

fn free_huge_pages() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = |name: &str| -> u64 {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim().parse().unwrap()
    };
    line("HugePages_Free:") - line("HugePages_Rsvd:")
}

#[tokio::test]
async fn memory_of_huge_pages_is_taken_whole_and_given_back() {
    let bed = bed().await;
    let (left, client) = (bed.left(), bed.left().client());
    let kernel = guest(client).await;
    let huge = VmCreate {
        hugepages: true,
        ..machine("huge", &kernel)
    };
    // More than anybody reserved: the machine is made and does not start, and its owner learns what to do.
    let beyond = VmCreate {
        memory_bytes: Some((free_huge_pages() + 1) * 2 * MIB + 64 * MIB),
        ..VmCreate {
            name: "beyond".into(),
            ..huge.clone()
        }
    };
    let refused = create(client, &beyond).await.unwrap_err();
    assert!(refused.contains("vm.nr_hugepages"), "{refused}");

    let _reserved = Reserved::add(32);
    let free = free_huge_pages();
    let vm = create(client, &huge).await.unwrap();
    assert!(vm.spec.hugepages);
    assert_eq!(free_huge_pages(), free - 32);
    wait_for(left, &vm, works);

    // What cannot be done with it is refused by name.
    let snapshot = client
        .snapshot_create(PROJECT, &SnapshotCreate::new("kept", "huge"))
        .await;
    assert!(snapshot.unwrap_err().to_string().contains("huge pages"));
    let fork = ForkRequest {
        seal: true,
        ..ForkRequest::default()
    };
    let forked = client.vm_fork(PROJECT, "huge", &fork).await;
    assert!(forked.unwrap_err().to_string().contains("huge pages"));
    let memory = client.vm_memory(PROJECT, "huge", 32 * MIB).await;
    assert!(memory.unwrap_err().to_string().contains("huge pages"));
    let to = MigrateRequest {
        to: "right".into(),
        streams: None,
        pause_ms: None,
    };
    let refused = match client.vm_migrate(PROJECT, "huge", &to).await {
        Ok(moving) => client
            .operation_wait(&moving.id)
            .await
            .unwrap_err()
            .to_string(),
        Err(error) => error.to_string(),
    };
    assert!(refused.contains("huge pages"), "{refused}");

    client.vm_delete(PROJECT, "huge", true).await.unwrap();
    let until = Instant::now() + DEADLINE;
    while free_huge_pages() < free {
        assert!(Instant::now() < until, "huge pages are not given back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn a_firmware_starts_without_a_command_line_and_sees_the_disks() {
    let bed = bed().await;
    let (left, client) = (bed.left(), bed.left().client());
    let firmware = guest(client).await;
    let request = VmCreate {
        firmware: Some(firmware.clone()),
        memory_bytes: Some(64 * MIB),
        disks: vec![DiskSpec::empty("data", 16 * MIB)],
        ..VmCreate::new("fw")
    };
    let both = VmCreate {
        kernel: Some(firmware.clone()),
        ..request.clone()
    };
    let refused = create(client, &both).await.unwrap_err();
    assert!(refused.contains("not both"), "{refused}");
    let told = VmCreate {
        cmdline: Some("quiet".into()),
        ..request.clone()
    };
    let refused = create(client, &told).await.unwrap_err();
    assert!(refused.contains("command line"), "{refused}");

    let vm = create(client, &request).await.unwrap();
    assert!(vm.spec.firmware && vm.spec.cmdline.is_empty());
    // The guest as it is without any order: it fills 16 MiB.
    let log = wait_for(left, &vm, works);
    assert!(log.contains("guest: filled 16 MiB"), "{log}");
    let stats = client.vm_stats(PROJECT, "fw").await.unwrap();
    assert!(
        stats.devices.iter().any(|device| device.name == "data"),
        "{stats:?}"
    );
}

#[tokio::test]
async fn a_machine_that_is_always_to_run_is_started_again_unless_its_owner_stops_it() {
    let bed = bed().await;
    let (left, client) = (bed.left(), bed.left().client());
    let kernel = guest(client).await;
    // It powers off by itself as soon as it is up.
    let brief = |name: &str, restart| VmCreate {
        cmdline: Some("fill_mib=1 ws_mib=1 then=power-off".into()),
        restart: Some(restart),
        ..machine(name, &kernel)
    };
    let once = create(client, &brief("once", RestartPolicy::OnCrash))
        .await
        .unwrap();
    let always = create(client, &brief("always", RestartPolicy::Always))
        .await
        .unwrap();
    let starts = |log: &str| log.matches("guest: up").count();
    wait_for(left, &always, |log| starts(log) >= 3);
    let stopping = client.vm_stop(PROJECT, "always", true).await.unwrap();
    client.operation_wait(&stopping.id).await.unwrap();
    let stopped = client.vm_get(PROJECT, "always").await.unwrap();
    assert_eq!(stopped.phase, VmPhase::Stopped, "{}", stopped.reason);
    // The other has powered off long ago, which is no crash.
    assert_eq!(starts(&left.serial_log(&once.id)), 1);
    let down = client.vm_get(PROJECT, "once").await.unwrap();
    assert_eq!(down.phase, VmPhase::Stopped, "{}", down.reason);
}
