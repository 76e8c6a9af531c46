//! The thread of one device: waits for its queues and for orders, and lets the backend serve.
//!
//! What always holds: while it is paused it touches neither queues nor guest memory; every order is answered, in the order
//! in which they were given; a driver that keeps a queue full cannot keep it from hearing an order. An answer that comes
//! too late is awaited before the next order is given, so that it is not taken for the answer to that.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dwcp_jail::{ConfineError, LastWords};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use super::{Backend, Broken, Interrupts, QueueState, Rules, Running, Unfit};
use crate::filters;

/// How long a thread may take to answer: a slow disk may keep a request in flight for a while.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long all disks together may take to make durable what a running guest has written.
pub const SYNC_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Most orders that wait for an answer: one that came too late, and one to go on after that.
const ORDERS_MAX: usize = 2;
const STACK_BYTES: usize = 256 << 10;

/// What a device did so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests served.
    pub operations: AtomicU64,
    /// Bytes from the guest.
    pub read_bytes: AtomicU64,
    /// Bytes to the guest.
    pub written_bytes: AtomicU64,
    /// Requests that failed, and breaks of the specification.
    pub errors: AtomicU64,
}

/// What a worker's thread is told.
#[derive(Debug)]
pub enum Order {
    /// The driver is ready.
    Activate(Box<Running>),
    /// The driver reset the device.
    Reset,
    /// Make durable what was written so far.
    Sync,
    /// Make durable what was written, and stop touching guest memory; not stopped if it fails.
    Pause,
    /// Go on.
    Resume,
    /// Make what the device stands on so long.
    Resize(u64),
    /// Ask over this socket.
    Host(OwnedFd),
    /// Have the guest give up so many pages.
    Aim(u32),
    /// Say how far the queues are, and what the backend remembers.
    Save,
    /// Take back what the backend remembered, and the queues if the driver was ready.
    Load(Vec<u8>, Option<Box<Running>>),
}

/// What it answers.
#[derive(Debug)]
pub enum Answer {
    /// It gave up its system calls, or could not.
    Confined(Result<(), ConfineError>),
    /// It was done.
    Done,
    /// It could not be done, and nothing changed.
    Failed(io::Error),
    /// The state does not fit.
    Unfit,
    /// Its queues, empty if its driver is not ready; and what the backend remembers.
    Saved(Vec<Option<QueueState>>, Vec<u8>),
}

