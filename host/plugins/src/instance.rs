//! One instance of a plugin, and the budget of the call that runs in it.
//!
//! Always: no call runs without a time budget; memory and tables of the instance stay below its limits; after a
//! fault the instance is never called again. Never: knowledge of worlds.

use crate::{
    fault::{Fault, FaultKind},
    limits::Limits,
    ticker::Ticker,
};
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};
use wasmtime::{
    PoolConcurrencyLimitError, ResourceLimiter, Store, UpdateDeadline,
    component::{Instance, InstancePre},
};

/// A call may take this many times its limit of wall time, the machine being busy with others.
const WALL_FACTOR: u32 = 10;
/// Core instances, memories and tables that one component may consist of.
const PARTS: usize = 16;

/// What a store knows of its plugin's budget.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    memory_bytes: usize,
    table_elements: usize,
    /// The first refusal of memory or table space since the call began.
    exceeded: Option<String>,
    began: Instant,
    /// Processor time of the calling thread at the first epoch that the call saw.
    processor_at: Option<Duration>,
    allowed: Duration,
}

impl Budget {
    fn new(limits: Limits) -> Budget {
        Budget {
            limits,
            memory_bytes: 0,
            table_elements: 0,
            exceeded: None,
            began: Instant::now(),
            processor_at: None,
            allowed: Duration::ZERO,
        }
    }

    /// Asked at every epoch while the call runs. A call shorter than one epoch never gets here and pays nothing.
    fn is_spent(&mut self) -> bool {
        if self.began.elapsed() >= self.allowed * WALL_FACTOR {
            return true;
        }
        let Ok(now) = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID) else {
            return self.began.elapsed() >= self.allowed;
        };
        let now = Duration::from(now);
        match self.processor_at {
            Some(start) => now.saturating_sub(start) >= self.allowed,
            None => {
                self.processor_at = Some(now);
                false
            }
        }
    }
}

impl ResourceLimiter for Budget {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.memory_bytes + desired.saturating_sub(current);
        if total > self.limits.memory_bytes {
            self.exceeded.get_or_insert_with(|| {
                format!(
                    "The plugin wanted {total} bytes of memory, it may have {}.",
                    self.limits.memory_bytes
                )
            });
            return Ok(false);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.table_elements + desired.saturating_sub(current);
        if total > self.limits.table_elements {
            self.exceeded.get_or_insert_with(|| {
                format!(
                    "The plugin wanted {total} table elements, it may have {}.",
                    self.limits.table_elements
                )
            });
            return Ok(false);
        }
        self.table_elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        PARTS
    }

    fn memories(&self) -> usize {
        PARTS
    }

    fn tables(&self) -> usize {
        PARTS
    }
}

/// A started instance, with the typed view `B` of its exports.
pub(crate) struct Live<B> {
    store: Store<Budget>,
    exports: B,
}

impl<B> Live<B> {
    /// Instantiates and finds what is to be called, all within the start budget.
    pub(crate) fn start(
        ticker: &Ticker,
        pre: &InstancePre<Budget>,
        limits: Limits,
        exports: impl FnOnce(&mut Store<Budget>, &Instance) -> wasmtime::Result<B>,
    ) -> Result<Live<B>, Fault> {
        let mut store = new_store(pre, limits);
        let exports = run(ticker, &mut store, limits.start_ms, |store| {
            let instance = pre.instantiate(&mut *store)?;
            exports(store, &instance)
        })?;
        Ok(Live { store, exports })
    }

    /// Calls into the instance with `allowed_ms` of processor time. After an error the instance must be dropped.
    #[inline]
    pub(crate) fn call<R>(
        &mut self,
        ticker: &Ticker,
        allowed_ms: u64,
        f: impl FnOnce(&B, &mut Store<Budget>) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let exports = &self.exports;
        run(ticker, &mut self.store, allowed_ms, |store| {
            f(exports, store)
        })
    }

    /// When the last call began.
    pub(crate) fn began(&self) -> Instant {
        self.store.data().began
    }
}

/// A store with its limits in force.
pub(crate) fn new_store(pre: &InstancePre<Budget>, limits: Limits) -> Store<Budget> {
    let mut store = Store::new(pre.engine(), Budget::new(limits));
    store.limiter(|budget| budget);
    store.set_hostcall_fuel(limits.output_bytes);
    store.epoch_deadline_callback(|mut context| {
        Ok(if context.data_mut().is_spent() {
            UpdateDeadline::Interrupt
        } else {
            UpdateDeadline::Continue(1)
        })
    });
    store
}

/// Runs `f` within a budget.
#[inline]
pub(crate) fn run<R>(
    ticker: &Ticker,
    store: &mut Store<Budget>,
    allowed_ms: u64,
    f: impl FnOnce(&mut Store<Budget>) -> wasmtime::Result<R>,
) -> Result<R, Fault> {
    let budget = store.data_mut();
    budget.began = Instant::now();
    budget.allowed = Duration::from_millis(allowed_ms);
    budget.processor_at = None;
    budget.exceeded = None;
    store.set_epoch_deadline(1);
    let _running = ticker.run();
    f(store).map_err(|error| {
        if error.downcast_ref::<PoolConcurrencyLimitError>().is_some() {
            return Fault::new(
                FaultKind::Busy,
                "All instances of the sandbox are in use. Try again, or remove plugins.",
            );
        }
        Fault::from_wasm(&error, store.data_mut().exceeded.take())
    })
}
