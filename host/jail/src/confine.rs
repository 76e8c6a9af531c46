//! Giving up every system call that is not on a list, for good.
//!
//! Each rule allows one call, under conditions on its arguments if there are any; rules for the same call are
//! alternatives. What no rule allows raises SIGSYS, whose handler writes `seccomp: NAME` as last words and ends the
//! process with [`DENIED_EXIT_CODE`](crate::DENIED_EXIT_CODE). A call of another ABI (32-bit, x32) is never allowed.
//!
//! A filter binds the calling thread, or all threads of the process; filters add up, so a thread may be bound more
//! narrowly than the process. It is inherited by threads started afterwards and cannot be taken back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, apply_filter_all_threads,
};

use crate::words::{LastWords, write_raw};
use crate::{DENIED_EXIT_CODE, LAST_WORDS_FD, syscall_name};

/// What an argument of a system call must be. Arguments are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The whole 64-bit argument equals the value.
    Is(u8, u64),
    /// The lower 32 bits equal the value: for arguments that the kernel reads as `int` (descriptors, ioctl requests).
    IntIs(u8, u32),
    /// No bit of the mask is set in the argument.
    Lacks(u8, u64),
}

/// One allowed system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    syscall: i64,
    conditions: Vec<Condition>,
}

impl Rule {
    /// Narrows the rule: all its conditions must hold.
    #[must_use]
    pub fn when(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }
}

/// Allows a system call (`libc::SYS_…`), whatever its arguments.
#[must_use]
pub fn allow(syscall: libc::c_long) -> Rule {
    Rule {
        syscall,
        conditions: Vec::new(),
    }
}

/// Whom a filter binds.
///
/// A process whose threads need different filters lets each bind itself with `ThisThread`, the main thread last, and
/// lets none begin its work before. `AllThreads` is refused when some thread already has a filter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The calling thread, and threads that it starts from now on.
    ThisThread,
    /// Every thread of the process.
    AllThreads,
}

/// Why a filter could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The rules do not make a filter (too many, or an argument number over 5).
    #[error("The system call filter could not be compiled")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel refused the filter, or a thread has one that the common one cannot join.
    #[error(
        "The kernel refused the system call filter; it must support seccomp with filters (CONFIG_SECCOMP_FILTER)"
    )]
    Install(#[from] seccompiler::Error),
    /// The handler that names the denied call could not be set.
    #[error("The handler for denied system calls could not be set")]
    Handler(#[source] Errno),
}

/// Gives up every system call that neither `rules` nor the process's own end needs (exit, return from a signal, last
/// words). Also makes the process undumpable, so that no other process of its user can look into it.
pub fn confine(_last_words: LastWords, rules: &[Rule], scope: Scope) -> Result<(), ConfineError> {
    let mut all = vec![
        allow(libc::SYS_exit),
        allow(libc::SYS_exit_group),
        allow(libc::SYS_rt_sigreturn),
        allow(libc::SYS_restart_syscall),
        allow(libc::SYS_write).when(Condition::IntIs(0, LAST_WORDS_FD as u32)),
    ];
    all.extend_from_slice(rules);
    let program = compile(&all)?;
    let clone3 = rules
        .iter()
        .any(|rule| rule.syscall == libc::SYS_clone3)
        .then(clone3_is_unknown)
        .transpose()?;
    install_handler()?;
    // SAFETY: plain system call; it cannot fail for these arguments.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    for program in clone3.iter().chain([&program]) {
        match scope {
            Scope::ThisThread => apply_filter(program)?,
            Scope::AllThreads => apply_filter_all_threads(program)?,
        }
    }
    Ok(())
}

/// What the Rust runtime and the allocator need in any thread: memory that is not executable, locks, sleeping, time,
/// randomness, closing descriptors, handling signals, ending. No I/O, nothing that names a file, no new thread.
pub fn runtime_rules() -> Vec<Rule> {
    const EXECUTABLE: u64 = libc::PROT_EXEC as u64;
    let mut rules = vec![
        allow(libc::SYS_mmap).when(Condition::Lacks(2, EXECUTABLE)),
        allow(libc::SYS_mprotect).when(Condition::Lacks(2, EXECUTABLE)),
    ];
    rules.extend(
        [
            libc::SYS_brk,
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
            libc::SYS_close,
            libc::SYS_futex,
            libc::SYS_getpid,
            libc::SYS_getrandom,
            libc::SYS_gettid,
            libc::SYS_madvise,
            libc::SYS_mremap,
            libc::SYS_munmap,
            libc::SYS_nanosleep,
            libc::SYS_rt_sigprocmask,
            libc::SYS_sched_yield,
            libc::SYS_sigaltstack,
        ]
        .map(allow),
    );
    rules
}

