//! vCPUs: one thread each, which does what it is told and nothing else.
//!
//! ```text
//!   event loop                      vCPU thread
//!      | Prepare / Load / Save          |   only while it stands still
//!      |------------------------------->|
//!      |            Did / Saved         |
//!      |<-------------------------------|
//!      | Run                            |   it enters the guest
//!      |------------------------------->|
//!      | pause flag, kick               |
//!      |------------------------------->|
//!      |            Stands              |   no instruction runs any more, no exit is half done
//!      |<-------------------------------|
//! ```
//!
//! When the guest ends, the thread leaves the news in [`EndNotice`] and stands still as if paused.

mod kick;
mod run;

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use dwcp_jail::LastWords;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;
use nix::time::{ClockId, clock_gettime};

use crate::boot::Entry;
use crate::devices::Devices;
use crate::end::EndNotice;
use crate::kvm::{KvmError, VcpuState, Vm};

pub use kick::install_handler;

/// How long a vCPU may take to do what it is told; KVM answers within microseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Enough for the deepest call of a vCPU's thread, debug builds included.
const STACK_BYTES: usize = 512 << 10;

/// What all vCPUs of a machine share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The machine.
    pub vm: Arc<Vm>,
    /// Its devices.
    pub devices: Arc<Devices>,
    /// Where to tell that the guest ended.
    pub end: Arc<EndNotice>,
    /// Where the process says its last words, for the filter of system calls.
    pub last_words: LastWords,
    /// Set while vCPUs shall stand still.
    pub pause: Arc<AtomicBool>,
}

/// A vCPU's thread, seen from the event loop.
#[derive(Debug)]
pub struct Vcpu {
    index: u8,
    thread: JoinHandle<()>,
    commands: SyncSender<Command>,
    answers: Receiver<Answer>,
    exits: Arc<AtomicU64>,
    /// Counts the time that the thread had a CPU.
    clock: Option<ClockId>,
}

#[derive(Debug)]
enum Command {
    Prepare(Vec<kvm_cpuid_entry2>, Option<Entry>),
    Load(Box<VcpuState>, u64),
    Save,
    Run,
}

#[derive(Debug)]
enum Answer {
    Confined(Result<(), dwcp_jail::ConfineError>),
    Did(Result<(), KvmError>),
    Saved(Result<Box<VcpuState>, KvmError>),
    Stands,
}

/// Why a vCPU did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The thread could not be started.
    #[error("The thread of vCPU {0} could not be started")]
    Start(u8, #[source] std::io::Error),
    /// The thread could not give up its system calls.
    #[error("vCPU {0} could not be confined")]
    Confine(u8, #[source] dwcp_jail::ConfineError),
    /// No answer came in time, or the wrong one.
    #[error("vCPU {0} does not answer: end this VM")]
    Silent(u8),
}

impl Vcpu {
    /// Starts the thread of vCPU `index`, which gives up its system calls before it listens.
    pub fn start(index: u8, fd: VcpuFd, shared: Shared) -> Result<Self, VcpuError> {
        let (commands, orders) = sync_channel(1);
        let (replies, answers) = sync_channel(1);
        let exits = Arc::new(AtomicU64::new(0));
        let runner = run::Runner::new(fd, shared, Arc::clone(&exits));
        let thread = std::thread::Builder::new()
            .name(format!("vcpu-{index}"))
            .stack_size(STACK_BYTES)
            .spawn(move || runner.obey(&orders, &replies))
            .map_err(|error| VcpuError::Start(index, error))?;
        Ok(Self {
            index,
            clock: clock_of(&thread),
            thread,
            commands,
            answers,
            exits,
        })
    }

    /// Waits until the thread has given up its system calls.
    pub fn wait_confined(&self) -> Result<(), VcpuError> {
        match self.answer()? {
            Answer::Confined(result) => {
                result.map_err(|error| VcpuError::Confine(self.index, error))
            }
            _ => Err(VcpuError::Silent(self.index)),
        }
    }

    /// Readies a fresh vCPU; the first one gets the entry.
    pub fn prepare(
        &self,
        cpuid: Vec<kvm_cpuid_entry2>,
        entry: Option<Entry>,
    ) -> Result<(), VcpuError> {
        self.order(Command::Prepare(cpuid, entry))?;
        self.did()
    }

    /// Puts a saved state in place, time advanced by `passed_ns`.
    pub fn load(&self, state: Box<VcpuState>, passed_ns: u64) -> Result<(), VcpuError> {
        self.order(Command::Load(state, passed_ns))?;
        self.did()
    }

    /// Reads the state of a vCPU that stands still.
    pub fn save(&self) -> Result<Box<VcpuState>, VcpuError> {
        self.order(Command::Save)?;
        match self.answer()? {
            Answer::Saved(result) => Ok(result?),
            _ => Err(VcpuError::Silent(self.index)),
        }
    }

    /// Lets it enter the guest.
    pub fn run(&self) -> Result<(), VcpuError> {
        self.order(Command::Run)
    }

    /// Gets it out of the guest; the pause flag must be set before.
    pub fn kick(&self) {
        kick::kick(&self.thread);
    }

    /// Waits until it stands still.
    pub fn wait_standing(&self) -> Result<(), VcpuError> {
        match self.answer()? {
            Answer::Stands => Ok(()),
            _ => Err(VcpuError::Silent(self.index)),
        }
    }

    /// Exits to this process so far.
    pub fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// Time that it had a CPU so far, in the guest and outside, in nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        let time = self.clock.and_then(|clock| clock_gettime(clock).ok());
        time.map_or(0, |time| {
            let whole = (time.tv_sec() as u64).saturating_mul(1_000_000_000);
            whole.saturating_add(time.tv_nsec() as u64)
        })
    }

    fn did(&self) -> Result<(), VcpuError> {
        match self.answer()? {
            Answer::Did(result) => Ok(result?),
            _ => Err(VcpuError::Silent(self.index)),
        }
    }

    fn order(&self, command: Command) -> Result<(), VcpuError> {
        let sent = self.commands.try_send(command);
        sent.map_err(|_| VcpuError::Silent(self.index))
    }

    fn answer(&self) -> Result<Answer, VcpuError> {
        let answer = self.answers.recv_timeout(ANSWER_TIMEOUT);
        answer.map_err(|_| VcpuError::Silent(self.index))
    }
}

/// The clock of a thread that has not been joined.
fn clock_of(thread: &JoinHandle<()>) -> Option<ClockId> {
    let mut clock = 0;
    // SAFETY: the handle keeps the thread's id valid, and the clock's id is written to a place of ours.
    let result = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) };
    (result == 0).then(|| ClockId::from_raw(clock))
}
