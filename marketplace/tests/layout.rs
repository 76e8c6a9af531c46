//! Layouts written and read, and layouts that lie.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{empty, plugin, said, template, with_plugin};
use dwcp_marketplace::{Digest, Kind, Layout, LayoutError, Reference};

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn blob(layout: &Layout, digest: Digest) -> PathBuf {
    layout.root().join("blobs/sha256").join(digest.to_hex())
}

#[test]
fn what_was_published_is_found_and_whole() {
    let (_directory, layout) = empty();
    let published = layout
        .publish(&plugin("dwcp/p@1.0.0", b"component"))
        .unwrap();
    layout.publish(&template("dwcp/t@0.1.0")).unwrap();
    let names: Vec<String> = layout
        .list()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["dwcp/p@1.0.0", "dwcp/t@0.1.0"]);

    let again = Layout::open(layout.root()).unwrap();
    let found = again.resolve(&reference("dwcp/p")).unwrap();
    assert_eq!(found, published);
    assert_eq!(found.world(), Some("dwcp:placement/placement@0.1.0"));
    assert_eq!(found.capabilities(), ["dwcp:host/log@0.1.0"]);
    assert_eq!(
        again.read(found.principal_layer().unwrap()).unwrap(),
        b"component"
    );

    let found = again.resolve(&reference("dwcp/t")).unwrap();
    assert_eq!(
        found.kind,
        Kind::Template {
            expander: reference("dwcp/template-default")
        }
    );
    let mut kernel = Vec::new();
    again
        .copy(found.layer("kernel").unwrap(), &mut kernel)
        .unwrap();
    assert_eq!(kernel, [7; 100_000]);
}

#[test]
fn the_newest_release_is_taken_and_a_pre_release_only_by_name() {
    let (_directory, layout) = empty();
    for version in ["1.9.0", "1.10.0", "2.0.0-rc.1"] {
        layout
            .publish(&plugin(&format!("dwcp/p@{version}"), version.as_bytes()))
            .unwrap();
    }
    layout.publish(&plugin("dwcp/q@0.1.0-rc.1", b"q")).unwrap();
    let version = |text: &str| {
        layout
            .resolve(&reference(text))
            .unwrap()
            .reference
            .to_string()
    };
    assert_eq!(version("dwcp/p"), "dwcp/p@1.10.0");
    assert_eq!(version("dwcp/p@1.9.0"), "dwcp/p@1.9.0");
    assert_eq!(version("dwcp/p@2.0.0-rc.1"), "dwcp/p@2.0.0-rc.1");
    assert!(matches!(
        layout.resolve(&reference("dwcp/q")),
        Err(LayoutError::NoRelease { .. })
    ));
    assert!(matches!(
        layout.resolve(&reference("dwcp/x")),
        Err(LayoutError::NotFound(_))
    ));
    assert!(matches!(
        layout.resolve(&reference("dwcp/p@3.0.0")),
        Err(LayoutError::NotFound(_))
    ));
}

#[test]
fn publishing_again_replaces_and_is_the_same_for_the_same_content() {
    let (_directory, layout, first) = with_plugin();
    let same = layout
        .publish(&plugin("dwcp/p@1.0.0", b"component"))
        .unwrap();
    assert_eq!(same, first);
    let other = layout.publish(&plugin("dwcp/p@1.0.0", b"other")).unwrap();
    assert_ne!(other.digest, first.digest);
    assert_eq!(layout.list().unwrap().len(), 1);
    assert_eq!(layout.resolve(&first.reference).unwrap(), other);
}

#[test]
fn an_altered_blob_is_refused_longer_shorter_or_other() {
    let (_directory, layout, artifact) = with_plugin();
    let layer = artifact.principal_layer().unwrap();
    for altered in [&b"componenT"[..], b"component!", b"componen", b""] {
        fs::write(blob(&layout, layer.digest), altered).unwrap();
        assert!(
            matches!(layout.read(layer), Err(LayoutError::Altered { .. })),
            "{altered:?}"
        );
    }
    fs::remove_file(blob(&layout, layer.digest)).unwrap();
    assert!(matches!(layout.read(layer), Err(LayoutError::Io { .. })));
}

