//! A small marketplace to try things on.
#![allow(dead_code, clippy::unwrap_used)]

use dwcp_marketplace::{Artifact, Draft, DraftKind, DraftLayer, Layout, media};
use tempfile::TempDir;

/// A plugin of this name and version, whose component is `content`.
pub fn plugin(reference: &str, content: &[u8]) -> Draft {
    Draft {
        reference: reference.parse().unwrap(),
        summary: "Decides.".into(),
        license: "Apache-2.0".into(),
        kind: DraftKind::Plugin {
            world: "dwcp:placement/placement@0.1.0".into(),
            exports: vec!["dwcp:types/plugin@0.1.0".into()],
            imports: vec!["dwcp:host/log@0.1.0".into()],
        },
        layers: vec![DraftLayer {
            title: "plugin.wasm".into(),
            media_type: media::WASM.into(),
            bytes: content.to_vec(),
        }],
    }
}

/// A template with a kernel.
pub fn template(reference: &str) -> Draft {
    let layer = |title: &str, media_type: &str, bytes: &[u8]| DraftLayer {
        title: title.into(),
        media_type: media_type.into(),
        bytes: bytes.to_vec(),
    };
    Draft {
        kind: DraftKind::Template {
            expander: "dwcp/template-default".parse().unwrap(),
        },
        layers: vec![
            layer("t.toml", media::TEMPLATE_TOML, b"format = 1"),
            layer("kernel", media::KERNEL, &[7; 100_000]),
        ],
        ..plugin(reference, b"")
    }
}

/// An empty layout in a directory of its own.
pub fn empty() -> (TempDir, Layout) {
    let directory = TempDir::new().unwrap();
    let layout = Layout::create(directory.path().join("market")).unwrap();
    (directory, layout)
}

/// A layout with one plugin, `dwcp/p@1.0.0`.
pub fn with_plugin() -> (TempDir, Layout, Artifact) {
    let (directory, layout) = empty();
    let artifact = layout
        .publish(&plugin("dwcp/p@1.0.0", b"component"))
        .unwrap();
    (directory, layout, artifact)
}

/// Everything that an error says, with its sources.
pub fn said(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
