//! Disks and entropy, used by our guest's own drivers.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::{Bed, DEADLINE, Serial, has_kvm};
use dwcp_guest::pattern;
use dwcp_guest::said::{DiskFound, DiskLoop, DiskRead, DiskResized, DiskStep, RngRead};
use dwcp_vmm::config::{Device, DiskFormat, DiskLimits};
use dwcp_vmm::spawn::Spawned;

const MIB: u64 = 1 << 20;
const SEED: u64 = 4711;

fn disk() -> Device {
    Device::Block {
        id: "data".into(),
        read_only: false,
        chain: vec![DiskFormat::Raw],
        queues: 1,
        limits: DiskLimits::default(),
    }
}

/// A bed whose guests have a disk that holds `mib` MiB of 0xa5, and entropy.
fn bed(device: Device, mib: u64) -> (Bed, File) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![0xa5; (mib * MIB) as usize], 0)
        .unwrap();
    let mut bed = Bed::new(48);
    bed.devices = vec![Device::Rng, device];
    bed.disks = vec![file.try_clone().unwrap()];
    (bed, file)
}

fn lines<T>(vmm: &Spawned, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
    Serial::of(vmm).text().lines().filter_map(parse).collect()
}

/// Runs a guest until it resets.
fn run(bed: &Bed, cmdline: &str) -> Spawned {
    let vmm = bed.fresh(&format!("fill_mib=4 seed={SEED} {cmdline}"));
    vmm.client().unwrap().run(1).unwrap();
    // The log is that of all guests of the bed, one after another.
    bed.runs.set(bed.runs.get() + 1);
    Serial::of(&vmm).wait("end", |serial| {
        let ends = serial.text().matches("guest: stopping").count();
        (ends == bed.runs.get()).then_some(())
    });
    vmm
}

fn steps(vmm: &Spawned) -> Vec<String> {
    let steps = lines(vmm, DiskStep::parse);
    let text = |step: DiskStep| format!("{} {}", step.step, step.outcome);
    steps.into_iter().map(text).collect()
}

#[test]
fn a_disk_keeps_what_it_is_given_and_gives_space_back() {
    if !has_kvm("a_disk_keeps_what_it_is_given_and_gives_space_back") {
        return;
    }
    for style in ["event_idx=0", "event_idx=1", "indirect=1"] {
        let (bed, file) = bed(disk(), 8);
        let blocks = file.metadata().unwrap().blocks();
        let orders = format!("{style} rng=5000 disk=check disk_at_mib=2 disk_mib=2 then=reset");
        let vmm = run(&bed, &orders);
        let expected = [
            "write ok",
            "flush ok",
            "verify ok",
            "frames ok",
            "discard ok",
            "zeroes ok",
            "last ok",
            "beyond ioerr",
            "nonsense unsupp",
            "check finished",
        ];
        assert_eq!(steps(&vmm), expected, "{style}");
        let found = &lines(&vmm, DiskFound::parse)[0];
        assert_eq!((&*found.id, found.sectors), ("data", 8 * MIB / 512));
        let entropy = lines(&vmm, RngRead::parse).pop().unwrap();
        assert_eq!((entropy.bytes, entropy.varied), (5000, true));
        // The second half of the two MiB holds the pattern of the next seed, the rest of the disk what it held.
        let mut half = vec![0; MIB as usize];
        file.read_exact_at(&mut half, 3 * MIB).unwrap();
        assert_eq!(pattern::differences(SEED + 1, 3 * MIB, &half), 0);
        for (start, end) in [(0, 2), (4, 8)] {
            let mut rest = vec![0; ((end - start) * MIB) as usize];
            file.read_exact_at(&mut rest, start * MIB).unwrap();
            assert!(rest.iter().all(|byte| *byte == 0xa5));
        }
        assert!(file.metadata().unwrap().blocks() < blocks);
        let words = vmm.wait(DEADLINE).unwrap().words;
        assert_eq!(words.as_deref(), Some("guest: reset"));
    }
}

