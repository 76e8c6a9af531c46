//! The default plugins, as `cargo xtask plugins` builds them, in the sandbox in which they will run.
#![allow(clippy::unwrap_used)]

mod support;

use dwcp_plugins::{
    ConfigureError, Document, Effect, Limits, Outcome, Placement, Policy, Setup, TemplateError,
    World,
    placement::{Batch, Change, Fleet, Free, Host, Region, Relation, Request, Scope, Term},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};
use support::{Bench, bench, built, stamp};

#[test]
fn the_default_plugins_are_pure() {
    let bench = bench();
    for (name, world) in [
        ("placement-default", World::Placement),
        ("policy-rego", World::Policy),
        ("template-default", World::Template),
    ] {
        let compiled = bench.sandbox.compile(&built(name)).unwrap();
        assert_eq!(compiled.imports(), [] as [&str; 0], "{name}");
        assert_eq!(compiled.manifest().name, name);
        assert_eq!(compiled.manifest().known_world(), Some(world));
        assert!(compiled.manifest().capabilities.is_empty());
    }
}

// Placement.

fn placement(bench: &Bench) -> Placement {
    let compiled = bench.sandbox.compile(&built("placement-default")).unwrap();
    let setup = Setup {
        limits: Limits {
            memory_bytes: 64 << 20,
            ..Limits::placement()
        },
        ..Setup::default()
    };
    bench.sandbox.placement(&compiled, setup).unwrap()
}

fn regions() -> Vec<Region> {
    let region = |name: &str, priority, to: &str| Region {
        name: name.into(),
        priority,
        latency_us: [(to.to_owned(), 80_000)].into(),
    };
    vec![region("east", 60, "west"), region("west", 40, "east")]
}

fn arbitrary_host() -> impl Strategy<Value = Host> {
    let labels = proptest::collection::btree_set(
        prop_oneof![Just("disk=ssd"), Just("tier=gold"), Just("os=linux")],
        0..3,
    );
    let members =
        proptest::collection::btree_map(prop_oneof![Just("web"), Just("db")], 1..3u32, 0..2);
    let free = (0..16_000u32, 0..65_536u32, 0..500u32);
    (
        0..12u8,
        any::<bool>(),
        0..4u8,
        0..=100u8,
        labels,
        members,
        free,
        1..100_000u32,
    )
        .prop_map(
            |(id, east, accepting, health, labels, members, (cpu, memory, storage), latency)| {
                Host {
                    id: format!("host-{id}"),
                    region: if east { "east" } else { "west" }.into(),
                    zone: Some(if latency % 2 == 0 { "a" } else { "b" }.into()),
                    accepting: accepting > 0,
                    health,
                    latency_us: Some(latency),
                    cpu_price_micros: latency % 977,
                    memory_price_micros: latency % 577,
                    cpu_total_millis: 16_000,
                    memory_total_mib: 65_536,
                    storage_total_gib: 500,
                    gpu_model: None,
                    labels: labels
                        .into_iter()
                        .map(Into::into)
                        .collect::<BTreeSet<String>>(),
                    free: Free {
                        cpu_millis: cpu,
                        memory_mib: memory,
                        storage_gib: storage,
                        gpus: 0,
                        bandwidth_mbps: 1_000,
                    },
                    members: members
                        .into_iter()
                        .map(|(g, n)| (g.to_owned(), n))
                        .collect(),
                }
            },
        )
}

fn batch() -> Batch {
    let request = |id: &str, terms: Vec<Term>, groups: &[&str]| Request {
        id: id.into(),
        cpu_millis: 1_000,
        memory_mib: 2_048,
        storage_gib: 10,
        terms,
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        ..Request::default()
    };
    let term = |relation, scope, subject: &str, weight| Term {
        relation,
        scope,
        subject: subject.into(),
        weight,
    };
    Batch {
        requests: vec![
            request("plain", vec![], &[]),
            request(
                "ssd",
                vec![term(Relation::Requires, Scope::Label, "disk=ssd", 0)],
                &["web"],
            ),
            request(
                "apart",
                vec![term(Relation::Forbids, Scope::GroupOnHost, "web", 0)],
                &["web"],
            ),
            request(
                "near-db",
                vec![term(Relation::Prefers, Scope::GroupInZone, "db", 50)],
                &[],
            ),
            Request {
                near: Some("west".into()),
                ..request("west", vec![], &[])
            },
        ],
        alternatives: 2,
        explain: true,
    }
}

