//! The real VMM under the real launcher, taken over once it has confined itself: what a thread has given up ends the
//! process, and the launcher names it.
//!
//! An attacker in a thread is played by a debugger that stops it at a system call and makes another call of it. The
//! kernel asks the filters after that. Every kind of thread is taken over, once for every call.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use common::guests::{Bed, nic};
use common::{Launcher, MEMORY_BYTES, can_run, id, namespaces, wait_for};
use dwcp_launch::protocol::{ChildState, Needs, NetworkKind, NicSpec};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::{Value, json};

/// `TIOCSTI`: types on a terminal.
const TYPE: u64 = 0x5412;
/// `KVM_CREATE_VM`.
const CREATE_VM: u64 = 0xae01;
/// Filters of the launcher's; a thread that has more has confined itself.
const OUTER_FILTERS: u64 = 2;
const EXECUTABLE: u64 = (libc::PROT_READ | libc::PROT_EXEC) as u64;

/// A call, its first three arguments, and how it is named.
type Call = (libc::c_long, [u64; 3], &'static str);

/// What no thread of any kind may do.
const NO_THREAD: [Call; 29] = [
    (libc::SYS_openat, [0; 3], "openat"),
    (libc::SYS_openat2, [0; 3], "openat2"),
    (libc::SYS_execve, [0; 3], "execve"),
    (libc::SYS_fork, [0; 3], "fork"),
    (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0], "clone"),
    (libc::SYS_clone3, [0; 3], "clone3"),
    (libc::SYS_socket, [libc::AF_UNIX as u64, 1, 0], "socket"),
    (libc::SYS_socket, [libc::AF_VSOCK as u64, 1, 0], "socket"),
    (libc::SYS_connect, [0; 3], "connect"),
    (libc::SYS_ptrace, [0; 3], "ptrace"),
    (libc::SYS_process_vm_readv, [0; 3], "process_vm_readv"),
    (libc::SYS_kill, [1, 0, 0], "kill"),
    (libc::SYS_mount, [0; 3], "mount"),
    (libc::SYS_unshare, [0; 3], "unshare"),
    (libc::SYS_setns, [0; 3], "setns"),
    (libc::SYS_chroot, [0; 3], "chroot"),
    (libc::SYS_setuid, [0; 3], "setuid"),
    (libc::SYS_capset, [0; 3], "capset"),
    (
        libc::SYS_prctl,
        [libc::PR_SET_DUMPABLE as u64, 1, 0],
        "prctl",
    ),
    (libc::SYS_prlimit64, [0; 3], "prlimit64"),
    (libc::SYS_keyctl, [0; 3], "keyctl"),
    (libc::SYS_bpf, [0; 3], "bpf"),
    (libc::SYS_io_uring_setup, [0; 3], "io_uring_setup"),
    (libc::SYS_perf_event_open, [0; 3], "perf_event_open"),
    (libc::SYS_userfaultfd, [0; 3], "userfaultfd"),
    (libc::SYS_mmap, [0, 4096, EXECUTABLE], "mmap"),
    (libc::SYS_mprotect, [0, 4096, EXECUTABLE], "mprotect"),
    (libc::SYS_ioctl, [5, CREATE_VM, 0], "ioctl"),
    (libc::SYS_ioctl, [0, TYPE, 0], "ioctl"),
];

/// What only the event loop may.
const EVENT_LOOPS: [Call; 3] = [
    (libc::SYS_memfd_create, [0; 3], "memfd_create"),
    (libc::SYS_sendmsg, [0; 3], "sendmsg"),
    (libc::SYS_tgkill, [0; 3], "tgkill"),
];

/// The VMM's program, if it is built.
fn program(test: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_dwcp-launch")).parent()?;
    let folder = std::env::var_os("DWCP_BIN_DIR").map_or(beside.to_owned(), PathBuf::from);
    let program = folder.join("dwcp-vmm");
    if !program.exists() {
        println!("SKIPPED {test}: dwcp-vmm is not built (cargo build -p dwcp-vmm)");
        return None;
    }
    Some(program)
}

/// What VMs of a test have.
struct Vms<'a> {
    launcher: &'a Launcher,
    devices: Value,
    descriptors: Vec<OwnedFd>,
    nics: Vec<NicSpec>,
}

