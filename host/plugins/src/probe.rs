//! Calls an export that takes and gives nothing, through the same gate, budget and counters as every other call.
//!
//! For: measuring what the sandbox itself costs beside the bare engine, with the same bytes. Never: a decision.

use crate::{
    bindings::described::DescribedIndices,
    counters::{Counters, Usage},
    fault::Fault,
    gate::Gate,
    instance::{Budget, Live},
    sandbox::{Compiled, OpenError, Sandbox, Setup},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use wasmtime::component::{ComponentExportIndex, InstancePre, TypedFunc};

/// A component whose export is called again and again.
pub struct Probe {
    sandbox: Arc<Sandbox>,
    pre: InstancePre<Budget>,
    described: DescribedIndices,
    export: ComponentExportIndex,
    setup: Setup,
    gate: Gate,
    counters: Counters,
    live: Mutex<Option<Live<TypedFunc<(), ()>>>>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe")
            .field("setup", &self.setup)
            .finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Prepares calls of `export`, a function of the component without parameters and result.
    pub fn probe(
        self: &Arc<Self>,
        compiled: &Compiled,
        setup: Setup,
        export: &str,
    ) -> Result<Probe, OpenError> {
        let plugin = compiled.manifest().address();
        let pre = self.link(compiled, &setup)?;
        let (Ok(described), Some(export)) = (
            DescribedIndices::new(&pre),
            compiled.component.get_export_index(None, export),
        ) else {
            return Err(OpenError::NoExport {
                plugin,
                export: export.to_owned(),
            });
        };
        let gate = Gate::new(1, setup.limits.waiting_calls, setup.limits.wait_ms);
        Ok(Probe {
            sandbox: self.clone(),
            pre,
            described,
            export,
            setup,
            gate,
            counters: Counters::default(),
            live: Mutex::new(None),
        })
    }
}

impl Probe {
    fn start(&self) -> Result<Live<TypedFunc<(), ()>>, Fault> {
        self.counters.start();
        Live::start(
            &self.sandbox.ticker,
            &self.pre,
            &self.described,
            self.setup.limits,
            &self.setup.configuration,
            |store, instance| instance.get_typed_func(store, self.export),
        )
    }

    /// Makes an instance and drops it.
    pub fn instantiate(&self) -> Result<(), Fault> {
        self.start().map(drop)
    }

    /// Calls the export in the kept instance, which is made when there is none.
    pub fn call(&self) -> Result<(), Fault> {
        let _permit = self.gate.enter()?;
        let mut held = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let live = match &mut *held {
            Some(live) => live,
            none => none.insert(self.start()?),
        };
        let began = Instant::now();
        let result = live.call(
            &self.sandbox.ticker,
            self.setup.limits.call_ms,
            |run, store| run.call(store, ()),
        );
        self.counters.call(began.elapsed());
        if let Err(fault) = &result {
            self.counters.fault(fault.kind);
            *held = None;
        }
        result
    }

    /// What it did so far.
    pub fn usage(&self) -> Usage {
        self.counters.read()
    }
}
