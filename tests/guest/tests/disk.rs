//! The guest's disk and entropy drivers against QEMU's devices.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{Machine, has_qemu};
use dwcp_guest::pattern;
use dwcp_guest::said::{DiskFound, DiskRead, DiskStep, RngRead};

const MIB: usize = 1 << 20;
const SEED: u64 = 1234;
const DISK: &str = "virtio-blk-pci,disable-legacy=on,drive=d,serial=disk-a";

fn drive(path: &Path, options: &str) -> String {
    let path = path.display();
    format!("if=none,id=d,format=raw,discard=unmap,file={path}{options}")
}

/// Step and outcome, in order.
fn steps(machine: &Machine) -> Vec<(String, String)> {
    let steps = machine.all(DiskStep::parse);
    steps.into_iter().map(|s| (s.step, s.outcome)).collect()
}

fn named(steps: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(step, outcome): &(&str, &str)| (step.to_string(), outcome.to_string());
    steps.iter().map(own).collect()
}

#[test]
fn a_disk_is_written_read_and_given_up() {
    if !has_qemu("a_disk_is_written_read_and_given_up") {
        return;
    }
    for style in ["event_idx=0", "event_idx=1", "indirect=1"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        fs::write(&path, vec![0xa5; 8 * MIB]).unwrap();
        let cmdline = format!(
            "fill_mib=4 seed={SEED} {style} rng=5000 disk=check disk_at_mib=2 disk_mib=2 then=power-off"
        );
        let mut machine = Machine::start(
            &cmdline,
            &[
                "-drive",
                &drive(&path, ""),
                "-device",
                DISK,
                "-device",
                "virtio-rng-pci,disable-legacy=on",
            ],
        );
        machine.wait_for_end();
        let found = machine.all(DiskFound::parse);
        assert_eq!((found.len(), &*found[0].id), (1, "disk-a"));
        assert_eq!(found[0].sectors as usize, 8 * MIB / 512);
        let expected = [
            ("write", "ok"),
            ("flush", "ok"),
            ("verify", "ok"),
            ("frames", "ok"),
            ("discard", "ok"),
            ("zeroes", "ok"),
            ("last", "ok"),
            ("beyond", "ioerr"),
            ("nonsense", "unsupp"),
            ("check", "finished"),
        ];
        assert_eq!(steps(&machine), named(&expected), "{}", machine.text());
        let rng = machine.all(RngRead::parse);
        assert!(rng.len() == 1 && rng[0].bytes == 5000 && rng[0].varied);
        let content = fs::read(&path).unwrap();
        let untouched = |part: &[u8]| part.iter().all(|byte| *byte == 0xa5);
        assert!(untouched(&content[..2 * MIB]) && untouched(&content[4 * MIB..]));
        let left = &content[3 * MIB..4 * MIB];
        assert_eq!(pattern::differences(SEED + 1, 3 * MIB as u64, left), 0);
    }
}

#[test]
fn what_somebody_else_wrote_is_compared_and_a_read_only_disk_refuses() {
    if !has_qemu("what_somebody_else_wrote_is_compared_and_a_read_only_disk_refuses") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut content = vec![0; 3 * MIB];
    pattern::fill(SEED, 0, &mut content);
    content[2 * MIB + 77] ^= 1;
    fs::write(&path, &content).unwrap();
    let cmdline = format!("fill_mib=4 seed={SEED} disk=read:3 disk=check then=power-off");
    let drive = drive(&path, ",readonly=on");
    let mut machine = Machine::start(&cmdline, &["-drive", &drive, "-device", DISK]);
    machine.wait_for_end();
    assert!(machine.all(DiskFound::parse)[0].read_only);
    let read = &machine.all(DiskRead::parse)[0];
    let sum = pattern::add_to_sum(pattern::SUM_START, &content);
    assert_eq!((read.bytes, read.sum), (3 * MIB as u64, sum));
    assert_eq!((read.wrong, &*read.outcome), (1, "ok"));
    assert!(steps(&machine).contains(&("write".to_owned(), "ioerr".to_owned())));
    assert_eq!(fs::read(&path).unwrap(), content);
}