#[test]
fn what_the_host_wrote_is_what_the_guest_reads() {
    if !has_kvm("what_the_host_wrote_is_what_the_guest_reads") {
        return;
    }
    let (bed, file) = bed(disk(), 4);
    let mut content = vec![0; 4 * MIB as usize];
    pattern::fill(SEED, 0, &mut content);
    file.write_all_at(&content, 0).unwrap();
    let vmm = run(&bed, "disk=read:4 then=reset");
    let read = &lines(&vmm, DiskRead::parse)[0];
    assert_eq!((read.bytes, read.wrong), (4 * MIB, 0));
    // The check can fail.
    file.write_all_at(&[content[5] ^ 1], 5).unwrap();
    let vmm = run(&bed, "disk=read:4 then=reset");
    assert_eq!(lines(&vmm, DiskRead::parse).pop().unwrap().wrong, 1);
}

#[test]
fn a_read_only_disk_is_not_written() {
    if !has_kvm("a_read_only_disk_is_not_written") {
        return;
    }
    let device = Device::Block {
        id: "base".into(),
        read_only: true,
        chain: vec![DiskFormat::Raw],
        queues: 1,
        limits: DiskLimits::default(),
    };
    let (bed, file) = bed(device, 4);
    let vmm = run(&bed, "disk=check then=reset");
    assert!(lines(&vmm, DiskFound::parse)[0].read_only);
    let mut content = vec![0; 4 * MIB as usize];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content.iter().all(|byte| *byte == 0xa5));
    assert!(!steps(&vmm).contains(&"write ok".to_owned()));
}

#[test]
fn a_disk_that_breaks_costs_requests_and_not_the_guest() {
    if !has_kvm("a_disk_that_breaks_costs_requests_and_not_the_guest") {
        return;
    }
    let (bed, file) = bed(disk(), 8);
    let vmm = bed.fresh("fill_mib=4 disk=loop disk_mib=8 io_rate=200");
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    let serial = Serial::of(&vmm);
    serial.wait("good transfers", |_| good(&vmm).filter(|good| *good > 20));
    // The file becomes shorter than the disk: reading fails.
    file.set_len(MIB).unwrap();
    let failed = serial.wait("failed transfers", |_| {
        let devices = client_status(&vmm);
        devices.into_iter().find(|device| device.errors > 0)
    });
    assert_eq!((&*failed.name, failed.needs_reset), ("block-2", false));
    let tick = serial.ticks().last().unwrap().tick;
    assert_eq!(serial.wait_for_tick(tick).bad, 0);
}

#[test]
fn what_may_not_be_written_costs_requests_and_not_the_guest() {
    if !has_kvm("what_may_not_be_written_costs_requests_and_not_the_guest") {
        return;
    }
    let (mut bed, _file) = bed(disk(), 8);
    bed.limit_files();
    let vmm = run(&bed, "disk=check disk_at_mib=4 disk_mib=2 then=reset");
    let steps = steps(&vmm);
    assert!(steps.contains(&"write ioerr".to_owned()), "{steps:?}");
    let words = vmm.wait(DEADLINE).unwrap().words;
    assert_eq!(words.as_deref(), Some("guest: reset"));
}

fn good(vmm: &Spawned) -> Option<u64> {
    lines(vmm, DiskLoop::parse)
        .last()
        .map(|line| line.transfers)
}

fn client_status(vmm: &Spawned) -> Vec<dwcp_vmm::protocol::DeviceStatus> {
    vmm.client().unwrap().status().unwrap().devices
}

