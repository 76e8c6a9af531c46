//! `dwcp-fuzz`: one target under libFuzzer, which takes the rest of the command line.
//!
//! `dwcp-fuzz --list` prints each target's name and the longest input that is worth trying; `dwcp-fuzz TARGET FLAGS
//! FOLDERS` looks for inputs, `dwcp-fuzz TARGET FILES` replays some.
//!
//! Always holds: a panic ends the process, and libFuzzer then writes down the input. Must not know the targets.

use std::ffi::{CString, c_char, c_int};
use std::process::ExitCode;
use std::sync::OnceLock;

use dwcp_fuzz::{TARGETS, Target};
// Brings libFuzzer itself.
use libfuzzer_sys as _;

static TARGET: OnceLock<&Target> = OnceLock::new();

unsafe extern "C" {
    fn LLVMFuzzerRunDriver(
        count: *mut c_int,
        arguments: *mut *mut *mut c_char,
        read: extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

/// What `libfuzzer-sys` expects of a program that it runs itself; ours runs libFuzzer.
#[unsafe(no_mangle)]
extern "Rust" fn rust_fuzzer_test_input(_: &[u8]) -> i32 {
    -1
}

/// Called by libFuzzer with each input. A panic cannot leave an `extern "C"` function: it aborts.
extern "C" fn read(data: *const u8, bytes: usize) -> c_int {
    let input = match bytes {
        0 => &[],
        // SAFETY: libFuzzer hands over an input of that length, which stays as it is until this returns.
        _ => unsafe { std::slice::from_raw_parts(data, bytes) },
    };
    if let Some(target) = TARGET.get() {
        target.try_input(input);
    }
    0
}

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let name = arguments.next().unwrap_or_default();
    if name == "--list" {
        for target in TARGETS {
            println!("{} {}", target.name, target.input_bytes_max);
        }
        return ExitCode::SUCCESS;
    }
    let Some(target) = Target::named(&name) else {
        eprintln!("There is no target `{name}`; `{program} --list` prints those that there are.");
        return ExitCode::from(2);
    };
    TARGET.get_or_init(|| target);
    let given = std::iter::once(program).chain(arguments);
    let Ok(given) = given.map(CString::new).collect::<Result<Vec<_>, _>>() else {
        // The system hands over no such argument.
        return ExitCode::from(2);
    };
    ExitCode::from(run_engine(&given) as u8)
}

/// Runs libFuzzer to its end; it ends the process itself when it finds something.
fn run_engine(arguments: &[CString]) -> c_int {
    let mut places: Vec<*mut c_char> = arguments.iter().map(|a| a.as_ptr().cast_mut()).collect();
    places.push(std::ptr::null_mut());
    let mut count = arguments.len() as c_int;
    let mut first = places.as_mut_ptr();
    // SAFETY: count and list are what C's `main` gets, valid until this returns; libFuzzer does not write to the texts.
    unsafe { LLVMFuzzerRunDriver(&mut count, &mut first, read) }
}
