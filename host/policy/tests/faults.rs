//! What the set does when its engine fails: with an engine that fails on demand.
#![allow(clippy::unwrap_used)]

use dwcp_plugins::{
    ConfigureError, DecisionRecord, Effect, Fault, FaultKind, Reason, Recorder, Stamp, Summary,
    Verdict,
};
use dwcp_policy::{
    Action, Binding, Diagnostic, Document, Engine, Judge, Mode, PolicySet, Question, RemoveError,
    Source,
};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::SeqCst},
};

#[derive(Default)]
struct Kept(Mutex<Vec<DecisionRecord>>);

impl Recorder for Kept {
    fn record(&self, record: DecisionRecord) {
        self.0.lock().unwrap().push(record);
    }
}

/// Documents are the names of what to do: `allow`, `deny`, `warn`, `patch`, `fault`, `broken`, `missing`.
#[derive(Default)]
struct Fake {
    asked: Arc<AtomicU64>,
    /// Refuses to compile anything.
    down: std::sync::atomic::AtomicBool,
}

struct FakeJudge {
    does: String,
    asked: Arc<AtomicU64>,
}

impl Engine for Fake {
    fn compile(&self, source: &Source) -> Result<Arc<dyn Judge>, ConfigureError> {
        let does = source.documents[0].text.clone();
        if self.down.load(SeqCst) {
            return Err(Fault::new(FaultKind::Start, "The engine is down.").into());
        }
        if does == "broken" {
            let found = Diagnostic {
                file: "x.rego".into(),
                line: 3,
                column: 1,
                message: "Expected a rule.".into(),
            };
            return Err(ConfigureError::Refused(vec![found]));
        }
        Ok(Arc::new(FakeJudge {
            does,
            asked: self.asked.clone(),
        }))
    }
}

impl Judge for FakeJudge {
    fn summary(&self) -> Summary {
        Summary::default()
    }

    fn digest(&self) -> String {
        self.does.clone()
    }

    fn decide(&self, _: &Stamp, _: &str) -> Result<Verdict, Fault> {
        self.asked.fetch_add(1, SeqCst);
        let reason = |message: &str| Reason {
            policy: "fake".into(),
            rule: "deny".into(),
            message: message.into(),
        };
        let verdict = |effect, reasons| Verdict {
            effect,
            reasons,
            patch: None,
            missing_facts: vec![],
        };
        match self.does.as_str() {
            "allow" => Ok(verdict(Effect::Allow, vec![])),
            "deny" => Ok(verdict(Effect::Deny, vec![reason("No.")])),
            "warn" => Ok(verdict(Effect::Warn, vec![reason("Hm.")])),
            "patch" => Ok(Verdict {
                patch: Some("[]".into()),
                ..verdict(Effect::Patch, vec![])
            }),
            "missing" => Ok(Verdict {
                missing_facts: vec!["mfa".into()],
                ..verdict(Effect::Deny, vec![reason("mfa is missing")])
            }),
            _ => Err(Fault::new(
                FaultKind::Time,
                "The plugin ran longer than it may.",
            )),
        }
    }
}

struct Test {
    fake: Arc<Fake>,
    kept: Arc<Kept>,
    set: PolicySet,
}

fn source(does: &str) -> Source {
    Source::rego(vec![Document {
        path: "x.rego".into(),
        media: "rego".into(),
        text: does.into(),
    }])
}

fn binding(policy: &str, action: &str, mode: Mode) -> Binding {
    Binding {
        policy: policy.into(),
        action: action.parse::<Action>().unwrap(),
        project: None,
        mode,
    }
}

fn test(policies: &[(&str, Mode)]) -> Test {
    let (fake, kept) = (Arc::new(Fake::default()), Arc::new(Kept::default()));
    let set = PolicySet::new(fake.clone(), kept.clone());
    for (does, mode) in policies {
        set.apply(does, &source(does)).unwrap();
        set.bind(binding(does, "vm.create", *mode)).unwrap();
    }
    Test { fake, kept, set }
}

