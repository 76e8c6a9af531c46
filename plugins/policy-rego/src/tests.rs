//! Policies good and bad, and the default ones with their own tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use regorus::{Engine, Value};

use crate::bindings::exports::dwcp::policy::rules::{Diagnostic, Document, Outcome, Verdict};
use crate::policies::Policies;
use crate::text::references;
use crate::verdict::decide;

fn rego(path: &str, text: &str) -> Document {
    Document {
        path: path.into(),
        media: "application/vnd.openpolicyagent.rego".into(),
        text: text.into(),
    }
}

fn policies(text: &str) -> Policies {
    let read = Policies::read(&[rego("p.rego", text)]);
    read.unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn verdict(text: &str, input: &str) -> Verdict {
    decide(&mut policies(text), input)
}

fn refused(text: &str) -> Vec<Diagnostic> {
    match Policies::read(&[rego("p.rego", text)]) {
        Ok(_) => panic!("this should be refused:\n{text}"),
        Err(problems) => problems,
    }
}

fn messages(verdict: &Verdict) -> Vec<&str> {
    verdict
        .reasons
        .iter()
        .map(|reason| reason.message.as_str())
        .collect()
}

#[test]
fn the_strongest_outcome_wins() {
    let text = "package dwcp.p\n\
        deny contains \"no\" if input.object.bad\n\
        warn contains \"hm\" if input.object.odd\n\
        patch contains {\"op\": \"add\", \"path\": \"/x\", \"value\": 1} if input.object.patch\n";
    let ask = |object: &str| verdict(text, &format!("{{\"object\": {object}}}"));
    assert_eq!(ask("{}").outcome, Outcome::Allow);
    let patched = ask(r#"{"patch": true}"#);
    assert_eq!(patched.outcome, Outcome::Patch);
    assert_eq!(
        patched.patch.as_deref(),
        Some(r#"[{"op":"add","path":"/x","value":1}]"#)
    );
    let warned = ask(r#"{"patch": true, "odd": true}"#);
    assert_eq!(
        (warned.outcome, messages(&warned)),
        (Outcome::Warn, vec!["hm"])
    );
    assert!(warned.patch.is_some());
    let denied = ask(r#"{"patch": true, "odd": true, "bad": true}"#);
    assert_eq!(
        (denied.outcome, messages(&denied)),
        (Outcome::Deny, vec!["no", "hm"])
    );
    assert_eq!(denied.patch, None);
}

#[test]
fn an_allow_rule_must_hold() {
    let text = "package dwcp.p\nallow if input.principal.admin\n";
    assert_eq!(
        verdict(text, r#"{"principal": {"admin": true}}"#).outcome,
        Outcome::Allow
    );
    let denied = verdict(text, r#"{"principal": {}}"#);
    assert_eq!(
        (denied.outcome, denied.reasons[0].rule.as_str()),
        (Outcome::Deny, "allow")
    );
}

#[test]
fn a_missing_fact_denies_and_is_named() {
    let text = "package dwcp.p\nfacts := {\"budget.exceeded\"}\n\
        applies if input.action == \"vm.create\"\n\
        deny contains \"over budget\" if input.facts.budget.exceeded\n";
    let summary = policies(text).summary();
    assert_eq!(summary.facts[0].name, "budget.exceeded");
    assert_eq!(summary.facts[0].policies, ["dwcp.p"]);
    for facts in [
        "",
        r#", "facts": {}"#,
        r#", "facts": {"budget": {"exceeded": null}}"#,
    ] {
        let denied = verdict(text, &format!(r#"{{"action": "vm.create"{facts}}}"#));
        assert_eq!(denied.outcome, Outcome::Deny);
        assert_eq!(denied.missing_facts, ["budget.exceeded"]);
        assert!(denied.reasons[0].message.contains("budget.exceeded"));
    }
    let good = r#"{"action": "vm.create", "facts": {"budget": {"exceeded": false}}}"#;
    assert_eq!(verdict(text, good).outcome, Outcome::Allow);
    assert_eq!(
        verdict(text, &good.replace("false", "true")).outcome,
        Outcome::Deny
    );
    assert_eq!(
        verdict(text, r#"{"action": "vm.delete"}"#).outcome,
        Outcome::Allow
    );
}

#[test]
fn undeclared_facts_are_refused_where_they_stand() {
    let problems = refused("package dwcp.p\n\ndeny contains \"x\" if not input.facts.mfa\n");
    assert_eq!((problems[0].line, problems[0].column), (3, 26));
    assert!(problems[0].message.contains("\"mfa\""));
    refused(
        "package dwcp.p\nfacts := {\"mf\"}\ndeny contains \"x\" if not input[\"facts\"][\"mfa\"]\n",
    );
    refused("package dwcp.p\ndeny contains \"x\" if { f := input.facts; f.mfa }\n");
    refused("package dwcp.p\nfacts := {input.a}\ndeny contains \"x\" if input.b\n");
}

#[test]
fn applies_must_not_depend_on_facts() {
    let text =
        "package dwcp.p\nfacts := {\"a\"}\napplies if input.facts.a\ndeny contains \"x\" if true\n";
    let denied = verdict(text, r#"{"facts": {"a": true}}"#);
    assert_eq!(
        (denied.outcome, denied.reasons[0].rule.as_str()),
        (Outcome::Deny, "error")
    );
}

#[test]
fn whatever_goes_wrong_denies() {
    let text = "package dwcp.p\ndeny contains \"x\" if to_number(input.object.n) > 3\n";
    let denied = verdict(text, r#"{"object": {"n": "three"}}"#);
    assert_eq!(
        (denied.outcome, denied.reasons[0].rule.as_str()),
        (Outcome::Deny, "error")
    );
    assert!(
        denied.reasons[0].message.contains("p.rego:2:"),
        "{:?}",
        denied.reasons
    );
    assert_eq!(
        verdict(text, r#"{"object": {"n": "3"}}"#).outcome,
        Outcome::Allow
    );
    for input in ["", "[]", "{", "\"x\""] {
        assert_eq!(verdict(text, input).outcome, Outcome::Deny, "{input}");
    }
    assert_eq!(
        decide(&mut Policies::default(), "{}").outcome,
        Outcome::Deny
    );
    let conflict = "package dwcp.p\nallow := 1 if input.a\nallow := 2 if input.b\n";
    assert_eq!(
        verdict(conflict, r#"{"a": true, "b": true}"#).outcome,
        Outcome::Deny
    );
    assert_eq!(
        verdict(
            "package dwcp.p\ndeny := {\"a\": 1} if input.a\n",
            r#"{"a": true}"#
        )
        .outcome,
        Outcome::Deny
    );
}

#[test]
fn broken_documents_are_refused_with_their_place() {
    let problems = refused("package dwcp.p\n\ndeny contains \"x\" if {\n");
    assert_eq!(problems[0].file, "p.rego");
    assert!(problems[0].line >= 3, "{problems:?}");
    let problems = refused("package dwcp.p\ndeny contains \"x\" if no_such_function(1)\n");
    assert_eq!(
        (problems[0].file.as_str(), problems[0].line),
        ("p.rego", 2),
        "{problems:?}"
    );
    let data = |text: &str| Document {
        media: "application/json".into(),
        ..rego("d.json", text)
    };
    assert!(Policies::read(&[data("{")]).is_err());
    assert!(Policies::read(&[data("{}"), data("{}")]).is_err());
    assert!(
        Policies::read(&[Document {
            media: "text/plain".into(),
            ..data("")
        }])
        .is_err()
    );
}

#[test]
fn data_and_libraries_are_there_for_policies() {
    let documents = [
        rego(
            "p.rego",
            "package dwcp.p\nimport data.lib\ndeny contains \"big\" if lib.big(input.object.n)\n",
        ),
        rego("lib.rego", "package lib\nbig(n) if n > data.limits.most\n"),
        Document {
            media: "application/json".into(),
            ..rego("d.json", r#"{"limits": {"most": 3}}"#)
        },
    ];
    let mut policies = Policies::read(&documents).unwrap_or_else(|p| panic!("{p:?}"));
    assert_eq!(policies.summary().policies, ["dwcp.p"]);
    assert_eq!(
        decide(&mut policies, r#"{"object": {"n": 4}}"#).outcome,
        Outcome::Deny
    );
    assert_eq!(
        decide(&mut policies, r#"{"object": {"n": 3}}"#).outcome,
        Outcome::Allow
    );
}

#[test]
fn functions_that_the_engine_lacks_are_refused_where_they_stand() {
    let problems = refused(
        "package dwcp.p\ndeny contains \"x\" if {\n\tinput.a\n\tregex.match(\"a\", input.b)\n}\n",
    );
    assert_eq!(
        (problems[0].line, problems[0].column),
        (4, 2),
        "{problems:?}"
    );
    assert!(problems[0].message.contains("regex.match"));
    refused("package dwcp.p\ndeny contains \"x\" if { input.a; missing(input.b) }\n");
    policies(
        "package dwcp.p\ndeny contains \"x\" if { not(input.a); big(count(input.b)) }\nbig(n) if n > 3\n",
    );
}

#[test]
fn references_are_found_outside_of_comments_and_texts() {
    let text = "# input.facts.a\nx := \"input.facts.b\" + `input.facts.c` + my.input.d\ny := f(input.facts.e[\"f\"].g, 1e3)";
    let found = references(text);
    let paths: Vec<String> = found.iter().map(|found| found.path.join(".")).collect();
    assert_eq!(paths, ["x", "my.input.d", "y", "f", "input.facts.e.f.g"]);
    assert!(found[3].is_call && !found[4].is_call);
    assert_eq!((found[4].line, found[4].column), (3, 8));
}

/// The default policies, as files of the tree.
fn default_policies() -> Vec<Document> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
    let mut documents: Vec<Document> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "rego"))
        .map(|path| rego(path.to_str().unwrap(), &fs::read_to_string(&path).unwrap()))
        .collect();
    documents.sort_by(|a, b| a.path.cmp(&b.path));
    documents
}

#[test]
fn the_default_policies_pass_their_own_tests() {
    let mut engine = Engine::new();
    let mut tests = Vec::new();
    for document in default_policies() {
        let package = engine
            .add_policy(document.path, document.text.clone())
            .unwrap();
        let names = document
            .text
            .lines()
            .filter(|line| line.starts_with("test_"));
        let name = |line: &str| line.split([' ', '(']).next().unwrap().to_owned();
        tests.extend(names.map(|line| format!("{package}.{}", name(line))));
    }
    assert!(tests.len() >= 5);
    for test in tests {
        engine.set_input(Value::new_object());
        assert_eq!(
            engine.eval_rule(test.clone()).unwrap(),
            Value::from(true),
            "{test}"
        );
    }
}

#[test]
fn a_vm_without_tags_is_refused_by_the_default_policies() {
    let mut policies = Policies::read(&default_policies()).unwrap_or_else(|p| panic!("{p:?}"));
    let bare =
        r#"{"action": "vm.create", "object": {"name": "web-1", "tags": {"owner": "alice"}}}"#;
    let denied = decide(&mut policies, bare);
    assert_eq!(denied.outcome, Outcome::Deny);
    assert_eq!(denied.reasons.len(), 3);
    assert!(messages(&denied)[0].contains("cost_center"));
}
