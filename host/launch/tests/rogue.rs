//! A VMM that its guest has taken over, inside the walls that the launcher makes, before it gives up anything itself.
//!
//! It is started by the real launcher with what a VMM is given, and tries everything; each attempt has the one outcome
//! (or few, where kernels differ) that is allowed. What it tries is in `stand-in/rogue`.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use common::rogue::{expect, with_rogue};
use common::{Launcher, can_run};
use serde_json::json;

/// Descriptors 0 to 3, then what a VMM is given: devices, memory, bitmap, listener, log, kernel.
const DESCRIPTORS: [u32; 11] = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11];

#[test]
fn no_name_and_no_descriptor_leads_to_a_file() {
    const TEST: &str = "no_name_and_no_descriptor_leads_to_a_file";
    if !can_run(TEST) {
        return;
    }
    with_rogue(Launcher::start(), |launcher, rogue, _| {
        let socket = launcher.socket();
        assert!(UnixStream::connect(&socket).is_ok());
        let report = rogue.report(&format!("names {}", socket.display()));
        expect(
            report,
            &[
                ("entries of /", "0"),
                ("open the launcher's socket", "ENOENT"),
                ("open /etc/passwd", "ENOENT"),
                ("open /proc", "ENOENT"),
                ("open /proc/1/mem", "ENOENT"),
                ("open /proc/self/mem", "ENOENT"),
                ("open /proc/self/fd/5", "ENOENT"),
                ("open /proc/self/root", "ENOENT"),
                ("open /dev/kvm", "ENOENT"),
                ("open /dev/mem", "ENOENT"),
                ("open /dev/null", "ENOENT"),
                ("open /sys", "ENOENT"),
                ("open /sys/fs/cgroup", "ENOENT"),
                ("open /run", "ENOENT"),
                ("open /tmp", "ENOENT"),
                ("open /root", "ENOENT"),
                ("open etc/passwd", "ENOENT"),
                ("open ../../../../etc/passwd", "ENOENT"),
                ("create x", "EROFS"),
                ("create a nameless file", "EROFS"),
                ("mkdir x", "EROFS"),
                ("mknod x", "EROFS"),
                ("symlink x", "EROFS"),
                ("chmod /", "EROFS"),
                ("chroot .", "EPERM"),
                ("pivot_root", "EPERM"),
                ("umount /", "EPERM"),
                ("swapon x", "EPERM"),
                ("acct x", "EPERM"),
                ("mount tmpfs", "EPERM"),
                ("mount proc", "EPERM"),
                ("mount sysfs", "EPERM"),
                ("mount cgroup2", "EPERM"),
                ("mount devtmpfs", "EPERM"),
                ("remount / writable", "EPERM"),
                ("fsopen proc", "EPERM"),
            ],
        );
        let lines: Vec<(String, &str)> = DESCRIPTORS
            .iter()
            .flat_map(|fd| {
                [
                    (format!("openat .. {fd}"), "ENOTDIR"),
                    (format!("fchdir {fd}"), "ENOTDIR"),
                    (format!("open_tree {fd}"), "EPERM"),
                    (format!("open_by_handle_at {fd}"), "EPERM"),
                    (format!("linkat {fd}"), "ENOENT|EROFS|EXDEV"),
                    (format!("setns {fd}"), "EPERM"),
                    (format!("fchown {fd}"), "EPERM"),
                    (format!("fchmod {fd}"), "EPERM"),
                    (format!("fsetxattr {fd}"), "EPERM|EACCES|EOPNOTSUPP"),
                ]
            })
            .collect();
        let lines: Vec<_> = lines.iter().map(|(a, b)| (a.as_str(), *b)).collect();
        expect(rogue.report("descriptors"), &lines);
    });
}

#[test]
fn guest_memory_keeps_its_size() {
    if !can_run("guest_memory_keeps_its_size") {
        return;
    }
    with_rogue(Launcher::start(), |_, rogue, _| {
        let lines = [
            ("shrink", "EPERM"),
            ("grow", "EPERM"),
            ("fall over", "EPERM"),
            ("write behind", "EPERM"),
        ];
        expect(rogue.report("memory-file"), &lines);
    });
}

