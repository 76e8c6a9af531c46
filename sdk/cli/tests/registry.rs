//! Images from registries: what one asks for is done, what breaks off goes on, and what is hostile is refused.
//!
//! The registry here is made up, for it does what no real one does; a real one is in `tests/e2e/tests/registry.rs`.
#![allow(clippy::unwrap_used)]

#[path = "registry/made_up.rs"]
mod made_up;
mod rig;

use made_up::{LOGIN, MadeUp, TOKEN};
use rig::{Rig, rig};

/// A file that is no disk and no archive: it is uploaded as it is.
fn content() -> Vec<u8> {
    (0..300_000_u32).flat_map(u32::to_le_bytes).collect()
}

async fn add(rig: &Rig, registry: &MadeUp) -> rig::Ran {
    let reference = format!("oci:{}/team/disk:1", registry.address);
    rig.run(&["image", "add", &reference, "-o", "json"]).await
}

/// Keeps a login as Docker does.
fn log_in(rig: &Rig, registry: &MadeUp) {
    std::fs::create_dir_all(rig.home.path().join(".docker")).unwrap();
    let kept = serde_json::json!({ "auths": { &registry.address: { "auth": LOGIN } } });
    rig.file(".docker/config.json", &kept.to_string());
}

#[tokio::test]
async fn a_broken_transfer_goes_on_behind_a_token_and_a_redirect() {
    let rig = rig().await;
    let registry = MadeUp::new(&content())
        .asks_for_token()
        .cuts_at(100_000)
        .serve()
        .await;
    log_in(&rig, &registry);
    let image = add(&rig, &registry).await.json();
    assert_eq!(image["size_bytes"], content().len());
    assert_eq!(image["digest"], made_up::hex(&content()));
    assert_eq!(image["label"], format!("{}/team/disk:1", registry.address));
    let seen = registry.seen();
    // The login went to where tokens are had, the token to the registry, and neither to where it redirects.
    assert!(seen.contains(&format!("/token Basic {LOGIN}")), "{seen:#?}");
    assert!(
        seen.contains(&format!("/v2/team/disk/manifests/1 Bearer {TOKEN}")),
        "{seen:#?}"
    );
    assert!(seen.contains(&"/elsewhere nobody".to_owned()), "{seen:#?}");
    assert!(
        seen.contains(&"/elsewhere nobody from bytes=100000-".to_owned()),
        "{seen:#?}"
    );
}

#[tokio::test]
async fn without_a_login_or_with_a_wrong_one_it_is_said() {
    let rig = rig().await;
    let registry = MadeUp::new(&content()).asks_for_token().serve().await;
    let said = add(&rig, &registry).await.bad(1);
    assert!(said.contains("asks for a login"), "{said}");
    std::fs::create_dir_all(rig.home.path().join(".docker")).unwrap();
    let wrong = serde_json::json!({ "auths": { &registry.address: { "auth": "YTpi" } } });
    rig.file(".docker/config.json", &wrong.to_string());
    let said = add(&rig, &registry).await.bad(1);
    assert!(
        said.contains("refuses the login in") && said.contains(".docker/config.json"),
        "{said}"
    );
}

#[tokio::test]
async fn what_was_altered_is_refused() {
    let rig = rig().await;
    let mut other = content();
    other[7] ^= 1;
    let longer = [content(), vec![0]].concat();
    let shorter = content()[..1000].to_vec();
    for (sent, expected) in [
        (other, "was altered: what came has the digest"),
        (longer, "is longer than"),
        (shorter, "has 1000 bytes, not the"),
    ] {
        let registry = MadeUp::new(&content()).sends(&sent).serve().await;
        let said = add(&rig, &registry).await.bad(1);
        assert!(said.contains(expected), "{said}");
    }
    let registry = MadeUp::new(&content())
        .tells_digest(&"0".repeat(64))
        .serve()
        .await;
    let said = add(&rig, &registry).await.bad(1);
    assert!(said.contains("Its manifest sha256:000"), "{said}");
    let list = rig.line("image list").await.good();
    assert!(!list.contains("team/disk"), "{list}");
}

#[tokio::test]
async fn what_leads_away_or_has_no_end_is_refused() {
    let rig = rig().await;
    // A name that no resolver knows: nobody is asked by accident.
    let away = "http://registry.invalid/blob";
    let registry = MadeUp::new(&content()).redirects_to(away).serve().await;
    let said = add(&rig, &registry).await.bad(1);
    assert!(said.contains("plain HTTP"), "{said}");
    let registry = MadeUp::new(&content()).asks_for_token_at("http://registry.invalid/token");
    let said = add(&rig, &registry.serve().await).await.bad(1);
    assert!(said.contains("not https"), "{said}");
    let registry = MadeUp::new(&content()).pads_manifest(5 << 20).serve().await;
    let said = add(&rig, &registry).await.bad(1);
    assert!(said.contains("more than 4194304 bytes"), "{said}");
    let said = rig.line("image add oci:debian:13").await.bad(1);
    assert!(said.contains("names no registry"), "{said}");
}
