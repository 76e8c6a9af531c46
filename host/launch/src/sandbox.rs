//! The walls around a child: namespaces, an empty root, a user without power, limits, fewer system calls; then its
//! program.
//!
//! The launcher has one thread, so after `clone3` the child may run ordinary code; still it only makes system calls
//! and reports the one that failed. It waits for the launcher's word before it begins (its user mapping is set from
//! outside), and the same socket tells it whether the launcher is still there.

use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use dwcp_jail::{Handover, OuterFilter};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

/// Descriptors from here on are out of the way of those that a child is given.
pub const HIGH_FD: RawFd = 96;
/// Most threads of a child.
pub const TASKS_MAX: u64 = 128;

/// Handlers become the default ones; see clone(2). Both bits lie above the `int` that the libc crate gives them.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Born in the group that `cgroup` names.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

const DESCRIPTORS_OPEN_MAX: u64 = 256;
/// Children go before the launcher, `dwcpd` and the machine's services when memory is short (of 1000).
const OOM_SCORE: &str = "300";
/// A child has its walls within milliseconds; one that takes this long is broken.
const START_TIMEOUT_MS: u16 = 10_000;

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// `clone3` was refused.
    #[error("The kernel refused to make a process in its own namespaces")]
    Clone(#[source] Errno),
    /// What only the launcher can set from outside failed.
    #[error("The new process could not be prepared from outside")]
    Prepare(#[source] std::io::Error),
    /// A step of the child failed.
    #[error("The new process failed to {}", .step.describe())]
    Child {
        /// Which step.
        step: Step,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The child did not reach its program in time.
    #[error("The new process did not start within {} s", START_TIMEOUT_MS / 1000)]
    Timeout,
}

/// What a child does between its making and its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Move into its control groups.
    Group,
    /// Wait for the launcher.
    Wait,
    /// Become its own user.
    User,
    /// Make an empty root.
    Root,
    /// Give up capabilities.
    Capabilities,
    /// Set limits.
    Limits,
    /// Give up system calls.
    Calls,
    /// Put descriptors in place.
    Descriptors,
    /// Execute its program.
    Execute,
}

impl Step {
    const ALL: [Step; 9] = [
        Step::Group,
        Step::Wait,
        Step::User,
        Step::Root,
        Step::Capabilities,
        Step::Limits,
        Step::Calls,
        Step::Descriptors,
        Step::Execute,
    ];

    fn describe(self) -> &'static str {
        match self {
            Step::Group => "move into its control groups",
            Step::Wait => "wait for the launcher",
            Step::User => "become its own user",
            Step::Root => "make itself an empty root",
            Step::Capabilities => "give up its capabilities",
            Step::Limits => "set its limits",
            Step::Calls => "give up system calls (the kernel must have CONFIG_SECCOMP_FILTER)",
            Step::Descriptors => "put its descriptors in place",
            Step::Execute => "execute its program (it must be linked statically)",
        }
    }
}

/// What is the same for every child.
#[derive(Debug)]
pub struct Sandbox {
    /// `/dev/null`, at [`HIGH_FD`] or above.
    null: OwnedFd,
    filter: OuterFilter,
    /// Whether children are put into user namespaces.
    user_namespaces: bool,
    /// Whether children share the launcher's standard error.
    verbose: bool,
}

/// What is particular to one child.
#[derive(Debug)]
pub struct Order<'a> {
    /// Its program, opened, at [`HIGH_FD`] or above.
    pub program: BorrowedFd<'a>,
    /// `argv[0]`.
    pub name: &'a CStr,
    /// Its descriptors.
    pub handover: &'a Handover,
    /// Its user and group.
    pub uid: u32,
    /// A v2 control group to be born in.
    pub group: Option<BorrowedFd<'a>>,
    /// v1 control groups to move into, as their lists of threads.
    pub old_groups: &'a [OwnedFd],
    /// Longest file that it may write.
    pub file_bytes: u64,
}

