//! The stand-in as a VMM that its guest has taken over: it tries what it must not, and reports what came of each.
//!
//! A report is a JSON object from attempts to outcomes: `ok`, the name of an error, or a number. What would do harm if
//! it succeeded is asked in its harmless form (signal 0, the time that it is), which needs the same right.

mod bombs;
mod files;
mod peers;
mod privileges;
mod processes;
mod sockets;

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use serde_json::{Map, Value, json};

/// From attempts to outcomes.
type Report = Map<String, Value>;

/// Obeys an order that begins with `rogue`.
pub fn obey(order: &str, descriptors: &[OwnedFd]) -> Option<Value> {
    let words: Vec<&str> = order.strip_prefix("rogue ")?.split(' ').collect();
    let report = match words[..] {
        ["names", launcher] => files::by_name(launcher),
        ["descriptors"] => files::by_descriptor(descriptors),
        ["memory-file"] => files::guest_memory(descriptors.get(2)?),
        ["sockets", launcher, name, port, ref hosts @ ..] => {
            sockets::all(launcher, name, port.parse().ok()?, hosts)
        }
        ["processes", ref pids @ ..] => processes::others(pids),
        ["namespaces"] => processes::namespaces(),
        ["privileges"] => privileges::all(),
        ["listener", what] => peers::answer(what, descriptors.get(4)?)?,
        ["fork"] => bombs::fork(),
        ["open"] => bombs::open(),
        ["fill", number] => bombs::fill(descriptors.get(number.parse::<usize>().ok()?)?),
        ["take", kind] => bombs::take_memory(kind),
        _ => return None,
    };
    Some(Value::Object(report))
}

/// Makes a system call.
fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Result<i64, Errno> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: every caller passes what the call expects: numbers, or pointers to what outlives it.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

fn outcome<T>(result: Result<T, Errno>) -> Value {
    match result {
        Ok(_) => json!("ok"),
        Err(errno) => json!(format!("{errno:?}")),
    }
}

/// The outcome of what would change this process if it succeeded: a child tries it.
fn apart<T>(attempt: impl FnOnce() -> Result<T, Errno>) -> Value {
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        0 => {
            let code = attempt().err().map_or(0, |errno| errno as i32);
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) }
        }
        child => end_of(child),
    }
}

/// What the end of a child says: its errno, or what killed it.
fn end_of(child: libc::pid_t) -> Value {
    let mut status = 0;
    // SAFETY: the status outlives the call.
    if unsafe { libc::waitpid(child, &raw mut status, libc::__WALL) } != child {
        return json!(format!("no child: {:?}", Errno::last()));
    }
    match libc::WIFSIGNALED(status) {
        true => json!(format!("signal {}", libc::WTERMSIG(status))),
        false => match libc::WEXITSTATUS(status) {
            0 => json!("ok"),
            code => json!(format!("{:?}", Errno::from_raw(code))),
        },
    }
}

/// The address of a value, as a system call takes it.
fn at<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>() as usize
}

/// The address of what a system call writes to.
fn room<T: ?Sized>(value: &mut T) -> usize {
    std::ptr::from_mut(value).cast::<u8>() as usize
}
