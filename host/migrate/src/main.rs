//! The mover's process: takes its descriptors from the launcher, confines itself, and does what its daemon says.
//!
//! Order matters here: everything that needs a system call which the mover later has no use for (starting threads,
//! making descriptors, mapping memory) happens before [`jail::confine`], and nothing a peer sent is read before it.
//! The process ends when its daemon closes the control socket.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Barrier};

use anyhow::{Context, bail};
use dwcp_channel::{Channel, ChannelError};
use dwcp_jail::{self as jail, Condition, Inheritance, Kind, Rule, Scope, allow};
use dwcp_memory::{DirtyBitmap, GuestMemory, HostMap, MemorySize, MemoryView};
use dwcp_migrate::destination::Destination;
use dwcp_migrate::protocol::{Command, DEVICE_STATE_BYTES_MAX, Event, MoverConfig, Side};
use dwcp_migrate::source::Source;
use dwcp_migrate::{EventSink, Said};

fn main() {
    use_one_heap();
    let inheritance = match jail::inherit() {
        Ok(inheritance) => inheritance,
        Err(error) => {
            eprintln!("dwcp-mover is started by dwcp-launch, not by hand: {error}");
            std::process::exit(2);
        }
    };
    let last_words = inheritance.last_words;
    if let Err(error) = run(inheritance) {
        last_words.say(Kind::Error, &format!("{error:#}"));
        std::process::exit(1);
    }
}

/// Keeps the C library from opening files: a heap that belongs to a thread is only given back after a look at
/// `/proc/sys/vm/overcommit_memory`, and the number of such heaps follows from `/sys`. The one that all share needs
/// neither. It also keeps what is freed, up to a few frames' worth, for the next frames come at once.
fn use_one_heap() {
    const KEPT_BYTES: libc::c_int = 32 << 20;
    // SAFETY: changes settings of the allocator, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// One side of a transfer, whichever it is.
enum Mover {
    Source(Source),
    Destination(Destination),
}

fn run(inheritance: Inheritance) -> anyhow::Result<()> {
    let config: MoverConfig = serde_json::from_slice(&inheritance.configuration)
        .context("The configuration cannot be understood")?;
    let Ok([memory, bitmap, control]) = <[OwnedFd; 3]>::try_from(inheritance.descriptors) else {
        bail!("A mover has three descriptors: memory, bitmap and control socket");
    };
    let control = UnixStream::from(control);
    let voice = Channel::new(control.try_clone()?);
    let size = MemorySize::new(config.memory_bytes)?;
    let (events, said) = EventSink::new();
    let mover = match config.side {
        Side::Source => {
            let memory = match config.hosts.as_slice() {
                [] => MemoryView::new(memory, size)?,
                hosts => MemoryView::of_process(memory, HostMap::new(size, hosts)?)?,
            };
            let bitmap = DirtyBitmap::map(bitmap, size)?;
            Mover::Source(Source::start(&config, memory, bitmap, events.clone())?)
        }
        Side::Destination => {
            let memory = GuestMemory::map(memory, size)?;
            Mover::Destination(Destination::start(&config, memory, events.clone())?)
        }
    };
    let running = Arc::new(Barrier::new(2));
    let at_start = Arc::clone(&running);
    let speaker = std::thread::Builder::new()
        .name("speaker".into())
        .spawn(move || {
            at_start.wait();
            speak(voice, &said);
        })?;
    running.wait();
    jail::confine(inheritance.last_words, &rules(), Scope::AllThreads)?;
    events.say(Event::Ready, None);
    obey(Channel::new(control), &mover)?;
    drop((mover, events));
    // The speaker ends when everything that held a sink is gone; a panic there has been reported.
    let _ = speaker.join();
    Ok(())
}

/// Tells the daemon every event, until there can be no more or nobody listens.
fn speak(mut voice: Channel, said: &Receiver<Said>) {
    while let Ok((event, fd)) = said.recv() {
        let fd = fd.as_ref().map(AsRawFd::as_raw_fd);
        if voice.send(&event, fd.as_slice()).is_err() {
            return;
        }
    }
}

/// Carries out commands until the daemon closes the socket.
fn obey(mut control: Channel, mover: &Mover) -> anyhow::Result<()> {
    loop {
        let (command, fds) = match control.receive::<Command>() {
            Ok(received) => received,
            Err(ChannelError::Closed) => return Ok(()),
            Err(error) => return Err(error).context("The control socket failed"),
        };
        let fd = fds.into_iter().next();
        match (command, fd, mover) {
            (Command::Stream, Some(socket), Mover::Source(source)) => {
                source.add_stream(TcpStream::from(socket));
            }
            (Command::Stream, Some(socket), Mover::Destination(destination)) => {
                destination.add_stream(TcpStream::from(socket));
            }
            (Command::Round, _, Mover::Source(source)) => source.round(),
            (Command::Final, Some(state), Mover::Source(source)) => {
                match read_state(&File::from(state)) {
                    Ok(state) => source.finish(&state),
                    Err(error) => source.fail(&format!("{error:#}")),
                }
            }
            (Command::Abort, _, Mover::Source(source)) => source.abort(),
            (Command::Abort, _, Mover::Destination(destination)) => destination.abort(),
            (command, _, Mover::Source(source)) => {
                source.fail(&format!("The daemon's {command:?} lacks its descriptor"));
            }
            (command, _, Mover::Destination(destination)) => {
                destination.fail(&format!("A destination cannot carry out {command:?}"));
            }
        }
    }
}

/// Reads the device state from the start of its memfd to the end.
fn read_state(file: &File) -> anyhow::Result<Vec<u8>> {
    let mut state = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = file
            .read_at(&mut piece, state.len() as u64)
            .context("The device state cannot be read")?;
        if read == 0 {
            return Ok(state);
        }
        state.extend_from_slice(&piece[..read]);
        if state.len() as u64 > DEVICE_STATE_BYTES_MAX {
            bail!("The device state is over {DEVICE_STATE_BYTES_MAX} bytes");
        }
    }
}

/// What a mover may ask of the kernel: bytes through descriptors it was given, and nothing that makes a new one but
/// those that its daemon sends.
fn rules() -> Vec<Rule> {
    let mut rules = jail::runtime_rules();
    rules.extend(
        [
            libc::SYS_fallocate,
            libc::SYS_getsockopt,
            libc::SYS_poll,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_read,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_setsockopt,
            libc::SYS_shutdown,
            libc::SYS_write,
        ]
        .map(allow),
    );
    // A socket becomes non-blocking; the device state is sealed.
    rules.push(allow(libc::SYS_ioctl).when(Condition::IntIs(1, libc::FIONBIO as u32)));
    rules.push(allow(libc::SYS_fcntl).when(Condition::IntIs(1, libc::F_ADD_SEALS as u32)));
    // The standard library of a debug build makes sure that what it closes is open.
    rules.push(allow(libc::SYS_fcntl).when(Condition::IntIs(1, libc::F_GETFD as u32)));
    rules
}
