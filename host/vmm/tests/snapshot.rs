//! A VM is written as a snapshot and goes on; others become what it was, at once, from one file or one template.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};

use common::{Bed, DEADLINE, Serial, has_kvm};
use dwcp_memory::seal_template;
use dwcp_snapshot::seal::{Trust, ensure};
use dwcp_snapshot::{Chain, Disk, Draft, Encoding, Snapshot, SnapshotDigest, SnapshotName, recode};
use dwcp_vmm::client::{ClientError, VmmClient};
use dwcp_vmm::protocol::Phase;
use dwcp_vmm::spawn::Spawned;

const SMALL: &str = "fill_mib=8 ws_mib=2 rate=500 verify=2";

fn go_on(_: dwcp_snapshot::Progress) -> std::ops::ControlFlow<()> {
    std::ops::ControlFlow::Continue(())
}

/// Runs our guest until it ticks, and pauses it.
fn paused(bed: &Bed) -> (Spawned, VmmClient, u64) {
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    Serial::of(&vmm).wait_for_tick(0);
    client.pause().unwrap();
    let tick = Serial::of(&vmm).ticks().last().unwrap().tick;
    (vmm, client, tick)
}

/// Has a snapshot written and publishes it.
fn published(
    bed: &Bed,
    client: &mut VmmClient,
    name: &str,
    base: Option<SnapshotDigest>,
) -> Snapshot {
    let directory = File::open(bed.directory.path()).unwrap();
    let name: SnapshotName = name.parse().unwrap();
    let draft = Draft::create(directory.as_fd(), &name).unwrap();
    let disk = Disk {
        device: "disk-0".to_owned(),
        volume: "root".to_owned(),
        generation: 3,
        digest: None,
    };
    let digest = client
        .snapshot(draft.file().as_fd(), false, base, vec![disk])
        .unwrap();
    let snapshot = draft.publish().unwrap();
    assert_eq!(snapshot.digest(), digest);
    let trust = ensure(directory.as_fd(), &name, &snapshot, &mut go_on).unwrap();
    assert_eq!(trust, Trust::Verified);
    snapshot
}

fn files(layers: &[Snapshot]) -> Vec<BorrowedFd<'_>> {
    layers.iter().map(|layer| layer.file().as_fd()).collect()
}

/// Runs a VM on and sees that its memory is what the guest wrote.
fn goes_on(vmm: &Spawned, client: &mut VmmClient, last_tick: u64) {
    let serial = Serial::of(vmm);
    let next = serial.wait_for_tick(last_tick);
    let later = serial.wait_for_tick(next.tick + 2);
    assert!(later.pages > next.pages);
    assert_eq!((next.bad, later.bad), (0, 0), "{}", serial.text());
    assert_eq!(client.status().unwrap().phase, Phase::Running);
}

fn end(vmm: Spawned, client: &mut VmmClient) {
    client.console().unwrap().write_all(b"s").unwrap();
    let ended = vmm.wait(DEADLINE).unwrap();
    assert_eq!(ended.words.as_deref(), Some("guest: reset"));
}

#[test]
fn two_vms_from_one_snapshot_and_the_original_go_on() {
    if !has_kvm("two_vms_from_one_snapshot_and_the_original_go_on") {
        return;
    }
    let mut bed = Bed::new(64);
    bed.vcpus = 2;
    let (original, mut client, tick) = paused(&bed);
    let snapshot = published(&bed, &mut client, "web", None);
    let manifest = snapshot.manifest();
    assert_eq!((manifest.vcpus, manifest.memory_bytes), (2, 64 << 20));
    assert_eq!(manifest.disks[0].volume, "root");
    assert!(manifest.cpu.features.contains("lm"), "{:?}", manifest.cpu);

    let layers = [snapshot];
    let mut restored: Vec<_> = ["one", "two"]
        .map(|id| {
            let vmm = bed.shell(id);
            let mut client = vmm.client().unwrap();
            // Nothing has been laid over it.
            assert!(matches!(client.run(2), Err(ClientError::Refused(_))));
            client.restore(&files(&layers)).unwrap();
            assert_eq!(client.status().unwrap().phase, Phase::Loaded);
            (vmm, client)
        })
        .into();
    client.resume(1).unwrap();
    for (_, client) in &mut restored {
        client.run(2).unwrap();
    }
    for (vmm, client) in &mut restored {
        goes_on(vmm, client, 0);
        assert_eq!(Serial::of(vmm).ticks()[0].tick, tick + 1);
    }
    goes_on(&original, &mut client, tick);
    for (vmm, mut client) in restored {
        end(vmm, &mut client);
    }
    end(original, &mut client);
    // None of them wrote to the file.
    layers[0].verify(&mut go_on).unwrap();
}

