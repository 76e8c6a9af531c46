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
//! A pause that is given up before the vCPU stands tells it to run once more: it may have been about to stand.
//!
//! When the guest ends, the thread leaves the news in [`EndNotice`] and stands still as if paused.

mod kick;
mod run;

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_jail::LastWords;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;
use nix::time::{ClockId, clock_gettime};

use crate::boot::Entry;
use crate::devices::{self, Devices};
use crate::end::EndNotice;
use crate::kvm::{KvmError, VcpuState, Vm};

pub use kick::install_handler;

/// How long a vCPU may take to do what it is told; KVM answers within microseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long all of them may take to stand still: one may be waiting for a device.
pub const STAND_TIMEOUT: Duration = devices::ANSWER_TIMEOUT.saturating_add(ANSWER_TIMEOUT);
/// Most times that a vCPU is told to run before it has stood still, because pauses were given up.
const RUNS_MAX: usize = 8;
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
    /// How often it was told to run and has not said that it stands.
    runs: Cell<usize>,
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
    #[error("vCPU {0} does not answer")]
    Silent(u8),
}

impl Vcpu {
    /// Starts the thread of vCPU `index`, which gives up its system calls before it listens.
    pub fn start(index: u8, fd: VcpuFd, shared: Shared) -> Result<Self, VcpuError> {
        let (commands, orders) = sync_channel(RUNS_MAX);
        let (replies, answers) = sync_channel(RUNS_MAX);
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
            runs: Cell::new(0),
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

    /// Readies a fresh vCPU; the first one gets the entry. Done when it is [finished](finish_all).
    pub fn prepare(
        &self,
        cpuid: Vec<kvm_cpuid_entry2>,
        entry: Option<Entry>,
    ) -> Result<(), VcpuError> {
        self.order(Command::Prepare(cpuid, entry))
    }

    /// Puts a saved state in place, time advanced by `passed_ns`. Done when it is [finished](finish_all).
    pub fn load(&self, state: Box<VcpuState>, passed_ns: u64) -> Result<(), VcpuError> {
        self.order(Command::Load(state, passed_ns))
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
        if self.runs.get() == RUNS_MAX {
            return Err(VcpuError::Silent(self.index));
        }
        self.order(Command::Run)?;
        self.runs.set(self.runs.get() + 1);
        Ok(())
    }

    /// Gets it out of the guest; the pause flag must be set before.
    pub fn kick(&self) {
        kick::kick(&self.thread);
    }

    /// Waits until it stands still, but no longer than until a time.
    pub fn wait_standing(&self, until: Instant) -> Result<(), VcpuError> {
        while self.runs.get() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(Answer::Stands) => self.runs.set(self.runs.get() - 1),
                _ => return Err(VcpuError::Silent(self.index)),
            }
        }
        Ok(())
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

/// Waits until all have done what each was told.
pub fn finish_all(vcpus: &[Vcpu]) -> Result<(), VcpuError> {
    // Also those after one that failed: no answer is left that could be taken for another's.
    let done: Vec<_> = vcpus.iter().map(Vcpu::did).collect();
    done.into_iter().collect()
}

/// The clock of a thread that has not been joined.
fn clock_of(thread: &JoinHandle<()>) -> Option<ClockId> {
    let mut clock = 0;
    // SAFETY: the handle keeps the thread's id valid, and the clock's id is written to a place of ours.
    let result = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) };
    (result == 0).then(|| ClockId::from_raw(clock))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;

    /// A vCPU whose guest notices a pause only when nobody holds `stuck`.
    fn played(pause: &Arc<AtomicBool>, stuck: &Arc<Mutex<()>>) -> Vcpu {
        let (commands, orders) = sync_channel(RUNS_MAX);
        let (replies, answers) = sync_channel(RUNS_MAX);
        let (pause, stuck) = (Arc::clone(pause), Arc::clone(stuck));
        let obey = move || {
            for _ in &orders {
                while !pause.load(Ordering::SeqCst) {
                    drop(stuck.lock().unwrap());
                    std::thread::yield_now();
                }
                drop(stuck.lock().unwrap());
                if replies.send(Answer::Stands).is_err() {
                    return;
                }
            }
        };
        Vcpu {
            index: 0,
            thread: std::thread::spawn(obey),
            commands,
            answers,
            runs: Cell::new(0),
            exits: Arc::default(),
            clock: None,
        }
    }

    #[test]
    fn a_pause_that_is_given_up_leaves_a_vcpu_that_runs_and_can_be_paused() {
        let (pause, stuck) = (Arc::<AtomicBool>::default(), Arc::<Mutex<()>>::default());
        let vcpu = played(&pause, &stuck);
        vcpu.run().unwrap();
        for round in 0..100 {
            let held = stuck.lock().unwrap();
            pause.store(true, Ordering::SeqCst);
            let late = vcpu.wait_standing(Instant::now() + Duration::from_millis(1));
            assert!(matches!(late, Err(VcpuError::Silent(0))), "{late:?}");
            // It comes to stand just before the pause is given up, or just after.
            if round % 2 == 0 {
                drop(held);
                std::thread::yield_now();
                pause.store(false, Ordering::SeqCst);
            } else {
                pause.store(false, Ordering::SeqCst);
                drop(held);
            }
            vcpu.run().unwrap();
            pause.store(true, Ordering::SeqCst);
            vcpu.wait_standing(Instant::now() + STAND_TIMEOUT).unwrap();
            // Nothing is left over that would count as the answer to the next pause.
            assert!(vcpu.answers.try_recv().is_err());
            pause.store(false, Ordering::SeqCst);
            vcpu.run().unwrap();
        }
    }

    #[test]
    fn one_that_never_stands_is_not_told_to_run_for_ever() {
        let (pause, stuck) = (Arc::<AtomicBool>::default(), Arc::<Mutex<()>>::default());
        let held = stuck.lock().unwrap();
        let vcpu = played(&pause, &stuck);
        let told = (0..100).take_while(|_| vcpu.run().is_ok()).count();
        assert_eq!(told, RUNS_MAX);
        pause.store(true, Ordering::SeqCst);
        drop(held);
        vcpu.wait_standing(Instant::now() + STAND_TIMEOUT).unwrap();
    }
}
