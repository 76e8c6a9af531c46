//! Every input in `corpus/` and `regressions/`, read once by its target.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use dwcp_fuzz::{TARGETS, Target};

/// A corpus is a start for a search, not its result; both are read at every test run.
const INPUTS_MAX: usize = 64;

#[test]
fn no_kept_input_is_read_wrongly() {
    let mut wrong = Vec::new();
    for target in TARGETS {
        for folder in ["corpus", "regressions"] {
            wrong.extend(replay(target, &inputs(folder, target.name)));
        }
    }
    assert!(wrong.is_empty(), "read wrongly:\n{}", wrong.join("\n"));
}

#[test]
fn every_target_has_a_corpus_and_every_folder_a_target() {
    for target in TARGETS {
        let count = inputs("corpus", target.name).len();
        assert!(
            (1..=INPUTS_MAX).contains(&count),
            "{} has {count} inputs in its corpus",
            target.name
        );
    }
    for folder in ["corpus", "regressions"] {
        // Nothing may have been found yet.
        for entry in fs::read_dir(root().join(folder)).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let target = Target::named(&name);
            assert!(target.is_some(), "{folder}/{name} has no target");
        }
    }
}

/// The check, seen to fail.
#[test]
fn a_mistake_is_reported_with_its_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("input");
    fs::write(&file, b"zuf-pcwd!!ez").unwrap();
    let wrong = replay(Target::named("planted").unwrap(), &[file]);
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].starts_with("planted: ") && wrong[0].ends_with("/input"));
}

/// Has the target read these files; answers a line for each on which it panicked.
fn replay(target: &Target, files: &[PathBuf]) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in files {
        let input = fs::read(file).unwrap();
        if catch_unwind(AssertUnwindSafe(|| target.try_input(&input))).is_err() {
            wrong.push(format!("{}: {}", target.name, file.display()));
        }
    }
    wrong
}

/// The files of a folder of a target, if it has one.
fn inputs(folder: &str, target: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(root().join(folder).join(target));
    let mut files: Vec<PathBuf> = files
        .into_iter()
        .flatten()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
