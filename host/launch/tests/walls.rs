//! What a child can see and do, told by the child itself and by the kernel's own view of it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{Launcher, MEMORY_BYTES, can_run};
use dwcp_launch::protocol::Side;
use serde_json::json;

const NAMESPACES: [&str; 6] = ["mnt", "net", "ipc", "uts", "pid_for_children", "user"];
const UID_BASE: u32 = 1_900_000_000;

fn namespace(pid: &str, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    link.to_string_lossy().into_owned()
}

fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap();
    line.trim_start_matches(':')
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn a_vmm_has_nothing_but_what_it_was_given() {
    if !can_run("a_vmm_has_nothing_but_what_it_was_given") {
        return;
    }
    let launcher = Launcher::start_with(&["--allow-uid", "0", "--uid-base", "1900000000"]);
    let vmm = launcher.vmm("vm-1");
    let report = &vmm.report;
    assert_eq!(report["config"], json!({"name": "vm-1"}));
    assert_eq!(report["argv"], json!(["dwcp-vmm", "5"]));
    assert_eq!(report["environment"], 0);
    assert_eq!(report["pid"], 1);
    assert_eq!(report["uids"], json!([UID_BASE, UID_BASE, UID_BASE]));
    assert_eq!(report["gids"], json!([UID_BASE, UID_BASE, UID_BASE]));
    assert_eq!(report["groups"], 0);
    assert_eq!(report["capabilities"], json!([0, 0, 0, 0, 0, 0]));
    assert_eq!(report["bounding"], 0);
    assert_eq!(report["no_new_privs"], 1);
    // 4 was the configuration, which is read and closed; 9 is the socket that we gave it.
    assert_eq!(report["open"], json!([0, 1, 2, 3, 5, 6, 7, 8, 9]));
    assert_eq!(report["socket"], 9);
    assert_eq!(report["null"], json!([true, true, true]));
    assert_eq!(report["root"], 0);
    assert_eq!(report["root_writable"], false);
    assert_eq!(report["interfaces"], json!(["lo"]));
    assert_eq!(report["hostname"], "dwcp");
    assert_eq!(report["can_be_root"], false);
    assert_eq!(report["can_mount"], false);
    assert_eq!(report["can_signal_others"], false);
    assert_eq!(report["blocked_signals"], 0);
    let given = &report["descriptors"];
    assert_eq!(given[0]["kvm"], 12);
    assert_eq!(given[0]["device"], json!([10, 232]));
    assert_eq!(given[2]["length"], MEMORY_BYTES);
    // A bit a page, in whole pages.
    assert_eq!(
        given[3]["length"],
        (MEMORY_BYTES / 4096 / 8).next_multiple_of(4096)
    );
    for shared in [&given[2], &given[3]] {
        assert_eq!(shared["writable"], true);
        let size_seals = i64::from(libc::F_SEAL_GROW | libc::F_SEAL_SHRINK);
        assert_eq!(shared["seals"].as_i64().unwrap() & size_seals, size_seals);
    }
}

#[test]
fn the_kernel_agrees() {
    if !can_run("the_kernel_agrees") {
        return;
    }
    let launcher = Launcher::start_with(&["--allow-uid", "0", "--uid-base", "1900000000"]);
    let (first, second) = (launcher.vmm("vm-1"), launcher.vmm("vm-2"));
    for kind in NAMESPACES {
        let all = ["self", &first.pid.to_string(), &second.pid.to_string()]
            .map(|pid| namespace(pid, kind));
        assert!(
            all[0] != all[1] && all[1] != all[2] && all[0] != all[2],
            "{kind}: {all:?}"
        );
    }
    for (vmm, uid) in [(&first, UID_BASE), (&second, UID_BASE + 1)] {
        let pid = vmm.pid;
        assert_eq!(status(pid, "Uid"), format!("{uid} {uid} {uid} {uid}"));
        assert_eq!(status(pid, "CapPrm"), "0000000000000000");
        assert_eq!(status(pid, "CapBnd"), "0000000000000000");
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert!(status(pid, "NSpid").ends_with(" 1"));
        let root = fs::read_dir(format!("/proc/{pid}/root")).unwrap();
        assert_eq!(root.count(), 0);
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert!(mounts.contains(" ro,nosuid,nodev,noexec"), "{mounts}");
        let oom = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(oom.trim(), "300");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        for (name, value) in [
            ("Max core file size", "1"),
            ("Max file size", "67108864"),
            ("Max open files", "256"),
            ("Max processes", "128"),
            ("Max locked memory", "0"),
            ("Max msgqueue size", "0"),
            ("Max nice priority", "0"),
            ("Max realtime priority", "0"),
        ] {
            let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
            let found: Vec<_> = line[name.len()..].split_whitespace().collect();
            assert_eq!(found[..2], [value, value], "{line}");
        }
    }
}

