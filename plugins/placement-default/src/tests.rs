//! The contract, held against the code natively.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use crate::bindings::exports::dwcp::placement::decisions::{
    Answer, Batch, Changes, Fleet, Free, Hosts, Members, Membership, Refusal, Regions, Relation,
    Scope, Term,
};
use crate::score::decide;
use crate::settings::Settings;
use crate::state::{NONE, State};

/// One host as a row, which is easier to write than columns.
#[derive(Clone, Debug)]
struct Row {
    id: String,
    region: u32,
    zone: u32,
    health: u8,
    latency_us: u32,
    price: u32,
    cpu: u32,
    memory: u32,
    labels: Vec<u32>,
}

fn row(id: &str) -> Row {
    Row {
        id: id.to_owned(),
        region: 0,
        zone: NONE,
        health: 100,
        latency_us: 1000,
        price: 10_000,
        cpu: 8000,
        memory: 16_384,
        labels: Vec::new(),
    }
}

fn hosts(rows: &[Row]) -> Hosts {
    let mut starts = vec![0];
    for row in rows {
        starts.push(starts.last().unwrap() + row.labels.len() as u32);
    }
    Hosts {
        ids: rows.iter().map(|r| r.id.clone()).collect(),
        region: rows.iter().map(|r| r.region).collect(),
        zone: rows.iter().map(|r| r.zone).collect(),
        accepting: rows.iter().map(|_| 1).collect(),
        health: rows.iter().map(|r| r.health).collect(),
        latency_us: rows.iter().map(|r| r.latency_us).collect(),
        cpu_price_micros: rows.iter().map(|r| r.price).collect(),
        memory_price_micros: rows.iter().map(|_| 0).collect(),
        cpu_total_millis: rows.iter().map(|r| r.cpu).collect(),
        memory_total_mib: rows.iter().map(|r| r.memory).collect(),
        storage_total_gib: rows.iter().map(|_| 0).collect(),
        gpu_model: rows.iter().map(|_| NONE).collect(),
        label_starts: starts,
        labels: rows.iter().flat_map(|r| r.labels.clone()).collect(),
    }
}

fn free(rows: &[(u32, u32)]) -> Free {
    Free {
        cpu_millis: rows.iter().map(|r| r.0).collect(),
        memory_mib: rows.iter().map(|r| r.1).collect(),
        storage_gib: rows.iter().map(|_| 0).collect(),
        gpus: rows.iter().map(|_| 0).collect(),
        bandwidth_mbps: rows.iter().map(|_| 0).collect(),
    }
}

fn members(rows: &[(u32, u32, u32)]) -> Members {
    Members {
        host: rows.iter().map(|r| r.0).collect(),
        group: rows.iter().map(|r| r.1).collect(),
        count: rows.iter().map(|r| r.2).collect(),
    }
}

fn regions() -> Regions {
    Regions {
        names: vec!["eu".into(), "us".into()],
        priority: vec![100, 50],
        latency_us: vec![0, 90_000, 90_000, 0],
    }
}

fn symbols(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("symbol={i}")).collect()
}

fn fleet(rows: &[Row]) -> Fleet {
    let all: Vec<(u32, u32)> = rows.iter().map(|r| (r.cpu, r.memory)).collect();
    Fleet {
        symbols: symbols(8),
        regions: regions(),
        hosts: hosts(rows),
        free: free(&all),
        members: members(&[]),
    }
}

/// So many equal requests without conditions.
fn batch(count: usize, cpu: u32, memory: u32) -> Batch {
    Batch {
        ids: (0..count).map(|i| format!("vm-{i}")).collect(),
        cpu_millis: vec![cpu; count],
        memory_mib: vec![memory; count],
        storage_gib: vec![0; count],
        bandwidth_mbps: vec![0; count],
        gpus: vec![0; count],
        gpu_model: vec![NONE; count],
        near: vec![NONE; count],
        max_latency_us: vec![NONE; count],
        cost_limit_micros: vec![u64::MAX; count],
        min_health: vec![0; count],
        symbols: Vec::new(),
        terms: Vec::new(),
        memberships: Vec::new(),
        alternatives: 2,
        explain: true,
    }
}

fn term(request: u32, relation: Relation, scope: Scope, subject: u32) -> Term {
    Term {
        request,
        relation,
        scope,
        subject,
        weight: 1,
    }
}

