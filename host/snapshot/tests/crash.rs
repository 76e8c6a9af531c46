//! A writer that is killed at any step leaves the snapshot before it whole, and nothing half-written is believed.
//!
//! The writer is this program once more, in a process of its own, which says on a pipe each step that it has done;
//! after a number of steps that grows with each round it is killed for real. (What a power cut does on top of that is the file
//! system's to keep: the order of syncs is the protocol's, and cannot be tested by killing a process.)
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use dwcp_snapshot::{
    AllPages, Content, Draft, DraftError, Encoding, Snapshot, SnapshotName, open, sweep, write,
};

const DIRECTORY: &str = "DWCP_TEST_WRITER_DIRECTORY";
const PAGES: u64 = 3 * 512;
const ROUNDS: u64 = 36;

fn name() -> SnapshotName {
    "web".parse().unwrap()
}

fn memory_of(generation: u64) -> PlainMemory {
    let mut memory = PlainMemory::mixed(PAGES, 3);
    memory.0[..8].copy_from_slice(&generation.to_le_bytes());
    memory.fill(PAGES - 1, (generation % 200) as u8 | 1);
    memory
}

/// Writes generation after generation over the same name; a byte goes out after each step.
fn write_for_ever(directory: &Path, first: u64) {
    let directory = File::open(directory).unwrap();
    let mut out = std::io::stdout();
    let mut step = |what: u8| {
        out.write_all(&[what]).unwrap();
        out.flush().unwrap();
    };
    for generation in first.. {
        let memory = memory_of(generation);
        let mut manifest = manifest(&memory, None);
        manifest.taken_at_ms = generation;
        let encoding = [Encoding::Raw, Encoding::Zstd][generation as usize % 2];
        let content = Content {
            manifest: &manifest,
            state: STATE,
            memory: &memory,
            pages: &AllPages,
            encoding,
        };
        let draft = Draft::create(directory.as_fd(), &name()).unwrap();
        step(b'd');
        let file = draft.file().try_clone().unwrap();
        write(&file, &content, &mut |_| {
            step(b'm');
            ControlFlow::Continue(())
        })
        .unwrap();
        drop(file);
        step(b'w');
        draft.publish().unwrap();
        step(b'P');
    }
}

/// Not a test: what the child does.
#[test]
fn the_writer() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let (directory, first) = (Path::new(&directory), std::env::var("DWCP_TEST_FIRST"));
        write_for_ever(directory, first.unwrap().parse().unwrap());
    }
}