/// A child that runs its program.
#[derive(Debug)]
pub struct Process {
    /// Its number in the launcher's process namespace.
    pub pid: u32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

impl Sandbox {
    /// Looks at what this kernel offers.
    pub fn new(verbose: bool) -> std::io::Result<Self> {
        let null = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        let allowed = fs::read_to_string("/proc/sys/user/max_user_namespaces");
        Ok(Self {
            null: raise(null.into())?,
            filter: OuterFilter::new().map_err(std::io::Error::other)?,
            user_namespaces: allowed.is_ok_and(|text| text.trim() != "0"),
            verbose,
        })
    }

    /// Whether children are put into user namespaces.
    pub fn has_user_namespaces(&self) -> bool {
        self.user_namespaces
    }

    /// Starts a child; returns when its program runs, or with the step that failed and no process left.
    pub fn spawn(&self, order: &Order<'_>) -> Result<Process, SpawnError> {
        // Everything that allocates is done here, so that the child does not.
        let count = std::ffi::CString::new(order.handover.argument()).unwrap_or_default();
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|errno| SpawnError::Prepare(errno.into()))?;
        let theirs = raise(theirs).map_err(SpawnError::Prepare)?;
        let mut pidfd: RawFd = -1;
        let mut flags = libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWPID
            | libc::CLONE_PIDFD;
        if self.user_namespaces {
            flags |= libc::CLONE_NEWUSER;
        }
        // SAFETY: all-zero is a valid clone_args; no stack means the caller's, copied.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = flags as u64 | CLONE_CLEAR_SIGHAND;
        arguments.pidfd = &raw mut pidfd as u64;
        arguments.exit_signal = libc::SIGCHLD as u64;
        if let Some(group) = order.group {
            arguments.flags |= CLONE_INTO_CGROUP;
            arguments.cgroup = group.as_raw_fd() as u64;
        }
        // SAFETY: without CLONE_VM this is a fork, and this process has one thread: the child has a whole copy.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut arguments,
                size_of::<libc::clone_args>(),
            )
        };
        if pid == 0 {
            drop(ours);
            self.run_child(order, &count, theirs.as_raw_fd());
        }
        let pid = Errno::result(pid).map_err(SpawnError::Clone)? as u32;
        // SAFETY: the kernel wrote a fresh descriptor, which nothing else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        drop(theirs);
        let process = Process { pid, pidfd };
        let started = self
            .prepare_outside(&process, order)
            .map_err(SpawnError::Prepare)
            .and_then(|()| wait_for_program(&ours));
        match started {
            Ok(()) => Ok(process),
            Err(error) => {
                process.kill();
                let _ = process.reap();
                Err(error)
            }
        }
    }

    /// Sets what only the launcher can set: user mapping, rank when memory is short.
    fn prepare_outside(&self, process: &Process, order: &Order<'_>) -> std::io::Result<()> {
        let pid = process.pid;
        if self.user_namespaces {
            let map = format!("{0} {0} 1", order.uid);
            fs::write(format!("/proc/{pid}/uid_map"), &map)?;
            fs::write(format!("/proc/{pid}/gid_map"), &map)?;
        }
        fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE)
    }

    fn run_child(&self, order: &Order<'_>, count: &CStr, launcher: RawFd) -> ! {
        let (step, errno) = match self.become_child(order, count, launcher) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        let mut report = [step as u8, 0, 0, 0, 0];
        report[1..].copy_from_slice(&(errno as i32).to_le_bytes());
        let _ = send(launcher, &report, MsgFlags::MSG_NOSIGNAL);
        // SAFETY: ends the copied process without running what the launcher registered for its own end.
        unsafe { libc::_exit(1) }
    }

    fn become_child(
        &self,
        order: &Order<'_>,
        count: &CStr,
        launcher: RawFd,
    ) -> Result<std::convert::Infallible, (Step, Errno)> {
        let at = |step| move |errno| (step, errno);
        join(order.old_groups).map_err(at(Step::Group))?;
        wait_for_word(launcher).map_err(at(Step::Wait))?;
        default_signals().map_err(at(Step::Wait))?;
        // Inside a user namespace a file system is made by a user whom the namespace knows; outside one, by root.
        if self.user_namespaces {
            change_user(order.uid).map_err(at(Step::User))?;
        }
        empty_root().map_err(at(Step::Root))?;
        drop_bounding_set().map_err(at(Step::Capabilities))?;
        if !self.user_namespaces {
            change_user(order.uid).map_err(at(Step::User))?;
        }
        drop_capabilities().map_err(at(Step::Capabilities))?;
        set_limits(order.file_bytes).map_err(at(Step::Limits))?;
        die_with(launcher).map_err(at(Step::Limits))?;
        self.filter.install().map_err(at(Step::Calls))?;
        self.place(order).map_err(at(Step::Descriptors))?;
        execute(order, count).map_err(at(Step::Execute))
    }

    fn place(&self, order: &Order<'_>) -> Result<(), Errno> {
        let standard = if self.verbose { 0..2 } else { 0..3 };
        for fd in standard {
            // SAFETY: plain system call; the child's standard descriptors are its own copies.
            Errno::result(unsafe { libc::dup2(self.null.as_raw_fd(), fd) })?;
        }
        order.handover.place()
    }
}

