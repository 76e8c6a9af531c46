//! Calls an export that takes and gives nothing, through the same gate, budget and counters as every other call.
//!
//! For: measuring what the sandbox itself costs beside the bare engine, with the same bytes. The component needs no
//! manifest and is never a decision.

use crate::{
    counters::{Counters, Usage},
    fault::Fault,
    gate::Gate,
    instance::{Budget, Live},
    limits::Limits,
    sandbox::{CompileError, Sandbox},
};
use std::sync::{Arc, Mutex, PoisonError};
use wasmtime::component::{ComponentExportIndex, InstancePre, TypedFunc};

type Run = TypedFunc<(), ()>;

/// A component whose export is called again and again.
pub struct Probe {
    sandbox: Arc<Sandbox>,
    pre: InstancePre<Budget>,
    export: ComponentExportIndex,
    limits: Limits,
    gate: Gate,
    counters: Counters,
    live: Mutex<Option<Live<Run>>>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe")
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Prepares calls of `export`, a function without parameters and result, of a component without imports.
    pub fn probe(
        self: &Arc<Self>,
        wasm: &[u8],
        limits: Limits,
        export: &str,
    ) -> Result<Probe, CompileError> {
        let (component, _) = self.component(wasm)?;
        let pre = self.link_pure(&component).map_err(CompileError::Invalid)?;
        let export =
            component
                .get_export_index(None, export)
                .ok_or_else(|| CompileError::NoExport {
                    export: export.to_owned(),
                })?;
        Ok(Probe {
            sandbox: self.clone(),
            pre,
            export,
            limits,
            gate: Gate::new(1, limits.waiting_calls, limits.wait_ms),
            counters: Counters::default(),
            live: Mutex::new(None),
        })
    }
}

impl Probe {
    fn start(&self) -> Result<Live<Run>, Fault> {
        self.counters.start();
        Live::start(
            &self.sandbox.ticker,
            &self.pre,
            self.limits,
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
        let result = live.call(&self.sandbox.ticker, self.limits.call_ms, |run, store| {
            run.call(store, ())
        });
        self.counters.call(live.began().elapsed());
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
