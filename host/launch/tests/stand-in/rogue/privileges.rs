//! What takes a right that no VMM has: other users, capabilities, time, priority, limits, the kernel's own doors.

use nix::errno::Errno;
use serde_json::json;

use super::{Report, apart, at, call, outcome, room};

/// Everything.
pub fn all() -> Report {
    let mut report = Report::new();
    users(&mut report);
    settings(&mut report);
    limits(&mut report);
    machine(&mut report);
    doors(&mut report);
    keys(&mut report);
    report.insert("32-bit call".into(), apart(old_call));
    report
}

type Attempt<'a, const N: usize> = (&'a str, libc::c_long, [usize; N]);

/// Each in a child, which it would change.
fn attempt<const N: usize>(report: &mut Report, attempts: &[Attempt<'_, N>]) {
    for (name, number, arguments) in attempts {
        report.insert((*name).into(), apart(|| call(*number, *arguments)));
    }
}

fn users(report: &mut Report) {
    let header = [0x2008_0522u32, 0];
    let all = [u32::MAX; 6];
    let groups = [0u32];
    attempt(
        report,
        &[
            ("setuid 0", libc::SYS_setuid, [0, 0]),
            ("setgid 0", libc::SYS_setgid, [0, 0]),
            ("setgroups 0", libc::SYS_setgroups, [1, at(&groups)]),
            ("capset", libc::SYS_capset, [at(&header), at(&all)]),
        ],
    );
}

fn settings(report: &mut Report) {
    let raise = libc::PR_CAP_AMBIENT_RAISE as usize;
    for (name, option, a, b) in [
        ("secure bits", libc::PR_SET_SECUREBITS, 0x2f, 0),
        ("ambient", libc::PR_CAP_AMBIENT, raise, 21),
        ("new privileges", libc::PR_SET_NO_NEW_PRIVS, 0, 0),
        ("own memory map", libc::PR_SET_MM, 8, 4096),
    ] {
        let result = apart(|| call(libc::SYS_prctl, [option as usize, a, b, 0, 0]));
        report.insert(format!("prctl {name}"), result);
    }
    // Not apart: so that it would outlive the launcher.
    let outlive = call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, 0]);
    report.insert("prctl outlive".into(), outcome(outlive));
    let signal = call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1]);
    report.insert("prctl dumpable".into(), outcome(signal));
}

fn limits(report: &mut Report) {
    for (name, resource) in [
        ("core", libc::RLIMIT_CORE),
        ("file", libc::RLIMIT_FSIZE),
        ("descriptors", libc::RLIMIT_NOFILE),
        ("processes", libc::RLIMIT_NPROC),
        ("locked", libc::RLIMIT_MEMLOCK),
        ("queues", libc::RLIMIT_MSGQUEUE),
        ("nice", libc::RLIMIT_NICE),
        ("real time", libc::RLIMIT_RTPRIO),
    ] {
        let mut limit = [0u64; 2];
        let read = call(
            libc::SYS_prlimit64,
            [0, resource as usize, 0, room(&mut limit)],
        );
        let more = [limit[1].saturating_add(1); 2];
        let raised = apart(|| {
            read.and_then(|_| call(libc::SYS_prlimit64, [0, resource as usize, at(&more), 0]))
        });
        report.insert(format!("raise {name}"), raised);
    }
    let page = Box::new([0u8; 4096]);
    let first = 1i32;
    // The class for real time, in the upper bits.
    let disk = 1 << 13;
    attempt(
        report,
        &[
            ("mlock", libc::SYS_mlock, [at(page.as_ref()), 4096, 0]),
            (
                "real time",
                libc::SYS_sched_setscheduler,
                [0, libc::SCHED_FIFO as usize, at(&first)],
            ),
            ("nice", libc::SYS_setpriority, [0, 0, -20isize as usize]),
            ("disk first", libc::SYS_ioprio_set, [1, 0, disk]),
        ],
    );
}

fn machine(report: &mut Report) {
    let mut now = [0i64; 2];
    let _ = call(libc::SYS_clock_gettime, [0, room(&mut now)]);
    let mut timex = [0u32; 64];
    // A single shot, of nothing.
    timex[0] = 0x8001;
    let cad_off = [0xfee1_dead, 0x2812_1969, 0, 0];
    let nothing = at(c"");
    attempt(
        report,
        &[
            ("reboot", libc::SYS_reboot, cad_off),
            ("kexec_load", libc::SYS_kexec_load, [0, 0, 0, 0]),
            (
                "init_module",
                libc::SYS_init_module,
                [nothing, 0, nothing, 0],
            ),
            (
                "clock_settime",
                libc::SYS_clock_settime,
                [0, at(&now), 0, 0],
            ),
            ("adjtimex", libc::SYS_adjtimex, [at(&timex), 0, 0, 0]),
            ("sethostname", libc::SYS_sethostname, [at(c"dwcp"), 4, 0, 0]),
            ("iopl", libc::SYS_iopl, [3, 0, 0, 0]),
            ("ioperm", libc::SYS_ioperm, [0x80, 1, 1, 0]),
            ("kernel log", libc::SYS_syslog, [10, 0, 0, 0]),
            ("vhangup", libc::SYS_vhangup, [0, 0, 0, 0]),
        ],
    );
}

/// What lets much into the kernel, and what host's settings often leave open.
fn doors(report: &mut Report) {
    let map = [2u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut event = [0u32; 32];
    // Software, of this size, the user's part only.
    (event[0], event[1], event[10]) = (1, 128, 0x60);
    let mut ring = [0u8; 120];
    let every = -1isize as usize;
    attempt(
        report,
        &[
            ("bpf", libc::SYS_bpf, [0, at(&map), 64, 0, 0]),
            (
                "perf_event_open",
                libc::SYS_perf_event_open,
                [at(&event), 0, every, every, 0],
            ),
            (
                "io_uring_setup",
                libc::SYS_io_uring_setup,
                [1, room(&mut ring), 0, 0, 0],
            ),
            // The user's part only.
            ("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0, 0, 0]),
            (
                "mq_open",
                libc::SYS_mq_open,
                [
                    at(c"x"),
                    (libc::O_CREAT | libc::O_RDWR) as usize,
                    0o600,
                    0,
                    0,
                ],
            ),
        ],
    );
}

/// Rings of keys are inherited: what the launcher's user keeps there is not for a VMM, nor a way to another one.
fn keys(report: &mut Report) {
    let (kind, name, session) = (at(c"user"), at(c"dwcp-rogue"), -3isize as usize);
    let add = [kind, at(c"dwcp-channel"), at(c"x"), 1, session];
    attempt(
        report,
        &[
            ("request_key", libc::SYS_request_key, [kind, name, 0, 0, 0]),
            ("add_key", libc::SYS_add_key, add),
            // Describe, search.
            ("keyctl describe", libc::SYS_keyctl, [6, session, 0, 0, 0]),
            (
                "keyctl search",
                libc::SYS_keyctl,
                [10, session, kind, name, 0],
            ),
        ],
    );
    report.insert("uid".into(), json!(nix::unistd::getuid().as_raw()));
}

/// `getpid`, as a 32-bit program asks for it.
fn old_call() -> Result<(), Errno> {
    let mut answer: i64 = 20;
    // SAFETY: the kernel changes nothing but the answer's register, and r8 to r11.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inout("rax") answer,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    if answer < 0 {
        return Err(Errno::from_raw(-answer as i32));
    }
    Ok(())
}
