//! What the sandbox itself costs: the same component through it and through bare wasmtime, interleaved.
//!
//! `call_us`: a call without arguments. `instantiate_us`: an instance from the pool, ready to be called. Each is the
//! median of all rounds, with bare wasmtime's beside it.

use dwcp_plugins::{Limits, NoRecorder, Probe, Sandbox, SandboxConfig};
use std::{error::Error, hint::black_box, sync::Arc, time::Instant};
use wasmtime::{
    Config, Engine, PoolingAllocationConfig, Store,
    component::{Component, InstancePre, Linker, TypedFunc},
};

const ROUNDS: usize = 41;
const CALLS: u32 = 20_000;
const INSTANCES: u32 = 500;

/// A component with a memory of one page and a function that does nothing.
const COMPONENT: &str = r#"(component
    (core module $module (memory (export "memory") 1) (func (export "run")))
    (core instance $instance (instantiate $module))
    (func (export "run") (canon lift (core func $instance "run"))))"#;

/// Bare wasmtime with its pool, nothing limited.
struct Bare {
    pre: InstancePre<()>,
    store: Store<()>,
    run: TypedFunc<(), ()>,
}

impl Bare {
    fn new(wasm: &[u8]) -> wasmtime::Result<Bare> {
        let mut config = Config::new();
        config.allocation_strategy(PoolingAllocationConfig::new());
        let engine = Engine::new(&config)?;
        let component = Component::from_binary(&engine, wasm)?;
        let pre = Linker::new(&engine).instantiate_pre(&component)?;
        let mut store = Store::new(&engine, ());
        let instance = pre.instantiate(&mut store)?;
        let run = instance.get_typed_func(&mut store, "run")?;
        Ok(Bare { pre, store, run })
    }

    fn call(&mut self) -> wasmtime::Result<()> {
        self.run.call(&mut self.store, ())
    }

    fn instantiate(&self) -> wasmtime::Result<()> {
        let mut store = Store::new(self.pre.engine(), ());
        let instance = self.pre.instantiate(&mut store)?;
        let run: TypedFunc<(), ()> = instance.get_typed_func(&mut store, "run")?;
        black_box(run);
        Ok(())
    }
}

fn each_us<E>(count: u32, mut f: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let began = Instant::now();
    for _ in 0..count {
        f()?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(count))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn figure(
    target: u32,
    what: &str,
    goal: &str,
    ours: Vec<f64>,
    bare: Vec<f64>,
) -> serde_json::Value {
    let (value, reference_value) = (median(ours), median(bare));
    serde_json::json!({
        "target": target, "what": what, "value": value, "unit": "us", "goal": goal,
        "reference": "wasmtime 48, the same bytes", "reference_value": reference_value,
        "ratio": value / reference_value, "runs": ROUNDS,
    })
}

/// Measures both figures.
pub fn run() -> Result<Vec<serde_json::Value>, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let sandbox = Sandbox::new(SandboxConfig::below(dir.path(), Arc::new(NoRecorder)))?;
    let wasm = wat::parse_str(COMPONENT)?;
    let probe: Probe = sandbox.probe(&wasm, Limits::default(), "run")?;
    let mut bare = Bare::new(&wasm)?;
    let (mut calls, mut bare_calls, mut starts, mut bare_starts) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        // Whoever comes first alternates, so that a drift of the machine falls on both.
        for ours in if round % 2 == 0 {
            [true, false]
        } else {
            [false, true]
        } {
            if ours {
                calls.push(each_us(CALLS, || probe.call())?);
                starts.push(each_us(INSTANCES, || probe.instantiate())?);
            } else {
                bare_calls.push(each_us(CALLS, || bare.call())?);
                bare_starts.push(each_us(INSTANCES, || bare.instantiate())?);
            }
        }
    }
    Ok(vec![
        figure(9, "call_us", "<= 1, ratio <= 1.2", calls, bare_calls),
        figure(
            10,
            "instantiate_us",
            "<= 20, ratio <= 1.2",
            starts,
            bare_starts,
        ),
    ])
}