#[test]
fn a_disk_grows_while_the_guest_runs() {
    if !has_kvm("a_disk_grows_while_the_guest_runs") {
        return;
    }
    let (bed, file) = bed(disk(), 4);
    let vmm = bed.fresh("fill_mib=4");
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    Serial::of(&vmm).wait_for_tick(0);
    client.resize("block-2", 6 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 6 * MIB);
    assert!(client.resize("block-9", 6 * MIB).is_err());
    let refused = client.resize("block-2", 5 * MIB).unwrap_err().to_string();
    assert!(refused.contains("only be made longer"), "{refused}");
    let refused = client.resize("rng-1", 6 * MIB).unwrap_err().to_string();
    assert!(refused.contains("nothing that has a size"), "{refused}");
    client.pause().unwrap();
    let (state, bytes) = client.save().unwrap();
    let mut saved = vec![0; bytes as usize];
    let state = File::from(state);
    state.read_exact_at(&mut saved, 0).unwrap();
    assert!(holds_size(&saved, 6));
    assert!(!holds_size(&saved, 7));
    drop(vmm);

    // It has grown once more where the guest goes on.
    file.set_len(7 * MIB).unwrap();
    let second = bed.incoming("second");
    let mut client = second.client().unwrap();
    client.load(std::os::fd::AsFd::as_fd(&state)).unwrap();
    client.run(2).unwrap();
    client.pause().unwrap();
    let (state, bytes) = client.save().unwrap();
    let mut saved = vec![0; bytes as usize];
    File::from(state).read_exact_at(&mut saved, 0).unwrap();
    assert!(holds_size(&saved, 7));
    assert!(!holds_size(&saved, 6));
}

/// Whether the state of a VM tells of a disk of so many MiB.
fn holds_size(state: &[u8], mib: u64) -> bool {
    let size = (mib * MIB / 512).to_le_bytes();
    state.windows(8).any(|window| window == size)
}

#[test]
fn limits_hold() {
    if !has_kvm("limits_hold") {
        return;
    }
    let device = Device::Block {
        id: "slow".into(),
        read_only: false,
        chain: vec![DiskFormat::Raw],
        queues: 1,
        limits: DiskLimits {
            operations_per_second: NonZeroU64::new(50),
            bytes_per_second: None,
        },
    };
    let (bed, _file) = bed(device, 8);
    let vmm = run(&bed, "disk=bench:1 then=reset");
    for line in lines(&vmm, dwcp_guest::said::Bench::parse) {
        // What a second allows, the burst, and what was on its way when time was up; unlimited it is thousands.
        assert!(line.operations <= 200, "{line:?}");
        assert!(line.operations > 0, "{line:?}");
    }
}

#[test]
fn a_disk_goes_on_in_another_process() {
    if !has_kvm("a_disk_goes_on_in_another_process") {
        return;
    }
    let (bed, _file) = bed(disk(), 8);
    moved(&bed, "disk=loop disk_mib=8 io_rate=2000");
}

/// Runs a guest that uses its one disk, moves it to another process, and sees it go on.
fn moved(bed: &Bed, orders: &str) {
    let first = bed.fresh(&format!("fill_mib=4 {orders}"));
    let mut client = first.client().unwrap();
    client.run(1).unwrap();
    Serial::of(&first).wait("transfers", |_| good(&first).filter(|good| *good > 50));
    client.pause().unwrap();
    let (state, _) = client.save().unwrap();
    let done = good(&first).unwrap();
    drop(first);

    let second = bed.incoming("second");
    let mut client = second.client().unwrap();
    client.load(std::os::fd::AsFd::as_fd(&state)).unwrap();
    client.run(2).unwrap();
    let serial = Serial::of(&second);
    serial.wait("more transfers", |_| {
        good(&second).filter(|more| *more > done + 100)
    });
    let last = lines(&second, DiskLoop::parse).pop().unwrap();
    assert_eq!((last.bad, last.errors), (0, 0), "{}", serial.text());
    assert!(serial.ticks().iter().all(|tick| tick.bad == 0));
    assert!(client.status().unwrap().devices.last().unwrap().operations > 100);
}

