//! Memory is read once when a file becomes known, and again when the file is not the one that was read.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::*;
use dwcp_snapshot::seal::{Trust, ensure, is_sealed};
use dwcp_snapshot::{AllPages, Content, Draft, Encoding, ReadError, SnapshotName, open, write};

fn name() -> SnapshotName {
    "web".parse().unwrap()
}

fn published(directory: &Path, seed: u8) {
    let handle = File::open(directory).unwrap();
    let memory = PlainMemory::mixed(1030, seed);
    let content = Content {
        manifest: &manifest(&memory, None),
        state: STATE,
        memory: &memory,
        pages: &AllPages,
        encoding: Encoding::Raw,
    };
    let draft = Draft::create(handle.as_fd(), &name()).unwrap();
    let file = draft.file().try_clone().unwrap();
    write(&file, &content, &mut go_on).unwrap();
    drop(file);
    draft.publish().unwrap();
}

fn trust(directory: &Path) -> Result<Trust, ReadError> {
    let handle = File::open(directory).unwrap();
    let snapshot = open(handle.as_fd(), &name()).unwrap();
    let before = is_sealed(handle.as_fd(), &name(), &snapshot);
    let trust = ensure(handle.as_fd(), &name(), &snapshot, &mut go_on);
    assert_eq!(before, matches!(trust, Ok(Trust::Sealed)));
    trust
}

#[test]
fn memory_is_checked_once() {
    let directory = tempfile::tempdir().unwrap();
    published(directory.path(), 1);
    assert_eq!(trust(directory.path()).unwrap(), Trust::Verified);
    assert_eq!(trust(directory.path()).unwrap(), Trust::Sealed);
    assert_eq!(trust(directory.path()).unwrap(), Trust::Sealed);
    // Another snapshot under the same name is another file.
    published(directory.path(), 3);
    assert_eq!(trust(directory.path()).unwrap(), Trust::Verified);
    assert_eq!(trust(directory.path()).unwrap(), Trust::Sealed);
}

#[test]
fn a_change_after_the_check_breaks_the_seal() {
    let directory = tempfile::tempdir().unwrap();
    published(directory.path(), 1);
    trust(directory.path()).unwrap();
    let path = directory.path().join("web.snapshot");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, mode).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    // In memory only: what is checked at every opening stays whole.
    file.write_all_at(b"x", (2 << 20) + 100).unwrap();
    let refused = trust(directory.path()).unwrap_err();
    assert!(matches!(refused, ReadError::Damaged(_)), "{refused}");
    assert!(trust(directory.path()).is_err());
}

#[test]
fn a_copy_or_a_damaged_seal_proves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    published(directory.path(), 1);
    trust(directory.path()).unwrap();
    let (path, seal) = (
        directory.path().join("web.snapshot"),
        directory.path().join("web.seal"),
    );
    let copy = directory.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    assert_eq!(trust(directory.path()).unwrap(), Trust::Verified);
    let good = std::fs::read(&seal).unwrap();
    for bad in [&b""[..], b"{}", &good[..good.len() - 1], &[0xff; 9000]] {
        std::fs::write(&seal, bad).unwrap();
        assert_eq!(trust(directory.path()).unwrap(), Trust::Verified);
    }
}