#[test]
fn an_altered_manifest_or_configuration_is_refused() {
    let (_directory, layout, artifact) = with_plugin();
    let manifest = fs::read_to_string(blob(&layout, artifact.digest)).unwrap();
    fs::write(
        blob(&layout, artifact.digest),
        manifest.replace("Decides.", "Decideth"),
    )
    .unwrap();
    let refused = layout.resolve(&artifact.reference).unwrap_err();
    assert!(
        matches!(refused, LayoutError::Altered { .. }),
        "{}",
        said(&refused)
    );

    let (_directory, layout, artifact) = with_plugin();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let config: Digest = manifest["config"]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let text = fs::read_to_string(blob(&layout, config)).unwrap();
    fs::write(
        blob(&layout, config),
        text.replace("dwcp:host/log", "dwcp:host/net"),
    )
    .unwrap();
    assert!(matches!(
        layout.resolve(&artifact.reference),
        Err(LayoutError::Altered { .. })
    ));
}

#[test]
fn an_index_that_leads_elsewhere_is_refused() {
    let (_directory, layout, _) = with_plugin();
    let index = layout.root().join("index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("dwcp/p:1.0.0", "dwcp/p:1.0.1")).unwrap();
    assert!(matches!(
        layout.resolve(&reference("dwcp/p")),
        Err(LayoutError::Misnamed { .. })
    ));
    fs::write(&index, text.replace("dwcp/p:1.0.0", "dwcp/../../p:1.0.0")).unwrap();
    assert!(layout.list().unwrap().is_empty());
    let digest_at = text.find("sha256:").unwrap() + 7;
    let climbing = format!(
        "{}../../../../etc/passwd{}",
        &text[..digest_at],
        &text[digest_at + 22..]
    );
    fs::write(&index, climbing).unwrap();
    assert!(matches!(layout.list(), Err(LayoutError::BadJson { .. })));
}

#[test]
fn a_truncated_index_is_refused_at_every_length() {
    let (_directory, layout, artifact) = with_plugin();
    let index = layout.root().join("index.json");
    let whole = fs::read(&index).unwrap();
    for length in 0..whole.len() {
        fs::write(&index, &whole[..length]).unwrap();
        assert!(layout.resolve(&artifact.reference).is_err(), "{length}");
    }
}

#[test]
fn what_is_no_layout_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(
        Layout::open(directory.path()),
        Err(LayoutError::NotALayout(_))
    ));
    fs::write(
        directory.path().join("oci-layout"),
        r#"{"imageLayoutVersion": "2.0.0"}"#,
    )
    .unwrap();
    assert!(matches!(
        Layout::open(directory.path()),
        Err(LayoutError::NotALayout(_))
    ));
}

#[test]
fn foreign_images_in_the_same_layout_are_left_alone() {
    let (_directory, layout, artifact) = with_plugin();
    let index = layout.root().join("index.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let mut foreign = value["manifests"][0].clone();
    foreign["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "latest"});
    value["manifests"].as_array_mut().unwrap().push(foreign);
    fs::write(&index, value.to_string()).unwrap();
    assert_eq!(layout.list().unwrap(), [artifact.reference]);
    layout.publish(&plugin("dwcp/q@1.0.0", b"q")).unwrap();
    assert!(fs::read_to_string(&index).unwrap().contains("\"latest\""));
}

#[test]
fn drafts_that_no_host_could_use_are_refused() {
    let (_directory, layout) = empty();
    let mut twice = plugin("dwcp/p@1.0.0", b"x");
    twice.layers.push(twice.layers[0].clone());
    let mut none = plugin("dwcp/p@1.0.0", b"x");
    none.layers.clear();
    for draft in [twice, none, plugin("dwcp/p", b"x")] {
        assert!(matches!(
            layout.publish(&draft),
            Err(LayoutError::BadArtifact { .. })
        ));
    }
    assert!(layout.list().unwrap().is_empty());
}

#[test]
fn writers_that_meet_lose_nothing() {
    let (_directory, layout) = empty();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let layout = &layout;
            scope.spawn(move || {
                for version in 0..5 {
                    let name = format!("dwcp/p{writer}@1.0.{version}");
                    layout.publish(&plugin(&name, name.as_bytes())).unwrap();
                }
            });
        }
    });
    assert_eq!(layout.list().unwrap().len(), 20);
    let stray = |folder: PathBuf| {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .filter(|e| {
                e.as_ref()
                    .unwrap()
                    .path()
                    .extension()
                    .is_some_and(|e| e == "tmp")
            })
            .count()
    };
    assert_eq!(
        stray(layout.root().to_owned()) + stray(layout.root().join("blobs/sha256")),
        0
    );
}