/// A way to a fleet: hosts put, changed and removed one after another.
#[derive(Debug, Clone)]
enum Step {
    Put(Host),
    Gone(u8),
    Free(u8, u32),
    Members(u8, bool, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => arbitrary_host().prop_map(Step::Put),
        1 => (0..12u8).prop_map(Step::Gone),
        2 => (0..12u8, 0..16_000u32).prop_map(|(id, cpu)| Step::Free(id, cpu)),
        2 => (0..12u8, any::<bool>(), 0..4u32).prop_map(|(id, web, count)| Step::Members(id, web, count)),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// The answer depends on the state, not on the way to it: changes one at a time with decisions in between, changes
    /// all at once, and loading what came out give the same decisions.
    #[test]
    fn any_way_to_a_state_gives_the_same_answer(steps in steps(), seen in any::<u64>()) {
        // One sandbox for all cases: compiling is not what is tried here.
        static BENCH: LazyLock<Bench> = LazyLock::new(bench);
        let bench = &*BENCH;
        let (stepwise, at_once) = (placement(bench), placement(bench));
        let empty = Fleet { regions: regions(), hosts: vec![] };
        stepwise.load(empty.clone(), 1).unwrap();
        at_once.load(empty, 1).unwrap();
        let mut revision = 1;
        for (at, step) in steps.into_iter().enumerate() {
            let name = |id: u8| format!("host-{id}");
            let change = match step {
                Step::Put(host) => Change::Host(Box::new(host)),
                Step::Gone(id) => Change::Gone { host: name(id) },
                Step::Free(id, cpu_millis) => Change::Free { host: name(id), free: Free { cpu_millis, memory_mib: 4_096, storage_gib: 50, ..Free::default() } },
                Step::Members(id, web, count) => Change::Members { host: name(id), group: if web { "web" } else { "new" }.into(), count },
            };
            // A change of a host that is not there is refused; the others count.
            if stepwise.apply(std::slice::from_ref(&change), revision + 1).is_ok() {
                revision += 1;
                at_once.apply(&[change], revision).unwrap();
            }
            if seen >> (at % 64) & 1 == 1 {
                stepwise.decide(&stamp("between"), &batch()).unwrap();
            }
        }
        let (fleet, _) = stepwise.fleet().unwrap();
        let loaded = placement(bench);
        // Also in another order of slots, without the holes.
        let mut dense = fleet.clone();
        dense.hosts.retain(|h| !h.id.is_empty());
        dense.hosts.reverse();
        let expected = stepwise.decide(&stamp("stepwise"), &batch()).unwrap();
        prop_assert_eq!(&at_once.decide(&stamp("at once"), &batch()).unwrap(), &expected);
        loaded.load(fleet, revision).unwrap();
        prop_assert_eq!(&loaded.decide(&stamp("loaded"), &batch()).unwrap(), &expected);
        loaded.load(dense, revision + 1).unwrap();
        prop_assert_eq!(&loaded.decide(&stamp("dense"), &batch()).unwrap(), &expected);
    }
}

#[test]
fn placement_explains_and_replays() {
    let bench = bench();
    let placement = placement(&bench);
    let host = |id: &str, memory_mib| Host {
        id: id.into(),
        region: "east".into(),
        accepting: true,
        health: 100,
        latency_us: Some(500),
        cpu_total_millis: 16_000,
        memory_total_mib: 65_536,
        storage_total_gib: 500,
        free: Free {
            cpu_millis: 8_000,
            memory_mib,
            storage_gib: 100,
            gpus: 0,
            bandwidth_mbps: 1_000,
        },
        labels: ["disk=ssd".to_owned()].into(),
        ..Host::default()
    };
    let fleet = Fleet {
        regions: regions(),
        hosts: vec![host("full", 64), host("roomy", 32_768)],
    };
    placement.load(fleet.clone(), 3).unwrap();
    let answer = placement.decide(&stamp("d"), &batch()).unwrap();
    let decision = &answer.decisions[0];
    assert_eq!(decision.chosen.as_ref().unwrap().host, "roomy");
    assert_eq!(decision.reasons.len(), answer.factors.len());
    assert_eq!(decision.rejected.iter().map(|r| r.hosts).sum::<u32>(), 1);
    let sum: f64 = answer.factors.iter().map(|f| f.weight).sum();
    assert!((sum - 1.0).abs() < 1e-9);
    let record = bench.kept.last();
    for _ in 0..3 {
        assert!(placement.replay(&record, fleet.clone(), 3).unwrap().same);
    }
    // A record written to disk and read again replays as well.
    let record = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
    assert!(placement.replay(&record, fleet, 3).unwrap().same);
}

// Policy.

const TAGS: &str = r#"package dwcp.tags

deny contains msg if {
    some key in ["owner", "project"]
    not input.object.tags[key]
    msg := sprintf("The tag %s is missing.", [key])
}
"#;

fn rego(path: &str, text: &str) -> Document {
    Document {
        path: path.into(),
        media: "application/vnd.openpolicyagent.rego".into(),
        text: text.into(),
    }
}

fn policy(bench: &Bench) -> Policy {
    let compiled = bench.sandbox.compile(&built("policy-rego")).unwrap();
    bench.sandbox.policy(&compiled, Setup::default()).unwrap()
}

fn question(tags: &[(&str, &str)]) -> String {
    let tags: BTreeMap<_, _> = tags.iter().copied().collect();
    serde_json::json!({
        "action": "vm.create", "principal": {}, "project": "p", "object": {"tags": tags}, "facts": {},
    })
    .to_string()
}

#[test]
fn rego_denies_with_reasons_and_replays() {
    let bench = bench();
    let policy = policy(&bench);
    let summary = policy.configure(&[rego("tags.rego", TAGS)]).unwrap();
    assert_eq!(summary.policies, ["dwcp.tags"]);
    let denied = policy
        .decide(&stamp("1"), &question(&[("owner", "me")]))
        .unwrap();
    assert_eq!(denied.effect, Effect::Deny);
    assert_eq!(denied.reasons.len(), 1);
    assert_eq!(denied.reasons[0].message, "The tag project is missing.");
    let record = bench.kept.last();
    assert!(policy.replay(&record).unwrap().same);
    let allowed = policy
        .decide(&stamp("2"), &question(&[("owner", "me"), ("project", "x")]))
        .unwrap();
    assert_eq!(allowed.effect, Effect::Allow);
    assert!(policy.replay(&bench.kept.last()).unwrap().same);
    // Under other documents the record is another question.
    policy
        .configure(&[rego("tags.rego", &TAGS.replace("owner", "email"))])
        .unwrap();
    assert!(policy.replay(&record).is_err());
}

#[test]
fn broken_rego_is_refused_with_its_place_and_the_old_one_stays() {
    let bench = bench();
    let policy = policy(&bench);
    policy.configure(&[rego("tags.rego", TAGS)]).unwrap();
    let in_force = policy.configuration();
    let broken = TAGS.replace("not input", "not not (input");
    match policy.configure(&[rego("tags.rego", &broken)]) {
        Err(ConfigureError::Refused(found)) => {
            assert_eq!(found[0].file, "tags.rego");
            assert_eq!(found[0].line, 5, "{found:?}");
            assert!(
                found[0].to_string().starts_with("tags.rego:5:"),
                "{}",
                found[0]
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(policy.configuration(), in_force);
    assert_eq!(
        policy.decide(&stamp("1"), &question(&[])).unwrap().effect,
        Effect::Deny
    );
}

// Template.

#[test]
fn a_bad_template_is_refused_with_problems() {
    let bench = bench();
    let compiled = bench.sandbox.compile(&built("template-default")).unwrap();
    let template = bench.sandbox.template(&compiled, Setup::default()).unwrap();
    let document = Document {
        path: "broken.toml".into(),
        media: "application/vnd.dwcp.template.v1+toml".into(),
        text: "this is = not [a template".into(),
    };
    match template.expand(&stamp("t"), &document, "{}") {
        Err(TemplateError::Refused(problems)) => assert!(!problems.is_empty()),
        other => panic!("{other:?}"),
    }
    let record = bench.kept.last();
    assert_eq!(record.world, World::Template);
    assert!(
        matches!(record.outcome, Outcome::Answer(_)),
        "that a template refuses is an answer"
    );
    assert!(template.replay(&record).unwrap().same);
    assert!(template.describe(&document).is_err());
}
