//! A launcher of one test's own, with the stand-in for both programs.
#![allow(dead_code, clippy::unwrap_used)]

pub mod frames;
pub mod guests;
pub mod namespaces;
pub mod rogue;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_launch::protocol::{ChildId, ChildState, Needs, Side};
use dwcp_launch::{Client, ClientError};
use serde_json::{Value, json};

/// For everything that is waited for; generous, because machines are slow at times.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const MEMORY_BYTES: u64 = 16 << 20;

/// Whether this test can run; says so when it cannot.
pub fn can_run(name: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED {name}: the launcher must run as root");
        return false;
    }
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("SKIPPED {name}: there is no /dev/kvm");
        return false;
    }
    true
}

pub fn id(text: &str) -> ChildId {
    text.parse().unwrap()
}

/// Waits until `condition` holds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub struct Launcher {
    pub process: Process,
    pub directory: tempfile::TempDir,
    pub groups: Vec<PathBuf>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Launcher {
    pub fn start() -> Self {
        Self::start_with(&["--allow-uid", "0"])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_with_mover(arguments, None)
    }

    /// With another program than the stand-in for movers.
    pub fn start_with_mover(arguments: &[&str], mover: Option<&str>) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_dwcp-launch"));
        Self::start_command(program, arguments, [None, mover])
    }

    /// Started by somebody who first does `prepare` in its process.
    pub fn start_after(prepare: fn() -> std::io::Result<()>) -> Self {
        let mut program = Command::new(env!("CARGO_BIN_EXE_dwcp-launch"));
        // SAFETY: `prepare` only makes system calls.
        unsafe { program.pre_exec(prepare) };
        Self::start_command(program, &["--allow-uid", "0"], [None, None])
    }

    /// With another program than the stand-in for VMMs.
    pub fn start_with_vmm(vmm: &str) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_dwcp-launch"));
        Self::start_command(program, &["--allow-uid", "0"], [Some(vmm), None])
    }

    /// In a network namespace, with a prefix of its own for networks.
    pub fn start_in(namespace: &namespaces::Namespace, prefix: &str, arguments: &[&str]) -> Self {
        Self::start_in_with_vmm(namespace, prefix, arguments, None)
    }

    /// With another program than the stand-in for VMMs.
    pub fn start_in_with_vmm(
        namespace: &namespaces::Namespace,
        prefix: &str,
        arguments: &[&str],
        vmm: Option<&str>,
    ) -> Self {
        let program = namespace.command(env!("CARGO_BIN_EXE_dwcp-launch"));
        let own = ["--allow-uid", "0", "--network-prefix", prefix];
        Self::start_command(program, &[&own[..], arguments].concat(), [vmm, None])
    }

    fn start_command(
        mut program: Command,
        arguments: &[&str],
        programs: [Option<&str>; 2],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let stand_in = env!("CARGO_BIN_EXE_dwcp-launch-stand-in");
        let [vmm, mover] = programs.map(|program| program.unwrap_or(stand_in));
        let mut process = program
            .arg("--socket")
            .arg(directory.path().join("launch.sock"))
            .args(["--vmm", vmm, "--mover", mover, "--reader", vmm])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        // From here on a failure ends it.
        let mut launcher = Self {
            process,
            directory,
            groups: Vec::new(),
            log: Arc::default(),
        };
        // It says one line when it serves.
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        assert!(line.contains("Serving user"), "{line}");
        launcher.groups = line
            .split([' ', ';'])
            .filter(|word| word.starts_with("/sys/fs/cgroup"))
            .map(PathBuf::from)
            .collect();
        println!("launcher: {}", line.trim());
        let kept = launcher.log.clone();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                println!("launcher: {line}");
                kept.lock().unwrap().push(line);
            }
        });
        launcher
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("launch.sock")
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    /// Whether the launcher has closed the other end of this socket.
    pub fn has_dropped(&self, socket: &UnixStream) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).unwrap();
        fds[0].revents().unwrap().contains(PollFlags::POLLHUP)
    }

    /// How many lines it has said with this in them, since it serves.
    pub fn said(&self, text: &str) -> usize {
        let log = self.log.lock().unwrap();
        log.iter().filter(|line| line.contains(text)).count()
    }

    /// Its open descriptors.
    pub fn open_descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.process.id());
        std::fs::read_dir(path).unwrap().count()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: our own child, which has not been waited for.
        unsafe { libc::kill(self.process.id() as i32, signal) };
    }

    pub fn stop(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.process.wait().unwrap()
    }

    pub fn vmm(&self, name: &str) -> StandIn {
        let needs = Needs {
            vcpus: 2,
            ..Needs::memory(MEMORY_BYTES)
        };
        StandIn::start(|ours| {
            self.client().spawn_vmm_with(
                &id(name),
                needs,
                None,
                json!({"name": name}),
                &[ours],
                &[],
            )
        })
        .unwrap()
    }

    pub fn mover(&self, name: &str, vm: &str, side: Side) -> StandIn {
        StandIn::start(|ours| {
            self.client()
                .spawn_mover(&id(name), &id(vm), side, json!({"name": name}), &[ours])
        })
        .unwrap()
    }

    /// Waits for the end of a child.
    pub fn exit_of(&self, name: &str) -> ChildState {
        let mut client = self.client();
        let mut state = ChildState::Running;
        wait_for("the child's end", || {
            let children = client.list().unwrap();
            let child = children.into_iter().find(|child| child.id == id(name));
            state = child.unwrap().state;
            state != ChildState::Running
        });
        state
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            self.stop();
        }
    }
}

/// A stand-in that runs in a sandbox, and the socket on which it obeys.
pub struct StandIn {
    pub pid: u32,
    pub report: Value,
    socket: BufReader<UnixStream>,
}

impl StandIn {
    pub fn start(
        spawn: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> Result<u32, ClientError>,
    ) -> Result<Self, ClientError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pid = spawn(theirs.as_fd())?;
        drop(theirs);
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut stand_in = Self {
            pid,
            report: Value::Null,
            socket: BufReader::new(ours),
        };
        stand_in.report = stand_in.read();
        Ok(stand_in)
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.socket.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no answer: {line:?}"))
    }

    pub fn ask(&mut self, order: &str) -> Value {
        writeln!(self.socket.get_mut(), "{order}").unwrap();
        self.read()
    }

    /// Gives an order that it does not survive.
    pub fn ask_last(&mut self, order: &str) {
        writeln!(self.socket.get_mut(), "{order}").unwrap();
        let mut rest = String::new();
        let _ = self.socket.read_to_string(&mut rest);
    }
}
