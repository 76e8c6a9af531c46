//! What the sandbox itself costs: the same component through it and through bare wasmtime, interleaved.
//!
//! Prints one JSON object a line: `call_us` (a call without arguments) and `instantiate_us` (an instance from the pool,
//! set up and ready), each the median of all rounds, with bare wasmtime's beside it. Run with `--release`.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use dwcp_plugins::{Limits, Probe, Setup};
use std::{hint::black_box, time::Instant};
use support::{Wat, quiet_sandbox};
use wasmtime::{
    Config, Engine, PoolingAllocationConfig, Store,
    component::{Component, InstancePre, Linker, TypedFunc},
};

const ROUNDS: usize = 41;
const CALLS: u32 = 20_000;
const INSTANCES: u32 = 500;

/// Bare wasmtime with its pool, nothing limited.
struct Bare {
    pre: InstancePre<()>,
    store: Store<()>,
    run: TypedFunc<(), ()>,
}

impl Bare {
    fn new(wasm: &[u8]) -> Bare {
        let mut config = Config::new();
        config.allocation_strategy(PoolingAllocationConfig::new());
        let engine = Engine::new(&config).unwrap();
        let component = Component::from_binary(&engine, wasm).unwrap();
        let pre = Linker::new(&engine).instantiate_pre(&component).unwrap();
        let mut store = Store::new(&engine, ());
        let instance = pre.instantiate(&mut store).unwrap();
        let run = instance.get_typed_func(&mut store, "run").unwrap();
        Bare { pre, store, run }
    }

    fn call(&mut self) {
        self.run.call(&mut self.store, ()).unwrap();
    }

    fn instantiate(&self) {
        let mut store = Store::new(self.pre.engine(), ());
        let instance = self.pre.instantiate(&mut store).unwrap();
        let run: TypedFunc<(), ()> = instance.get_typed_func(&mut store, "run").unwrap();
        black_box(run);
    }
}

fn each_us(count: u32, mut f: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..count {
        f();
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(count)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(what: &str, ours: Vec<f64>, bare: Vec<f64>) {
    let (value, reference_value) = (median(ours), median(bare));
    let line = serde_json::json!({
        "what": what, "value": value, "unit": "us", "reference": "wasmtime 48, the same bytes",
        "reference_value": reference_value, "ratio": value / reference_value, "runs": ROUNDS,
    });
    println!("{line}");
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = quiet_sandbox(dir.path());
    let wasm = Wat::probe().build();
    let compiled = sandbox.compile(&wasm).unwrap();
    let setup = Setup {
        limits: Limits::default(),
        ..Setup::default()
    };
    let probe: Probe = sandbox.probe(&compiled, setup, "run").unwrap();
    let mut bare = Bare::new(&wasm);
    let (mut calls, mut bare_calls, mut starts, mut bare_starts) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        // Whoever comes first alternates, so that a drift of the machine falls on both.
        for ours in if round % 2 == 0 {
            [true, false]
        } else {
            [false, true]
        } {
            if ours {
                calls.push(each_us(CALLS, || probe.call().unwrap()));
                starts.push(each_us(INSTANCES, || probe.instantiate().unwrap()));
            } else {
                bare_calls.push(each_us(CALLS, || bare.call()));
                bare_starts.push(each_us(INSTANCES, || bare.instantiate()));
            }
        }
    }
    report("call_us", calls, bare_calls);
    report("instantiate_us", starts, bare_starts);
}
