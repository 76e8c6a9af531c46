//! A VM is written as a snapshot and goes on; others become what it was, at once, from one file or one template.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::{Bed, DEADLINE, Serial, has_kvm};
use dwcp_memory::{HostMap, MemorySize, MemoryView, PageIndex, seal_template};
use dwcp_snapshot::seal::{Trust, ensure};
use dwcp_snapshot::{
    Chain, Disk, Draft, Encoding, HEADER_BYTES, Snapshot, SnapshotDigest, SnapshotName, flatten,
    recode,
};
use dwcp_vmm::client::{ClientError, VmmClient};
use dwcp_vmm::protocol::{Phase, SnapshotOrder};
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
        .snapshot(
            draft.file().as_fd(),
            SnapshotOrder {
                base,
                keep_changes: true,
                disks: vec![disk],
                ..SnapshotOrder::default()
            },
        )
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

fn end_paused(vmm: Spawned, client: &mut VmmClient) {
    client.stop(true).unwrap();
    vmm.wait(DEADLINE).unwrap();
}

fn end(vmm: Spawned, client: &mut VmmClient) {
    client.console().unwrap().write_all(b"s").unwrap();
    let ended = vmm.wait(DEADLINE).unwrap();
    assert_eq!(ended.words.as_deref(), Some("guest: reset"));
}

/// The longest time between two steps of the guest around the moment after a tick, by its own time stamp counter.
fn standstill_us(serial: &Serial, tick: u64) -> u64 {
    serial.wait_for_tick(tick).gap_us
}