fn question(name: &str) -> Question {
    Question {
        action: "vm.create".into(),
        principal: serde_json::json!({"name": "me"}),
        project: "p".into(),
        object: serde_json::json!({"name": name}),
        facts: serde_json::json!({}),
    }
}

fn stamp() -> Stamp {
    Stamp::new("d", 1)
}

#[test]
fn a_fault_denies_with_the_reason_and_is_not_cached() {
    let test = test(&[("allow", Mode::Enforce), ("fault", Mode::Enforce)]);
    for _ in 0..2 {
        let outcome = test.set.decide(&stamp(), &question("vm"));
        assert!(!outcome.allowed && !outcome.cached && outcome.has_fault());
        assert_eq!(
            outcome.denial_lines(),
            [
                "fault: The policy could not decide, so it denies. The plugin ran longer than it may."
            ]
        );
    }
    assert_eq!(test.fake.asked.load(SeqCst), 4);
}

#[test]
fn modes_decide_what_becomes_of_a_denial() {
    let allowed = |policies: &[(&str, Mode)]| test(policies).set.decide(&stamp(), &question("vm"));
    assert!(allowed(&[]).allowed);
    assert!(!allowed(&[("deny", Mode::Enforce)]).allowed);
    let warned = allowed(&[
        ("deny", Mode::Warn),
        ("warn", Mode::Enforce),
        ("fault", Mode::Warn),
    ]);
    assert!(warned.allowed && warned.denials.is_empty());
    assert_eq!(warned.warnings.len(), 3);
    let tried = allowed(&[
        ("deny", Mode::DryRun),
        ("warn", Mode::DryRun),
        ("fault", Mode::DryRun),
    ]);
    assert!(tried.allowed && tried.warnings.is_empty());
    assert_eq!(tried.dry_run.len(), 3);
    let missing = allowed(&[("missing", Mode::Enforce)]);
    assert!(!missing.allowed);
    assert_eq!(
        (
            missing.missing_facts[0].policy.as_str(),
            missing.missing_facts[0].fact.as_str()
        ),
        ("missing", "mfa")
    );
    // A wanted change that nobody makes must not pass as allowed.
    assert!(!allowed(&[("patch", Mode::Enforce)]).allowed);
}

#[test]
fn bindings_act_only_where_they_say() {
    let test = test(&[]);
    test.set.apply("deny", &source("deny")).unwrap();
    test.set
        .bind(Binding {
            project: Some("other".into()),
            ..binding("deny", "vm.*", Mode::Enforce)
        })
        .unwrap();
    assert!(test.set.decide(&stamp(), &question("vm")).allowed);
    test.set
        .bind(Binding {
            project: Some("p".into()),
            ..binding("deny", "vm.*", Mode::Warn)
        })
        .unwrap();
    assert!(test.set.decide(&stamp(), &question("vm")).allowed);
    // Bound twice to one question: asked once, in the strictest mode.
    test.set.bind(binding("deny", "*", Mode::Enforce)).unwrap();
    let before = test.fake.asked.load(SeqCst);
    assert!(!test.set.decide(&stamp(), &question("vm")).allowed);
    assert_eq!(test.fake.asked.load(SeqCst), before + 1);
    // Binding again at the same place changes the mode.
    test.set.bind(binding("deny", "*", Mode::DryRun)).unwrap();
    assert!(test.set.decide(&stamp(), &question("vm")).allowed);
    test.set
        .unbind(&binding("deny", "*", Mode::Enforce))
        .unwrap();
    assert!(
        test.set
            .unbind(&binding("deny", "*", Mode::Enforce))
            .is_err()
    );
    assert!(
        test.set
            .bind(binding("nobody", "*", Mode::Enforce))
            .is_err()
    );
}