impl Process {
    /// Kills it. Harmless when it has ended: the descriptor never means another process.
    pub fn kill(&self) {
        // SAFETY: plain system call on an open descriptor.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
    }

    /// Lets it write files of so many bytes. Its id is its own until it is waited for.
    pub fn lengthen(&self, file_bytes: u64) -> Result<(), Errno> {
        let limit = libc::rlimit64 {
            rlim_cur: file_bytes,
            rlim_max: file_bytes,
        };
        let before = std::ptr::null_mut();
        let pid = self.pid as libc::pid_t;
        // SAFETY: plain system call; the new limit lives as long as it, and nothing is written back.
        let set = unsafe { libc::prlimit64(pid, libc::RLIMIT_FSIZE, &limit, before) };
        Errno::result(set).map(drop)
    }

    /// Waits for its end and takes its status. At once when `pidfd` is readable.
    pub fn reap(&self) -> Result<nix::sys::wait::WaitStatus, Errno> {
        use std::os::fd::AsFd;
        loop {
            match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

/// Moves a descriptor to [`HIGH_FD`] or above.
pub fn raise(fd: OwnedFd) -> std::io::Result<OwnedFd> {
    // SAFETY: plain system call on an open descriptor.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH_FD) };
    let high = Errno::result(high)?;
    // SAFETY: the kernel has just made it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(high) })
}

/// Gives the child the word, and learns how it went: its socket closes when its program is executed.
fn wait_for_program(child: &OwnedFd) -> Result<(), SpawnError> {
    use std::os::fd::AsFd;
    let prepare = |errno: Errno| SpawnError::Prepare(errno.into());
    send(child.as_raw_fd(), b"g", MsgFlags::MSG_NOSIGNAL).map_err(prepare)?;
    let mut waiting = [PollFd::new(child.as_fd(), PollFlags::POLLIN)];
    if poll(&mut waiting, PollTimeout::from(START_TIMEOUT_MS)).map_err(prepare)? == 0 {
        return Err(SpawnError::Timeout);
    }
    let mut report = [0u8; 5];
    match recv(child.as_raw_fd(), &mut report, MsgFlags::empty()) {
        Ok(0) => Ok(()),
        Ok(_) => {
            let [step, errno @ ..] = report;
            let step = Step::ALL.into_iter().find(|known| *known as u8 == step);
            Err(SpawnError::Child {
                step: step.unwrap_or(Step::Wait),
                source: Errno::from_raw(i32::from_le_bytes(errno)),
            })
        }
        Err(errno) => Err(prepare(errno)),
    }
}

// What follows runs in the child only.

/// Whoever opened the lists was allowed to move it.
fn join(groups: &[OwnedFd]) -> Result<(), Errno> {
    groups
        .iter()
        .try_for_each(|group| nix::unistd::write(group, b"0").map(drop))
}

fn wait_for_word(launcher: RawFd) -> Result<(), Errno> {
    let mut word = [0u8; 1];
    match recv(launcher, &mut word, MsgFlags::empty())? {
        0 => Err(Errno::EPIPE),
        _ => Ok(()),
    }
}

/// The launcher blocks some signals and ignores others; a program must start as if nobody had.
fn default_signals() -> Result<(), Errno> {
    for signal in [libc::SIGPIPE, libc::SIGHUP] {
        // SAFETY: the default action runs no code of ours.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(Errno::last());
        }
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()
}

fn change_user(uid: u32) -> Result<(), Errno> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

/// Replaces the root by an empty directory that cannot be written to.
fn empty_root() -> Result<(), Errno> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::unistd::{chdir, chroot, pivot_root, sethostname};
    const NONE: Option<&str> = None;
    sethostname("dwcp")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Any directory does, in this namespace of our own; /proc is there wherever a launcher can work.
    mount(
        Some("dwcp"),
        "/proc",
        Some("tmpfs"),
        flags,
        Some("size=4k,nr_inodes=1,mode=555"),
    )?;
    chdir("/proc")?;
    // The new root onto the old one, then the old one away: pivot_root(2), "pivot_root(".", ".")".
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // The kernel's first root, an initramfs, cannot be replaced but covered, for good: no descriptor leads below.
        Err(Errno::EINVAL) => {
            mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
            chroot(".")?;
        }
        Err(errno) => return Err(errno),
    }
    chdir("/")
}

fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..64 {
        // SAFETY: plain system call.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match Errno::result(result) {
            // The kernel has no more.
            Err(Errno::EINVAL) => break,
            other => other?,
        };
    }
    Ok(())
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`, see capset(2).
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Of this process and of whatever it executes, for good.
pub fn drop_capabilities() -> Result<(), Errno> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let none = [CapabilityData {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    }; 2];
    // SAFETY: both structures are as the kernel defines them for this version.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &header, &none) })?;
    // SAFETY: plain system call.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

fn set_limits(file_bytes: u64) -> Result<(), Errno> {
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::stat::{Mode, umask};
    umask(Mode::from_bits_truncate(0o077));
    nix::unistd::setsid()?;
    for (resource, most) in [
        // Not zero: a program that takes dumps by a pipe, with the guest's memory in them, is started all the same.
        (Resource::RLIMIT_CORE, 1),
        (Resource::RLIMIT_FSIZE, file_bytes),
        (Resource::RLIMIT_NPROC, TASKS_MAX),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS_OPEN_MAX),
        // Whoever started the launcher may have been given more of these.
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_NICE, 0),
        (Resource::RLIMIT_RTPRIO, 0),
    ] {
        setrlimit(resource, most, most)?;
    }
    Ok(())
}

/// Dies when the launcher does. A change of user undoes this, so it comes after; so the launcher may be gone already.
fn die_with(launcher: RawFd) -> Result<(), Errno> {
    // SAFETY: plain system call.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    let mut byte = [0u8; 1];
    match recv(launcher, &mut byte, MsgFlags::MSG_DONTWAIT) {
        Err(Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
        Ok(_) => Err(Errno::EPIPE),
    }
}

fn execute(order: &Order<'_>, count: &CStr) -> Result<std::convert::Infallible, Errno> {
    let arguments = [order.name.as_ptr(), count.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both arrays end with null and outlive the call, which returns only on failure.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            order.program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(Errno::last())
}

/// Opens a program for children to execute.
pub fn open_program(path: &std::path::Path) -> std::io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = OFlag::O_CLOEXEC.bits();
    let file = fs::File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    raise(file.into())
}