fn ask(state: &mut State, batch: &Batch) -> Answer {
    let before = state.clone();
    let answer = decide(&Settings::default(), state, batch, state.revision).unwrap();
    assert_eq!(*state, before, "a batch must leave the state as it was");
    answer
}

fn choices(state: &mut State, batch: &Batch) -> Vec<Option<String>> {
    let answer = ask(state, batch);
    let chosen = answer.decisions.into_iter().map(|d| d.chosen);
    chosen
        .map(|c| c.map(|c| state.hosts.ids[c.host as usize].clone()))
        .collect()
}

fn state(rows: &[Row]) -> State {
    State::load(fleet(rows), 1).unwrap()
}

fn only(id: &str) -> Vec<Option<String>> {
    vec![Some(id.to_owned())]
}

#[test]
fn equal_hosts_are_told_apart_by_id_wherever_they_stand() {
    assert_eq!(
        choices(&mut state(&[row("b"), row("a")]), &batch(1, 1, 1)),
        only("a")
    );
    assert_eq!(
        choices(&mut state(&[row("a"), row("b")]), &batch(1, 1, 1)),
        only("a")
    );
}

#[test]
fn the_nearer_cheaper_emptier_host_wins_and_says_why() {
    let far = Row {
        latency_us: 100_000,
        ..row("far")
    };
    let mut state = state(&[far, row("near")]);
    let answer = ask(&mut state, &batch(1, 1000, 1024));
    let decision = &answer.decisions[0];
    assert_eq!(decision.chosen.as_ref().unwrap().host, 1);
    assert_eq!(decision.alternatives.len(), 1);
    assert_eq!(decision.reasons.len(), answer.factors.len());
    assert!(decision.reasons[0].contains("1.0 ms from the asking host"));
    let weights: f64 = answer.factors.iter().map(|f| f.weight).sum();
    assert!((weights - 1.0).abs() < 1e-9);
}

#[test]
fn limits_are_filters_with_reasons() {
    let slow = Row {
        latency_us: 60_000,
        ..row("slow")
    };
    let dear = Row {
        price: 400_000,
        ..row("dear")
    };
    let ill = Row {
        health: 20,
        ..row("ill")
    };
    let small = Row {
        cpu: 500,
        ..row("small")
    };
    let mut state = state(&[slow, dear, ill, small]);
    let mut batch = batch(1, 1000, 1024);
    batch.max_latency_us = vec![50_000];
    batch.cost_limit_micros = vec![100_000];
    batch.min_health = vec![50];
    let answer = ask(&mut state, &batch);
    let decision = &answer.decisions[0];
    assert_eq!(decision.chosen, None);
    assert_eq!(decision.considered, 0);
    let reasons: Vec<&str> = decision
        .rejected
        .iter()
        .map(|r| r.reason.as_str())
        .collect();
    let expected = [
        "cost over the limit",
        "health too low",
        "latency over the limit",
        "too little CPU",
    ];
    assert_eq!(reasons, expected);
}

#[test]
fn an_unmeasured_host_meets_no_latency_limit() {
    let mut state = state(&[Row {
        latency_us: NONE,
        ..row("a")
    }]);
    assert_eq!(choices(&mut state, &batch(1, 1, 1)), only("a"));
    let mut limited = batch(1, 1, 1);
    limited.max_latency_us = vec![NONE - 1];
    assert_eq!(choices(&mut state, &limited), vec![None]);
}

#[test]
fn a_batch_sees_what_its_earlier_requests_took() {
    let mut state = state(&[row("a"), row("b")]);
    let chosen = choices(&mut state, &batch(3, 8000, 1024));
    assert_eq!(chosen, vec![Some("a".into()), Some("b".into()), None]);
}

#[test]
fn groups_stand_together_or_apart() {
    let rows = [
        Row {
            zone: 1,
            ..row("a")
        },
        Row {
            zone: 1,
            ..row("b")
        },
        Row {
            zone: 2,
            ..row("c")
        },
    ];
    let mut state = state(&rows);
    let mut apart = batch(3, 100, 100);
    apart.memberships = (0..3)
        .map(|request| Membership { request, group: 5 })
        .collect();
    apart.terms = (0..3)
        .map(|request| term(request, Relation::Forbids, Scope::GroupInZone, 5))
        .collect();
    assert_eq!(
        choices(&mut state, &apart),
        vec![Some("a".into()), Some("c".into()), None]
    );
    let mut together = apart.clone();
    together.terms = (0..3)
        .map(|request| term(request, Relation::Requires, Scope::GroupOnHost, 5))
        .collect();
    assert_eq!(choices(&mut state, &together), vec![Some("a".into()); 3]);
}

