//! The program: from inherited descriptors to last words.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use dwcp_jail::{Inheritance, Kind, inherit};

use crate::config::{Boot, ConfigError, Device, DiskFormat, VmConfig};
use crate::devices::{
    Backend, Balloon, Block, ChainDisk, Console, Disk, Net, RawDisk, Rng, Terminal, Vsock,
};
use crate::end::GuestEnd;
use crate::filters;
use crate::machine::{BuildError, Machine, Parts};
use crate::server::{SerialLog, Server};

/// Exit code of a process that could not run its guest.
const FAILED: u8 = 1;

/// Why the process could not begin to serve.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("Descriptor {number}, {name}, is missing: this program is started by dwcp-launch")]
    Missing { number: usize, name: &'static str },
    #[error("The process could not make an event")]
    Event(#[source] std::io::Error),
    #[error("A disk cannot be used")]
    Disk(#[source] std::io::Error),
    #[error("The sockets for a guest's connections cannot be used")]
    Vsock(#[source] std::io::Error),
    #[error("A tap cannot be used")]
    Tap(#[source] std::io::Error),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Confine(#[from] dwcp_jail::ConfineError),
}

/// Runs the VM that the launcher described, to its end.
pub fn run() -> ExitCode {
    let inheritance = match inherit() {
        Ok(inheritance) => inheritance,
        Err(error) => {
            eprintln!("{}", sentence(&error));
            return ExitCode::from(FAILED);
        }
    };
    let last_words = inheritance.last_words;
    // Writing past a limit is then an error like a full disk, and ends neither process nor guest.
    // SAFETY: nothing runs when it comes.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let end = match start(inheritance) {
        Ok(server) => server.serve(),
        Err(error) => GuestEnd::Failed(sentence(&error)),
    };
    let (kind, text) = end.last_words();
    last_words.say(kind, text);
    if kind == Kind::Error {
        eprintln!("{text}");
    }
    // Neither vCPU threads nor memory are worth tearing down one by one.
    let code = if end.is_orderly() { 0 } else { FAILED.into() };
    std::process::exit(code)
}

fn start(inheritance: Inheritance) -> Result<Server, StartError> {
    let config = VmConfig::parse(&inheritance.configuration)?;
    let mut given = Given {
        rest: inheritance.descriptors.into_iter(),
        number: dwcp_jail::DESCRIPTORS_FD as usize,
    };
    let kvm = given.next("/dev/kvm")?;
    let parts = Parts {
        kvm,
        userfaultfd: given.next("/dev/userfaultfd")?,
        memory: given.next("the guest's memory")?,
        bitmap: given.next("the dirty bitmap")?,
    };
    let listener = UnixListener::from(given.next("the control socket")?);
    let log = SerialLog::new(File::from(given.next("the serial log")?));
    let files = match &config.boot {
        Boot::Fresh { initrd, .. } => {
            let kernel = File::from(given.next("the kernel")?);
            let initrd = initrd.then(|| given.next("the initrd")).transpose()?;
            Some((kernel, initrd.map(File::from)))
        }
        Boot::Incoming | Boot::Shell => None,
    };
    let terminal = Terminal::new().map_err(StartError::Event)?;
    let backends = backends(&config, &mut given, &terminal)?;
    let last_words = inheritance.last_words;
    let mut machine = Machine::build(config, parts, terminal, backends, last_words)?;
    // From here on what is read was made by somebody else.
    filters::confine_event_loop(inheritance.last_words)?;
    if let Some((kernel, initrd)) = files {
        machine.load_kernel(kernel, initrd)?;
    }
    Ok(Server::new(machine, listener, log))
}

/// What each device of the VM is.
fn backends(
    config: &VmConfig,
    given: &mut Given,
    terminal: &Terminal,
) -> Result<Vec<Box<dyn Backend>>, StartError> {
    let mut make = |device: &Device| -> Result<Box<dyn Backend>, StartError> {
        Ok(match device {
            Device::Rng => Box::new(Rng),
            Device::Balloon => Box::new(Balloon::default()),
            Device::Block {
                id,
                read_only,
                chain,
                queues,
                limits,
            } => {
                let disk = disk(chain, *read_only, given)?;
                Box::new(Block::new(disk, id, *read_only, *queues, *limits))
            }
            Device::Console(size) => Box::new(Console::new(*size, terminal)),
            Device::Vsock { cid } => {
                let listener = given.next("a socket for programs to connect to")?;
                let control = given.next("a socket to ask for connections over")?;
                let vsock = Vsock::new(*cid, listener, control);
                Box::new(vsock.map_err(StartError::Vsock)?)
            }
            Device::Net {
                mac,
                mtu,
                told,
                limits,
            } => {
                let tap = given.next("a tap")?;
                let responder = match told {
                    Some(told) => {
                        let responder = told.responder(*mac, *mtu);
                        Some(responder.map_err(ConfigError::from)?)
                    }
                    None => None,
                };
                let net = Net::new(tap, *mac, *mtu, responder, *limits);
                Box::new(net.map_err(StartError::Tap)?)
            }
        })
    };
    config.devices.iter().map(&mut make).collect()
}

/// A disk over its files.
fn disk(
    chain: &[DiskFormat],
    is_read_only: bool,
    given: &mut Given,
) -> Result<Box<dyn Disk>, StartError> {
    if let [DiskFormat::Raw] = chain {
        let disk = RawDisk::new(given.next("a disk")?);
        return Ok(Box::new(disk.map_err(StartError::Disk)?));
    }
    let files = chain
        .iter()
        .map(|format| Ok((*format, given.next("a disk")?)))
        .collect::<Result<Vec<_>, StartError>>()?;
    let disk = ChainDisk::open(files, is_read_only).map_err(StartError::Disk)?;
    Ok(Box::new(disk))
}

/// The inherited descriptors, taken in order.
struct Given {
    rest: std::vec::IntoIter<OwnedFd>,
    number: usize,
}

impl Given {
    fn next(&mut self, name: &'static str) -> Result<OwnedFd, StartError> {
        let number = self.number;
        self.number += 1;
        self.rest.next().ok_or(StartError::Missing { number, name })
    }
}

/// An error and its causes in one line.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