fn start_writer(directory: &Path, first: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["the_writer", "--exact", "--nocapture"])
        .env(DIRECTORY, directory)
        .env("DWCP_TEST_FIRST", first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Lets the writer do some steps, kills it, and answers how many snapshots it said it had published.
fn run_and_kill(directory: &Path, first: u64, steps: u64) -> u64 {
    let mut child = start_writer(directory, first);
    let mut out = child.stdout.take().unwrap();
    let is_step = |byte: &u8| b"dmwP".contains(byte);
    let mut seen = Vec::new();
    let mut byte = [0];
    // The test harness writes a heading first, which ends with the line "running 1 test".
    while !seen.ends_with(b"running 1 test\n") {
        out.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    seen.clear();
    while (seen.len() as u64) < steps {
        out.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    out.read_to_end(&mut seen).unwrap();
    assert!(
        seen.iter().all(is_step),
        "{}",
        String::from_utf8_lossy(&seen)
    );
    seen.iter().filter(|step| **step == b'P').count() as u64
}

#[test]
fn a_killed_writer_leaves_the_old_snapshot_whole() {
    let directory = tempfile::tempdir().unwrap();
    let handle = File::open(directory.path()).unwrap();
    let mut newest = 0;
    let mut drafts_seen = 0;
    for round in 0..ROUNDS {
        // One generation is 6 steps; the instant within a step is the scheduler's choice.
        let published = run_and_kill(directory.path(), newest + 1, 1 + round % 9);
        let drafts = drafts(directory.path());
        drafts_seen += drafts.len();
        for draft in &drafts {
            // A draft that was finished may be whole; one that is not is never believed.
            if let Ok(snapshot) = Snapshot::open(File::open(draft).unwrap()) {
                snapshot.verify(&mut go_on).unwrap();
                assert_eq!(restored_of(snapshot), memory_of(newest + published + 1));
            }
        }
        assert_eq!(sweep(handle.as_fd()).unwrap(), drafts.len() as u64);
        if newest + published > 0 {
            let snapshot = open(handle.as_fd(), &name()).unwrap();
            snapshot.verify(&mut go_on).unwrap();
            let found = snapshot.manifest().taken_at_ms;
            // It may have been killed between the renaming and the word that it was done.
            assert!((newest + published..=newest + published + 1).contains(&found));
            assert_eq!(restored_of(snapshot), memory_of(found));
            newest = found;
        } else if let Ok(snapshot) = open(handle.as_fd(), &name()) {
            newest = snapshot.manifest().taken_at_ms;
        }
    }
    assert!(newest > 6, "{newest} snapshots");
    assert!(drafts_seen > 12, "{drafts_seen} drafts were cut short");
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

fn restored_of(snapshot: Snapshot) -> PlainMemory {
    restored(&dwcp_snapshot::Chain::new(vec![snapshot]).unwrap())
}

fn drafts(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "draft"))
        .collect()
}

#[test]
fn a_draft_under_way_is_not_swept_and_one_given_up_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let handle = File::open(directory.path()).unwrap();
    let draft = Draft::create(handle.as_fd(), &name()).unwrap();
    let second = Draft::create(handle.as_fd(), &name()).unwrap();
    assert_eq!(sweep(handle.as_fd()).unwrap(), 0);
    drop(second);
    assert_eq!(drafts(directory.path()).len(), 1);
    // Nothing was written.
    assert!(matches!(draft.publish(), Err(DraftError::NotWhole(_))));
    assert_eq!(drafts(directory.path()).len(), 0);
    assert!(open(handle.as_fd(), &name()).is_err());
}

#[test]
fn a_sweeper_never_comes_between_a_draft_and_its_publishing() {
    let directory = tempfile::tempdir().unwrap();
    let handle = File::open(directory.path()).unwrap();
    let memory = memory_of(1);
    let content = Content {
        manifest: &manifest(&memory, None),
        state: STATE,
        memory: &memory,
        pages: &AllPages,
        encoding: Encoding::Zstd,
    };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                sweep(handle.as_fd()).unwrap();
            }
        });
        let published = (0..60).try_for_each(|round| {
            let draft = Draft::create(handle.as_fd(), &name())?;
            // Some are given up, so that names are used again.
            if round % 3 == 0 {
                return Ok(());
            }
            write(draft.file(), &content, &mut go_on).unwrap();
            draft.publish().map(drop)
        });
        is_over.store(true, Ordering::SeqCst);
        assert!(published.is_ok(), "{published:?}");
    });
    let snapshot = open(handle.as_fd(), &name()).unwrap();
    // What is published is nobody's draft any more.
    snapshot.file().try_lock().unwrap();
}

#[test]
fn a_snapshot_that_somebody_could_change_is_not_published() {
    let directory = tempfile::tempdir().unwrap();
    let handle = File::open(directory.path()).unwrap();
    let memory = memory_of(1);
    let content = Content {
        manifest: &manifest(&memory, None),
        state: STATE,
        memory: &memory,
        pages: &AllPages,
        encoding: Encoding::Raw,
    };
    let written = || {
        let draft = Draft::create(handle.as_fd(), &name()).unwrap();
        let file = draft.file().try_clone().unwrap();
        write(&file, &content, &mut go_on).unwrap();
        (draft, file)
    };
    let (draft, still_open) = written();
    assert!(matches!(draft.publish(), Err(DraftError::StillOpen)));
    drop(still_open);
    let (draft, file) = written();
    drop(file);
    let published = draft.publish().unwrap();
    let mode = published.file().metadata().unwrap().permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o400
    );
}

#[test]
fn names_lead_nowhere_else() {
    for bad in [
        "",
        ".",
        "..",
        "a/b",
        ".web",
        "Web",
        "web.snapshot",
        &"a".repeat(129),
    ] {
        assert!(bad.parse::<SnapshotName>().is_err(), "{bad}");
    }
    for good in ["a", "web-1_2", &"a".repeat(128)] {
        assert_eq!(good.parse::<SnapshotName>().unwrap().to_string(), good);
    }
}
