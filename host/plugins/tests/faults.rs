//! Plugins that misbehave in one way each: the call fails with the right kind of fault, the next call is served by a
//! new instance, other plugins notice nothing.
#![allow(clippy::unwrap_used)]

mod support;

use dwcp_plugins::{
    CompileError, Effect, Fault, FaultKind, Limits, OpenError, Outcome, Policy, Setup,
};
use std::sync::Arc;
use support::{Bench, Bytes, Wat, bench, compile, stamp};

const DECIDE: &str = "dwcp:policy/rules@0.1.0#decide";

/// Faults on an input longer than 100 bytes, allows others: so that the same plugin can be seen to recover.
fn faulty(body: &str) -> Wat {
    // `inputs` is a list of one string; its length is the second word of its first element.
    Wat::policy().function(
        DECIDE,
        &format!(
            "(param $list i32) (param $n i32) (result i32)
             (if (i32.gt_u (i32.load offset=4 (local.get $list)) (i32.const 100)) (then {body}))
             i32.const 16"
        ),
    )
}

fn limits() -> Limits {
    Limits {
        call_ms: 100,
        start_ms: 2_000,
        memory_bytes: 4 << 20,
        output_bytes: 256 << 10,
        ..Limits::default()
    }
}

fn open(bench: &Bench, wat: &Wat) -> Policy {
    let compiled = compile(&bench.sandbox, wat);
    let policy = bench
        .sandbox
        .policy(
            &compiled,
            Setup {
                limits: limits(),
                ..Setup::default()
            },
        )
        .unwrap();
    policy.configure(&[]).unwrap();
    policy
}

fn provoke(bench: &Bench, policy: &Policy) -> Fault {
    policy
        .decide(&stamp("bad"), &"x".repeat(200))
        .expect_err("the call succeeded")
        .tap(|fault| {
            let recorded = bench.kept.last();
            assert_eq!(recorded.outcome, Outcome::Fault(fault.clone()));
            assert_eq!(recorded.id, "bad");
        })
}

trait Tap: Sized {
    fn tap(self, f: impl FnOnce(&Self)) -> Self {
        f(&self);
        self
    }
}

impl Tap for Fault {}

/// The fault has this kind; the plugin itself and another one then work; counters tell of it.
fn check(body: &str, declare: &str, kind: FaultKind) -> Fault {
    let bench = bench();
    let other = open(&bench, &Wat::policy().version("0.2.0"));
    let policy = open(&bench, &faulty(body).declare(declare).memory_pages(8));
    for round in 1..=3 {
        let fault = provoke(&bench, &policy);
        assert_eq!(fault.kind, kind, "{fault:?}");
        assert_eq!(
            policy.decide(&stamp("good"), "{}").unwrap().effect,
            Effect::Allow
        );
        assert_eq!(
            other
                .decide(&stamp("other"), &"x".repeat(200))
                .unwrap()
                .effect,
            Effect::Allow
        );
        assert_eq!(policy.usage().faults.get(&kind), Some(&round));
        assert_eq!(policy.usage().starts, 1 + round);
    }
    assert!(other.usage().faults.is_empty());
    assert_eq!(other.usage().starts, 1);
    let fault = provoke(&bench, &policy);
    // What was cut off replays as cut off; every other fault happens again, word for word.
    assert!(policy.replay(&bench.kept.last()).unwrap().same);
    fault
}

#[test]
fn an_endless_loop_is_cut_off() {
    check("(loop $l (br $l))", "", FaultKind::Time);
}

#[test]
fn a_trap_is_a_fault() {
    let fault = check("unreachable", "", FaultKind::Trap);
    assert!(fault.message.contains("unreachable"), "{}", fault.message);
    check(
        "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
        "",
        FaultKind::Trap,
    );
    check("(drop (i32.load (i32.const -8)))", "", FaultKind::Trap);
}

#[test]
fn deep_recursion_is_cut_off() {
    // Not a tail call: the addition waits for the inner result.
    let recurse = "(func $deep (param i32) (result i32)
        (i32.add (i32.const 1) (call $deep (i32.add (i32.const 1) (local.get 0)))))";
    check(
        "(drop (call $deep (i32.const 0)))",
        recurse,
        FaultKind::Stack,
    );
}

