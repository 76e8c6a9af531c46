//! An OCI image layout, written blob by blob, as tools that build images would.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A part of a file system.
pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layout on its way.
pub struct Layout {
    root: PathBuf,
    named: Vec<Value>,
}

/// SHA-256, in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Layout {
    pub fn new(root: &Path) -> Self {
        std::fs::create_dir_all(root.join("blobs/sha256")).unwrap();
        let marker = json!({ "imageLayoutVersion": "1.0.0" }).to_string();
        std::fs::write(root.join("oci-layout"), marker).unwrap();
        Self {
            root: root.to_owned(),
            named: Vec::new(),
        }
    }

    /// Stores a blob; answers what names it.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let hex = hex(bytes);
        std::fs::write(self.root.join("blobs/sha256").join(&hex), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    }

    /// Stores a file as a layer of its own, as `oras push` does.
    pub fn file(&self, media_type: &str, title: &str, bytes: &[u8]) -> Value {
        let mut layer = self.blob(media_type, bytes);
        layer["annotations"] = json!({ "org.opencontainers.image.title": title });
        layer
    }

    /// Stores an image of layers.
    pub fn image(&self, architecture: &str, layers: &[Value]) -> Value {
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer["digest"]).collect::<Vec<_>>() },
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        let mut image = self.blob(MANIFEST, manifest.to_string().as_bytes());
        image["platform"] = json!({ "architecture": architecture, "os": "linux" });
        image
    }

    /// Stores an index of images.
    pub fn index(&self, images: &[Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": images });
        self.blob(INDEX, index.to_string().as_bytes())
    }

    /// Gives an image or index a name.
    pub fn name(&mut self, tag: &str, what: &Value) {
        let mut named = what.clone();
        named["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.named.push(named);
        let index = json!({ "schemaVersion": 2, "manifests": self.named });
        std::fs::write(self.root.join("index.json"), index.to_string()).unwrap();
    }
}

/// A compressed archive of one file.
pub fn archive(path: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o444);
    archive.append_data(&mut header, path, content).unwrap();
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zip.write_all(&archive.into_inner().unwrap()).unwrap();
    zip.finish().unwrap()
}