/// Why a worker did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The thread could not be started.
    #[error("The thread of device {0} could not be started")]
    Start(String, #[source] io::Error),
    /// The thread could not give up its system calls.
    #[error("Device {0} could not be confined")]
    Confine(String, #[source] ConfineError),
    /// No answer came in time, or the wrong one.
    #[error("Device {0} does not answer")]
    Silent(String),
    /// It could not do it.
    #[error("Device {0} failed")]
    Failed(String, #[source] io::Error),
    /// A state that this device did not write.
    #[error("The state of device {0} does not fit it")]
    Unfit(String),
}

/// A device's thread, seen from outside.
#[derive(Debug)]
pub struct Worker {
    name: String,
    lane: Mutex<Lane>,
    bell: Arc<EventFd>,
}

/// An order that was given. Until its answer is waited for, or this is dropped, nobody else gives this device one.
#[derive(Debug)]
#[must_use = "whether it was carried out is not known before it is finished"]
pub struct Given<'a> {
    worker: &'a Worker,
    lane: MutexGuard<'a, Lane>,
}

#[derive(Debug)]
struct Lane {
    orders: SyncSender<Order>,
    answers: Receiver<Answer>,
    /// Answers that nobody has taken yet.
    owed: usize,
}

impl Worker {
    /// Starts the thread of a device, paused, which keeps the system calls of `rules`. Its system calls are given up before [`Self::wait_confined`] returns.
    pub fn start(
        name: &str,
        backend: Box<dyn Backend>,
        rules: Rules,
        kicks: Arc<[EventFd]>,
        interrupts: Arc<Interrupts>,
        counters: Arc<Counters>,
        last_words: LastWords,
    ) -> Result<Self, WorkerError> {
        let confine = move || filters::confine_device(last_words, rules);
        Self::start_confined(name, backend, confine, kicks, interrupts, counters)
    }

    fn start_confined(
        name: &str,
        backend: Box<dyn Backend>,
        confine: impl FnOnce() -> Result<(), ConfineError> + Send + 'static,
        kicks: Arc<[EventFd]>,
        interrupts: Arc<Interrupts>,
        counters: Arc<Counters>,
    ) -> Result<Self, WorkerError> {
        let failed = |error| WorkerError::Start(name.to_owned(), error);
        let (orders, inbox) = sync_channel(ORDERS_MAX);
        let (outbox, answers) = sync_channel(ORDERS_MAX);
        let bell = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(failed)?;
        let bell = Arc::new(bell);
        let thread = Thread {
            backend,
            kicks,
            interrupts,
            counters,
            bell: Arc::clone(&bell),
            inbox,
            outbox,
            running: None,
            is_paused: true,
        };
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || thread.run(confine))
            .map_err(failed)?;
        Ok(Self {
            name: name.to_owned(),
            lane: Mutex::new(Lane {
                orders,
                answers,
                owed: 0,
            }),
            bell,
        })
    }

    /// Waits until the thread has given up its system calls.
    pub fn wait_confined(&self) -> Result<(), WorkerError> {
        let lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        match lane.answers.recv_timeout(ANSWER_TIMEOUT) {
            Ok(Answer::Confined(result)) => {
                result.map_err(|error| WorkerError::Confine(self.name.clone(), error))
            }
            _ => Err(WorkerError::Silent(self.name.clone())),
        }
    }

    /// Gives an order and waits until it was carried out.
    pub fn order(&self, order: Order) -> Result<Answer, WorkerError> {
        self.order_until(order, Instant::now() + ANSWER_TIMEOUT)
    }

    /// The same, but no longer than until a time. One that is late is still carried out.
    pub fn order_until(&self, order: Order, until: Instant) -> Result<Answer, WorkerError> {
        self.begin(order, until)?.finish(until)
    }

    /// Gives an order, so that others can be given theirs before this one is waited for.
    pub fn begin(&self, order: Order, until: Instant) -> Result<Given<'_>, WorkerError> {
        let mut lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        while lane.owed > 0 {
            lane.take(until).ok_or_else(|| self.silent())?;
        }
        if !self.give(&mut lane, order) {
            return Err(self.silent());
        }
        Ok(Given { worker: self, lane })
    }

    fn silent(&self) -> WorkerError {
        WorkerError::Silent(self.name.clone())
    }

    /// Has it go on once it is done with what it was told before, and does not wait for that.
    pub fn go_on(&self) {
        let mut lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        // If there is no room, it was told already.
        let _ = self.give(&mut lane, Order::Resume);
    }

    fn give(&self, lane: &mut Lane, order: Order) -> bool {
        if lane.owed == ORDERS_MAX || lane.orders.try_send(order).is_err() {
            return false;
        }
        lane.owed += 1;
        // Cannot fail: the thread empties it before it could be full.
        let _ = self.bell.write(1);
        true
    }

    /// What another thread writes to when it gives an order.
    pub fn bell(&self) -> BorrowedFd<'_> {
        borrow(&self.bell)
    }
}

impl Given<'_> {
    /// Waits until it was carried out, but no longer than until a time.
    pub fn finish(mut self, until: Instant) -> Result<Answer, WorkerError> {
        let name = || self.worker.name.clone();
        match self.lane.take(until) {
            None => Err(self.worker.silent()),
            Some(Answer::Unfit) => Err(WorkerError::Unfit(name())),
            Some(Answer::Failed(error)) => Err(WorkerError::Failed(name(), error)),
            Some(answer) => Ok(answer),
        }
    }
}

impl Lane {
    /// The next answer, if it comes in time.
    fn take(&mut self, until: Instant) -> Option<Answer> {
        let left = until.saturating_duration_since(Instant::now());
        let answer = self.answers.recv_timeout(left).ok()?;
        self.owed -= 1;
        Some(answer)
    }
}

struct Thread {
    backend: Box<dyn Backend>,
    kicks: Arc<[EventFd]>,
    interrupts: Arc<Interrupts>,
    counters: Arc<Counters>,
    bell: Arc<EventFd>,
    inbox: Receiver<Order>,
    outbox: SyncSender<Answer>,
    running: Option<Box<Running>>,
    is_paused: bool,
}

/// What happened.
#[derive(Default)]
struct Happened {
    order: bool,
    watched: bool,
    queues: u64,
}

