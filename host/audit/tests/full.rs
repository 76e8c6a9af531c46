//! A disk that takes no more (a limit on the size of files stands for it): the writer is told, later entries that fit are
//! taken, and what was acknowledged is there and proves itself.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use dwcp_audit::{AppendError, AuditLog, Entry, Outcome, Signer};
use serde_json::json;

/// Set for the process that runs under the limit: the log's directory.
const VICTIM: &str = "DWCP_TEST_AUDIT";

fn open(directory: &Path) -> AuditLog {
    AuditLog::open(
        directory,
        Signer::from_seed("left.example/dwcp/audit", &[7; 32]).unwrap(),
    )
    .unwrap()
}

fn entry(size: usize) -> Entry {
    Entry {
        time_ms: 0,
        principal: "victim".into(),
        action: "test.append".into(),
        object: String::new(),
        outcome: Outcome::Done,
        detail: json!("x".repeat(size)),
    }
}

fn write_until_full(directory: &Path) {
    let log = open(directory);
    let mut size = 60_000;
    let mut refused = 0;
    while refused < 3 {
        match log.append(&entry(size)) {
            Ok(receipt) => println!("ack {} {size}", receipt.index),
            Err(AppendError::NotWritten(_)) => {
                refused += 1;
                size /= 8;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    println!("refused");
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    if let Some(directory) = std::env::var_os(VICTIM) {
        return write_until_full(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    // A signal that is ignored stays so across exec; the write then fails instead of killing the process.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_full_disk_is_told_and_loses_nothing",
            "--nocapture",
        ])
        .env(VICTIM, directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("refused"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let log = open(directory.path());
    let mut size = 0;
    for ack in said.split("ack ").skip(1) {
        let (index, length) = ack.lines().next().unwrap().split_once(' ').unwrap();
        let stored = log
            .entries(index.parse().unwrap(), 1)
            .unwrap()
            .entries
            .remove(0);
        assert_eq!(stored.entry().unwrap(), entry(length.parse().unwrap()));
        size += 1;
    }
    assert_eq!(
        (log.size(), log.report().dropped_bytes),
        (size, 0),
        "what was not written left nothing behind"
    );
    assert!(
        said.contains(" 7500\n"),
        "a smaller entry still fitted: {said}"
    );
    assert_eq!(log.append(&entry(1)).unwrap().index, size);
}
