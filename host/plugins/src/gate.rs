//! How many calls of one plugin run at once, and how many may wait for how long.
//!
//! Always: at most `running` permits are out, at most `waiting` callers wait, none longer than `wait`.
//! Never: knowledge of what the permits are for.

use crate::fault::{Fault, FaultKind};
use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
struct State {
    running: u32,
    waiting: u32,
}

/// The gate of one plugin.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    freed: Condvar,
    running: u32,
    waiting: u32,
    wait: Duration,
}

impl Gate {
    pub(crate) fn new(running: u32, waiting: u32, wait_ms: u64) -> Gate {
        Gate {
            state: Mutex::default(),
            freed: Condvar::new(),
            running: running.max(1),
            waiting,
            wait: Duration::from_millis(wait_ms),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn; a [`FaultKind::Busy`] fault when there are too many waiters or it takes too long.
    pub(crate) fn enter(&self) -> Result<Permit<'_>, Fault> {
        let mut state = self.lock();
        if state.running >= self.running {
            if state.waiting >= self.waiting {
                return Err(busy());
            }
            state.waiting += 1;
            let deadline = Instant::now() + self.wait;
            while state.running >= self.running {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    state.waiting -= 1;
                    return Err(busy());
                }
                state = self
                    .freed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            state.waiting -= 1;
        }
        state.running += 1;
        Ok(Permit(self))
    }
}

fn busy() -> Fault {
    Fault::new(
        FaultKind::Busy,
        "Too many calls of this plugin are under way. Try again, or raise its concurrent calls.",
    )
}

/// The right to run one call.
#[derive(Debug)]
pub(crate) struct Permit<'a>(&'a Gate);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running -= 1;
        let someone_waits = state.waiting > 0;
        drop(state);
        // Waking nobody would still be a system call.
        if someone_waits {
            self.0.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_waits_and_the_next_is_refused() {
        let gate = Gate::new(1, 1, 60_000);
        let first = gate.enter().unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| gate.enter().map(drop));
            while gate.lock().waiting == 0 {
                std::thread::yield_now();
            }
            assert_eq!(gate.enter().unwrap_err().kind, FaultKind::Busy);
            drop(first);
            second.join().unwrap().unwrap();
        });
        assert_eq!(gate.lock().running, 0);
    }

    #[test]
    fn a_wait_ends() {
        let gate = Gate::new(1, 8, 1);
        let _first = gate.enter().unwrap();
        assert_eq!(gate.enter().unwrap_err().kind, FaultKind::Busy);
        assert_eq!(gate.lock().waiting, 0);
    }
}
