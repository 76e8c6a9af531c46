//! The order of the rooms, held: who may depend on whom, what `vmm` and `wire` must not know, one wasmtime, and the
//! heads of files.
//!
//! What always holds: the order here and the order in the book (`docs/src/concepts/rooms.md`) are the same; every
//! check is also shown to fail on something made up.
//!
//! What it must not know: what any crate does.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// The rooms of the host, lowest first. A crate may depend on crates of the lines before its own, on none of its own
/// line and on none after it.
const ORDER: &[&[&str]] = &[
    &["dwcp-channel"],
    &["dwcp-jail"],
    &["dwcp-memory"],
    &["dwcp-snapshot"],
    &["dwcp-vmm", "dwcp-wire", "dwcp-image"],
    &["dwcp-store", "dwcp-audit"],
    &["dwcp-migrate"],
    &["dwcp-launch"],
    &["dwcp-marketplace"],
    &["dwcp-plugins"],
    &["dwcp-policy"],
    &["dwcp-control"],
    &["dwcp-api"],
    &["dwcp-node"],
    &["dwcpd"],
];

/// Crates outside the host, and the only crates of ours that each may know.
const OUTSIDE: &[(&str, &[&str])] = &[
    ("dwcp-sdk", &["dwcp-audit"]),
    ("dwcp-cli", &["dwcp-audit", "dwcp-sdk"]),
    ("dwcp-guest", &[]),
    ("dwcp-wan", &[]),
    ("xtask", &["dwcp-marketplace"]),
];

/// Tests of everything together may know everything.
const FREE: &[&str] = &["dwcp-e2e", "dwcp-fuzz"];

/// What a crate must not know by any path, of ours or of others.
const UNKNOWN_TO: &[(&str, &[&str])] = &[
    // One VM in one process: no network peer, no store, no request.
    (
        "dwcp-vmm",
        &[
            "dwcp-wire",
            "dwcp-store",
            "dwcp-audit",
            "dwcp-control",
            "dwcp-api",
            "rustls",
            "tokio",
            "axum",
            "reqwest",
            "redb",
            "wasmtime",
        ],
    ),
    // Bytes between hosts: no VM, no store, no request.
    (
        "dwcp-wire",
        &[
            "dwcp-vmm",
            "dwcp-memory",
            "dwcp-store",
            "dwcp-audit",
            "dwcp-control",
            "dwcp-api",
            "kvm-ioctls",
            "kvm-bindings",
            "vm-memory",
            "axum",
            "redb",
            "wasmtime",
        ],
    ),
    // Vendors' disk images: no machine that runs them, no store, no request.
    (
        "dwcp-image",
        &[
            "dwcp-vmm",
            "dwcp-memory",
            "dwcp-store",
            "dwcp-audit",
            "dwcp-control",
            "dwcp-api",
            "kvm-ioctls",
            "kvm-bindings",
            "rustls",
            "tokio",
            "axum",
            "reqwest",
            "redb",
            "wasmtime",
        ],
    ),
    // It holds root's powers: what can be left out of it is.
    (
        "dwcp-launch",
        &[
            "rustls",
            "tokio",
            "axum",
            "reqwest",
            "redb",
            "wasmtime",
            "dwcp-wire",
            "dwcp-store",
        ],
    ),
    // All of it is instrumented: no compiler.
    ("dwcp-fuzz", &["wasmtime", "dwcp-plugins"]),
    // Decisions are pure: records in, decisions out.
    (
        "dwcp-control",
        &["tokio", "axum", "reqwest", "redb", "wasmtime", "rustls"],
    ),
];

/// Names of protocols' parts that a type or function must not carry: it is named for what it does.
const ACRONYMS: &[&str] = &["Amst", "Hde", "Pba", "Itp", "Acp"];

/// Direct dependencies of each crate, development ones left out.
type Graph = BTreeMap<String, BTreeSet<String>>;

#[test]
fn crates_depend_only_downwards() {
    let graph = ours(&metadata());
    assert_none(&out_of_order(&graph));
}

#[test]
fn every_crate_of_the_workspace_has_its_place() {
    let graph = ours(&metadata());
    assert_none(&without_place(&graph));
}

#[test]
fn no_crate_knows_what_it_must_not() {
    let graph = everything(&metadata());
    assert_none(&knows_too_much(&graph));
}