impl Thread {
    fn run(mut self, confine: impl FnOnce() -> Result<(), ConfineError>) {
        let confined = confine();
        let mut lives = confined.is_ok();
        lives &= self.outbox.send(Answer::Confined(confined)).is_ok();
        while lives {
            let happened = self.wait();
            if happened.order {
                lives = self.obey();
            }
            if let Err(broken) = self.serve(&happened) {
                self.stop(&broken);
            }
        }
    }

    /// Whether queues may be touched.
    fn is_at_work(&self) -> bool {
        !self.is_paused && self.running.is_some() && !self.interrupts.needs_reset()
    }

    fn wait(&mut self) -> Happened {
        let again = match (self.is_at_work(), &mut self.running) {
            (true, Some(running)) => running.take_again(),
            _ => 0,
        };
        let mut fds = vec![PollFd::new(borrow(&self.bell), PollFlags::POLLIN)];
        let mut timeout = PollTimeout::NONE;
        let mut watches = false;
        if self.is_at_work() {
            let kicks = self.kicks.iter();
            fds.extend(kicks.map(|kick| PollFd::new(borrow(kick), PollFlags::POLLIN)));
            if let Some((fd, events)) = self.backend.watch() {
                fds.push(PollFd::new(fd, events));
                watches = true;
            }
            timeout = match self.backend.wakes_at() {
                _ if again != 0 => PollTimeout::ZERO,
                Some(at) => until(at),
                None => PollTimeout::NONE,
            };
        }
        // Fails only for arguments that it never has; then nothing happened.
        let _ = poll(&mut fds, timeout);
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let mut happened = Happened {
            order: ready[0],
            watched: watches && ready[ready.len() - 1],
            queues: again,
        };
        for (queue, kick) in self.kicks.iter().enumerate() {
            if ready.len() > queue + 1 && ready[queue + 1] && kick.read().is_ok() {
                happened.queues |= 1 << queue;
            }
        }
        happened
    }

    fn serve(&mut self, happened: &Happened) -> Result<(), Broken> {
        if !self.is_at_work() {
            return Ok(());
        }
        let Some(running) = self.running.as_deref_mut() else {
            return Ok(());
        };
        for queue in 0..self.kicks.len() {
            if happened.queues & 1 << queue != 0 {
                self.backend.serve(queue, running)?;
            }
        }
        if happened.watched {
            self.backend.ready(running)?;
        }
        if self
            .backend
            .wakes_at()
            .is_some_and(|at| at <= Instant::now())
        {
            self.backend.wake(running)?;
        }
        Ok(())
    }

    /// Carries out all orders that there are; answers whether others may come.
    fn obey(&mut self) -> bool {
        let _ = self.bell.read();
        while let Ok(order) = self.inbox.try_recv() {
            let answer = self.carry_out(order);
            if self.outbox.send(answer).is_err() {
                return false;
            }
        }
        true
    }

    fn carry_out(&mut self, order: Order) -> Answer {
        match order {
            Order::Activate(running) => {
                self.running = Some(running);
                self.begin();
                Answer::Done
            }
            Order::Reset => {
                self.running = None;
                self.backend.reset();
                Answer::Done
            }
            Order::Sync => self.sync(),
            Order::Pause => {
                let answer = self.sync();
                if matches!(answer, Answer::Failed(_)) {
                    return answer;
                }
                let at_work = self.is_at_work();
                if let (true, Some(running)) = (at_work, self.running.as_deref_mut()) {
                    self.backend.rest(running);
                }
                self.is_paused = true;
                answer
            }
            Order::Resume => {
                self.is_paused = false;
                self.begin();
                Answer::Done
            }
            Order::Host(host) => match self.backend.hear(host) {
                Ok(()) => Answer::Done,
                Err(error) => self.failed(error),
            },
            Order::Resize(bytes) => match self.backend.resize(bytes) {
                Ok(has_changed) => {
                    if has_changed {
                        self.interrupts.configuration();
                    }
                    Answer::Done
                }
                Err(error) => self.failed(error),
            },
            Order::Aim(pages) => {
                if self.backend.aim(pages) {
                    self.interrupts.configuration();
                }
                Answer::Done
            }
            Order::Save => {
                let queues = self.running.iter().flat_map(|running| running.queues());
                let states = queues.map(|queue| queue.as_ref().map(super::Queue::state));
                Answer::Saved(states.collect(), self.backend.save())
            }
            Order::Load(bytes, running) => match self.backend.load(&bytes) {
                Ok(()) => {
                    if running.is_some() {
                        self.running = running;
                        self.begin();
                    }
                    Answer::Done
                }
                Err(Unfit) => Answer::Unfit,
            },
        }
    }

