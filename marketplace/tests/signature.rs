//! Signatures: ours, others', and OpenSSL's in cosign's form.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, slice};

use common::{plugin, with_plugin};
use dwcp_marketplace::{Artifact, Digest, Layout, SignatureError, SigningKey, TrustedKey};

/// Made by `openssl ecparam -name prime256v1 -genkey` and `openssl ec -pubout`.
const OPENSSL_KEY: &str = "\
-----BEGIN PUBLIC KEY-----\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEjcHqZ441IbyJAfoTB8qQ5lwVmOMv\n\
NA5YsOlV1u7XQoC+Zr2L3tjHwzbbQ5z3yqUk7vlb8XBWyQPUiuWV8CRm+w==\n\
-----END PUBLIC KEY-----\n";

/// Made by `openssl dgst -sha256 -sign` over [`payload`] of `dwcp/p@1.0.0` as `with_plugin` publishes it;
/// the first two have an `s` in the upper half of the group, which OpenSSL does not avoid.
const OPENSSL_SIGNATURES: [&str; 4] = [
    "MEUCIH1zT/7n2ifRw0Dm0HN1SssD5SskhCVyLEXFgL9iQEs5AiEA8ft7eSe2NYcPhs/O58/0j5D8mdFPfJA+qYfvotO1ors=",
    "MEUCIF/yWVJSKdhngIn2gzG9KQPhTPRIXHio6EnurkzAttZtAiEA1hvQ2HGrO5+203mBV7IncKNp9O7deVU0FVVHFCWA5jE=",
    "MEUCIQCqwu3h0XSCeilGOePIAZkUOSk2p4Pa0ovlVsKovN/ZPwIgMd/rW2ZrAVp5kw4w0L4ban3iAWYoM9y4tJr80AD3Two=",
    "MEUCIQCIMwSixtQkr8PkVNKNPyF870cFQyCJX4tWVDnlHhXEtwIgIw9yYdg6S4wzOqw5yoOoj6Cu2GLAmlRac0OL0GzlXrI=",
];

fn key() -> (SigningKey, TrustedKey) {
    let key = SigningKey::generate().unwrap();
    let public = TrustedKey::from_pem("ours", &key.public_pem().unwrap()).unwrap();
    (key, public)
}

/// The payload as cosign writes it.
fn payload(artifact: &Artifact) -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"dwcp/p"}},"image":{{"docker-manifest-digest":"{}"}},"type":"cosign container image signature"}},"optional":null}}"#,
        artifact.digest
    )
}

/// Puts a signature beside an artifact as `cosign sign` and `cosign save` would, without our own writer.
fn attach(layout: &Layout, artifact: &Artifact, payload: &str, signature: &str) {
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(
            layout.root().join("blobs/sha256").join(digest.to_hex()),
            bytes,
        )
        .unwrap();
        digest
    };
    let config = r#"{"architecture":"","created":"0001-01-01T00:00:00Z","history":[{"created":"0001-01-01T00:00:00Z"}],"os":"","rootfs":{"type":"layers","diff_ids":[]},"config":{}}"#;
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "size": config.len(), "digest": put(config.as_bytes()),
        },
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "size": payload.len(), "digest": put(payload.as_bytes()),
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        }],
    })
    .to_string();
    let path = layout.root().join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let tag = format!("dwcp/p:sha256-{}.sig", artifact.digest.to_hex());
    index["manifests"]
        .as_array_mut()
        .unwrap()
        .push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "size": manifest.len(), "digest": put(manifest.as_bytes()),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }));
    fs::write(&path, index.to_string()).unwrap();
}

#[test]
fn a_signed_artifact_is_trusted_by_those_who_trust_the_key() {
    let (_directory, layout, artifact) = with_plugin();
    let ((key, trusted), (other_key, other)) = (key(), key());
    assert!(matches!(
        layout.verify(&artifact, slice::from_ref(&trusted)),
        Err(SignatureError::Unsigned(_))
    ));
    layout.sign(&artifact, &key).unwrap();
    layout.sign(&artifact, &key).unwrap();
    let signed = layout
        .verify(&artifact, &[other.clone(), trusted.clone()])
        .unwrap();
    assert_eq!(
        (signed.key_name.as_str(), signed.fingerprint),
        ("ours", trusted.fingerprint())
    );
    let refused = layout.verify(&artifact, slice::from_ref(&other));
    assert!(
        matches!(refused, Err(SignatureError::Untrusted { tried: 1, .. })),
        "{refused:?}"
    );
    assert!(layout.verify(&artifact, &[]).is_err());
    layout.sign(&artifact, &other_key).unwrap();
    assert!(layout.verify(&artifact, &[other]).is_ok());
    assert!(layout.verify(&artifact, &[trusted]).is_ok());
}

