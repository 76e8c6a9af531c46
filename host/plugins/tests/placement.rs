//! The placement handle around hand-made plugins: what it believes, what it reloads, what it replays.
#![allow(clippy::unwrap_used)]

mod support;

use dwcp_plugins::{
    FaultKind, Limits, Outcome, Placement, Setup,
    placement::{
        Batch, Change, Fleet, FleetError, Free, Host, Region, Relation, Request, Scope, Term,
    },
};
use support::{Bench, Bytes, Wat, bench, compile, stamp};

const LOAD: &str = "dwcp:placement/decisions@0.1.0#load";
const APPLY: &str = "dwcp:placement/decisions@0.1.0#apply";
const DECIDE: &str = "dwcp:placement/decisions@0.1.0#decide";

/// An answer of one decision: the host of this slot, with this score.
fn answer(slot: u32, score: f64) -> String {
    let mut decision = Bytes::at(16_384);
    decision.u8(1).align(8); // some
    decision
        .u32(slot)
        .align(8)
        .f64(score)
        .u32(0)
        .u32(0)
        .u64(7)
        .u32(9)
        .align(8);
    decision.u32(0).u32(0); // reasons
    decision.u32(0).u32(0); // alternatives
    decision.u32(1).u32(0).u32(0).align(8); // considered, rejected
    let mut answer = Bytes::at(8_192);
    answer.u8(0).align(8).u32(0).u32(0).u32(16_384).u32(1);
    decision.data() + &answer.data()
}

/// Remembers that it was loaded; answers with the static answer; traps when 8 alternatives are asked for.
fn plugin(slot: u32, score: f64) -> Wat {
    let not_loaded = { Bytes::at(12_288) }.tap(|b| {
        b.u8(1).align(8).u8(0);
    });
    Wat::placement()
        .declare("(global $loaded (mut i32) (i32.const 0)) (global $applied (mut i32) (i32.const 0))")
        .declare(&answer(slot, score))
        .declare(&not_loaded.data())
        .function(LOAD, "(param i32) (result i32) (global.set $loaded (i32.const 1)) i32.const 64")
        .function(
            APPLY,
            "(param i32) (result i32) (global.set $applied (i32.add (global.get $applied) (i32.const 1))) i32.const 64",
        )
        .function(
            DECIDE,
            "(param $args i32) (result i32)
             (if (i32.eqz (global.get $loaded)) (then (return (i32.const 12288))))
             (if (i32.eq (i32.load8_u offset=112 (local.get $args)) (i32.const 8)) (then unreachable))
             i32.const 8192",
        )
}

trait Tap: Sized {
    fn tap(self, f: impl FnOnce(&mut Self)) -> Self;
}

impl<T> Tap for T {
    fn tap(mut self, f: impl FnOnce(&mut Self)) -> Self {
        f(&mut self);
        self
    }
}

fn host(id: &str) -> Host {
    Host {
        id: id.into(),
        region: "here".into(),
        accepting: true,
        health: 100,
        free: Free {
            cpu_millis: 4_000,
            memory_mib: 4_096,
            ..Free::default()
        },
        ..Host::default()
    }
}

fn fleet(hosts: &[&str]) -> Fleet {
    Fleet {
        regions: vec![Region {
            name: "here".into(),
            priority: 50,
            latency_us: Default::default(),
        }],
        hosts: hosts.iter().map(|id| host(id)).collect(),
    }
}

fn batch(id: &str) -> Batch {
    Batch {
        requests: vec![Request {
            id: id.into(),
            cpu_millis: 1_000,
            memory_mib: 128,
            ..Request::default()
        }],
        ..Batch::default()
    }
}

fn open(bench: &Bench, wat: &Wat) -> Placement {
    let setup = Setup {
        limits: Limits {
            memory_bytes: 16 << 20,
            ..Limits::placement()
        },
        ..Setup::default()
    };
    bench
        .sandbox
        .placement(&compile(&bench.sandbox, wat), setup)
        .unwrap()
}