#[test]
fn a_clock_shows_the_present_after_a_restore_and_to_each_by_itself() {
    if !has_kvm("a_clock_shows_the_present_after_a_restore_and_to_each_by_itself") {
        return;
    }
    let bed = Bed::new(64);
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    Serial::of(&vmm).wait_for_tick(0);
    let before = Instant::now();
    client.pause().unwrap();
    let paused = Instant::now();
    let tick = Serial::of(&vmm).ticks().last().unwrap().tick;
    let layers = [published(&bed, &mut client, "clock", None)];
    for id in ["soon", "later"] {
        let restored = bed.shell(id);
        let mut client = restored.client().unwrap();
        client.restore(&files(&layers)).unwrap();
        // Not for anything to happen: so much is to be seen in the guest.
        std::thread::sleep(Duration::from_millis(300));
        let least = paused.elapsed();
        client.run(2).unwrap();
        let serial = Serial::of(&restored);
        let seen = Duration::from_micros(standstill_us(&serial, tick));
        let most = before.elapsed();
        assert!(
            (least..most).contains(&seen),
            "{id}: {seen:?} is not from {least:?} to {most:?}"
        );
        end(restored, &mut client);
    }
    // The original stood still for as long, and its clock went on as well.
    let least = paused.elapsed();
    client.resume(1).unwrap();
    let seen = Duration::from_micros(standstill_us(&Serial::of(&vmm), tick));
    let most = before.elapsed();
    assert!(
        (least..most).contains(&seen),
        "{seen:?} is not from {least:?} to {most:?}"
    );
    end(vmm, &mut client);
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

/// All of a VM's memory, which is private to its process, as a mover reads it.
fn seen_by_a_mover(vmm: &Spawned, client: &mut VmmClient, size: MemorySize) -> Vec<u8> {
    client.dirty_start().unwrap();
    assert!(client.dirty_harvest().unwrap() > 0);
    client.dirty_stop().unwrap();
    let hosts = HostMap::new(size, &client.status().unwrap().private_at).unwrap();
    let memory = File::open(format!("/proc/{}/mem", vmm.pid())).unwrap();
    let view = MemoryView::of_process(memory.into(), hosts).unwrap();
    let mut bytes = vec![0; size.bytes() as usize];
    view.read_pages(PageIndex(0), &mut bytes).unwrap();
    bytes
}

/// All memory of a change and its base, as their files say.
fn restored_memory(change: &Snapshot, full: &Snapshot) -> Vec<u8> {
    let whole = tempfile::tempfile().unwrap();
    let open = |of: &Snapshot| Snapshot::open(of.file().try_clone().unwrap()).unwrap();
    let chain = Chain::new(vec![open(change), open(full)]).unwrap();
    flatten(&chain, Encoding::Raw, &whole, &mut go_on).unwrap();
    let mut bytes = vec![0; full.size().bytes() as usize];
    // Where memory begins in a raw file.
    whole.read_exact_at(&mut bytes, 2 << 20).unwrap();
    bytes
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
    let other = full.digest().to_string().replace(['0', '1'], "2");
    let spare = tempfile::tempfile().unwrap();
    let order = SnapshotOrder {
        base: Some(other.parse().unwrap()),
        ..SnapshotOrder::default()
    };
    let refused = client.snapshot(spare.as_fd(), order);
    assert!(refused.unwrap_err().to_string().contains("full one"));
    let change = published(&bed, &mut client, "change", Some(full.digest()));
    let moved = seen_by_a_mover(&shell, &mut client, full.size());
    assert!(
        moved == restored_memory(&change, &full),
        "a mover sees something else"
    );
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

/// Lets a VM run on for a while, and pauses it.
fn run_on(vmm: &Spawned, client: &mut VmmClient) {
    let serial = Serial::of(vmm);
    let last = serial.ticks().last().unwrap().tick;
    client.resume(1).unwrap();
    serial.wait_for_tick(last + 2);
    client.pause().unwrap();
}

#[test]
fn a_vm_that_runs_on_is_snapshotted_as_changes_of_changes() {
    if !has_kvm("a_vm_that_runs_on_is_snapshotted_as_changes_of_changes") {
        return;
    }
    let bed = Bed::new(64);
    let (original, mut client, _) = paused(&bed);
    assert_eq!(client.status().unwrap().changes_since, None);
    let full = published(&bed, &mut client, "full", None);
    let since = |client: &mut VmmClient| client.status().unwrap().changes_since;
    assert_eq!(since(&mut client), Some(full.digest()));
    run_on(&original, &mut client);

    // What could not be written costs nothing: the next one holds it.
    let busy = tempfile::tempfile().unwrap();
    (&busy).write_all(b"something").unwrap();
    let order = SnapshotOrder {
        base: Some(full.digest()),
        keep_changes: true,
        ..SnapshotOrder::default()
    };
    client.snapshot(busy.as_fd(), order).unwrap_err();
    assert_eq!(since(&mut client), Some(full.digest()));
    // Nor does a mover that comes, reads what changed, and goes.
    client.dirty_start().unwrap();
    run_on(&original, &mut client);
    assert!(client.dirty_harvest().unwrap() > 0);
    let first = published(&bed, &mut client, "first", Some(full.digest()));
    client.dirty_stop().unwrap();

    run_on(&original, &mut client);
    let second = published(&bed, &mut client, "second", Some(first.digest()));
    let whole = full.stored_bytes();
    for change in [&first, &second] {
        let stored = change.stored_bytes();
        assert!(stored > 0 && stored < whole / 2, "{stored} of {whole}");
    }
    let tick = Serial::of(&original).ticks().last().unwrap().tick;
    // Without being asked to, it knows nothing any more of what changes.
    let spare = tempfile::tempfile().unwrap();
    client
        .snapshot(spare.as_fd(), SnapshotOrder::default())
        .unwrap();
    assert_eq!(since(&mut client), None);
    client.resume(1).unwrap();
    goes_on(&original, &mut client, tick);
    end(original, &mut client);

    let layers = [second, first, full];
    let shell = bed.shell("again");
    let mut client = shell.client().unwrap();
    client.restore(&files(&layers)).unwrap();
    client.run(2).unwrap();
    goes_on(&shell, &mut client, 0);
    assert_eq!(Serial::of(&shell).ticks()[0].tick, tick + 1);
    end(shell, &mut client);
}

fn has_userfaultfd(test: &str) -> bool {
    let has = File::open("/dev/userfaultfd").is_ok();
    if !has {
        println!("SKIPPED {test}: there is no /dev/userfaultfd");
    }
    has
}

/// The same snapshot, compressed.
fn packed(snapshot: &Snapshot) -> File {
    let file = tempfile::tempfile().unwrap();
    recode(snapshot, Encoding::Zstd, &file, &mut go_on).unwrap();
    file
}

#[test]
fn memory_comes_from_compressed_snapshots_while_the_guest_runs() {
    let test = "memory_comes_from_compressed_snapshots_while_the_guest_runs";
    if !has_kvm(test) || !has_userfaultfd(test) {
        return;
    }
    let mut bed = Bed::new(64);
    bed.vcpus = 2;
    let (original, mut client, _) = paused(&bed);
    let full = published(&bed, &mut client, "full", None);
    run_on(&original, &mut client);
    let change = published(&bed, &mut client, "change", Some(full.digest()));
    let tick = Serial::of(&original).ticks().last().unwrap().tick;
    end_paused(original, &mut client);

    let (small, small_change) = (packed(&full), packed(&change));
    // All compressed, and one of them on a raw one.
    for (id, below) in [("packed", small.as_fd()), ("mixed", full.file().as_fd())] {
        let shell = bed.shell(id);
        let mut client = shell.client().unwrap();
        client.restore(&[small_change.as_fd(), below]).unwrap();
        client.run(2).unwrap();
        goes_on(&shell, &mut client, 0);
        assert_eq!(Serial::of(&shell).ticks()[0].tick, tick + 1);
        let until = std::time::Instant::now() + DEADLINE;
        while client.status().unwrap().missing_chunks > 0 {
            assert!(std::time::Instant::now() < until, "it never comes");
            std::thread::yield_now();
        }
        // It is a machine like any other now.
        client.pause().unwrap();
        let again = published(&bed, &mut client, id, None);
        end_paused(shell, &mut client);
        let shell = bed.shell(&format!("{id}-again"));
        let mut client = shell.client().unwrap();
        client.restore(&[again.file().as_fd()]).unwrap();
        client.run(3).unwrap();
        goes_on(&shell, &mut client, 0);
    }
}

#[test]
fn a_chunk_that_is_damaged_ends_the_guest_and_says_so() {
    let test = "a_chunk_that_is_damaged_ends_the_guest_and_says_so";
    if !has_kvm(test) || !has_userfaultfd(test) {
        return;
    }
    let bed = Bed::new(64);
    let (original, mut client, _) = paused(&bed);
    let full = published(&bed, &mut client, "full", None);
    drop(original);
    let file = packed(&full);
    let at = HEADER_BYTES as u64
        + Snapshot::open(file.try_clone().unwrap())
            .unwrap()
            .stored_bytes()
            / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let shell = bed.shell("shell");
    let mut client = shell.client().unwrap();
    // Whether it comes to that depends on when the chunk is read.
    let _ = client.restore(&[file.as_fd()]).and_then(|()| client.run(2));
    let ended = shell.wait(DEADLINE).unwrap();
    let words = ended.words.unwrap();
    assert!(
        words.starts_with("error: ") && words.contains("damaged in"),
        "{words}"
    );
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
    // Nothing was laid yet, so it can still become something else, and only once.
    client.restore(&[full.file().as_fd()]).unwrap();
    let again = client.restore(&[full.file().as_fd()]).unwrap_err();
    assert!(again.to_string().contains("cannot be restored"), "{again}");
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
    let refused = client.snapshot(file.as_fd(), SnapshotOrder::default());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("too large"), "{refused}");
    client.resume(1).unwrap();
    goes_on(&vmm, &mut client, tick);
    end(vmm, &mut client);
}