#[test]
fn a_restored_vm_is_snapshotted_as_a_change() {
    if !has_kvm("a_restored_vm_is_snapshotted_as_a_change") {
        return;
    }
    let bed = Bed::new(64);
    let (original, mut client, _) = paused(&bed);
    let full = published(&bed, &mut client, "full", None);
    drop(original);
    let shell = bed.shell("restored");
    let mut client = shell.client().unwrap();
    client.restore(&[full.file().as_fd()]).unwrap();
    client.run(2).unwrap();
    let tick = Serial::of(&shell).wait_for_tick(1).tick;
    client.pause().unwrap();
    // Its memory is in no memfd, so a mover would find nothing.
    let refused = client.dirty_start().unwrap_err();
    assert!(refused.to_string().contains("cannot be moved"), "{refused}");
    let other = full.digest().to_string().replace(['0', '1'], "2");
    let spare = tempfile::tempfile().unwrap();
    let refused = client.snapshot(
        spare.as_fd(),
        false,
        Some(other.parse().unwrap()),
        Vec::new(),
    );
    assert!(refused.unwrap_err().to_string().contains("full one"));
    let change = published(&bed, &mut client, "change", Some(full.digest()));
    let (stored, whole) = (change.stored_bytes(), full.stored_bytes());
    assert!(stored < whole / 2, "{stored} of {whole}");
    client.resume(2).unwrap();
    goes_on(&shell, &mut client, tick);
    end(shell, &mut client);

    let layers = [change, full];
    let shell = bed.shell("again");
    let mut client = shell.client().unwrap();
    // Without its base it is nothing, and that changes nothing.
    let alone = client.restore(&files(&layers[..1])).unwrap_err();
    assert!(alone.to_string().contains("base"), "{alone}");
    client.restore(&files(&layers)).unwrap();
    client.run(3).unwrap();
    goes_on(&shell, &mut client, 0);
    assert!(Serial::of(&shell).ticks()[0].tick > tick);
    end(shell, &mut client);
}

#[test]
fn forks_of_a_sealed_template_go_on_apart() {
    if !has_kvm("forks_of_a_sealed_template_go_on_apart") {
        return;
    }
    let mut bed = Bed::new(64);
    bed.vcpus = 2;
    let (template, mut client, tick) = paused(&bed);
    let (state, _) = client.save_template().unwrap();
    let shells = ["one", "two", "three"].map(|id| bed.shell(id));
    // Not as long as the template could run.
    assert!(seal_template(&bed.guest.memory).is_err());
    let mut early = shells[0].client().unwrap();
    let refused = early.fork(state.as_fd()).unwrap_err();
    assert!(refused.to_string().contains("seal"), "{refused}");
    drop(early);
    drop(template);
    seal_template(&bed.guest.memory).unwrap();
    let forks: Vec<_> = shells[1..]
        .iter()
        .map(|shell| {
            let mut client = shell.client().unwrap();
            client.fork(state.as_fd()).unwrap();
            client.run(2).unwrap();
            (shell, client)
        })
        .collect();
    for (shell, mut client) in forks {
        goes_on(shell, &mut client, 0);
        assert_eq!(Serial::of(shell).ticks()[0].tick, tick + 1);
        // Its pages are its process's alone: nothing could be laid over them.
        client.pause().unwrap();
        let refused = client.save_template().unwrap_err();
        assert!(refused.to_string().contains("private"), "{refused}");
    }
}

#[test]
fn what_cannot_be_restored_is_refused() {
    if !has_kvm("what_cannot_be_restored_is_refused") {
        return;
    }
    let bed = Bed::new(64);
    let (_original, mut client, _) = paused(&bed);
    let full = published(&bed, &mut client, "full", None);
    let packed = tempfile::tempfile().unwrap();
    recode(&full, Encoding::Zstd, &packed, &mut go_on).unwrap();
    let shell = bed.shell("shell");
    let mut client = shell.client().unwrap();
    let junk = tempfile::tempfile().unwrap();
    (&junk).write_all(b"no snapshot").unwrap();
    let refused = client.restore(&[junk.as_fd()]).unwrap_err();
    assert!(
        refused.to_string().contains("no snapshot of DWCP"),
        "{refused}"
    );
    let mut smaller = Bed::new(32);
    smaller.vcpus = 1;
    let small_shell = smaller.shell("small");
    let refused = small_shell
        .client()
        .unwrap()
        .restore(&[full.file().as_fd()]);
    assert!(refused.unwrap_err().to_string().contains("bytes of memory"));
    let mut wider = Bed::new(64);
    wider.vcpus = 2;
    let wide_shell = wider.shell("wide");
    let refused = wide_shell.client().unwrap().restore(&[full.file().as_fd()]);
    assert!(refused.unwrap_err().to_string().contains("1 vCPUs"));
    // Nothing was laid yet, so it can still become something else; a compressed one is refused after that.
    let refused = client.restore(&[packed.as_fd()]).unwrap_err();
    assert!(refused.to_string().contains("compressed"), "{refused}");
    let spoiled = client.restore(&[full.file().as_fd()]).unwrap_err();
    assert!(
        spoiled.to_string().contains("cannot be restored"),
        "{spoiled}"
    );
    Chain::new(vec![full]).unwrap();
}

#[test]
fn a_vm_that_may_not_write_so_much_says_so_and_lives() {
    if !has_kvm("a_vm_that_may_not_write_so_much_says_so_and_lives") {
        return;
    }
    let mut bed = Bed::new(64);
    bed.limit_files();
    let (vmm, mut client, tick) = paused(&bed);
    let file = tempfile::tempfile().unwrap();
    let refused = client.snapshot(file.as_fd(), false, None, Vec::new());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("too large"), "{refused}");
    client.resume(1).unwrap();
    goes_on(&vmm, &mut client, tick);
    end(vmm, &mut client);
}
