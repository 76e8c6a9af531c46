//! Signed notes, checkpoints, keys and canonical entries: known vectors, and everything else refused.
#![allow(clippy::unwrap_used)]

use dwcp_audit::entry::{ENTRY_BYTES_MAX, EntryError};
use dwcp_audit::note::NoteError;
use dwcp_audit::{Checkpoint, Entry, Hash, Outcome, Signer, StoredEntry, VerifierKey};
use proptest::prelude::*;
use serde_json::json;

/// The key and note of the documentation of Go's `golang.org/x/mod/sumdb/note`.
#[test]
fn known_note() {
    let key: VerifierKey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
        .parse()
        .unwrap();
    let text = "If you think cryptography is the answer to your problem,\n\
                then you don't know what your problem is.\n";
    let signature = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    let note = format!("{text}\n{signature}");
    assert_eq!(key.open(&note), Ok(text));
    assert_eq!(key.name(), "PeterNeumann");
    assert_eq!(
        key.to_string(),
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    );

    let changed = note.replace("the answer", "an answer");
    assert_eq!(
        key.open(&changed),
        Err(NoteError::WrongSignature("PeterNeumann".into()))
    );
    // Others may sign too, before or after.
    let other = Signer::from_seed("witness.example/w", &[9; 32])
        .unwrap()
        .sign(text);
    let line = other.lines().last().unwrap();
    assert_eq!(key.open(&format!("{text}\n{line}\n{signature}")), Ok(text));
    assert_eq!(key.open(&format!("{text}\n{signature}{line}\n")), Ok(text));
    assert!(matches!(key.open(&other), Err(NoteError::NotSigned(_))));
}

#[test]
fn keys_survive_their_text() {
    let signer = Signer::generate("left.example/dwcp/audit").unwrap();
    let again = Signer::from_pem("left.example/dwcp/audit", &signer.to_pem().unwrap()).unwrap();
    assert_eq!(again.verifier(), signer.verifier());
    let key: VerifierKey = signer.verifier().to_string().parse().unwrap();
    assert_eq!(&key, signer.verifier());
    assert_eq!(key.open(&again.sign("text\n")), Ok("text\n"));
    assert!(
        !format!("{signer:?}").contains("secret"),
        "a signer does not show its key"
    );

    for bad in [
        "",
        "name",
        "name+00000000+ARpc",
        "n+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ] {
        assert!(bad.parse::<VerifierKey>().is_err(), "{bad:?}");
    }
    for bad in ["", "a b", "a+b", "a\n"] {
        assert!(
            matches!(Signer::generate(bad), Err(NoteError::BadName(_))),
            "{bad:?}"
        );
    }
}

#[test]
fn checkpoints_are_of_one_log() {
    let signer = Signer::from_seed("left.example/audit", &[1; 32]).unwrap();
    let checkpoint = Checkpoint {
        origin: "left.example/audit".into(),
        size: 42,
        root: Hash::of_leaf(b"x"),
    };
    let note = checkpoint.sign(&signer);
    assert_eq!(
        Checkpoint::open(&note, signer.verifier()),
        Ok(checkpoint.clone())
    );
    let lines: Vec<&str> = note.lines().collect();
    assert_eq!(&lines[..2], ["left.example/audit", "42"]);
    assert!(
        lines[3].is_empty() && lines[4].starts_with("\u{2014} left.example/audit "),
        "{note}"
    );

    let foreign = Checkpoint {
        origin: "right.example/audit".into(),
        ..checkpoint.clone()
    }
    .sign(&signer);
    assert!(matches!(
        Checkpoint::open(&foreign, signer.verifier()),
        Err(NoteError::Malformed(_))
    ));
    let forger = Signer::from_seed("left.example/audit", &[2; 32]).unwrap();
    assert!(Checkpoint::open(&checkpoint.sign(&forger), signer.verifier()).is_err());

    let root = checkpoint.root;
    let extended = format!("o\n7\n{root}\nmore\n");
    assert_eq!(Checkpoint::parse(&extended).unwrap().size, 7);
    for bad in [
        String::new(),
        format!("\n7\n{root}\n"),
        format!("o\n07\n{root}\n"),
        format!("o\n+7\n{root}\n"),
        format!("o\n99999999999999999999\n{root}\n"),
        "o\n7\n".into(),
        "o\n7\nAAAA\n".into(),
        format!("o\n7\n{root}\n\nmore\n"),
    ] {
        assert!(Checkpoint::parse(&bad).is_err(), "{bad:?}");
    }
}

fn entry(detail: serde_json::Value) -> Entry {
    Entry {
        time_ms: 1_700_000_000_123,
        principal: "admin".into(),
        action: "vm.create".into(),
        object: "projects/default/vms/web-1".into(),
        outcome: Outcome::Done,
        detail,
    }
}

#[test]
fn entries_have_one_text() {
    let text = entry(
        json!({ "z": [1, -2, true, null], "a": { "é\n\"": "\u{1F600}", "B": 18446744073709551615_u64 } }),
    );
    assert_eq!(
        text.canonical().unwrap(),
        r#"{"action":"vm.create","detail":{"a":{"B":18446744073709551615,"é\n\"":"😀"},"z":[1,-2,true,null]},"object":"projects/default/vms/web-1","outcome":"done","principal":"admin","time_ms":1700000000123}"#
    );
    let stored = StoredEntry {
        index: 3,
        text: text.canonical().unwrap(),
    };
    assert_eq!(stored.entry().unwrap(), text);
    assert_eq!(stored.leaf(), Hash::of_leaf(stored.text.as_bytes()));
    // It travels as text, so that no program on the way writes it differently.
    let travelled: StoredEntry =
        serde_json::from_str(&serde_json::to_string(&stored).unwrap()).unwrap();
    assert_eq!(travelled, stored);
}

#[test]
fn entries_have_limits() {
    let long = entry(json!("x".repeat(ENTRY_BYTES_MAX))).canonical();
    assert!(matches!(long, Err(EntryError::TooLong(_))), "{long:?}");
    let mut deep = json!(1);
    for _ in 0..40 {
        deep = json!([deep]);
    }
    assert!(matches!(entry(deep).canonical(), Err(EntryError::TooDeep)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_changed_byte_of_a_note_is_refused(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let signer = Signer::from_seed("left.example/audit", &[1; 32]).unwrap();
        let checkpoint = Checkpoint { origin: "left.example/audit".into(), size: 42, root: Hash::of_leaf(b"x") };
        let mut bytes = checkpoint.sign(&signer).into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        if let Ok(note) = String::from_utf8(bytes) {
            prop_assert!(Checkpoint::open(&note, signer.verifier()).is_err(), "byte {}: {}", at, note);
        }
    }

    #[test]
    fn reading_never_panics(text in "[\\PC\n\u{2014} +]{0,200}") {
        let signer = Signer::from_seed("left.example/audit", &[1; 32]).unwrap();
        let _ = Checkpoint::open(&text, signer.verifier());
        let _ = Checkpoint::parse(&text);
        let _ = text.parse::<VerifierKey>();
    }
}