    /// Whatever its driver does: another process may read next what the device stands on.
    fn sync(&mut self) -> Answer {
        match self.backend.sync() {
            Ok(()) => Answer::Done,
            Err(error) => self.failed(error),
        }
    }

    fn failed(&self, error: io::Error) -> Answer {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        Answer::Failed(error)
    }

    /// A driver may have said something while nobody listened: every queue is looked at.
    fn begin(&mut self) {
        if !self.is_at_work() {
            return;
        }
        if let Some(running) = self.running.as_deref_mut() {
            for queue in 0..self.kicks.len() {
                running.again(queue);
            }
            if let Err(broken) = self.backend.begin(running) {
                self.stop(&broken);
            }
        }
    }

    /// The driver broke the specification.
    fn stop(&mut self, _broken: &Broken) {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.interrupts.need_reset();
    }
}

fn until(at: Instant) -> PollTimeout {
    let left = at.saturating_duration_since(Instant::now());
    // Rounded up, so that the wait does not end before the time has come.
    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}

/// The event's descriptor.
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    let fd: RawFd = event.as_raw_fd();
    // SAFETY: the event stays open as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::devices::pci::Msix;
    use crate::devices::virtio::driver::Told;
    use crate::devices::virtio::{Kind, OwnRegisters};

    /// Takes as long for a sync as the other end of a channel does.
    struct Slow {
        syncs: Receiver<io::Result<()>>,
    }

    impl Backend for Slow {
        fn kind(&self) -> Kind {
            Kind::Rng
        }

        fn features(&self) -> u64 {
            0
        }

        fn queues(&self) -> Vec<u16> {
            Vec::new()
        }

        fn registers(&self) -> Arc<OwnRegisters> {
            Arc::default()
        }

        fn sync(&mut self) -> io::Result<()> {
            self.syncs.recv().unwrap()
        }

        fn serve(&mut self, _queue: usize, _running: &mut Running) -> Result<(), Broken> {
            Ok(())
        }
    }

    fn started() -> (Worker, SyncSender<io::Result<()>>, Arc<Counters>) {
        let (done, syncs) = sync_channel(8);
        let msix = Msix::new(Arc::new(Told::default()) as _, 1);
        let interrupts = Arc::new(Interrupts::new(Arc::new(msix), 0));
        let counters = Arc::<Counters>::default();
        let worker = Worker::start_confined(
            "slow-1",
            Box::new(Slow { syncs }),
            || Ok(()),
            Arc::new([]),
            interrupts,
            Arc::clone(&counters),
        )
        .unwrap();
        worker.wait_confined().unwrap();
        (worker, done, counters)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn a_pause_that_came_too_late_is_undone_and_its_answer_is_nobody_elses() {
        let (worker, done, _) = started();
        for _ in 0..3 {
            let late = worker.order_until(Order::Pause, soon());
            assert!(matches!(late, Err(WorkerError::Silent(_))), "{late:?}");
            worker.go_on();
            // Nothing more is given as long as it is silent.
            let late = worker.order_until(Order::Save, soon());
            assert!(matches!(late, Err(WorkerError::Silent(_))), "{late:?}");
            worker.go_on();
            done.send(Ok(())).unwrap();
            let saved = worker.order(Order::Save).unwrap();
            assert!(matches!(saved, Answer::Saved(..)), "{saved:?}");
        }
    }

    #[test]
    fn what_could_not_be_made_durable_is_told_and_counted() {
        let (worker, done, counters) = started();
        for order in [Order::Sync, Order::Pause] {
            done.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
            let failed = worker.order(order).unwrap_err();
            assert!(
                crate::process::sentence(&failed).contains("slow-1 failed: "),
                "{failed}"
            );
        }
        assert_eq!(counters.errors.load(Ordering::Relaxed), 2);
        done.send(Ok(())).unwrap();
        assert!(matches!(worker.order(Order::Pause), Ok(Answer::Done)));
    }
}