#[test]
fn openssl_and_cosigns_form_are_understood() {
    for signature in OPENSSL_SIGNATURES {
        let (_directory, layout, artifact) = with_plugin();
        attach(&layout, &artifact, &payload(&artifact), signature);
        let trusted = TrustedKey::from_pem("openssl", OPENSSL_KEY).unwrap();
        assert_eq!(
            layout.verify(&artifact, &[trusted]).unwrap().key_name,
            "openssl"
        );
    }
}

#[test]
fn a_signature_says_nothing_about_another_artifact() {
    let (_directory, layout, artifact) = with_plugin();
    let other = layout.publish(&plugin("dwcp/p@1.0.1", b"other")).unwrap();
    let trusted = [TrustedKey::from_pem("openssl", OPENSSL_KEY).unwrap()];
    // The good signature of the first, put beside the second.
    attach(&layout, &other, &payload(&artifact), OPENSSL_SIGNATURES[0]);
    assert!(matches!(
        layout.verify(&other, &trusted),
        Err(SignatureError::Untrusted { .. })
    ));
    // A payload made to fit, which nobody signed.
    let (_directory, layout, artifact) = with_plugin();
    let other = layout.publish(&plugin("dwcp/p@1.0.1", b"other")).unwrap();
    attach(&layout, &other, &payload(&other), OPENSSL_SIGNATURES[0]);
    assert!(matches!(
        layout.verify(&other, &trusted),
        Err(SignatureError::Untrusted { .. })
    ));
    // A good signature of something that is no cosign payload.
    attach(&layout, &artifact, "{}", OPENSSL_SIGNATURES[0]);
    assert!(layout.verify(&artifact, &trusted).is_err());
}

#[test]
fn an_altered_signature_is_refused_at_every_byte() {
    let (_directory, layout, artifact) = with_plugin();
    let (key, trusted) = key();
    layout.sign(&artifact, &key).unwrap();
    let folder = layout.root().join("blobs/sha256");
    let needle = "dev.cosignproject.cosign/signature\":\"";
    let path = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(needle)))
        .unwrap();
    let manifest = fs::read(&path).unwrap();
    for at in 0..manifest.len() {
        let mut altered = manifest.clone();
        altered[at] ^= 1;
        fs::write(&path, &altered).unwrap();
        assert!(
            layout.verify(&artifact, slice::from_ref(&trusted)).is_err(),
            "{at}"
        );
    }
    fs::write(&path, &manifest).unwrap();
    assert!(layout.verify(&artifact, &[trusted]).is_ok());
}

#[test]
fn signatures_that_are_none_are_refused_and_others_still_count() {
    for signature in ["", "AAAA", "no base64!", &"A".repeat(10_000)] {
        let (_directory, layout, artifact) = with_plugin();
        let (key, trusted) = key();
        attach(&layout, &artifact, &payload(&artifact), signature);
        assert!(layout.verify(&artifact, slice::from_ref(&trusted)).is_err());
        layout.sign(&artifact, &key).unwrap();
        assert!(layout.verify(&artifact, &[trusted]).is_ok());
    }
}

#[test]
fn keys_are_kept_as_pem_and_nonsense_is_no_key() {
    let (key, trusted) = key();
    let again = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
    assert_eq!(again.public_pem().unwrap(), key.public_pem().unwrap());
    assert!(!format!("{key:?}").contains("PRIVATE"));
    assert_eq!(trusted.name(), "ours");
    for bad in [
        "",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        &key.to_pem().unwrap(),
    ] {
        assert!(TrustedKey::from_pem("bad", bad).is_err());
    }
    assert!(SigningKey::from_pem(&key.public_pem().unwrap()).is_err());
}
