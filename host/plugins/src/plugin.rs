//! What every opened plugin has, whatever its world: its code, its limits, its gate, its counters, its records.
//!
//! Always: every call is counted, every fault is counted by kind, every decision is recorded once.

use crate::{
    bindings::described::DescribedIndices,
    counters::{Counters, Usage},
    fault::{Fault, FaultKind},
    gate::{Gate, Permit},
    instance::{Budget, Live},
    limits::Limits,
    record::{DecisionRecord, Outcome, Replay, ReplayError, Stamp, World},
    sandbox::{Compiled, OpenError, Sandbox, Setup},
};
use serde::Serialize;
use std::{sync::Arc, time::Instant};
use wasmtime::{
    Store,
    component::{Instance, InstancePre},
};

/// The world-independent part of a handle.
pub(crate) struct Plugin {
    sandbox: Arc<Sandbox>,
    compiled: Compiled,
    pre: InstancePre<Budget>,
    described: DescribedIndices,
    setup: Setup,
    gate: Gate,
    counters: Counters,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin")
            .field("compiled", &self.compiled)
            .field("setup", &self.setup)
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

impl Plugin {
    /// Links `compiled` as `setup` says; `indices` finds the exports of its world.
    pub(crate) fn open<I>(
        sandbox: &Arc<Sandbox>,
        compiled: &Compiled,
        setup: Setup,
        world: World,
        concurrent_calls: u32,
        indices: impl FnOnce(&InstancePre<Budget>) -> wasmtime::Result<I>,
    ) -> Result<(Plugin, I), OpenError> {
        let plugin = || compiled.manifest().address();
        if compiled.manifest().known_world() != Some(world) {
            let found = compiled.manifest().world.clone();
            return Err(OpenError::OtherWorld {
                plugin: plugin(),
                found,
                wanted: world,
            });
        }
        let pre = sandbox.link(compiled, &setup)?;
        let exports = |source| OpenError::Exports {
            plugin: plugin(),
            world,
            source,
        };
        let described = DescribedIndices::new(&pre).map_err(exports)?;
        let indices = indices(&pre).map_err(exports)?;
        let gate = Gate::new(
            concurrent_calls,
            setup.limits.waiting_calls,
            setup.limits.wait_ms,
        );
        let plugin = Plugin {
            sandbox: sandbox.clone(),
            compiled: compiled.clone(),
            pre,
            described,
            setup,
            gate,
            counters: Counters::default(),
        };
        Ok((plugin, indices))
    }

    pub(crate) fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.setup.limits
    }

    pub(crate) fn usage(&self) -> Usage {
        self.counters.read()
    }

    pub(crate) fn enter(&self) -> Result<Permit<'_>, Fault> {
        self.gate.enter()
    }

    /// Refuses an input that is larger than the plugin may be given.
    pub(crate) fn check_input(&self, bytes: usize) -> Result<(), Fault> {
        let max = self.setup.limits.input_bytes;
        if bytes > max {
            return Err(Fault::new(
                FaultKind::Input,
                format!("The input has {bytes} bytes, at most {max} are allowed."),
            ));
        }
        Ok(())
    }

    /// A new instance, set up.
    pub(crate) fn start<B>(
        &self,
        exports: impl FnOnce(&mut Store<Budget>, &Instance) -> wasmtime::Result<B>,
    ) -> Result<Live<B>, Fault> {
        self.counters.start();
        let mut refusal = None;
        let live = Live::start(
            &self.sandbox.ticker,
            &self.pre,
            self.setup.limits,
            |store, instance| {
                let described = self.described.load(&mut *store, instance)?;
                refusal = described
                    .dwcp_types_plugin()
                    .call_set_up(&mut *store, &self.setup.configuration)?
                    .err();
                exports(store, instance)
            },
        )?;
        match refusal {
            None => Ok(live),
            Some(problems) => {
                let (path, message) = problems.first().map_or(("", "no reason given"), |p| {
                    (p.path.as_str(), p.message.as_str())
                });
                let what = format!("The plugin refused its configuration at '{path}': {message}");
                Err(Fault::new(FaultKind::Start, what))
            }
        }
    }

    /// A call that gives the instance its state.
    pub(crate) fn feed<B, R>(
        &self,
        live: &mut Live<B>,
        f: impl FnOnce(&B, &mut Store<Budget>) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        live.call(&self.sandbox.ticker, self.setup.limits.start_ms, f)
    }

    /// A call that decides.
    #[inline]
    pub(crate) fn call<B, R>(
        &self,
        live: &mut Live<B>,
        f: impl FnOnce(&B, &mut Store<Budget>) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        live.call(&self.sandbox.ticker, self.setup.limits.call_ms, f)
    }

    /// Counts a finished call or an attempt that failed before it.
    #[inline]
    pub(crate) fn count<R, E>(
        &self,
        began: Instant,
        result: &Result<R, E>,
        fault: impl FnOnce(&E) -> Option<FaultKind>,
    ) {
        self.counters.call(began.elapsed());
        if let Some(kind) = result.as_ref().err().and_then(fault) {
            self.counters.fault(kind);
        }
    }

    /// Tells the recorder one decision.
    pub(crate) fn record<A: Serialize>(
        &self,
        stamp: &Stamp,
        world: World,
        configuration: &str,
        input: String,
        outcome: Result<&A, &Fault>,
        began: Instant,
    ) {
        self.sandbox.recorder.record(DecisionRecord {
            id: stamp.id.clone(),
            at_ms: stamp.at_ms,
            world,
            plugin: self.compiled.manifest().address(),
            digest: self.compiled.digest().to_owned(),
            configuration: configuration.to_owned(),
            input,
            outcome: as_outcome(outcome),
            duration_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        });
    }

    /// Decides a record again with `again`, unless its outcome came from the machine and not from the plugin:
    /// what was cut off by time, or found no turn, replays as recorded.
    pub(crate) fn replay<A: Serialize>(
        &self,
        record: &DecisionRecord,
        configuration: &str,
        again: impl FnOnce() -> Result<Result<A, Fault>, ReplayError>,
    ) -> Result<Replay, ReplayError> {
        if record.digest != self.compiled.digest() {
            return Err(ReplayError::OtherPlugin {
                recorded: record.digest.clone(),
                ours: self.compiled.digest().to_owned(),
            });
        }
        if record.configuration != configuration {
            return Err(ReplayError::OtherConfiguration {
                recorded: record.configuration.clone(),
                ours: configuration.to_owned(),
            });
        }
        if let Outcome::Fault(Fault {
            kind: FaultKind::Time | FaultKind::Busy,
            ..
        }) = record.outcome
        {
            return Ok(Replay {
                outcome: record.outcome.clone(),
                same: true,
            });
        }
        let result = again()?;
        let outcome = as_outcome(result.as_ref());
        Ok(Replay {
            same: outcome == record.outcome,
            outcome,
        })
    }
}

fn as_outcome<A: Serialize>(result: Result<&A, &Fault>) -> Outcome {
    match result.map(serde_json::to_string) {
        Ok(Ok(json)) => Outcome::Answer(json),
        Ok(Err(error)) => Outcome::Fault(Fault::new(
            FaultKind::Answer,
            format!("The answer is no JSON: {error}."),
        )),
        Err(fault) => Outcome::Fault(fault.clone()),
    }
}

/// SHA-256 over parts, each with its length before it; hex.
pub(crate) fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    use sha2::{Digest, Sha256};
    let mut sha = Sha256::new();
    for part in parts {
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part);
    }
    hex::encode(sha.finalize())
}