#[test]
fn children_are_in_control_groups_where_there_are_any() {
    if !can_run("children_are_in_control_groups_where_there_are_any") {
        return;
    }
    let launcher = Launcher::start();
    if launcher.groups.is_empty() {
        println!("SKIPPED children_are_in_control_groups_where_there_are_any: no control groups");
        return;
    }
    let vmm = launcher.vmm("vm-1");
    for group in &launcher.groups {
        let procs = fs::read_to_string(group.join("vm-1/cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), vmm.pid.to_string());
    }
    let bytes = (MEMORY_BYTES * 9 / 8 + (256 << 20)).to_string();
    let processors = std::thread::available_parallelism().unwrap().get();
    let shares = (processors * 1024).to_string();
    let weight = (processors * 100).to_string();
    let mut found = Vec::new();
    for (file, value) in [
        ("vm-1/memory.limit_in_bytes", bytes.as_str()),
        ("vm-1/memory.memsw.limit_in_bytes", &bytes),
        ("vm-1/memory.max", &bytes),
        ("vm-1/memory.swap.max", &bytes),
        ("vm-1/pids.max", "128"),
        ("vm-1/cpu.shares", "1024"),
        ("vm-1/cpu.weight", "100"),
        // Two vCPUs, and one processor for its devices.
        ("vm-1/cpu.max", "300000 100000"),
        ("vm-1/cpu.cfs_quota_us", "300000"),
        ("vm-1/hugetlb.2MB.max", "0"),
        ("cpu.shares", &shares),
        ("cpu.weight", &weight),
    ] {
        let files = launcher.groups.iter().map(|group| group.join(file));
        for file in files.filter(|file| file.exists()) {
            let text = fs::read_to_string(&file).unwrap();
            assert_eq!(text.trim(), value, "{}", file.display());
            found.push(file);
        }
    }
    println!("limits: {found:?}");
    // The kernel's own view of it: every controller that this host has for groups holds this child in its own.
    let view = fs::read_to_string(format!("/proc/{}/cgroup", vmm.pid)).unwrap();
    for controller in controllers(&launcher) {
        let line = view.lines().find(|line| {
            let names = line.split(':').nth(1).unwrap();
            names.split(',').any(|name| name == controller)
        });
        let is_own = line.is_some_and(|line| line.ends_with("/vm-1"));
        assert!(is_own, "{controller}: {view}");
        println!("{controller}: in a group of its own");
    }
    launcher.client().kill(&common::id("vm-1")).unwrap();
    launcher.exit_of("vm-1");
    for group in &launcher.groups {
        assert!(!group.join("vm-1").exists());
    }
}

#[test]
fn movers_work_on_the_memory_of_their_vm() {
    if !can_run("movers_work_on_the_memory_of_their_vm") {
        return;
    }
    let launcher = Launcher::start();
    let mut vmm = launcher.vmm("vm-1");
    let mut other = launcher.vmm("vm-2");
    let mut source = launcher.mover("source", "vm-1", Side::Source);
    let mut destination = launcher.mover("destination", "vm-1", Side::Destination);
    assert_eq!(source.report["argv"], json!(["dwcp-mover", "3"]));
    assert_eq!(source.report["open"], json!([0, 1, 2, 3, 5, 6, 7]));
    assert_eq!(source.report["descriptors"][0]["writable"], false);
    assert_eq!(destination.report["descriptors"][0]["writable"], true);
    assert_eq!(vmm.ask("poke 2 7"), true);
    assert_eq!(source.ask("peek 0"), 7);
    assert_eq!(source.ask("poke 0 8"), false);
    assert_eq!(destination.ask("poke 0 9"), true);
    assert_eq!(vmm.ask("peek 2"), 9);
    assert_eq!(other.ask("peek 2"), 0);
    // The bitmap is shared, and both sides write to it; it is too short for the byte that the orders mean.
    assert_eq!(source.report["descriptors"][1]["writable"], true);
}

/// Which of the old controllers there are, each by its name; for version 2 the one that has none.
fn controllers(launcher: &Launcher) -> Vec<&'static str> {
    if launcher.groups[0].join("cgroup.controllers").exists() {
        return vec![""];
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let is_mounted = |controller: &&str| {
        let mut groups = mounts.lines().filter(|line| line.contains(" cgroup "));
        groups.any(|line| {
            let options = line.split(' ').nth(3).unwrap();
            options.split(',').any(|option| option == *controller)
        })
    };
    let all = ["memory", "pids", "cpu", "blkio"];
    all.into_iter().filter(is_mounted).collect()
}
