//! Starting, pausing and ending a VM, and what its last words say.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{Read, Write};

use common::{Bed, DEADLINE, Serial, has_kvm};
use dwcp_vmm::client::ClientError;
use dwcp_vmm::config::{Device, DiskFormat, DiskLimits};
use dwcp_vmm::protocol::Phase;

const SMALL: &str = "fill_mib=8 ws_mib=2 rate=500";

#[test]
fn the_guest_boots_and_ticks_in_32_mib() {
    if !has_kvm("the_guest_boots_and_ticks_in_32_mib") {
        return;
    }
    let bed = Bed::new(32);
    let started = std::time::Instant::now();
    let vmm = bed.fresh("fill_mib=16 ws_mib=4 rate=1000 verify=2");
    let mut client = vmm.client().unwrap();
    assert_eq!(client.status().unwrap().phase, Phase::Idle);
    client.run(1).unwrap();
    let serial = Serial::of(&vmm);
    let first = serial.wait_for_tick(0);
    let later = serial.wait_for_tick(first.tick + 1);
    assert!(later.pages > first.pages && later.checked > first.checked);
    assert_eq!(later.bad, 0);
    let status = client.status().unwrap();
    assert_eq!(
        (status.phase, status.epoch, status.vcpus),
        (Phase::Running, 1, 1)
    );
    assert!(status.exits[0] > 0 && status.serial_bytes > 0);
    // It has worked meanwhile, and no CPU gives more time than there was.
    let passed_ns = started.elapsed().as_nanos() as u64;
    assert!((1..=passed_ns).contains(&status.cpu_ns[0]), "{status:?}");
}

#[test]
fn exit_reset_ends_at_once() {
    if !has_kvm("exit_reset_ends_at_once") {
        return;
    }
    let bed = Bed::new(128);
    let vmm = bed.fresh("exit=reset");
    vmm.client().unwrap().run(1).unwrap();
    let ended = vmm.wait(DEADLINE).unwrap();
    assert_eq!(ended.words.as_deref(), Some("guest: reset"));
    assert_eq!(ended.status.code(), Some(0));
}

#[test]
fn a_vm_can_have_as_many_vcpus_as_are_allowed() {
    if !has_kvm("a_vm_can_have_as_many_vcpus_as_are_allowed") {
        return;
    }
    let mut bed = Bed::new(32);
    bed.vcpus = dwcp_vmm::config::VCPUS_MAX;
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    let tick = Serial::of(&vmm).wait_for_tick(0);
    client.pause().unwrap();
    assert_eq!(client.status().unwrap().exits.len(), usize::from(bed.vcpus));
    client.resume(1).unwrap();
    Serial::of(&vmm).wait_for_tick(tick.tick);
}

/// Runs the guest, types `command` on its console, and waits for its end.
fn end_by(command: &[u8]) -> (String, Option<i32>) {
    let bed = Bed::new(32);
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    Serial::of(&vmm).wait_for_tick(0);
    client.console().unwrap().write_all(command).unwrap();
    let ended = vmm.wait(DEADLINE).unwrap();
    (ended.words.unwrap(), ended.status.code())
}

#[test]
fn last_words_tell_how_the_guest_ended() {
    if !has_kvm("last_words_tell_how_the_guest_ended") {
        return;
    }
    for (command, words) in [
        (b"s", "guest: reset"),
        (b"p", "guest: power-off"),
        (b"c", "guest: triple-fault"),
    ] {
        assert_eq!(end_by(command), (words.to_owned(), Some(0)));
    }
}

#[test]
fn a_corrupted_page_is_reported() {
    if !has_kvm("a_corrupted_page_is_reported") {
        return;
    }
    let bed = Bed::new(32);
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    let serial = Serial::of(&vmm);
    assert_eq!(serial.wait_for_tick(0).bad, 0);
    client.console().unwrap().write_all(b"x").unwrap();
    serial.wait_for_text("is not what was written");
    serial.wait("bad tick", |serial| {
        serial.ticks().last().filter(|tick| tick.bad > 0).copied()
    });
}

