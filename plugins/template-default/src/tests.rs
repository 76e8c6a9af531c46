//! Documents and parameters, good and bad.
#![allow(clippy::unwrap_used)]

use crate::TemplateDefault;
use crate::bindings::exports::dwcp::template::expansion::{
    Document, Guest as _, Image, Problem, Restart,
};

const WORKER: &str = include_str!("../../../marketplace/templates/worker.toml");

fn toml(text: &str) -> Document {
    Document {
        path: "test.toml".into(),
        media: "application/vnd.dwcp.template.v1+toml".into(),
        text: text.into(),
    }
}

fn minimal(vm: &str) -> Document {
    let head = "format = 1\nsummary = \"s\"\ncategory = \"databases\"\n";
    let parameter = "[[parameters]]\nname = \"size\"\ntype = \"choice\"\nchoices = [\"s\", \"m\"]\n\
        [[parameters]]\nname = \"note\"\ntype = \"text\"\nmax_bytes = 5\ndefault = \"hi\"\n";
    toml(&format!(
        "{head}{parameter}[vm]\nvcpus = 1\nmemory_mib = 64\n{vm}\n"
    ))
}

fn paths(problems: Vec<Problem>) -> Vec<String> {
    problems.into_iter().map(|problem| problem.path).collect()
}

#[test]
fn the_worker_template_describes_itself_and_expands() {
    let description = TemplateDefault::describe(toml(WORKER)).unwrap();
    let names: Vec<&str> = description
        .parameters
        .iter()
        .map(|p| p.name.as_str())
        .collect();
    assert_eq!(names, ["memory_mib", "vcpus", "fill", "ws", "rate"]);
    let vm = TemplateDefault::expand(toml(WORKER), r#"{"fill": 64, "vcpus": 2}"#.into()).unwrap();
    assert_eq!((vm.vcpus, vm.memory_mib), (2, 512));
    assert_eq!(vm.cmdline, "fill_mib=64 ws_mib=32 rate=2000");
    assert_eq!(vm.kernel, Some(Image::Bundled("kernel".into())));
    assert_eq!(vm.restart, Restart::Never);
}

#[test]
fn json_says_the_same() {
    let text = r#"{"format": 1, "summary": "s", "category": "security",
        "parameters": [{"name": "n", "type": "integer", "min": 1, "max": 4, "default": 2}],
        "vm": {"vcpus": "{n}", "memory_mib": 64, "restart": "on-failure", "networks": ["default"],
               "tags": {"tier": "t{n}"}, "placement": {"near": "eu", "apart_from": ["g{n}"]},
               "volumes": [{"name": "data", "size_mib": 10}]}}"#;
    let document = Document {
        media: "application/x+json".into(),
        ..toml(text)
    };
    let vm = TemplateDefault::expand(document, "{}".into()).unwrap();
    assert_eq!(vm.vcpus, 2);
    assert_eq!(vm.tags, [("tier".to_owned(), "t2".to_owned())]);
    assert_eq!(vm.placement.apart_from, ["g2"]);
    assert_eq!(vm.volumes[0].size_mib, 10);
}

#[test]
fn wrong_parameters_are_all_told_with_their_places() {
    let given = r#"{"memory_mib": 8, "vcpus": "two", "rate": 1.5, "colour": "red"}"#;
    let problems = TemplateDefault::expand(toml(WORKER), given.into()).unwrap_err();
    assert_eq!(
        paths(problems),
        ["/memory_mib", "/vcpus", "/rate", "/colour"]
    );
    assert!(TemplateDefault::expand(toml(WORKER), "[]".into()).is_err());
}

#[test]
fn a_parameter_without_default_must_be_given() {
    let problems = TemplateDefault::expand(minimal(""), "{}".into()).unwrap_err();
    assert_eq!(paths(problems), ["/size"]);
    let problems = TemplateDefault::expand(minimal(""), r#"{"size": "xl"}"#.into()).unwrap_err();
    assert_eq!(paths(problems), ["/size"]);
    let given = r#"{"size": "s", "note": "too long"}"#;
    assert_eq!(
        paths(TemplateDefault::expand(minimal(""), given.into()).unwrap_err()),
        ["/note"]
    );
}

#[test]
fn braces_are_doubled_and_unknown_names_are_told() {
    let given = || r#"{"size": "m"}"#.to_owned();
    let vm = TemplateDefault::expand(minimal("cmdline = \"{{{size}}} {note}\""), given()).unwrap();
    assert_eq!(vm.cmdline, "{m} hi");
    for bad in ["{colour}", "{size", "size}"] {
        let document = minimal(&format!("cmdline = \"{bad}\""));
        let problems = TemplateDefault::expand(document, given()).unwrap_err();
        assert_eq!(paths(problems), ["vm.cmdline"], "{bad}");
    }
}

#[test]
fn documents_that_say_too_much_or_too_little_are_refused() {
    let head = "format = 1\nsummary = \"s\"\ncategory = \"databases\"\n";
    let vm = "[vm]\nvcpus = 1\nmemory_mib = 64\n";
    let parameter = |rest: &str| format!("{head}[[parameters]]\nname = \"n\"\n{rest}\n{vm}");
    let bad = [
        String::new(),
        format!("{head}colour = 1\n{vm}"),
        format!("{head}{vm}kernel = {{ stored = \"md5:1\" }}"),
        format!("{head}[vm]\nvcpus = 33\nmemory_mib = 64\n"),
        head.replace("databases", "sports") + vm,
        head.replace("format = 1", "format = 2") + vm,
        parameter("type = \"integer\"\nmin = 2\nmax = 1"),
        parameter("type = \"integer\"\nmin = 1\nmax = 2\ndefault = 3"),
        parameter("type = \"boolean\"\nmin = 1"),
        parameter("type = \"text\""),
    ];
    for text in bad {
        assert!(
            TemplateDefault::expand(toml(&text), "{}".into()).is_err(),
            "{text}"
        );
    }
    let document = Document {
        media: "text/plain".into(),
        ..toml(WORKER)
    };
    assert!(TemplateDefault::describe(document).is_err());
}