#[test]
fn the_cache_answers_the_same_question_until_something_changes() {
    let test = test(&[("allow", Mode::Enforce)]);
    let asked = || test.fake.asked.load(SeqCst);
    assert!(!test.set.decide(&stamp(), &question("vm")).cached);
    let again = test.set.decide(&stamp(), &question("vm"));
    assert!(again.cached && again.allowed);
    assert_eq!(asked(), 1);
    assert!(!test.set.decide(&stamp(), &question("other")).cached);
    assert_eq!(asked(), 2);
    for change in [
        &(|| drop(test.set.apply("other", &source("deny")).unwrap())) as &dyn Fn(),
        &|| {
            drop(
                test.set
                    .bind(binding("other", "vm.*", Mode::DryRun))
                    .unwrap(),
            )
        },
        &|| {
            drop(
                test.set
                    .bind(binding("other", "vm.*", Mode::Enforce))
                    .unwrap(),
            )
        },
        &|| drop(test.set.apply("allow", &source("warn")).unwrap()),
    ] {
        change();
        assert!(!test.set.decide(&stamp(), &question("vm")).cached);
        assert!(test.set.decide(&stamp(), &question("vm")).cached);
    }
    let (hits, misses, _) = test.set.cache_usage();
    assert_eq!((hits, misses), (5, 6));
    // Recorded every time, from the cache or not.
    let records = test.kept.0.lock().unwrap();
    assert_eq!(
        records.iter().filter(|r| r.plugin == "policy-set").count(),
        11
    );
}

#[test]
fn a_broken_policy_is_refused_and_its_predecessor_stays() {
    let test = test(&[("deny", Mode::Enforce)]);
    let digest = test.set.digest();
    let error = test.set.apply("deny", &source("broken")).unwrap_err();
    assert_eq!(error.to_string(), "x.rego:3:1: Expected a rule.");
    assert_eq!(test.set.digest(), digest);
    assert!(!test.set.decide(&stamp(), &question("vm")).allowed);
    assert!(test.set.apply("Bad Name", &source("allow")).is_err());
    assert!(test.set.check(&source("broken")).is_err());
}

#[test]
fn what_cannot_be_restored_denies() {
    let test = test(&[]);
    let broken = test.set.restore(
        [
            ("good".to_owned(), source("allow")),
            ("bad".to_owned(), source("broken")),
        ],
        [
            binding("good", "vm.create", Mode::Enforce),
            binding("bad", "vm.create", Mode::Enforce),
        ],
    );
    assert_eq!(broken, ["bad"]);
    let outcome = test.set.decide(&stamp(), &question("vm"));
    assert!(!outcome.allowed);
    assert!(
        outcome.denial_lines()[0].contains("x.rego:3:1"),
        "{:?}",
        outcome.denial_lines()
    );
    assert!(
        test.set
            .policies()
            .iter()
            .any(|p| p.name == "bad" && p.broken.is_some())
    );
    // Applied well, it is well again.
    test.set.apply("bad", &source("allow")).unwrap();
    assert!(test.set.decide(&stamp(), &question("vm")).allowed);
    // A binding whose policy is gone denies too, and so does everything while the engine is down.
    test.set
        .restore([], [binding("lost", "vm.create", Mode::Enforce)]);
    assert!(!test.set.decide(&stamp(), &question("vm")).allowed);
    test.fake.down.store(true, SeqCst);
    test.set.restore(
        [("good".to_owned(), source("allow"))],
        [binding("good", "*", Mode::Enforce)],
    );
    assert!(!test.set.decide(&stamp(), &question("vm")).allowed);
}

#[test]
fn a_bound_policy_cannot_be_removed() {
    let test = test(&[("deny", Mode::Enforce)]);
    assert!(matches!(
        test.set.remove("deny"),
        Err(RemoveError::Bound(_))
    ));
    test.set
        .unbind(&binding("deny", "vm.create", Mode::Enforce))
        .unwrap();
    test.set.remove("deny").unwrap();
    assert!(matches!(
        test.set.remove("deny"),
        Err(RemoveError::Unknown(_))
    ));
}
