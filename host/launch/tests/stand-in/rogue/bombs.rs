//! More of everything, until something says no.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::json;

use super::{Report, call, outcome};

const CHUNK_BYTES: usize = 1 << 20;

/// As many processes as there may be; they stay.
pub fn fork() -> Report {
    let mut report = Report::new();
    let mut count = 0;
    let end = loop {
        // SAFETY: this process has one thread; the child does nothing but wait.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: plain system call.
                unsafe { libc::pause() };
            },
            -1 => break Errno::last(),
            _ => count += 1,
        }
    };
    report.insert("made".into(), json!(count));
    report.insert("end".into(), outcome::<()>(Err(end)));
    report
}

/// As many descriptors as there may be.
pub fn open() -> Report {
    let mut report = Report::new();
    let mut highest = 0;
    let end = loop {
        match call(libc::SYS_dup, [0]) {
            Ok(fd) => highest = fd,
            Err(errno) => break errno,
        }
    };
    report.insert("highest".into(), json!(highest));
    report.insert("end".into(), outcome::<()>(Err(end)));
    report
}

/// As much into a file as goes in, and then further on.
pub fn fill(file: &OwnedFd) -> Report {
    // SAFETY: nothing runs when it comes.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let mut report = Report::new();
    let Ok(mut file) = file.try_clone().map(File::from) else {
        return report;
    };
    let chunk = vec![0x55; CHUNK_BYTES];
    let end = loop {
        if let Err(error) = file.write(&chunk) {
            break Errno::from_raw(error.raw_os_error().unwrap_or(0));
        }
    };
    let position = file.stream_position().ok();
    let fd = file.as_raw_fd() as usize;
    let behind = position.unwrap_or(0) as usize + 1;
    report.insert("position".into(), json!(position));
    report.insert("end".into(), outcome::<()>(Err(end)));
    for (name, number, arguments) in [
        ("truncate", libc::SYS_ftruncate, [fd, behind, 0, 0]),
        ("allocate", libc::SYS_fallocate, [fd, 0, behind, 4096]),
        (
            "append",
            libc::SYS_pwrite64,
            [fd, super::at("x"), 1, behind],
        ),
    ] {
        report.insert(name.into(), outcome(call(number, arguments)));
    }
    report
}

/// Memory without end: its own, or a file's. Answers only if there is an end that it survives.
pub fn take_memory(kind: &str) -> Report {
    let mut report = Report::new();
    if kind == "own" {
        loop {
            let page = vec![0x55u8; CHUNK_BYTES];
            std::hint::black_box(&page);
            std::mem::forget(page);
        }
    }
    let mut end = None;
    // A file has a longest; there may be many.
    while end.is_none() {
        let file = memfd_create(c"bomb", MFdFlags::empty()).map(File::from);
        let result = file.map_err(std::io::Error::from).and_then(|mut file| {
            for _ in 0..16 {
                file.write_all(&[0x55; CHUNK_BYTES])?;
            }
            std::mem::forget(file);
            Ok(())
        });
        end = result.err();
    }
    report.insert("end".into(), json!(end.map(|error| error.to_string())));
    report
}