#[test]
fn a_memory_bomb_is_cut_off() {
    let body = "(loop $l
        (if (i32.eq (i32.const -1) (memory.grow (i32.const 16))) (then unreachable))
        (br $l))";
    let fault = check(body, "", FaultKind::Memory);
    assert!(fault.message.contains("4194304"), "{}", fault.message);
}

#[test]
fn a_table_bomb_is_cut_off() {
    let body = "(loop $l
        (if (i32.eq (i32.const -1) (table.grow $t (ref.null func) (i32.const 50000))) (then unreachable))
        (br $l))";
    check(body, "(table $t 1 funcref)", FaultKind::Memory);
}

#[test]
fn a_huge_answer_is_cut_off() {
    // 100,000 verdicts of 32 zero bytes each, from fresh memory.
    let body = "(i32.store (i32.const 32) (i32.mul (i32.const 65536) (memory.grow (i32.const 50))))
        (i32.store (i32.const 36) (i32.const 100000))
        (return (i32.const 32))";
    check(body, "", FaultKind::Output);
}

#[test]
fn a_small_answer_that_names_the_same_megabyte_often_is_cut_off() {
    // 60 reasons, whose messages are all the same 60,000 bytes at 256 KiB: little memory for the guest, 3.6 MB for the host.
    let mut reasons = Bytes::at(16_384);
    for _ in 0..60 {
        reasons.u32(0).u32(0).u32(0).u32(0).u32(262_144).u32(60_000);
    }
    let mut verdict = Bytes::at(12_288);
    verdict
        .u8(3)
        .align(4)
        .u32(16_384)
        .u32(60)
        .u32(0)
        .u32(0)
        .u32(0)
        .u32(0)
        .u32(0);
    let mut list = Bytes::at(8_192);
    list.u32(12_288).u32(1);
    check(
        "(return (i32.const 8192))",
        &[reasons.data(), verdict.data(), list.data()].concat(),
        FaultKind::Output,
    );
}

#[test]
fn wrong_answers_are_faults() {
    // No verdict for one input.
    check("(return (i32.const 64))", "", FaultKind::Answer);
    // Text that is no UTF-8, and a pointer outside memory.
    let mut verdict = Bytes::at(12_288);
    verdict
        .u8(0)
        .align(4)
        .u32(0)
        .u32(0)
        .u32(1)
        .u32(12_400)
        .u32(4)
        .u32(0)
        .u32(0);
    let mut list = Bytes::at(8_192);
    list.u32(12_288).u32(1);
    let text = "(data (i32.const 12400) \"\\ff\\ff\\ff\\ff\")";
    check(
        "(return (i32.const 8192))",
        &[verdict.data(), list.data(), text.into()].concat(),
        FaultKind::Trap,
    );
    check(
        "(i32.store (i32.const 32) (i32.const -16)) (i32.store (i32.const 36) (i32.const 1)) (return (i32.const 32))",
        "",
        FaultKind::Trap,
    );
    // "Allow" with a patch.
    let text = "(data (i32.const 12400) \"[  ]\")";
    check(
        "(return (i32.const 8192))",
        &[verdict.data(), list.data(), text.into()].concat(),
        FaultKind::Answer,
    );
    // An outcome that does not exist.
    let mut verdict = Bytes::at(12_288);
    verdict
        .u8(77)
        .align(4)
        .u32(0)
        .u32(0)
        .u32(0)
        .u32(0)
        .u32(0)
        .u32(0)
        .u32(0);
    check(
        "(return (i32.const 8192))",
        &[verdict.data(), list.data()].concat(),
        FaultKind::Trap,
    );
}

