//! Other processes, and new namespaces.

use nix::errno::Errno;
use serde_json::{Value, json};

use super::{Report, apart, at, call, end_of, outcome, room};

/// Largest number that a process can have.
const PIDS: usize = 4 << 20;

/// Everything that takes the number of a process; `pids` are `NAME=NUMBER`, as the launcher counts.
pub fn others(pids: &[&str]) -> Report {
    let mut report = Report::new();
    // SAFETY: plain system call.
    report.insert("parent".into(), json!(unsafe { libc::getppid() }));
    let everybody = call(libc::SYS_kill, [-1isize as usize, 0]);
    report.insert("kill everybody".into(), outcome(everybody));
    let own = std::process::id() as usize;
    let numbers = (1..=PIDS).filter(|pid| *pid != own);
    let seen = numbers.filter(|pid| call(libc::SYS_kill, [*pid, 0]) != Err(Errno::ESRCH));
    report.insert("others seen".into(), json!(seen.count()));
    for one in pids {
        let Some((name, pid)) = one.split_once('=') else {
            continue;
        };
        let pid: usize = pid.parse().unwrap_or(usize::MAX);
        let mut byte = [0u8];
        let local = [room(&mut byte), 1];
        let remote = [0x40_0000, 1];
        let vectors = [pid, at(&local), 1, at(&remote), 1, 0];
        let limit = [64u64; 2];
        let attach = libc::PTRACE_ATTACH as usize;
        let cpus = [1usize];
        for (call_name, number, arguments) in [
            ("kill", libc::SYS_kill, [pid, 0, 0, 0, 0, 0]),
            ("tgkill", libc::SYS_tgkill, [pid, pid, 0, 0, 0, 0]),
            ("ptrace", libc::SYS_ptrace, [attach, pid, 0, 0, 0, 0]),
            ("process_vm_readv", libc::SYS_process_vm_readv, vectors),
            ("process_vm_writev", libc::SYS_process_vm_writev, vectors),
            ("pidfd_open", libc::SYS_pidfd_open, [pid, 0, 0, 0, 0, 0]),
            (
                "prlimit",
                libc::SYS_prlimit64,
                [pid, 7, at(&limit), 0, 0, 0],
            ),
            ("kcmp", libc::SYS_kcmp, [own, pid, 0, 0, 0, 0]),
            ("setpriority", libc::SYS_setpriority, [0, pid, 5, 0, 0, 0]),
            (
                "sched_setaffinity",
                libc::SYS_sched_setaffinity,
                [pid, 8, at(&cpus), 0, 0, 0],
            ),
        ] {
            let result = call(number, arguments);
            report.insert(format!("{call_name} {name}"), outcome(result));
        }
    }
    report
}

/// Everything that makes or enters a namespace, and children that are none of its own.
pub fn namespaces() -> Report {
    let mut report = Report::new();
    for (name, flag) in [
        ("user", libc::CLONE_NEWUSER),
        ("mnt", libc::CLONE_NEWNS),
        ("net", libc::CLONE_NEWNET),
        ("pid", libc::CLONE_NEWPID),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ] {
        let flag = flag as usize;
        let made = apart(|| call(libc::SYS_unshare, [flag]));
        report.insert(format!("unshare {name}"), made);
        report.insert(format!("clone {name}"), clone(flag));
    }
    report.insert("clone parent".into(), clone(libc::CLONE_PARENT as usize));
    report.insert("clone3".into(), clone3());
    report
}

fn clone(flags: usize) -> Value {
    let arguments = [flags | libc::SIGCHLD as usize, 0, 0, 0, 0];
    born(call(libc::SYS_clone, arguments))
}

fn clone3() -> Value {
    // SAFETY: all-zero is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_NEWUSER as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    let size = size_of::<libc::clone_args>();
    born(call(libc::SYS_clone3, [at(&arguments), size]))
}

/// A child, if there is one, ends at once.
fn born(child: Result<i64, Errno>) -> Value {
    match child {
        // SAFETY: ends the child.
        Ok(0) => unsafe { libc::_exit(0) },
        Ok(child) => end_of(child as libc::pid_t),
        Err(errno) => outcome::<()>(Err(errno)),
    }
}
