//! Machine code from disk runs only if this daemon wrote it.
#![allow(clippy::unwrap_used)]

mod support;

use dwcp_plugins::{Effect, FaultKind, Setup};
use std::{fs, os::unix::fs::MetadataExt};
use support::{Wat, compile, quiet_sandbox, stamp};

fn allows() -> Wat {
    Wat::policy()
}

/// Another component with the same exports, which can be told apart by what it does.
fn traps() -> Wat {
    Wat::policy().function(
        "dwcp:policy/rules@0.1.0#decide",
        "(param i32 i32) (result i32) unreachable",
    )
}

fn effect(sandbox: &std::sync::Arc<dwcp_plugins::Sandbox>, wat: &Wat) -> Result<Effect, FaultKind> {
    let policy = sandbox
        .policy(&compile(sandbox, wat), Setup::default())
        .unwrap();
    policy.configure(&[]).unwrap();
    policy
        .decide(&stamp("x"), "{}")
        .map(|v| v.effect)
        .map_err(|f| f.kind)
}

#[test]
fn compiled_code_is_kept_and_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = allows().build();
    let first = quiet_sandbox(dir.path());
    let digest = first.compile(&wasm).unwrap().digest().to_owned();
    let file = first.cache_file(&wasm);
    let meta = fs::metadata(&file).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o600);
    drop(first);
    let second = quiet_sandbox(dir.path());
    assert_eq!(second.compile(&wasm).unwrap().digest(), digest);
    // Code that is not believed is written anew, under another inode.
    assert_eq!(fs::metadata(&file).unwrap().ino(), meta.ino());
    assert_eq!(effect(&second, &allows()), Ok(Effect::Allow));
}

#[test]
fn a_flipped_bit_anywhere_makes_the_code_be_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = quiet_sandbox(dir.path());
    let wasm = allows().build();
    sandbox.compile(&wasm).unwrap();
    let file = sandbox.cache_file(&wasm);
    let good = fs::read(&file).unwrap();
    for at in [0, 8, 20, 50, 84, 100, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        assert_eq!(effect(&sandbox, &allows()), Ok(Effect::Allow));
        assert_ne!(fs::read(&file).unwrap(), bad, "bit at {at} was not noticed");
    }
    fs::write(&file, &good[..good.len() / 3]).unwrap();
    assert_eq!(effect(&sandbox, &allows()), Ok(Effect::Allow));
}

#[test]
fn code_made_under_another_key_is_not_loaded() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let attacker = quiet_sandbox(theirs.path());
    let (good, evil) = (allows().build(), traps().build());
    assert_eq!(effect(&attacker, &traps()), Err(FaultKind::Trap));
    // Valid code by the same engine, with the header that ours would have; only the key is another.
    let sandbox = quiet_sandbox(ours.path());
    sandbox.compile(&good).unwrap();
    let file = sandbox.cache_file(&good);
    let header = fs::read(&file).unwrap()[..84].to_vec();
    let mut forged = fs::read(attacker.cache_file(&evil)).unwrap();
    forged[20..84].copy_from_slice(&header[20..84]);
    fs::write(&file, &forged).unwrap();
    assert_eq!(effect(&sandbox, &allows()), Ok(Effect::Allow));
    assert_ne!(fs::read(&file).unwrap(), forged);
}

#[test]
fn our_own_code_of_another_component_is_not_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = quiet_sandbox(dir.path());
    let (good, evil) = (allows().build(), traps().build());
    sandbox.compile(&good).unwrap();
    sandbox.compile(&evil).unwrap();
    fs::copy(sandbox.cache_file(&evil), sandbox.cache_file(&good)).unwrap();
    assert_eq!(effect(&sandbox, &allows()), Ok(Effect::Allow));
}

#[test]
fn without_a_key_the_old_code_is_worthless() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = allows().build();
    quiet_sandbox(dir.path()).compile(&wasm).unwrap();
    fs::remove_file(dir.path().join("cache.key")).unwrap();
    let sandbox = quiet_sandbox(dir.path());
    let before = fs::metadata(sandbox.cache_file(&wasm)).unwrap().ino();
    assert_eq!(effect(&sandbox, &allows()), Ok(Effect::Allow));
    assert_ne!(
        fs::metadata(sandbox.cache_file(&wasm)).unwrap().ino(),
        before
    );
}

#[test]
fn a_directory_that_is_a_link_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("cache")).unwrap();
    let config = dwcp_plugins::SandboxConfig::below(
        dir.path(),
        std::sync::Arc::new(dwcp_plugins::NoRecorder),
    );
    assert!(dwcp_plugins::Sandbox::new(config).is_err());
}