#[test]
fn regions_and_labels_are_required_forbidden_and_preferred() {
    let us = Row {
        region: 1,
        labels: vec![3],
        ..row("us")
    };
    let mut state = state(&[row("eu"), us]);
    let mut asked = batch(1, 1, 1);
    let with = |relation, scope, subject| vec![term(0, relation, scope, subject)];
    assert_eq!(choices(&mut state, &asked), only("eu"));
    asked.terms = with(Relation::Requires, Scope::Label, 3);
    assert_eq!(choices(&mut state, &asked), only("us"));
    asked.terms = with(Relation::Forbids, Scope::Region, 0);
    assert_eq!(choices(&mut state, &asked), only("us"));
    asked.terms = with(Relation::Prefers, Scope::Label, 3);
    assert_eq!(choices(&mut state, &asked), only("us"));
    asked.terms = Vec::new();
    asked.near = vec![1];
    assert_eq!(choices(&mut state, &asked), only("us"));
}

#[test]
fn without_words_the_numbers_are_the_same() {
    let mut state = state(&[row("a"), row("b")]);
    let mut asked = batch(4, 1000, 1024);
    let mut spoken = ask(&mut state, &asked);
    asked.explain = false;
    spoken.decisions.iter_mut().for_each(|d| d.reasons.clear());
    assert_eq!(ask(&mut state, &asked), spoken);
}

#[test]
fn refused_calls_change_nothing() {
    let mut state = state(&[row("a")]);
    let before = state.clone();
    let mut changes = nothing();
    changes.free_slots = vec![7];
    changes.free = free(&[(1, 1)]);
    assert!(matches!(
        state.apply(changes, 1, 2),
        Err(Refusal::Malformed(_))
    ));
    assert!(matches!(
        state.apply(nothing(), 9, 10),
        Err(Refusal::OtherRevision(1))
    ));
    assert!(matches!(
        state.apply(nothing(), 1, 1),
        Err(Refusal::Malformed(_))
    ));
    let asked = batch(1, 1, 1);
    let settings = Settings::default();
    assert_eq!(
        decide(&settings, &mut state, &asked, 2),
        Err(Refusal::OtherRevision(1))
    );
    let mut uneven = batch(2, 1, 1);
    uneven.near.pop();
    assert!(matches!(
        decide(&settings, &mut state, &uneven, 1),
        Err(Refusal::Malformed(_))
    ));
    assert_eq!(state, before);
}