#[test]
fn no_socket_reaches_anybody() {
    if !can_run("no_socket_reaches_anybody") {
        return;
    }
    let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let _udp = UdpSocket::bind(("0.0.0.0", port)).unwrap();
    let name = format!("dwcp-rogue-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
    let _hidden = UnixListener::bind_addr(&abstract_name).unwrap();
    let hosts = host_addresses();
    // All of it is there for who is outside.
    assert!(UnixStream::connect_addr(&abstract_name).is_ok());
    for host in hosts.iter().filter(|host| host.is_ipv4()) {
        assert!(std::net::TcpStream::connect((*host, port)).is_ok());
    }
    with_rogue(Launcher::start(), |launcher, rogue, _| {
        let list: Vec<String> = hosts.iter().map(IpAddr::to_string).collect();
        let socket = launcher.socket();
        let report = rogue.report(&format!(
            "sockets {} {name} {port} {}",
            socket.display(),
            list.join(" ")
        ));
        let mut lines: Vec<(String, &str)> = [
            ("socket AF_NETLINK", "EPERM"),
            ("socket AF_PACKET", "EPERM"),
            ("socket AF_VSOCK", "EPERM"),
            ("socket AF_ALG", "EPERM"),
            ("socket AF_BLUETOOTH", "EPERM"),
            ("socket AF_CAN", "EPERM"),
            ("socket AF_TIPC", "EPERM"),
            ("socket AF_XDP", "EPERM"),
            ("socket raw IP", "EPERM"),
            ("unix launcher", "ENOENT"),
            ("unix abstract", "ECONNREFUSED"),
        ]
        .map(|(attempt, outcome)| (attempt.to_owned(), outcome))
        .to_vec();
        for host in &list {
            // An own IPv6 loopback that is down has no address either.
            lines.push((format!("tcp {host}"), "ENETUNREACH|EADDRNOTAVAIL"));
            lines.push((format!("udp {host}"), "ENETUNREACH|EADDRNOTAVAIL"));
        }
        let lines: Vec<_> = lines.iter().map(|(a, b)| (a.as_str(), *b)).collect();
        expect(report, &lines);
        assert_eq!(rogue.vmm.report["interfaces"], json!(["lo"]));
    });
}

/// Loopback, and the address from which this host would reach others, if it has one.
fn host_addresses() -> Vec<IpAddr> {
    let mut hosts: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    // Nothing is sent.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    if socket.connect("192.0.2.1:9").is_ok() {
        hosts.push(socket.local_addr().unwrap().ip());
    }
    hosts
}

#[test]
fn no_other_process_is_there() {
    if !can_run("no_other_process_is_there") {
        return;
    }
    with_rogue(Launcher::start(), |launcher, rogue, other| {
        let pids = [
            ("launcher", launcher.process.id()),
            ("other", other.pid),
            ("test", std::process::id()),
        ];
        let list = pids.map(|(name, pid)| format!("{name}={pid}")).join(" ");
        let report = rogue.report(&format!("processes {list}"));
        let mut lines = vec![
            ("parent".to_owned(), "0"),
            ("kill everybody".to_owned(), "ESRCH"),
            ("others seen".to_owned(), "0"),
        ];
        for (name, _) in pids {
            for call in [
                "kill",
                "tgkill",
                "ptrace",
                "process_vm_readv",
                "process_vm_writev",
                "prlimit",
                "kcmp",
                "setpriority",
                "sched_setaffinity",
            ] {
                lines.push((format!("{call} {name}"), "ESRCH"));
            }
            // Numbers that no process of the namespace can have.
            lines.push((format!("pidfd_open {name}"), "ESRCH|EINVAL"));
        }
        let lines: Vec<_> = lines.iter().map(|(a, b)| (a.as_str(), *b)).collect();
        expect(report, &lines);
    });
}

