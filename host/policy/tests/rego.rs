//! Rego in the sandbox, bound to actions. Needs the built component: run cargo xtask plugins.
#![allow(clippy::unwrap_used)]

use dwcp_plugins::{DecisionRecord, Limits, Recorder, Sandbox, SandboxConfig, Setup, Stamp};
use dwcp_policy::{
    ApplyError, Binding, Document, Mode, PolicySet, Question, SandboxEngine, Source,
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

#[derive(Default)]
struct Kept(Mutex<Vec<DecisionRecord>>);

impl Recorder for Kept {
    fn record(&self, record: DecisionRecord) {
        self.0.lock().unwrap().push(record);
    }
}

struct Test {
    _dir: tempfile::TempDir,
    kept: Arc<Kept>,
    set: PolicySet,
}

fn test(limits: Limits) -> Test {
    let dir = tempfile::tempdir().unwrap();
    let kept = Arc::new(Kept::default());
    let sandbox = Sandbox::new(SandboxConfig::below(dir.path(), kept.clone())).unwrap();
    let plugins = std::env::var_os("DWCP_PLUGINS_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugins"),
        PathBuf::from,
    );
    let path = plugins.join("policy-rego.wasm");
    let wasm = std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: run cargo xtask plugins", path.display()));
    let rego = sandbox.compile(&wasm).unwrap();
    let engine = SandboxEngine::new(
        sandbox,
        Some(rego),
        Setup {
            limits,
            ..Setup::default()
        },
    );
    Test {
        _dir: dir,
        set: PolicySet::new(Arc::new(engine), kept.clone()),
        kept,
    }
}

fn rego(text: &str) -> Source {
    Source::rego(vec![Document {
        path: "policy.rego".into(),
        media: "application/vnd.openpolicyagent.rego".into(),
        text: text.into(),
    }])
}

fn enforce(policy: &str) -> Binding {
    Binding {
        policy: policy.into(),
        action: "vm.create".parse().unwrap(),
        project: None,
        mode: Mode::Enforce,
    }
}

fn question(tags: serde_json::Value) -> Question {
    Question {
        action: "vm.create".into(),
        principal: serde_json::json!({"name": "admin", "roles": ["operator"]}),
        project: "default".into(),
        object: serde_json::json!({"name": "vm-1", "tags": tags}),
        facts: serde_json::json!({}),
    }
}

const TAGS: &str = r#"package dwcp.tags

required := ["owner", "project", "environment", "cost_center"]

deny contains msg if {
    some key in required
    not input.object.tags[key]
    msg := sprintf("The tag %s is missing.", [key])
}
"#;

#[test]
fn a_vm_without_its_tags_is_refused_with_the_reasons() {
    let test = test(Limits::default());
    test.set.apply("tags", &rego(TAGS)).unwrap();
    let untagged = question(serde_json::json!({"owner": "me"}));
    assert!(
        test.set.decide(&Stamp::new("0", 1), &untagged).allowed,
        "nothing is bound yet"
    );
    test.set.bind(enforce("tags")).unwrap();
    let outcome = test.set.decide(&Stamp::new("1", 1), &untagged);
    assert!(!outcome.allowed);
    assert_eq!(
        outcome.denial_lines(),
        [
            "tags: The tag cost_center is missing.",
            "tags: The tag environment is missing.",
            "tags: The tag project is missing."
        ]
    );
    let tagged = question(
        serde_json::json!({"owner": "me", "project": "p", "environment": "test", "cost_center": "1"}),
    );
    assert!(test.set.decide(&Stamp::new("2", 1), &tagged).allowed);
    let records = test.kept.0.lock().unwrap();
    let ids: Vec<&str> = records.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(ids, ["0", "1/tags", "1", "2/tags", "2"]);
}

#[test]
fn a_broken_policy_says_where_and_the_old_one_stays() {
    let test = test(Limits::default());
    test.set.apply("tags", &rego(TAGS)).unwrap();
    test.set.bind(enforce("tags")).unwrap();
    let error = test
        .set
        .apply("tags", &rego(&TAGS.replace("msg :=", "msg := :=")))
        .unwrap_err();
    assert!(matches!(error, ApplyError::Source(_)));
    assert!(error.to_string().starts_with("policy.rego:8:"), "{error}");
    assert!(
        !test
            .set
            .decide(&Stamp::new("1", 1), &question(serde_json::json!({})))
            .allowed
    );
}

#[test]
fn documents_that_decide_nothing_are_refused() {
    let test = test(Limits::default());
    let elsewhere = TAGS.replace("dwcp.tags", "somewhere.tags");
    for text in [elsewhere.as_str(), "package dwcp.helpers\n\nanswer := 42\n"] {
        let error = test.set.apply("nothing", &rego(text)).unwrap_err();
        assert!(
            error.to_string().contains("no policy here that decides"),
            "{error}"
        );
    }
    assert!(test.set.policies().is_empty());
}

#[test]
fn the_default_policy_on_tags_does_what_it_says() {
    let test = test(Limits::default());
    let text = include_str!("../../../policies/tags.rego");
    test.set.apply("tags", &rego(text)).unwrap();
    test.set.bind(enforce("tags")).unwrap();
    let outcome = test.set.decide(
        &Stamp::new("1", 1),
        &question(serde_json::json!({"owner": "me"})),
    );
    assert!(!outcome.allowed && !outcome.has_fault(), "{outcome:?}");
    for tag in ["project", "environment", "cost_center"] {
        assert!(
            outcome.denial_lines().iter().any(|line| line.contains(tag)),
            "{tag}: {outcome:?}"
        );
    }
    let tags = serde_json::json!({"owner": "me", "project": "p", "environment": "test", "cost_center": "42"});
    assert!(
        test.set
            .decide(&Stamp::new("2", 1), &question(tags))
            .allowed
    );
}

#[test]
fn a_policy_that_runs_too_long_denies() {
    let test = test(Limits {
        call_ms: 50,
        ..Limits::default()
    });
    let slow = r#"package dwcp.slow

deny contains msg if {
    numbers.range(1, 1000000)[_] == input.object.never
    msg := "never"
}
"#;
    test.set.apply("slow", &rego(slow)).unwrap();
    test.set.bind(enforce("slow")).unwrap();
    let outcome = test
        .set
        .decide(&Stamp::new("1", 1), &question(serde_json::json!({})));
    assert!(!outcome.allowed);
    assert!(outcome.has_fault(), "{outcome:?}");
}

#[test]
fn eight_threads_get_the_answers_one_gets() {
    let test = test(Limits::default());
    test.set.apply("tags", &rego(TAGS)).unwrap();
    test.set.bind(enforce("tags")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let set = &test.set;
            scope.spawn(move || {
                for n in 0..40 {
                    let owner = if n % 2 == 0 { "owner" } else { "nobody" };
                    let tags = serde_json::json!({owner: thread, "project": n, "environment": "e", "cost_center": "c"});
                    assert_eq!(set.decide(&Stamp::new("t", 1), &question(tags)).allowed, n % 2 == 0);
                }
            });
        }
    });
}