#[test]
fn profiles_and_strategies_change_the_weights_and_nonsense_is_refused() {
    let names = |json: &str| {
        let settings = Settings::read(json).unwrap();
        let sum: f64 = settings.factors.iter().map(|f| f.1).sum();
        assert!((sum - 1.0).abs() < 1e-9);
        settings.factors.map(|f| f.0.name())
    };
    assert_eq!(names("{}")[3..], ["affinity", "policy"]);
    assert_eq!(
        names(r#"{"profile":"source","strategy":"cost"}"#)[3..],
        ["health", "priority"]
    );
    assert!(Settings::read(r#"{"profil":"source"}"#).is_err());
    assert!(Settings::read(r#"{"cost_scale_micros":0}"#).is_err());
}

fn nothing() -> Changes {
    Changes {
        symbols: Vec::new(),
        regions: None,
        host_slots: Vec::new(),
        hosts: hosts(&[]),
        free_slots: Vec::new(),
        free: free(&[]),
        members: members(&[]),
    }
}

/// A host that may be a free slot.
fn any_row() -> impl Strategy<Value = Row> {
    let labels = prop::collection::btree_set(0u32..8, 0..3);
    let numbers = (0u32..2, 0u32..4, 0u8..=100, 0u32..200_000, 0u32..900_000);
    (0u32..20, numbers, labels).prop_map(|(name, numbers, labels)| Row {
        id: if name < 3 {
            String::new()
        } else {
            format!("h{name}")
        },
        region: numbers.0,
        zone: if numbers.1 == 3 { NONE } else { numbers.1 },
        health: numbers.2,
        latency_us: numbers.3,
        price: numbers.4,
        cpu: 8000,
        memory: 16_384,
        labels: labels.into_iter().collect(),
    })
}

fn any_free() -> impl Strategy<Value = (u32, u32)> {
    (0u32..8000, 0u32..16_384)
}

/// What one change does: hosts and what is free by (wrapped) slot, and group counts.
type Change = (
    Vec<(usize, Row)>,
    Vec<(usize, (u32, u32))>,
    Vec<(usize, u32, u32)>,
);

fn any_change() -> impl Strategy<Value = Change> {
    (
        prop::collection::vec((0usize..64, any_row()), 0..4),
        prop::collection::vec((0usize..64, any_free()), 0..4),
        prop::collection::vec((0usize..64, 0u32..8, 0u32..3), 0..4),
    )
}

/// What the host would load at this revision: the independent account of what changes mean.
#[derive(Clone)]
struct Model {
    rows: Vec<Row>,
    free: Vec<(u32, u32)>,
    members: std::collections::BTreeMap<(u32, u32), u32>,
}

impl Model {
    fn change(&mut self, (rows, frees, counts): &Change) -> Changes {
        let mut changes = nothing();
        let end = self.rows.len();
        let new: std::collections::BTreeMap<usize, Row> = rows
            .iter()
            .map(|(at, row)| (at % (end + 1), row.clone()))
            .collect();
        for (slot, row) in &new {
            if *slot == self.rows.len() {
                self.rows.push(Row {
                    id: String::new(),
                    ..row.clone()
                });
                self.free.push((0, 0));
            }
            if self.rows[*slot].id != row.id {
                self.members.retain(|(host, _), _| *host as usize != *slot);
            }
            self.rows[*slot] = row.clone();
        }
        changes.host_slots = new.keys().map(|slot| *slot as u32).collect();
        changes.hosts = hosts(&new.into_values().collect::<Vec<_>>());
        let end = self.rows.len();
        let new: std::collections::BTreeMap<usize, (u32, u32)> =
            frees.iter().map(|(at, free)| (at % end, *free)).collect();
        new.iter().for_each(|(slot, free)| self.free[*slot] = *free);
        changes.free_slots = new.keys().map(|slot| *slot as u32).collect();
        changes.free = free(&new.into_values().collect::<Vec<_>>());
        let mut new = Vec::new();
        for (at, group, count) in counts {
            let host = (at % end) as u32;
            self.members.insert((host, *group), *count);
            new.push((host, *group, *count));
        }
        changes.members = members(&new);
        changes
    }

    fn fleet(&self) -> Fleet {
        let counted: Vec<(u32, u32, u32)> = self
            .members
            .iter()
            .map(|((host, group), n)| (*host, *group, *n))
            .collect();
        Fleet {
            hosts: hosts(&self.rows),
            free: free(&self.free),
            members: members(&counted),
            ..fleet(&[])
        }
    }
}

proptest! {
    #[test]
    fn applied_changes_equal_a_fresh_load(
        rows in prop::collection::vec(any_row(), 1..12),
        changes in prop::collection::vec(any_change(), 1..8),
        terms in prop::collection::vec((0u32..4, 0usize..4, 0usize..6, 0u32..2), 0..6),
    ) {
        let mut model = Model {
            free: rows.iter().map(|r| (r.cpu, r.memory)).collect(),
            rows,
            members: Default::default(),
        };
        let mut applied = State::load(model.fleet(), 1).unwrap();
        let relations = [Relation::Requires, Relation::Forbids, Relation::Prefers, Relation::Avoids];
        let scopes = [
            Scope::Zone, Scope::Region, Scope::Label,
            Scope::GroupOnHost, Scope::GroupInZone, Scope::GroupInRegion,
        ];
        let mut asked = batch(4, 900, 900);
        asked.terms = terms.iter().map(|(r, a, b, s)| term(*r, relations[*a], scopes[*b], *s)).collect();
        asked.terms.sort_by_key(|term| term.request);
        asked.memberships = (0..4).map(|request| Membership { request, group: 1 }).collect();
        for (step, change) in changes.iter().enumerate() {
            let revision = step as u64 + 2;
            applied.apply(model.change(change), revision - 1, revision).unwrap();
            let mut fresh = State::load(model.fleet(), revision).unwrap();
            prop_assert_eq!(&applied, &fresh);
            prop_assert_eq!(ask(&mut applied, &asked), ask(&mut fresh, &asked));
        }
    }
}
