//! What no confined process of any kind needs and the launcher's other walls do not hold, taken away before its program
//! begins.
//!
//! Each program gives up far more by itself ([`confine`](crate::confine)), but later, and only if it is still itself.
//! A call that is refused here fails; once the program has confined itself, it ends the process instead.
//!
//! What is refused, and why no other wall does it:
//! - sockets but those of Unix and IP: vsock has no namespace and reaches the machine below and other guests; the others
//!   are only ways into the kernel;
//! - new user namespaces: a process has every capability in one of its own, so all of the kernel behind them opens;
//! - rings of keys: they are inherited, and a user's are not bound to a process;
//! - `io_uring`: makes sockets and opens files where no filter sees it;
//! - `bpf`, `perf_event_open`, `userfaultfd`, the kernel's log: for anybody or nobody, as the host is set;
//! - to outlive the launcher;
//! - calls as a 32-bit (which end it) or x32 program makes them: filters see other numbers.

use std::collections::BTreeMap;

use nix::errno::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, sock_filter,
};

use crate::ConfineError;
use crate::confine::clone3_is_unknown;

/// Calls that are refused whatever their arguments.
const REFUSED: [libc::c_long; 10] = [
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_syslog,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];
/// Families of sockets that a network namespace and an empty root hold.
const FAMILIES: [libc::c_int; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];
/// What the numbers of x32's calls have, see `arch/x86/include/uapi/asm/unistd.h`.
const X32_BIT: u32 = 0x4000_0000;

/// The filter, ready to be installed.
#[derive(Debug)]
pub struct OuterFilter {
    programs: [BpfProgram; 2],
}

impl OuterFilter {
    /// Compiles it.
    pub fn new() -> Result<Self, ConfineError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            REFUSED.map(|call| (call, Vec::new())).into();
        let other_family = FAMILIES.map(|family| is_not(family as u64));
        let other_family = other_family.into_iter().collect::<Result<_, _>>()?;
        rules.insert(libc::SYS_socket, vec![SeccompRule::new(other_family)?]);
        let user = libc::CLONE_NEWUSER as u64;
        let new_user = has(SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(user), user)?;
        rules.insert(libc::SYS_clone, vec![new_user]);
        let outlive = libc::PR_SET_PDEATHSIG as u64;
        let outlive = has(SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, outlive)?;
        rules.insert(libc::SYS_prctl, vec![outlive]);
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EPERM as u32),
            TargetArch::x86_64,
        )?;
        let rest: BpfProgram = filter.try_into()?;
        let mut program = x32_is_unknown().to_vec();
        program.extend(rest);
        // `clone3` hides its flags from a filter.
        Ok(Self {
            programs: [program, clone3_is_unknown()?],
        })
    }

    /// Binds this thread, and what it becomes. For the new process, which has one thread and no new privileges.
    ///
    /// Async-signal-safe.
    pub fn install(&self) -> Result<(), Errno> {
        for program in &self.programs {
            apply_filter(program).map_err(|_| Errno::last())?;
        }
        Ok(())
    }
}

fn is_not(family: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
}

/// A rule about the first argument.
fn has(
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(0, length, operator, value)?])
}

/// What the compiler does not write: numbers with x32's bit fail as if the kernel did not have them.
fn x32_is_unknown() -> [sock_filter; 3] {
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    [
        // The number, the first word of `struct seccomp_data`.
        step((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        step(
            (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16,
            0,
            1,
            X32_BIT,
        ),
        step((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, refuse),
    ]
}
