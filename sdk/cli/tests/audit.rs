//! `dwcp audit verify` finds a changed byte, a removed entry, a cut tail and another key, and lets growth pass.
#![allow(clippy::unwrap_used)]

mod rig;

use rig::{Rig, rig};

async fn verified(rig: &Rig) -> serde_json::Value {
    rig.line("audit verify -o json").await.json()
}

fn happen(rig: &Rig, times: usize) {
    for _ in 0..times {
        rig.served.fake.happened(
            "key:admin",
            "vm.started",
            "projects/default/vms/web",
            "It runs",
        );
    }
}

#[tokio::test]
async fn growth_passes_and_the_checkpoint_is_kept() {
    let rig = rig().await;
    happen(&rig, 3);
    let out = rig.line("audit verify").await.good();
    assert!(
        out.contains("holds: 3 entries") && out.contains("first visit"),
        "{out}"
    );
    let kept = rig.home.path().join(".local/state/dwcp/audit/default.json");
    assert!(kept.exists());
    happen(&rig, 2_500);
    let second = verified(&rig).await;
    assert_eq!(
        (&second["entries"], &second["new_entries"]),
        (&2_503.into(), &2_500.into())
    );
    assert_eq!(second["first_visit"], false);
    let third = verified(&rig).await;
    assert_eq!(third["new_entries"], 0);
    std::fs::write(&kept, "{").unwrap();
    assert!(rig.line("audit verify").await.bad(1).contains("is damaged"));
}

#[tokio::test]
async fn a_changed_byte_is_found_whether_old_or_new() {
    for index in [0, 3, 6] {
        let rig = rig().await;
        happen(&rig, 5);
        verified(&rig).await;
        happen(&rig, 2);
        rig.served.fake.tamper(index);
        let err = rig.line("audit verify").await.bad(1);
        assert!(err.starts_with("error: The"), "{err}");
        assert!(
            err.contains("rewritten") || err.contains("changed"),
            "{err}"
        );
    }
}

#[tokio::test]
async fn a_cut_tail_is_found_though_it_is_signed() {
    let rig = rig().await;
    happen(&rig, 5);
    verified(&rig).await;
    rig.served.fake.cut_audit(3);
    let err = rig.line("audit verify").await.bad(1);
    assert_eq!(
        err,
        "error: The log was cut: it had 5 entries and shows only 3 now\n"
    );
    // Filled up again with other entries it is still not the log that was kept.
    for _ in 0..4 {
        rig.served.fake.happened("key:other", "vm.deleted", "x", "");
    }
    let err = rig.line("audit verify").await.bad(1);
    assert!(err.contains("rewritten"), "{err}");
}

#[tokio::test]
async fn another_key_is_not_trusted() {
    let rig = rig().await;
    happen(&rig, 1);
    verified(&rig).await;
    let kept = rig.home.path().join(".local/state/dwcp/audit/default.json");
    let text = std::fs::read_to_string(&kept).unwrap();
    let mut memory: serde_json::Value = serde_json::from_str(&text).unwrap();
    memory["key"] = "left.test/audit+01234567+AAAA".into();
    std::fs::write(&kept, memory.to_string()).unwrap();
    let err = rig.line("audit verify").await.bad(1);
    assert!(err.contains("signed by another key"), "{err}");
}