#[test]
fn there_is_one_wasmtime() {
    let versions: Vec<String> = metadata()
        .packages
        .iter()
        .filter(|package| package.name.as_str() == "wasmtime")
        .map(|package| package.version.to_string())
        .collect();
    assert_eq!(versions.len(), 1, "wasmtime in the lock file: {versions:?}");
}

#[test]
fn the_book_shows_the_same_order() {
    let page = fs::read_to_string(root().join("docs/src/concepts/rooms.md")).unwrap();
    let held: Vec<Vec<String>> = ORDER
        .iter()
        .map(|line| line.iter().map(|&name| name.to_owned()).collect())
        .collect();
    assert_eq!(order_in_page(&page), held);
}

#[test]
fn every_file_begins_by_saying_what_it_is_for() {
    let files = rust_files(&root());
    assert!(files.len() > 20, "only {} files found", files.len());
    assert_none(&headless(&files));
}

#[test]
fn nothing_is_named_for_an_acronym() {
    let found: Vec<String> = rust_files(&root())
        .iter()
        .flat_map(|file| named_for_acronyms(file, &fs::read_to_string(file).unwrap()))
        .collect();
    assert_none(&found);
}

/// The checks, seen to fail.
#[test]
fn a_made_up_graph_is_refused() {
    let good = graph(&[
        ("dwcp-memory", &["dwcp-channel"]),
        ("dwcp-vmm", &["dwcp-memory"]),
        ("dwcp-cli", &["dwcp-sdk", "dwcp-audit"]),
    ]);
    assert_none(&out_of_order(&good));

    let upwards = graph(&[("dwcp-store", &["dwcp-control"])]);
    assert_eq!(out_of_order(&upwards).len(), 1);
    let sideways = graph(&[("dwcp-vmm", &["dwcp-wire"])]);
    assert_eq!(out_of_order(&sideways).len(), 1);
    let client_knows_host = graph(&[("dwcp-cli", &["dwcp-node"])]);
    assert_eq!(out_of_order(&client_knows_host).len(), 1);
    let host_knows_client = graph(&[("dwcp-node", &["dwcp-sdk"])]);
    assert_eq!(out_of_order(&host_knows_client).len(), 1);
    assert_eq!(without_place(&graph(&[("dwcp-common", &[])])).len(), 1);
}

#[test]
fn forbidden_knowledge_is_found_through_others() {
    let graph = graph(&[
        ("dwcp-vmm", &["helper"]),
        ("helper", &["tokio"]),
        ("tokio", &[]),
        ("dwcp-wire", &["helper"]),
    ]);
    let found = knows_too_much(&graph);
    assert_eq!(
        found,
        ["dwcp-vmm must not know tokio, but does: dwcp-vmm > helper > tokio"]
    );
}

#[test]
fn a_file_without_head_and_a_bad_name_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.rs");
    fs::write(&file, "\nuse std::fs;\n").unwrap();
    assert_eq!(headless(std::slice::from_ref(&file)).len(), 1);
    fs::write(&file, "//! For x.\n").unwrap();
    assert_none(&headless(&[file]));
    // Put together here, or this file would be found itself.
    let code = format!(
        "pub struct {}Manager;\nfn pack() {{}}\nenum Hdd {{}}\n",
        ACRONYMS[1]
    );
    assert_eq!(named_for_acronyms(Path::new("y.rs"), &code).len(), 1);
}

/// Dependencies that the order forbids.
fn out_of_order(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    for (name, dependencies) in graph {
        if FREE.contains(&name.as_str()) {
            continue;
        }
        for dependency in dependencies {
            let allowed = match (line(name), line(dependency), allowed_outside(name)) {
                (_, _, Some(allowed)) => allowed.contains(&dependency.as_str()),
                (Some(own), Some(other), None) => other < own,
                _ => false,
            };
            if !allowed {
                found.push(format!("{name} must not depend on {dependency}"));
            }
        }
    }
    found
}

/// Crates that the order does not name.
fn without_place(graph: &Graph) -> Vec<String> {
    graph
        .keys()
        .filter(|name| {
            line(name).is_none()
                && allowed_outside(name).is_none()
                && !FREE.contains(&name.as_str())
        })
        .map(|name| format!("{name} has no place in the order"))
        .collect()
}

/// Crates that reach, by any path, what they must not know.
fn knows_too_much(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    for (name, forbidden) in UNKNOWN_TO {
        let paths = reached(graph, name);
        for one in *forbidden {
            if let Some(path) = paths.get(*one) {
                found.push(format!("{name} must not know {one}, but does: {path}"));
            }
        }
    }
    found
}

