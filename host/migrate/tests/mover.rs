//! The mover as it runs: two processes started as the launcher would, confined, moving a guest between them.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use common::{Guest, PATIENCE, Random, certificate, configurations, content, pair, seed};
use dwcp_jail::{DENIED_EXIT_CODE, Handover, LastWordsPipe};
use dwcp_memory::{PageIndex, reopen_read_only};
use dwcp_migrate::client::MoverClient;
use dwcp_migrate::protocol::{Bytes, Event, MoverConfig, RoundDone};

/// A running mover and its daemon's end.
struct Mover {
    child: Child,
    words: RefCell<LastWordsPipe>,
    client: MoverClient,
}

impl Mover {
    fn start(config: &MoverConfig, memory: OwnedFd, bitmap: OwnedFd) -> Self {
        let mover = Self::start_raw(&serde_json::to_vec(config).unwrap(), memory, bitmap);
        assert_eq!(mover.next(), Event::Ready);
        mover
    }

    fn start_raw(config: &[u8], memory: OwnedFd, bitmap: OwnedFd) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (handover, words) = Handover::new(config, vec![memory, bitmap, theirs.into()]).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp-mover"));
        command.env_clear().stdin(Stdio::null());
        handover.prepare(&mut command);
        let child = command.spawn().unwrap();
        Self {
            child,
            words: RefCell::new(words),
            client: MoverClient::new(ours).unwrap(),
        }
    }

    /// The next event that is not progress.
    fn next(&self) -> Event {
        self.next_with_fd().0
    }

    fn next_with_fd(&self) -> (Event, Option<OwnedFd>) {
        loop {
            let said = self.any();
            if !matches!(said.0, Event::Progress(_)) {
                return said;
            }
        }
    }

    /// The next event.
    fn any(&self) -> (Event, Option<OwnedFd>) {
        let said = self.client.next_event_within(PATIENCE);
        let said = said.unwrap_or_else(|error| {
            let mut words = self.words.borrow_mut();
            while words.drain() {}
            panic!("{error}: {:?}", words.spoken());
        });
        said.expect("an event in time")
    }

    fn round_done(&self) -> RoundDone {
        match self.next() {
            Event::RoundDone(done) => done,
            other => panic!("{other:?} instead of the end of a round"),
        }
    }

    /// Closes the control socket; returns the exit code and the last words.
    fn end(self) -> (Option<i32>, Option<String>) {
        let Self {
            mut child,
            words,
            client,
        } = self;
        drop(client);
        let status = child.wait().unwrap();
        let words = words
            .into_inner()
            .wait(30_000)
            .map(|words| words.to_string());
        (status.code(), words)
    }
}

/// Whether each of a process's `threads` threads runs under a seccomp filter, as the kernel tells it.
fn filtered(pid: u32, threads: usize) -> Result<(), String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let modes: Vec<String> = tasks
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .map(|status| {
            let line = status.lines().find(|line| line.starts_with("Seccomp:"));
            line.unwrap().to_owned()
        })
        .collect();
    if modes.len() == threads && modes.iter().all(|mode| mode == "Seccomp:\t2") {
        Ok(())
    } else {
        Err(format!("{threads} filtered threads wanted: {modes:?}"))
    }
}

/// Whether a process that was made to call `number` was ended for that, by its own filter, and named the call.
fn denied(code: Option<i32>, words: Option<&str>, name: &str) -> Result<(), String> {
    if code == Some(DENIED_EXIT_CODE) && words == Some(&format!("seccomp: {name}")) {
        Ok(())
    } else {
        Err(format!(
            "{name} was not denied: code {code:?}, said {words:?}"
        ))
    }
}