impl Vms<'_> {
    /// Starts one that waits for a guest from elsewhere: all its threads are there.
    fn start(&self, name: &str) -> u32 {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("control")).unwrap();
        let log = File::create_new(directory.path().join("log")).unwrap();
        let mut given: Vec<BorrowedFd<'_>> = vec![listener.as_fd(), log.as_fd()];
        given.extend(self.descriptors.iter().map(AsFd::as_fd));
        let config = json!({
            "id": name,
            "vcpus": 1,
            "memory_bytes": MEMORY_BYTES,
            "boot": "incoming",
            "devices": self.devices,
        });
        let mut client = self.launcher.client();
        client
            .spawn_vmm_with(
                &id(name),
                Needs::memory(MEMORY_BYTES),
                None,
                config,
                &given,
                &self.nics,
            )
            .unwrap()
    }

    /// Takes a thread over once for each call; others go on.
    fn each_ends(&self, thread: &str, calls: &[Call]) {
        let mut client = self.launcher.client();
        for (number, arguments, name) in calls {
            let pid = self.start("vm-1");
            take_over(confined(pid, thread), *number, arguments);
            let expected = ChildState::Exited {
                code: Some(dwcp_jail::DENIED_EXIT_CODE),
                signal: None,
                last_words: Some(format!("seccomp: {name}")),
            };
            let found = self.launcher.exit_of("vm-1");
            assert_eq!(found, expected, "{thread}: {name} {arguments:x?}");
            client.forget(&id("vm-1")).unwrap();
        }
        println!("{thread}: {} calls", calls.len());
    }
}

/// The thread whose name begins so, once it has a filter of its own; the event loop has the program's name.
fn confined(pid: u32, name: &str) -> libc::pid_t {
    let mut found = None;
    wait_for("a confined thread", || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        found = tasks.map(|task| task.unwrap().path()).find(|task| {
            let read = |file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
            let filters = read("status").lines().find_map(|line| {
                let count = line.strip_prefix("Seccomp_filters:")?;
                count.trim().parse::<u64>().ok()
            });
            read("comm").starts_with(name) && filters > Some(OUTER_FILTERS)
        });
        found.is_some()
    });
    let task = found.unwrap();
    let number = task.file_name().unwrap().to_str().unwrap();
    number.parse().unwrap()
}

/// Makes the thread's next system call another one.
fn take_over(thread: libc::pid_t, number: libc::c_long, arguments: &[u64; 3]) {
    trace(libc::PTRACE_ATTACH, thread, 0);
    stopped(thread);
    trace(libc::PTRACE_SYSCALL, thread, 0);
    stopped(thread);
    // SAFETY: all-zero is a valid set of registers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    trace(libc::PTRACE_GETREGS, thread, &raw mut registers as usize);
    registers.orig_rax = number as u64;
    [registers.rdi, registers.rsi, registers.rdx] = *arguments;
    trace(libc::PTRACE_SETREGS, thread, &raw mut registers as usize);
    trace(libc::PTRACE_DETACH, thread, 0);
}

fn trace(request: libc::c_uint, thread: libc::pid_t, data: usize) {
    // SAFETY: `data` is zero, or the address of registers that outlive the call.
    let result = unsafe { libc::ptrace(request, thread, 0usize, data) };
    Errno::result(result).unwrap();
}

fn stopped(thread: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the status outlives the call.
    let found = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert!(found == thread && libc::WIFSTOPPED(status));
}

#[test]
fn what_a_thread_has_given_up_ends_its_vm_and_is_named() {
    const TEST: &str = "what_a_thread_has_given_up_ends_its_vm_and_is_named";
    if !can_run(TEST) {
        return;
    }
    let Some(program) = program(TEST) else {
        return;
    };
    let launcher = Launcher::start_with_vmm(program.to_str().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
    let kind = SockType::SeqPacket;
    let (control, _) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    let vms = Vms {
        launcher: &launcher,
        devices: json!([
            "rng",
            "balloon",
            {"console": {}},
            {"vsock": {"cid": 3}},
            {"block": {"id": "disk"}},
        ]),
        descriptors: vec![listener.into(), control, disk.into()],
        nics: Vec::new(),
    };
    vms.start("vm-2");
    let narrow: Vec<Call> = NO_THREAD.into_iter().chain(EVENT_LOOPS).collect();
    vms.each_ends("dwcp-vmm", &NO_THREAD);
    for thread in ["vcpu-", "rng-", "balloon-", "console-", "vsock-", "block-"] {
        vms.each_ends(thread, &narrow);
    }
    let children = launcher.client().list().unwrap();
    assert!(children.len() == 1 && children[0].is_running());
}

#[test]
fn a_network_cards_thread_is_held_too() {
    const TEST: &str = "a_network_cards_thread_is_held_too";
    if !namespaces::can_run(TEST) {
        return;
    }
    let Some(program) = program(TEST) else {
        return;
    };
    let bed = Bed::with_vmm(program.to_str().unwrap());
    let subnet = bed.network("inside", NetworkKind::Isolated).subnet;
    let nic = nic("inside", subnet, 5);
    let vms = Vms {
        launcher: &bed.launcher,
        devices: json!([{"net": {"mac": nic.mac.to_string()}}]),
        descriptors: Vec::new(),
        nics: vec![nic],
    };
    let narrow: Vec<Call> = NO_THREAD.into_iter().chain(EVENT_LOOPS).collect();
    vms.each_ends("net-", &narrow);
}