/// Everything that `from` reaches, with a way to it.
fn reached(graph: &Graph, from: &str) -> BTreeMap<String, String> {
    let mut paths = BTreeMap::new();
    let mut open = vec![(from.to_owned(), from.to_owned())];
    while let Some((name, path)) = open.pop() {
        for next in graph.get(&name).into_iter().flatten() {
            if !paths.contains_key(next) {
                let longer = format!("{path} > {next}");
                paths.insert(next.clone(), longer.clone());
                open.push((next.clone(), longer));
            }
        }
    }
    paths
}

fn line(name: &str) -> Option<usize> {
    ORDER.iter().position(|line| line.contains(&name))
}

fn allowed_outside(name: &str) -> Option<&'static [&'static str]> {
    OUTSIDE
        .iter()
        .find(|(outside, _)| *outside == name)
        .map(|(_, allowed)| *allowed)
}

/// The order in the book: rows of its table whose first cell is a number.
fn order_in_page(page: &str) -> Vec<Vec<String>> {
    page.lines()
        .filter_map(|row| {
            let mut cells = row.trim().strip_prefix('|')?.split('|').map(str::trim);
            cells.next()?.parse::<u32>().ok()?;
            let crates = cells.next()?;
            Some(
                crates
                    .split(',')
                    .map(|name| name.trim().trim_matches('`').to_owned())
                    .collect(),
            )
        })
        .collect()
}

/// Files that do not begin with `//!`.
fn headless(files: &[PathBuf]) -> Vec<String> {
    files
        .iter()
        .filter(|file| {
            let text = fs::read_to_string(file).unwrap();
            !text.lines().next().unwrap_or("").starts_with("//! ")
        })
        .map(|file| format!("{} does not begin with //!", file.display()))
        .collect()
}

/// Types and functions whose names carry an acronym as a word.
fn named_for_acronyms(file: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for row in text.lines() {
        let mut words = row.split_whitespace().skip_while(|word| {
            !matches!(*word, "struct" | "enum" | "trait" | "type" | "fn" | "mod")
        });
        let Some(name) = words.nth(1) else { continue };
        let is_word = |acronym: &&&str| {
            let at = name.find(**acronym);
            let after = at.and_then(|at| name[at + acronym.len()..].chars().next());
            at.is_some() && !after.is_some_and(|next| next.is_ascii_lowercase())
        };
        if let Some(acronym) = ACRONYMS.iter().find(is_word) {
            found.push(format!("{}: {name} is named for {acronym}", file.display()));
        }
    }
    found
}

/// All Rust files of the tree, build folders left out.
fn rust_files(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open: Vec<PathBuf> = ["host", "marketplace", "plugins", "sdk", "tests", "xtask"]
        .iter()
        .map(|folder| root.join(folder))
        .collect();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                files.push(path);
            }
        }
    }
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(vec![
            "--locked".into(),
            "--filter-platform".into(),
            "x86_64-unknown-linux-gnu".into(),
        ])
        .exec()
        .unwrap()
}

/// The dependencies among the workspace's own crates.
fn ours(metadata: &Metadata) -> Graph {
    let own: BTreeSet<String> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.to_string())
        .collect();
    let all = everything(metadata);
    own.iter()
        .map(|name| {
            let dependencies = all.get(name).into_iter().flatten();
            let known = dependencies.filter(|one| own.contains(*one)).cloned();
            (name.clone(), known.collect())
        })
        .collect()
}

/// All resolved dependencies by name, development ones left out.
fn everything(metadata: &Metadata) -> Graph {
    let names: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|package| (&package.id, package.name.to_string()))
        .collect();
    let mut graph = Graph::new();
    for node in &metadata.resolve.as_ref().unwrap().nodes {
        let used = node.deps.iter().filter(|dependency| {
            dependency
                .dep_kinds
                .iter()
                .any(|kind| kind.kind != DependencyKind::Development)
        });
        graph
            .entry(names[&node.id].clone())
            .or_default()
            .extend(used.map(|dependency| names[&dependency.pkg].clone()));
    }
    graph
}

fn graph(edges: &[(&str, &[&str])]) -> Graph {
    edges
        .iter()
        .map(|(name, dependencies)| {
            let dependencies = dependencies.iter().map(|&one| one.to_owned()).collect();
            ((*name).to_owned(), dependencies)
        })
        .collect()
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "{}", found.join("\n"));
}