fn device_state(bytes: &[u8]) -> File {
    let name = c"state";
    let flags = nix::sys::memfd::MFdFlags::empty();
    let file = File::from(nix::sys::memfd::memfd_create(name, flags).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// A guest and both its movers, connected by `streams` streams.
fn movers(pages: u64, streams: u8) -> (Guest, Guest, Mover, Mover) {
    let (left, right) = (Guest::new(pages), Guest::new(pages));
    let configs = configurations(pages, streams);
    // As the launcher does it: the source cannot write the memory even if it is taken over.
    let read_only = reopen_read_only(left.memory.fd().unwrap()).unwrap();
    let source = Mover::start(&configs.0, read_only, left.bitmap_fd());
    let destination = Mover::start(&configs.1, right.memory_fd(), right.bitmap_fd());
    for _ in 0..streams {
        let (near, far) = pair();
        source.client.add_stream(near).unwrap();
        destination.client.add_stream(far).unwrap();
    }
    (left, right, source, destination)
}

#[test]
fn confined_movers_move_a_guest() {
    let mut random = Random(seed());
    let pages = 16_000;
    let (left, right, source, destination) = movers(pages, 4);
    left.fill_all(&mut random);
    source.client.round().unwrap();
    let mut progress = 0;
    let first = loop {
        match source.any().0 {
            Event::Progress(figures) => {
                assert!(figures.pages_sent <= figures.pages_total);
                assert_eq!(figures.pages_total, pages);
                progress += 1;
            }
            Event::RoundDone(done) => break done,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(first.pages, pages);
    println!("{progress} reports of progress in {} ms", first.duration_ms);

    for _ in 0..500 {
        left.write(random.below(pages), &mut random);
    }
    let dirty = left.bitmap.count();
    source.client.round().unwrap();
    assert_eq!(source.round_done().pages, dirty);

    for mover in [&source, &destination] {
        // The crew, the speaker and the one that takes commands.
        filtered(mover.child.id(), 6).unwrap();
    }

    for _ in 0..50 {
        left.write(random.below(pages), &mut random);
    }
    let state: Vec<u8> = content(&mut random).repeat(40);
    source.client.finish(device_state(&state)).unwrap();
    assert_eq!(source.next(), Event::Flushed);
    let (event, fd) = destination.next_with_fd();
    let Event::Complete(complete) = event else {
        panic!("{event:?} instead of completion");
    };
    let last = source.round_done();
    assert_eq!(complete.pages, first.pages + dirty + last.pages);
    let mut arrived = vec![0; state.len()];
    let file = File::from(fd.unwrap());
    file.read_exact_at(&mut arrived, 0).unwrap();
    assert!(arrived == state);
    assert_eq!(file.metadata().unwrap().len(), state.len() as u64);
    left.assert_same(&right);

    assert_eq!(source.end(), (Some(0), None));
    assert_eq!(destination.end(), (Some(0), None));
}

#[test]
fn a_mover_that_is_killed_fails_the_other_side_only() {
    let pages = 16_000;
    let (left, right, mut source, destination) = movers(pages, 2);
    left.fill_all(&mut Random(seed()));
    source.client.round().unwrap();
    // Something has moved, and more is to come.
    while !matches!(destination.any().0, Event::Progress(_)) {}
    source.child.kill().unwrap();
    let reason = match destination.next() {
        Event::Failed { reason } => reason,
        other => panic!("{other:?} instead of a failure"),
    };
    assert!(reason.contains("lost"), "{reason}");
    assert_eq!(destination.end(), (Some(0), None));
    assert_eq!(source.end(), (None, None));
    // The guest's memory belongs to nobody's mover.
    left.memory.write_pages(PageIndex(0), &[1; 4096]).unwrap();
    drop(right);
}

#[test]
fn a_forbidden_call_ends_the_mover_and_is_named() {
    for (number, name) in [
        (libc::SYS_openat, "openat"),
        (libc::SYS_socket, "socket"),
        (libc::SYS_clone, "clone"),
        (libc::SYS_memfd_create, "memfd_create"),
    ] {
        let guest = Guest::new(64);
        let configs = configurations(64, 1);
        let mover = Mover::start(&configs.0, guest.memory_fd(), guest.bitmap_fd());
        if let Err(error) = possessed::call(mover.child.id() as i32, number) {
            println!("SKIPPED a_forbidden_call_ends_the_mover_and_is_named: ptrace: {error}");
            return;
        }
        let Mover {
            mut child, words, ..
        } = mover;
        let code = child.wait().unwrap().code();
        let words = words.into_inner().wait(30_000);
        let words = words.map(|words| words.to_string());
        denied(code, words.as_deref(), name).unwrap();
    }
}

/// The checks of the tests above are seen to fail: on a process without a filter, which waits in the same call as a mover
/// does, and gets away with what a mover must not do.
#[test]
fn the_checks_reject_a_process_without_a_filter() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let pid = unfiltered(&ours, &theirs);
    filtered(pid as u32, 1).unwrap_err();
    if let Err(error) = possessed::call(pid, libc::SYS_socket) {
        println!("SKIPPED the_checks_reject_a_process_without_a_filter: ptrace: {error}");
    }
    drop(ours);
    let mut status = 0;
    // SAFETY: `status` is valid for writing.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    denied(code, None, "socket").unwrap_err();
    assert_eq!(code, Some(0), "it went on as if nothing had been");
}

/// Starts a process that waits until its socket says something or is closed, and ends.
fn unfiltered(ours: &UnixStream, theirs: &UnixStream) -> i32 {
    let mut byte = [0u8; 1];
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    // SAFETY: the child makes system calls only, on a message and descriptors that live as long as it does.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::close(ours.as_raw_fd());
            libc::recvmsg(theirs.as_raw_fd(), &mut message, 0);
            libc::_exit(0);
        }
        assert!(pid > 0, "{}", std::io::Error::last_os_error());
        pid
    }
}

#[test]
fn a_configuration_that_does_not_fit_is_explained() {
    let guest = Guest::new(64);
    let start = |config: &MoverConfig| {
        let json = serde_json::to_vec(config).unwrap();
        Mover::start_raw(&json, guest.memory_fd(), guest.bitmap_fd()).end()
    };
    let good = configurations(64, 1).0;
    let cases = [
        (
            MoverConfig {
                memory_bytes: 65 * 4096,
                ..good.clone()
            },
            "266240",
        ),
        (
            MoverConfig {
                streams: 0,
                ..good.clone()
            },
            "1 to 64 streams",
        ),
        (
            MoverConfig {
                key: Bytes(certificate().1),
                ..good.clone()
            },
            "certificate",
        ),
        (
            MoverConfig {
                certificate: Bytes(vec![1, 2]),
                ..good
            },
            "certificate",
        ),
    ];
    for (config, expected) in cases {
        let (code, words) = start(&config);
        let words = words.unwrap();
        assert_eq!(code, Some(1));
        assert!(
            words.starts_with("error: ") && words.contains(expected),
            "{words}"
        );
    }
    let raw = Mover::start_raw(b"{}", guest.memory_fd(), guest.bitmap_fd());
    assert_eq!(raw.end().0, Some(1));
}

/// Makes another process call what it never would.
mod possessed {
    use std::io::Error;

    /// Stops the process's first thread inside the `recvmsg` that it waits in, turns that into call `number`, and lets
    /// it go on.
    pub fn call(pid: i32, number: i64) -> Result<(), Error> {
        while !call_if_waiting(pid, number)? {}
        Ok(())
    }

    fn call_if_waiting(pid: i32, number: i64) -> Result<bool, Error> {
        request(libc::PTRACE_SEIZE, pid, 0)?;
        request(libc::PTRACE_INTERRUPT, pid, 0)?;
        let mut status = 0;
        // SAFETY: `status` is valid for writing.
        if unsafe { libc::waitpid(pid, &mut status, libc::__WALL) } != pid {
            return Err(Error::last_os_error());
        }
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        request(libc::PTRACE_GETREGS, pid, &raw mut registers as usize)?;
        let waiting = registers.orig_rax == libc::SYS_recvmsg as u64;
        if waiting {
            // The instruction before is `syscall`; it is executed again, and the call that was waited in forgotten.
            registers.rip -= 2;
            registers.rax = number as u64;
            registers.orig_rax = u64::MAX;
            request(libc::PTRACE_SETREGS, pid, &raw mut registers as usize)?;
        }
        request(libc::PTRACE_DETACH, pid, 0)?;
        Ok(waiting)
    }

    fn request(what: libc::c_uint, pid: i32, data: usize) -> Result<(), Error> {
        // SAFETY: the address is unused, and the data is zero or points to registers that live through the call.
        match unsafe { libc::ptrace(what, pid, 0usize, data) } {
            -1 => Err(Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
