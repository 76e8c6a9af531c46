//! A VMM that makes a system call which it had given up dies, alone, and its last words name the call.
//!
//! The running program is taken over as an attacker would: a debugger stops one of its threads at a system call and
//! changes which one it is. The kernel asks the filter after that.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use common::{Bed, DEADLINE, Serial, has_kvm};
use dwcp_vmm::config::{ConsoleSize, Device};
use dwcp_vmm::spawn::Spawned;
use nix::sys::ptrace;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The thread of `vmm` with this name; the event loop has the program's.
fn thread(vmm: &Spawned, name: &str) -> Pid {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap();
    let mut paths = tasks.map(|task| task.unwrap().path());
    let path =
        paths.find(|path| std::fs::read_to_string(path.join("comm")).unwrap().trim() == name);
    let id = path.unwrap().file_name().unwrap().to_str().unwrap().parse();
    Pid::from_raw(id.unwrap())
}

/// Makes the thread's next system call another one.
fn take_over(thread: Pid, call: libc::c_long) {
    ptrace::attach(thread).unwrap();
    let stopped = || waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    assert!(matches!(stopped(), WaitStatus::Stopped(..)));
    ptrace::syscall(thread, None).unwrap();
    stopped();
    let mut registers = ptrace::getregs(thread).unwrap();
    registers.orig_rax = call as u64;
    ptrace::setregs(thread, registers).unwrap();
    ptrace::detach(thread, None).unwrap();
}

/// A bed whose guests have every device that needs nothing but sockets.
fn bed() -> Bed {
    let mut bed = Bed::new(32);
    let listener = UnixListener::bind(bed.directory.path().join("vsock")).unwrap();
    let kind = SockType::SeqPacket;
    let (control, _) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
    bed.devices = vec![
        Device::Rng,
        Device::Balloon,
        Device::Console(ConsoleSize::default()),
        Device::Vsock { cid: 3 },
    ];
    bed.disks = vec![OwnedFd::from(listener).into(), control.into()];
    bed
}

fn dies_of(thread_name: &str, call: libc::c_long, words: &str) {
    let (bed, other_bed) = (bed(), Bed::new(32));
    let vmm = bed.fresh("fill_mib=8 ws_mib=1");
    let other = other_bed.fresh("fill_mib=8 ws_mib=1");
    vmm.client().unwrap().run(1).unwrap();
    other.client().unwrap().run(1).unwrap();
    Serial::of(&vmm).wait_for_tick(0);
    take_over(thread(&vmm, thread_name), call);
    let ended = vmm.wait(DEADLINE).unwrap();
    assert_eq!(ended.words.as_deref(), Some(words));
    assert_eq!(ended.status.code(), Some(dwcp_jail::DENIED_EXIT_CODE));
    let seen = Serial::of(&other).ticks().len() as u64;
    assert_eq!(Serial::of(&other).wait_for_tick(seen + 1).bad, 0);
}

#[test]
fn the_event_loop_cannot_open_files() {
    if has_kvm("the_event_loop_cannot_open_files") {
        dies_of("dwcp-vmm", libc::SYS_openat, "seccomp: openat");
    }
}

#[test]
fn a_vcpu_thread_cannot_make_sockets() {
    if has_kvm("a_vcpu_thread_cannot_make_sockets") {
        dies_of("vcpu-0", libc::SYS_socket, "seccomp: socket");
    }
}

#[test]
fn a_vcpu_thread_cannot_even_receive() {
    if has_kvm("a_vcpu_thread_cannot_even_receive") {
        dies_of("vcpu-0", libc::SYS_recvmsg, "seccomp: recvmsg");
    }
}

#[test]
fn a_devices_thread_can_only_do_what_its_device_is_for() {
    if !has_kvm("a_devices_thread_can_only_do_what_its_device_is_for") {
        return;
    }
    for (thread, call, words) in [
        ("rng-1", libc::SYS_sendto, "seccomp: sendto"),
        ("balloon-2", libc::SYS_write, "seccomp: write"),
        ("console-3", libc::SYS_fallocate, "seccomp: fallocate"),
        ("vsock-4", libc::SYS_connect, "seccomp: connect"),
    ] {
        dies_of(thread, call, words);
    }
}

#[test]
fn a_call_that_is_allowed_does_not_kill() {
    if !has_kvm("a_call_that_is_allowed_does_not_kill") {
        return;
    }
    let bed = Bed::new(32);
    let vmm = bed.fresh("fill_mib=8 ws_mib=1");
    vmm.client().unwrap().run(1).unwrap();
    let serial = Serial::of(&vmm);
    let tick = serial.wait_for_tick(0);
    take_over(thread(&vmm, "dwcp-vmm"), libc::SYS_getpid);
    serial.wait_for_tick(tick.tick + 1);
}