#[test]
fn the_answer_gets_names_and_is_recorded() {
    let bench = bench();
    let placement = open(&bench, &plugin(1, 88.5));
    assert_eq!(
        placement
            .decide(&stamp("early"), &batch("vm"))
            .unwrap_err()
            .kind,
        FaultKind::Start
    );
    placement.load(fleet(&["left", "right"]), 7).unwrap();
    let answer = placement.decide(&stamp("d1"), &batch("vm")).unwrap();
    let chosen = answer.decisions[0].chosen.as_ref().unwrap();
    assert_eq!(
        (
            chosen.host.as_str(),
            chosen.score,
            chosen.cost_micros,
            chosen.latency_us
        ),
        ("right", 88.5, 7, Some(9))
    );
    assert_eq!(placement.revision(), Some(7));
    let record = bench.kept.last();
    assert_eq!(record.id, "d1");
    assert_eq!(record.plugin, "dwcp/made-by-hand@0.1.0");
    assert!(
        record.input.starts_with("{\"revision\":7,"),
        "{}",
        record.input
    );
    assert!(matches!(&record.outcome, Outcome::Answer(text) if text.contains("right")));
    let replay = placement
        .replay(&record, fleet(&["left", "right"]), 7)
        .unwrap();
    assert!(replay.same);
    assert!(
        placement
            .replay(&record, fleet(&["left", "right"]), 8)
            .is_err()
    );
    assert!(
        !placement
            .replay(&record, fleet(&["right", "left"]), 7)
            .unwrap()
            .same
    );
}

#[test]
fn indices_and_numbers_are_not_believed() {
    for wat in [
        plugin(2, 50.0),
        plugin(u32::MAX, 50.0),
        plugin(0, f64::NAN),
        plugin(0, 1e300),
        plugin(0, -5.0),
    ] {
        let bench = bench();
        let placement = open(&bench, &wat);
        placement.load(fleet(&["left", "right"]), 1).unwrap();
        let fault = placement.decide(&stamp("d"), &batch("vm")).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Answer, "{fault:?}");
    }
    // Two requests, one decision; a free slot.
    let bench = bench();
    let placement = open(&bench, &plugin(0, 50.0));
    placement.load(fleet(&["left", "right"]), 1).unwrap();
    let two = Batch {
        requests: [batch("a").requests, batch("b").requests].concat(),
        ..Batch::default()
    };
    assert_eq!(
        placement.decide(&stamp("d"), &two).unwrap_err().kind,
        FaultKind::Answer
    );
    assert!(placement.decide(&stamp("d"), &batch("vm")).is_ok());
    placement
        .apply(
            &[Change::Gone {
                host: "left".into(),
            }],
            2,
        )
        .unwrap();
    assert_eq!(
        placement
            .decide(&stamp("d"), &batch("vm"))
            .unwrap_err()
            .kind,
        FaultKind::Answer
    );
}

#[test]
fn after_a_fault_the_kept_fleet_is_loaded_again() {
    let bench = bench();
    let placement = open(&bench, &plugin(1, 50.0));
    placement.load(fleet(&["left", "right"]), 1).unwrap();
    for round in 1..=3 {
        let bad = Batch {
            alternatives: 8,
            ..batch("vm")
        };
        assert_eq!(
            placement.decide(&stamp("bad"), &bad).unwrap_err().kind,
            FaultKind::Trap
        );
        let change = Change::Free {
            host: "right".into(),
            free: Free {
                cpu_millis: round,
                ..Free::default()
            },
        };
        placement.apply(&[change], 1 + u64::from(round)).unwrap();
        // Without the reload the plugin would answer "not loaded".
        assert!(placement.decide(&stamp("good"), &batch("vm")).is_ok());
        assert_eq!(placement.usage().starts, 1 + u64::from(round));
    }
}

#[test]
fn a_plugin_that_forgets_is_loaded_again_once() {
    let bench = bench();
    let forgetful = Wat::placement()
        .declare(
            &{ Bytes::at(12_288) }
                .tap(|b| {
                    b.u8(1).align(8).u8(0);
                })
                .data(),
        )
        .function(DECIDE, "(param i32) (result i32) i32.const 12288");
    let placement = open(&bench, &forgetful);
    placement.load(fleet(&["left"]), 1).unwrap();
    let fault = placement.decide(&stamp("d"), &batch("vm")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Answer);
    assert_eq!(placement.usage().starts, 2);
}