#[test]
fn a_slow_start_is_cut_off() {
    let bench = bench();
    // The start function runs at instantiation, so reading the manifest already fails.
    let loops = "(func $spin (loop $l (br $l))) (start $spin)";
    let wasm = Wat::policy().declare(loops).build();
    match bench.sandbox.compile(&wasm) {
        Err(CompileError::NoManifest(fault)) => assert_eq!(fault.kind, FaultKind::Time),
        other => panic!("{other:?}"),
    }
    // A slow `set-up` and a slow `configure` come later.
    for (function, parameters) in [
        (
            "dwcp:types/plugin@0.1.0#set-up",
            "(param i32 i32) (result i32)",
        ),
        (
            "dwcp:policy/rules@0.1.0#configure",
            "(param i32 i32) (result i32)",
        ),
    ] {
        let wat = Wat::policy().function(
            function,
            &format!("{parameters} (loop $l (br $l)) unreachable"),
        );
        let setup = Setup {
            limits: Limits {
                start_ms: 100,
                ..limits()
            },
            ..Setup::default()
        };
        let policy = bench
            .sandbox
            .policy(&compile(&bench.sandbox, &wat), setup)
            .unwrap();
        match policy.configure(&[]) {
            Err(dwcp_plugins::ConfigureError::Fault(fault)) => {
                assert_eq!(fault.kind, FaultKind::Time)
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(
            policy.decide(&stamp("s"), "{}").unwrap_err().kind,
            FaultKind::Start
        );
    }
    let good = open(&bench, &Wat::policy());
    assert_eq!(
        good.decide(&stamp("good"), "{}").unwrap().effect,
        Effect::Allow
    );
}

#[test]
fn too_much_memory_at_the_start_is_refused() {
    let bench = bench();
    let compiled = compile(&bench.sandbox, &Wat::policy().memory_pages(200));
    let policy = bench
        .sandbox
        .policy(
            &compiled,
            Setup {
                limits: limits(),
                ..Setup::default()
            },
        )
        .unwrap();
    match policy.configure(&[]) {
        Err(dwcp_plugins::ConfigureError::Fault(fault)) => {
            assert_eq!(fault.kind, FaultKind::Memory)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_input_over_its_limit_never_reaches_the_plugin() {
    let bench = bench();
    let compiled = compile(&bench.sandbox, &Wat::policy());
    let setup = Setup {
        limits: Limits {
            input_bytes: 150,
            ..limits()
        },
        ..Setup::default()
    };
    let policy = bench.sandbox.policy(&compiled, setup).unwrap();
    policy.configure(&[]).unwrap();
    let fault = policy.decide(&stamp("big"), &"x".repeat(200)).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Input);
    assert_eq!(policy.usage().starts, 1);
}

#[test]
fn an_import_that_is_not_granted_is_refused_by_name() {
    let bench = bench();
    let wit = "package test:greedy;
        interface files { read: func() -> u32; }
        world greedy { import files; export dwcp:types/plugin@0.1.0; export dwcp:policy/rules@0.1.0; }";
    let greedy = || {
        Wat::policy()
            .world("test:greedy/greedy", wit)
            .import("(import \"test:greedy/files\" \"read\" (func (result i32)))")
    };
    match bench.sandbox.compile(&greedy().build()) {
        Err(CompileError::Undeclared { import }) => assert_eq!(import, "test:greedy/files"),
        other => panic!("{other:?}"),
    }
    let compiled = compile(&bench.sandbox, &greedy().asks_for("test:greedy/files"));
    assert_eq!(compiled.imports(), ["test:greedy/files"]);
    match bench.sandbox.policy(&compiled, Setup::default()) {
        Err(error @ OpenError::NotGranted { .. }) => {
            assert!(error.to_string().contains("test:greedy/files"))
        }
        other => panic!("{other:?}"),
    }
    let granted = Setup {
        granted: ["test:greedy/files".to_owned()].into(),
        ..Setup::default()
    };
    match bench.sandbox.policy(&compiled, granted) {
        Err(OpenError::NotProvided { import, .. }) => assert_eq!(import, "test:greedy/files"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_plugin_is_refused() {
    let bench = bench();
    let core = wat::parse_str("(module)").unwrap();
    assert!(matches!(
        bench.sandbox.compile(&core),
        Err(CompileError::Invalid(_))
    ));
    assert!(
        matches!(
            bench.sandbox.compile(b"(component)"),
            Err(CompileError::Invalid(_))
        ),
        "text is not a component"
    );
    assert!(matches!(
        bench.sandbox.compile(b""),
        Err(CompileError::Invalid(_))
    ));
    let empty = wat::parse_str("(component)").unwrap();
    assert!(matches!(
        bench.sandbox.compile(&empty),
        Err(CompileError::NoManifest(_))
    ));
    let bad = Wat::policy().version("one").build();
    assert!(matches!(
        bench.sandbox.compile(&bad),
        Err(CompileError::BadManifest(_))
    ));
    // Says template, is a policy: neither opens as the other.
    let liar = compile(
        &bench.sandbox,
        &Wat::probe()
            .claims_world("dwcp:policy/policy@0.1.0")
            .function("run", ""),
    );
    assert!(matches!(
        bench.sandbox.policy(&liar, Setup::default()),
        Err(OpenError::Exports { .. })
    ));
    let policy = compile(&bench.sandbox, &Wat::policy());
    assert!(matches!(
        bench.sandbox.template(&policy, Setup::default()),
        Err(OpenError::OtherWorld { .. })
    ));
}

#[test]
fn calls_beyond_the_limit_wait_and_then_are_refused() {
    let bench = bench();
    let compiled = compile(&bench.sandbox, &faulty("(loop $l (br $l))"));
    let limits = Limits {
        concurrent_calls: 1,
        waiting_calls: 0,
        call_ms: 2_000,
        ..limits()
    };
    let policy = Arc::new(
        bench
            .sandbox
            .policy(
                &compiled,
                Setup {
                    limits,
                    ..Setup::default()
                },
            )
            .unwrap(),
    );
    policy.configure(&[]).unwrap();
    let running = std::thread::spawn({
        let policy = policy.clone();
        // The short calls below may take its turn first.
        move || loop {
            match policy.decide(&stamp("long"), &"x".repeat(200)) {
                Err(fault) if fault.kind == FaultKind::Busy => {}
                other => break other,
            }
        }
    });
    // While the long call runs, one more is refused; before and after, it is served.
    let refused = loop {
        match policy.decide(&stamp("short"), "{}") {
            Err(fault) => break fault,
            Ok(_) if running.is_finished() => panic!("two calls ran at once"),
            Ok(_) => {}
        }
    };
    assert_eq!(refused.kind, FaultKind::Busy);
    assert_eq!(running.join().unwrap().unwrap_err().kind, FaultKind::Time);
    assert_eq!(
        policy.decide(&stamp("after"), "{}").unwrap().effect,
        Effect::Allow
    );
}

#[test]
fn many_threads_share_one_policy() {
    let bench = bench();
    let policy = open(&bench, &faulty("unreachable"));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let policy = &policy;
            scope.spawn(move || {
                for call in 0..50 {
                    let bad = (thread + call) % 5 == 0;
                    let input = if bad {
                        "x".repeat(200)
                    } else {
                        "{}".to_owned()
                    };
                    assert_eq!(policy.decide(&stamp("t"), &input).is_err(), bad);
                }
            });
        }
    });
    assert_eq!(policy.usage().faults.get(&FaultKind::Trap), Some(&80));
    assert_eq!(policy.usage().calls, 401);
}

#[test]
fn a_probe_is_limited_like_a_plugin() {
    let bench = bench();
    let component = |body: &str| {
        wat::parse_str(format!(
            r#"(component
                (core module $module (func (export "run") {body}))
                (core instance $instance (instantiate $module))
                (func (export "run") (canon lift (core func $instance "run"))))"#
        ))
        .unwrap()
    };
    let good = bench
        .sandbox
        .probe(&component(""), limits(), "run")
        .unwrap();
    good.instantiate().unwrap();
    for _ in 0..3 {
        good.call().unwrap();
    }
    assert_eq!((good.usage().calls, good.usage().starts), (3, 2));
    let bad = bench
        .sandbox
        .probe(&component("(loop $l (br $l))"), limits(), "run")
        .unwrap();
    for _ in 0..2 {
        assert_eq!(bad.call().unwrap_err().kind, FaultKind::Time);
    }
    assert_eq!(bad.usage().starts, 2);
    assert!(matches!(
        bench.sandbox.probe(&component(""), limits(), "walk"),
        Err(CompileError::NoExport { .. })
    ));
}
