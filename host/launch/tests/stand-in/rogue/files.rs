//! Names and directories: what can be opened, made and mounted, with and without the help of descriptors.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use serde_json::json;

use super::{Report, apart, at, call, outcome};

const HERE: usize = libc::AT_FDCWD as usize;
const READ: usize = libc::O_RDONLY as usize;
/// `struct file_handle` of an ext4 directory: 8 bytes of type 1 (inode, generation), the root's inode 2.
const ROOT_HANDLE: [u32; 4] = [8, 1, 2, 0];
const NAMES: [&str; 16] = [
    "/etc/passwd",
    "/proc",
    "/proc/1/mem",
    "/proc/self/mem",
    "/proc/self/fd/5",
    "/proc/self/root",
    "/dev/kvm",
    "/dev/mem",
    "/dev/null",
    "/sys",
    "/sys/fs/cgroup",
    "/run",
    "/tmp",
    "/root",
    "etc/passwd",
    "../../../../etc/passwd",
];

/// Everything that begins with a name.
pub fn by_name(launcher: &str) -> Report {
    let mut report = Report::new();
    let entries = std::fs::read_dir("/").map(|entries| entries.count()).ok();
    report.insert("entries of /".into(), json!(entries));
    let launcher = CString::new(launcher).unwrap_or_default();
    report.insert("open the launcher's socket".into(), open(&launcher, READ));
    for name in NAMES {
        let path = CString::new(name).unwrap_or_default();
        report.insert(format!("open {name}"), open(&path, READ));
    }
    let create = (libc::O_CREAT | libc::O_RDWR) as usize;
    let nameless = (libc::O_TMPFILE | libc::O_RDWR) as usize;
    let kvm = libc::makedev(10, 232) as usize;
    let (x, root) = (at(c"x"), at(c"/"));
    let (device, folder) = (libc::S_IFCHR as usize | 0o666, 0o700);
    let mut note = |name: &str, value| report.insert(name.to_owned(), value);
    note("create x", open(c"x", create));
    note("create a nameless file", open(c"/", nameless));
    for (name, number, arguments) in [
        ("mkdir x", libc::SYS_mkdirat, [HERE, x, folder, 0, 0]),
        ("mknod x", libc::SYS_mknodat, [HERE, x, device, kvm, 0]),
        ("symlink x", libc::SYS_symlinkat, [root, HERE, x, 0, 0]),
        ("chmod /", libc::SYS_fchmodat, [HERE, root, 0o777, 0, 0]),
        ("chroot .", libc::SYS_chroot, [at(c"."), 0, 0, 0, 0]),
        ("pivot_root", libc::SYS_pivot_root, [root, root, 0, 0, 0]),
        ("umount /", libc::SYS_umount2, [root, 2, 0, 0, 0]),
        ("swapon x", libc::SYS_swapon, [x, 0, 0, 0, 0]),
        ("acct x", libc::SYS_acct, [x, 0, 0, 0, 0]),
    ] {
        note(name, apart(|| call(number, arguments)));
    }
    let remount = (libc::MS_REMOUNT | libc::MS_BIND) as usize;
    for (name, kind, flags) in [
        ("mount tmpfs", c"tmpfs", 0),
        ("mount proc", c"proc", 0),
        ("mount sysfs", c"sysfs", 0),
        ("mount cgroup2", c"cgroup2", 0),
        ("mount devtmpfs", c"devtmpfs", 0),
        ("remount / writable", c"tmpfs", remount),
    ] {
        let arguments = [at(kind), root, at(kind), flags, 0];
        note(name, apart(|| call(libc::SYS_mount, arguments)));
    }
    let opened = call(libc::SYS_fsopen, [at(c"proc"), 0]);
    note("fsopen proc", outcome(opened));
    report
}

/// Everything that begins with a descriptor, for each that was inherited.
pub fn by_descriptor(descriptors: &[OwnedFd]) -> Report {
    let own = nix::unistd::getuid().as_raw() as usize;
    let mut report = Report::new();
    let numbers = descriptors.iter().map(AsRawFd::as_raw_fd);
    // 0 to 2 and the pipe for last words too.
    for fd in (0..4).chain(numbers).map(|fd| fd as usize) {
        let empty = libc::AT_EMPTY_PATH as usize;
        let clone = libc::OPEN_TREE_CLONE as usize | empty;
        let handle = at(&ROOT_HANDLE);
        let (up, nothing) = (at(c".."), at(c""));
        let name = at(c"user.rogue");
        for (name, number, arguments) in [
            ("openat ..", libc::SYS_openat, [fd, up, READ, 0, 0]),
            ("fchdir", libc::SYS_fchdir, [fd, 0, 0, 0, 0]),
            ("open_tree", libc::SYS_open_tree, [fd, nothing, clone, 0, 0]),
            (
                "open_by_handle_at",
                libc::SYS_open_by_handle_at,
                [fd, handle, READ, 0, 0],
            ),
            (
                "linkat",
                libc::SYS_linkat,
                [fd, nothing, HERE, at(c"x"), empty],
            ),
            ("setns", libc::SYS_setns, [fd, 0, 0, 0, 0]),
            ("fchown", libc::SYS_fchown, [fd, own, own, 0, 0]),
            ("fchmod", libc::SYS_fchmod, [fd, 0o777, 0, 0, 0]),
            ("fsetxattr", libc::SYS_fsetxattr, [fd, name, nothing, 0, 0]),
        ] {
            report.insert(format!("{name} {fd}"), apart(|| call(number, arguments)));
        }
    }
    report
}

/// The size of the guest's memory, which others map.
pub fn guest_memory(memory: &OwnedFd) -> Report {
    let fd = memory.as_raw_fd() as usize;
    let mut report = Report::new();
    for (name, number, arguments) in [
        ("shrink", libc::SYS_ftruncate, [fd, 4096, 0, 0]),
        ("grow", libc::SYS_ftruncate, [fd, 1 << 25, 0, 0]),
        ("fall over", libc::SYS_fallocate, [fd, 0, 1 << 25, 4096]),
        (
            "write behind",
            libc::SYS_pwrite64,
            [fd, at("x"), 1, 1 << 25],
        ),
    ] {
        report.insert(name.into(), outcome(call(number, arguments)));
    }
    report
}

fn open(path: &std::ffi::CStr, flags: usize) -> serde_json::Value {
    outcome(call(libc::SYS_openat, [HERE, at(path), flags, 0o600]))
}
