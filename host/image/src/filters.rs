//! Which system calls the program keeps, and how much of everything it may use.
//!
//! What always holds: bytes go only through descriptors that it was given; no file is opened, no thread or process
//! started, no socket made, no memory made executable.

use dwcp_jail::{Condition, ConfineError, LastWords, Rule, Scope, allow, confine, runtime_rules};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};

use crate::limits::{ADDRESS_SPACE_BYTES_MAX, CPU_SECONDS_MAX};

/// Bounds processor time and memory. Before [`give_up`], for good.
pub(crate) fn limit() -> Result<(), Errno> {
    setrlimit(Resource::RLIMIT_CPU, CPU_SECONDS_MAX, CPU_SECONDS_MAX)?;
    setrlimit(
        Resource::RLIMIT_AS,
        ADDRESS_SPACE_BYTES_MAX,
        ADDRESS_SPACE_BYTES_MAX,
    )?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

/// Gives up everything that reading and copying do not need.
pub(crate) fn give_up(last_words: LastWords) -> Result<(), ConfineError> {
    confine(last_words, &rules(), Scope::AllThreads)
}

fn rules() -> Vec<Rule> {
    let mut rules = runtime_rules();
    rules.extend(
        [
            libc::SYS_fstat,
            libc::SYS_newfstatat,
            libc::SYS_pread64,
            libc::SYS_preadv,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_statx,
            libc::SYS_write,
        ]
        .map(allow),
    );
    // Whether an image is open for reading; and debug builds look whether a descriptor is open before they close it.
    for command in [libc::F_GETFL, libc::F_GETFD] {
        rules.push(allow(libc::SYS_fcntl).when(Condition::IntIs(1, command as u32)));
    }
    rules
}