/// What starting a thread needs beyond [`runtime_rules`]: `clone` exactly as a thread is made, so neither a process
/// nor a namespace. `clone3` hides its flags from a filter; it answers ENOSYS, upon which the C library uses `clone`.
pub fn thread_rules() -> Vec<Rule> {
    let thread = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    vec![
        allow(libc::SYS_clone).when(Condition::Is(0, thread as u64)),
        allow(libc::SYS_clone3),
        allow(libc::SYS_prctl).when(Condition::IntIs(0, libc::PR_SET_NAME as u32)),
        allow(libc::SYS_rseq),
        // The C library's own two signals, for its first thread; never SIGSYS.
        allow(libc::SYS_rt_sigaction).when(Condition::IntIs(0, 32)),
        allow(libc::SYS_rt_sigaction).when(Condition::IntIs(0, 33)),
        allow(libc::SYS_sched_getaffinity),
        allow(libc::SYS_set_robust_list),
    ]
}

fn compile(rules: &[Rule]) -> Result<BpfProgram, ConfineError> {
    let mut alternatives: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for rule in rules {
        let entry = alternatives
            .entry(rule.syscall)
            .or_insert_with(|| Some(Vec::new()));
        if rule.conditions.is_empty() {
            *entry = None;
        } else if let Some(conditional) = entry {
            let conditions: Result<Vec<_>, _> = rule.conditions.iter().map(translate).collect();
            conditional.push(SeccompRule::new(conditions?)?);
        }
    }
    // To the compiler, no alternative at all means: whatever the arguments.
    let map = alternatives
        .into_iter()
        .map(|(syscall, conditional)| (syscall, conditional.unwrap_or_default()))
        .collect();
    let filter = SeccompFilter::new(
        map,
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

fn translate(condition: &Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    match *condition {
        Condition::Is(argument, value) => {
            SeccompCondition::new(argument, Qword, SeccompCmpOp::Eq, value)
        }
        Condition::IntIs(argument, value) => {
            SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value.into())
        }
        Condition::Lacks(argument, mask) => {
            SeccompCondition::new(argument, Qword, SeccompCmpOp::MaskedEq(mask), 0)
        }
    }
}

/// A filter under which only `clone3` fails, as if the kernel did not have it.
pub(crate) fn clone3_is_unknown() -> Result<BpfProgram, ConfineError> {
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

static HANDLER_SET: AtomicBool = AtomicBool::new(false);

/// Sets the SIGSYS handler for the process and unblocks the signal in this thread: blocked, it would kill in silence.
fn install_handler() -> Result<(), ConfineError> {
    if !HANDLER_SET.load(Ordering::SeqCst) {
        set_handler()?;
        HANDLER_SET.store(true, Ordering::SeqCst);
    }
    // SAFETY: the set is initialised before it is read.
    let result = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        error => Err(ConfineError::Handler(Errno::from_raw(error))),
    }
}

fn set_handler() -> Result<(), ConfineError> {
    // SAFETY: all-zero is a valid sigaction; every field that matters is set below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = report_denied as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the mask and the action are valid; the handler only makes async-signal-safe calls.
    let result = unsafe {
        libc::sigfillset(&mut action.sa_mask);
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut())
    };
    Errno::result(result).map_err(ConfineError::Handler)?;
    Ok(())
}

/// Offset of `si_syscall` in `siginfo_t` on x86-64 (three ints, padding, then the call's address).
const SI_SYSCALL_OFFSET: usize = 24;

extern "C" fn report_denied(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a whole siginfo_t, whose int at this offset is the number of the denied call.
    let number = unsafe {
        info.cast::<u8>()
            .add(SI_SYSCALL_OFFSET)
            .cast::<libc::c_int>()
            .read()
    };
    let mut line = [0u8; 64];
    let mut length = 0;
    let mut append = |bytes: &[u8]| {
        let room = line.len() - length;
        let taken = bytes.len().min(room);
        line[length..length + taken].copy_from_slice(&bytes[..taken]);
        length += taken;
    };
    append(b"seccomp: ");
    match syscall_name(number.into()) {
        Some(name) => append(name.as_bytes()),
        None => {
            let mut digits = [0u8; 10];
            append(b"system call ");
            append(decimal(number.unsigned_abs(), &mut digits));
        }
    }
    append(b"\n");
    write_raw(&line[..length]);
    // SAFETY: ends the process without running anything else of it.
    unsafe { libc::_exit(DENIED_EXIT_CODE) }
}

/// Writes a number without allocating.
fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_is_decimal() {
        for number in [0, 7, 10, 467, u32::MAX] {
            let mut digits = [0; 10];
            assert_eq!(decimal(number, &mut digits), number.to_string().as_bytes());
        }
    }

    #[test]
    fn an_unconditional_rule_wins_over_conditional_ones() {
        let narrow = allow(libc::SYS_write).when(Condition::IntIs(0, 3));
        let wide = allow(libc::SYS_write);
        let both = compile(&[narrow.clone(), wide.clone(), narrow.clone()]).map(|p| p.len());
        assert_eq!(both.ok(), compile(&[wide]).map(|p| p.len()).ok());
    }
}