#[test]
fn paused_nothing_runs() {
    if !has_kvm("paused_nothing_runs") {
        return;
    }
    let bed = Bed::new(32);
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    let serial = Serial::of(&vmm);
    serial.wait_for_tick(0);
    client.pause().unwrap();
    let before = client.status().unwrap();
    assert_eq!(before.phase, Phase::Paused);
    // A running guest exits a hundred times a second to look for commands.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(client.status().unwrap().exits, before.exits);
    let ticked = serial.ticks().len();
    client.resume(2).unwrap();
    let after = serial.wait("tick after the pause", |serial| {
        serial.ticks().get(ticked).copied()
    });
    assert!(after.gap_us >= 300_000, "{after:?}");
    assert_eq!(after.bad, 0);
}

#[test]
fn a_pause_whose_disk_cannot_be_flushed_is_refused_and_the_guest_goes_on() {
    if !has_kvm("a_pause_whose_disk_cannot_be_flushed_is_refused_and_the_guest_goes_on") {
        return;
    }
    let mut bed = Bed::new(32);
    bed.vcpus = 2;
    bed.devices = vec![Device::Block {
        id: "data".into(),
        read_only: false,
        chain: vec![DiskFormat::Raw],
        queues: 1,
        limits: DiskLimits::default(),
    }];
    // It can be sought in, and has nothing to flush. The guest never uses it.
    let zeros = File::options().read(true).write(true).open("/dev/zero");
    bed.disks = vec![zeros.unwrap()];
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    let serial = Serial::of(&vmm);
    for _ in 0..3 {
        let tick = serial.ticks().last().map_or(0, |tick| tick.tick);
        let refused = client.pause().unwrap_err().to_string();
        assert!(refused.contains("block-1 failed: "), "{refused}");
        assert_eq!(client.status().unwrap().phase, Phase::Running);
        assert_eq!(serial.wait_for_tick(tick + 1).bad, 0);
    }
    assert_eq!(client.status().unwrap().devices[0].errors, 3);
}

#[test]
fn requests_out_of_order_are_refused_and_change_nothing() {
    if !has_kvm("requests_out_of_order_are_refused_and_change_nothing") {
        return;
    }
    let refused = |result: Result<(), ClientError>| match result {
        Err(ClientError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let bed = Bed::new(32);
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    refused(client.pause());
    refused(client.resume(1));
    refused(client.stop(false));
    refused(client.dirty_harvest().map(drop));
    refused(client.save().map(drop));
    client.run(5).unwrap();
    refused(client.run(6));
    client.pause().unwrap();
    assert!(refused(client.resume(4)).contains("epoch 5"));
    assert_eq!(client.status().unwrap().phase, Phase::Paused);
    client.resume(5).unwrap();
    client.stop(true).unwrap();
    let ended = vmm.wait(DEADLINE).unwrap();
    assert_eq!(ended.words.as_deref(), Some("guest: stopped"));
}

#[test]
fn a_console_gets_the_scrollback_and_then_what_follows() {
    if !has_kvm("a_console_gets_the_scrollback_and_then_what_follows") {
        return;
    }
    let bed = Bed::new(32);
    let vmm = bed.fresh(SMALL);
    let mut client = vmm.client().unwrap();
    client.run(1).unwrap();
    Serial::of(&vmm).wait_for_tick(0);
    let mut console = client.console().unwrap();
    console.set_read_timeout(Some(DEADLINE)).unwrap();
    console.write_all(b"r").unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains("longest gap_us") {
        let count = console.read(&mut buffer).unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(
        seen.contains("guest: up") && seen.contains("guest: tick 1 "),
        "{seen}"
    );
    drop(console);
    // A second one after the first hung up.
    client.console().unwrap().write_all(b"s").unwrap();
    assert_eq!(
        vmm.wait(DEADLINE).unwrap().words.as_deref(),
        Some("guest: reset")
    );
}

#[test]
fn what_is_no_kernel_is_refused_with_a_reason() {
    if !has_kvm("what_is_no_kernel_is_refused_with_a_reason") {
        return;
    }
    let elf = dwcp_guest::elf();
    let mut outside = elf.to_vec();
    outside[64 + 8..64 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
    for (image, reason) in [
        (&b"#!/bin/sh"[..], "neither a bzImage nor"),
        (&elf[..100], "damaged"),
        (&outside[..], "damaged"),
        (&[], "could not be read"),
    ] {
        let bed = Bed::new(16);
        let ended = bed.fresh_with(image, "").wait(DEADLINE).unwrap();
        let words = ended.words.unwrap();
        assert!(
            words.starts_with("error: ") && words.contains(reason),
            "{words}"
        );
        assert_eq!(ended.status.code(), Some(1));
    }
}