/// An empty qcow2 of so many bytes.
fn overlay(bytes: u64) -> File {
    use imago::FormatCreateBuilder;
    let file = tempfile::tempfile().unwrap();
    let storage = imago::file::File::try_from(file.try_clone().unwrap()).unwrap();
    let builder = imago::qcow2::Qcow2::<imago::file::File>::create_builder(storage);
    builder.size(bytes).create().unwrap();
    file
}

#[test]
fn a_base_is_shared_and_never_written() {
    if !has_kvm("a_base_is_shared_and_never_written") {
        return;
    }
    let base = tempfile::tempfile().unwrap();
    let mut content = vec![0; 4 * MIB as usize];
    pattern::fill(SEED, 0, &mut content);
    base.write_all_at(&content, 0).unwrap();
    let chain = || Device::Block {
        id: "root".into(),
        read_only: false,
        chain: vec![DiskFormat::Qcow2, DiskFormat::Raw],
        queues: 1,
        limits: DiskLimits::default(),
    };
    let with = |top: &File| {
        let mut bed = Bed::new(48);
        bed.devices = vec![chain()];
        bed.disks = vec![top.try_clone().unwrap(), base.try_clone().unwrap()];
        bed
    };
    // Larger than its base: what is beyond that reads as zeros and can be written.
    let top = overlay(16 * MIB);
    let first = with(&top);
    let vmm = run(&first, "disk=read:4 then=reset");
    assert_eq!(lines(&vmm, DiskRead::parse).pop().unwrap().wrong, 0);
    drop(vmm);
    let vmm = run(&first, "disk=check disk_at_mib=2 disk_mib=6 then=reset");
    assert_eq!(steps(&vmm).pop().unwrap(), "check finished");
    let good = steps(&vmm).into_iter().filter(|step| step.ends_with(" ok"));
    assert_eq!(good.count(), 7, "{:?}", steps(&vmm));
    drop(vmm);
    // Of six MiB that were written, what was discarded takes no space any more.
    let taken = top.metadata().unwrap().blocks() * 512;
    assert!(taken < 6 * MIB, "{taken}");
    // Another process finds what the first one wrote; another machine over the same base does not.
    let vmm = run(&first, "disk=read:4 then=reset");
    assert!(lines(&vmm, DiskRead::parse).pop().unwrap().wrong > 0);
    let second = with(&overlay(4 * MIB));
    let vmm = run(&second, "disk=read:4 then=reset");
    assert_eq!(lines(&vmm, DiskRead::parse).pop().unwrap().wrong, 0);
    let mut after = vec![0; content.len()];
    base.read_exact_at(&mut after, 0).unwrap();
    assert!(after == content);
    assert_eq!(base.metadata().unwrap().len(), 4 * MIB);
}

#[test]
fn a_chain_goes_on_in_another_process() {
    if !has_kvm("a_chain_goes_on_in_another_process") {
        return;
    }
    let mut bed = Bed::new(48);
    bed.devices = vec![Device::Block {
        id: "root".into(),
        read_only: false,
        chain: vec![DiskFormat::Qcow2],
        queues: 1,
        limits: DiskLimits::default(),
    }];
    bed.disks = vec![overlay(16 * MIB)];
    let growing = bed.fresh("fill_mib=4 disk=loop disk_mib=1 io_rate=500");
    let mut client = growing.client().unwrap();
    client.run(1).unwrap();
    Serial::of(&growing).wait_for_tick(0);
    client.resize("block-1", 24 * MIB).unwrap();
    let wanted = 24 * MIB / 512;
    Serial::of(&growing).wait("the new size", |_| {
        let told = lines(&growing, DiskResized::parse);
        told.last().filter(|last| last.sectors == wanted).map(drop)
    });
    Serial::of(&growing).wait("transfers", |_| good(&growing).filter(|good| *good > 50));
    drop(growing);
    moved(&bed, "disk=loop disk_mib=16 io_rate=2000");
}