#[test]
fn there_is_no_way_to_more_rights() {
    if !can_run("there_is_no_way_to_more_rights") {
        return;
    }
    with_rogue(Launcher::start_after(generously), |_, rogue, _| {
        let mut report = rogue.report("privileges");
        assert!(report.remove("uid").unwrap().as_u64() > Some(1000));
        expect(
            report,
            &[
                ("setuid 0", "EINVAL|EPERM"),
                ("setgid 0", "EINVAL|EPERM"),
                ("setgroups 0", "EPERM"),
                ("capset", "EPERM"),
                ("prctl secure bits", "EPERM"),
                ("prctl ambient", "EPERM"),
                ("prctl new privileges", "EINVAL"),
                ("prctl own memory map", "EPERM"),
                ("prctl outlive", "EPERM"),
                // For itself alone: no other process has its user.
                ("prctl dumpable", "ok"),
                ("raise core", "EPERM"),
                ("raise file", "EPERM"),
                ("raise descriptors", "EPERM"),
                ("raise processes", "EPERM"),
                ("raise locked", "EPERM"),
                ("raise queues", "EPERM"),
                ("raise nice", "EPERM"),
                ("raise real time", "EPERM"),
                ("mlock", "EPERM"),
                ("real time", "EPERM"),
                ("nice", "EACCES"),
                ("disk first", "EPERM"),
                ("reboot", "EPERM"),
                ("kexec_load", "EPERM|ENOSYS"),
                ("init_module", "EPERM|ENOSYS"),
                ("clock_settime", "EPERM"),
                ("adjtimex", "EPERM"),
                ("sethostname", "EPERM"),
                ("iopl", "EPERM|ENOSYS"),
                ("ioperm", "EPERM|ENOSYS"),
                ("kernel log", "EPERM"),
                ("vhangup", "EPERM"),
                ("bpf", "EPERM"),
                ("perf_event_open", "EPERM"),
                ("io_uring_setup", "EPERM"),
                ("userfaultfd", "EPERM"),
                ("mq_open", "EMFILE|ENOSYS"),
                ("request_key", "EPERM"),
                ("add_key", "EPERM"),
                ("keyctl describe", "EPERM"),
                ("keyctl search", "EPERM"),
                ("32-bit call", "signal 31"),
            ],
        );
    });
}

#[test]
fn no_namespace_can_be_made_or_entered() {
    if !can_run("no_namespace_can_be_made_or_entered") {
        return;
    }
    with_rogue(Launcher::start(), |_, rogue, _| {
        expect(
            rogue.report("namespaces"),
            &[
                ("unshare user", "EPERM"),
                ("unshare mnt", "EPERM"),
                ("unshare net", "EPERM"),
                ("unshare pid", "EPERM"),
                ("unshare ipc", "EPERM"),
                ("unshare uts", "EPERM"),
                ("unshare cgroup", "EPERM"),
                ("clone user", "EPERM"),
                ("clone mnt", "EPERM"),
                ("clone net", "EPERM"),
                ("clone pid", "EPERM"),
                ("clone ipc", "EPERM"),
                ("clone uts", "EPERM"),
                ("clone cgroup", "EPERM"),
                // A child that were the launcher's.
                ("clone parent", "EINVAL"),
                ("clone3", "ENOSYS"),
            ],
        );
    });
}

/// A launcher whose starter has a ring of keys and generous limits.
fn generously() -> std::io::Result<()> {
    for resource in [
        libc::RLIMIT_RTPRIO,
        libc::RLIMIT_NICE,
        libc::RLIMIT_MEMLOCK,
        libc::RLIMIT_MSGQUEUE,
    ] {
        let limit = libc::rlimit {
            rlim_cur: 1 << 20,
            rlim_max: 1 << 20,
        };
        // Without the right to it, what is there has to do.
        // SAFETY: plain system call.
        unsafe { libc::setrlimit(resource, &limit) };
    }
    let (kind, name, text) = (c"user".as_ptr(), c"dwcp-rogue".as_ptr(), c"secret".as_ptr());
    // SAFETY: a fresh ring (operation 1) without a name, and a key in it (ring -3); kernels without keys refuse.
    unsafe {
        libc::syscall(libc::SYS_keyctl, 1, 0);
        libc::syscall(libc::SYS_add_key, kind, name, text, 6, -3);
    }
    Ok(())
}