#[test]
fn a_request_that_names_what_is_not_there_spoils_only_itself() {
    let bench = bench();
    let placement = open(&bench, &plugin(1, 50.0));
    placement.load(fleet(&["left", "right"]), 1).unwrap();
    let term = |scope, subject: &str| Term {
        relation: Relation::Requires,
        scope,
        subject: subject.into(),
        weight: 0,
    };
    let request = |id: &str, term: Option<Term>, near: Option<&str>| Request {
        id: id.into(),
        terms: term.into_iter().collect(),
        near: near.map(Into::into),
        ..Request::default()
    };
    let batch = Batch {
        requests: vec![
            request("a", Some(term(Scope::Region, "atlantis")), None),
            request("b", Some(term(Scope::Host, "left")), None),
            request("c", None, Some("atlantis")),
        ],
        ..Batch::default()
    };
    let answer = placement.decide(&stamp("d"), &batch).unwrap();
    let chosen: Vec<bool> = answer
        .decisions
        .iter()
        .map(|d| d.chosen.is_some())
        .collect();
    assert_eq!(chosen, [false, true, false]);
    assert_eq!(
        answer
            .decisions
            .iter()
            .map(|d| d.request.as_str())
            .collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    assert_eq!(
        answer.decisions[0].rejected[0].reason,
        "there is no region atlantis"
    );
    assert_eq!(answer.decisions[0].rejected[0].hosts, 2);
}

#[test]
fn changes_are_taken_all_or_none() {
    let bench = bench();
    let placement = open(&bench, &plugin(0, 50.0));
    assert!(placement.apply(&[], 1).is_err());
    placement.load(fleet(&["left", "right"]), 5).unwrap();
    let before = placement.fleet();
    let wrong: Vec<(Vec<Change>, FleetError)> = vec![
        (
            vec![
                Change::Gone {
                    host: "left".into(),
                },
                Change::Gone {
                    host: "left".into(),
                },
            ],
            FleetError::UnknownHost("left".into()),
        ),
        (
            vec![
                Change::Host(Box::new(host("new"))),
                Change::Members {
                    host: "nobody".into(),
                    group: "g".into(),
                    count: 1,
                },
            ],
            FleetError::UnknownHost("nobody".into()),
        ),
        (
            vec![Change::Regions(vec![])],
            FleetError::UnknownRegion {
                host: "left".into(),
                region: "here".into(),
            },
        ),
    ];
    for (changes, error) in wrong {
        assert_eq!(placement.apply(&changes, 6).unwrap_err(), error);
        assert_eq!(placement.fleet(), before);
    }
    assert_eq!(
        placement.apply(&[], 5).unwrap_err(),
        FleetError::Revision { from: 5, to: 5 }
    );
    // A host that was added in the same changes can be spoken of.
    let good = [
        Change::Host(Box::new(host("new"))),
        Change::Members {
            host: "new".into(),
            group: "g".into(),
            count: 2,
        },
    ];
    placement.apply(&good, 6).unwrap();
    let (fleet, revision) = placement.fleet().unwrap();
    assert_eq!(revision, 6);
    assert_eq!(fleet.hosts[2].members.get("g"), Some(&2));
    // A freed slot is used again, and the fleet as told loads into the same slots.
    placement
        .apply(
            &[Change::Gone {
                host: "left".into(),
            }],
            7,
        )
        .unwrap();
    let (fleet, _) = placement.fleet().unwrap();
    assert_eq!(fleet.hosts[0], Host::default());
    placement.load(fleet.clone(), 8).unwrap();
    placement
        .apply(&[Change::Host(Box::new(host("third")))], 9)
        .unwrap();
    assert_eq!(placement.fleet().unwrap().0.hosts[0].id, "third");
}

#[test]
fn fleets_that_contradict_themselves_are_refused() {
    let bench = bench();
    let placement = open(&bench, &plugin(0, 50.0));
    assert!(placement.load(fleet(&["twin", "twin"]), 1).is_err());
    let lost = Fleet {
        hosts: vec![Host {
            region: "nowhere".into(),
            ..host("a")
        }],
        ..fleet(&[])
    };
    assert!(placement.load(lost, 1).is_err());
    let sick = Fleet {
        hosts: vec![Host {
            health: 101,
            ..host("a")
        }],
        ..fleet(&[])
    };
    assert!(placement.load(sick, 1).is_err());
    assert_eq!(placement.revision(), None);
}
