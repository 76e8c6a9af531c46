//! Manifests and indexes, and which of their parts may hold a disk.
//!
//! What always holds: what was chosen has a SHA-256 digest and a size; a choice that is not clear is no choice.
//!
//! Formats: OCI image manifest and index 1.1, and Docker's of schema 2, which differ in their type's name alone.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use sha2::Sha256;

/// Types that are asked for: one image, or an index of several.
pub const TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// By what an entry of a layout's index is called.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// By what the file is called that a layer is.
const TITLE: &str = "org.opencontainers.image.title";
/// What kind of disk an entry of an index is for, in Podman's images of machines.
const DISK_TYPE: &str = "disktype";
/// Most layers that an image may have.
const LAYERS_MAX: usize = 128;

/// A SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(<Sha256 as sha2::Digest>::digest(bytes).into())
    }

    /// 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl FromStr for Digest {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused =
            || format!("{text:?} is not a digest: it is written sha256: and 64 hexadecimal digits");
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
        let hex = hex.with_context(refused)?.as_bytes();
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks(2)) {
            let digit = |at: u8| match at {
                b'0'..=b'9' => Some(at - b'0'),
                b'a'..=b'f' => Some(at - b'a' + 10),
                _ => None,
            };
            let both = pair
                .first()
                .copied()
                .and_then(digit)
                .zip(pair.get(1).copied().and_then(digit));
            let (high, low) = both.with_context(refused)?;
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "sha256:{}", self.hex())
    }
}

/// What names a blob.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its type.
    #[serde(default)]
    pub media_type: String,
    digest: String,
    /// Its size, bytes.
    pub size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    architecture: String,
}

impl Descriptor {
    /// Its digest.
    pub fn digest(&self) -> Result<Digest> {
        self.digest.parse()
    }

    /// An annotation.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// The file that it is, where it is not a part of a file system.
    pub fn title(&self) -> Option<&str> {
        self.annotation(TITLE)
    }

    fn is_index(&self) -> bool {
        self.media_type.ends_with("index.v1+json") || self.media_type.ends_with("list.v2+json")
    }

    fn architecture(&self) -> Option<&str> {
        self.platform
            .as_ref()
            .map(|platform| &*platform.architecture)
    }
}

/// A document that a registry keeps under a tag or digest.
#[derive(Debug)]
pub enum Document {
    /// One image: its layers.
    Image(Vec<Descriptor>),
    /// Images for several platforms.
    Index(Vec<Descriptor>),
}

impl Document {
    /// Reads one.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            schema_version: u32,
            layers: Option<Vec<Descriptor>>,
            manifests: Option<Vec<Descriptor>>,
        }
        let raw: Raw = serde_json::from_slice(bytes).context("Its manifest cannot be read")?;
        ensure!(
            raw.schema_version == 2,
            "Its manifest is of schema version {}; 2 is read",
            raw.schema_version
        );
        match (raw.layers, raw.manifests) {
            (Some(layers), None) if layers.len() <= LAYERS_MAX => Ok(Self::Image(layers)),
            (Some(layers), None) => bail!("It has {} layers; {LAYERS_MAX} are read", layers.len()),
            (None, Some(manifests)) => Ok(Self::Index(manifests)),
            _ => bail!("Its manifest lists neither layers nor images, or both"),
        }
    }
}

/// The entry of an index that is for machines on x86-64.
pub fn for_this_platform(entries: &[Descriptor]) -> Result<&Descriptor> {
    let fits = |entry: &&Descriptor| matches!(entry.architecture(), Some("amd64" | "x86_64"));
    let mut fitting: Vec<_> = entries.iter().filter(fits).collect();
    // Podman's machines come once for each hypervisor.
    if fitting
        .iter()
        .any(|entry| entry.annotation(DISK_TYPE) == Some("qemu"))
    {
        fitting.retain(|entry| entry.annotation(DISK_TYPE) == Some("qemu"));
    }
    let unmarked = || match entries {
        [one] if one.architecture().is_none() || one.is_index() => Some(one),
        _ => None,
    };
    if let Some(found) = fitting.first().copied().or_else(unmarked) {
        return Ok(found);
    }
    let mut others: Vec<_> = entries
        .iter()
        .filter_map(Descriptor::architecture)
        .collect();
    others.retain(|name| *name != "unknown");
    others.sort_unstable();
    others.dedup();
    match others.is_empty() {
        true => bail!("It lists no image for amd64"),
        false => bail!(
            "It lists no image for amd64, only for {}",
            others.join(", ")
        ),
    }
}

/// The layers that may hold the disk, likeliest first. A file is taken by its name; of file systems the last layer is
/// what is seen.
pub fn candidates(layers: &[Descriptor]) -> Result<Vec<&Descriptor>> {
    let files: Vec<_> = layers
        .iter()
        .filter(|layer| layer.title().is_some())
        .collect();
    let disks: Vec<_> = files
        .iter()
        .copied()
        .filter(|layer| is_disk(layer))
        .collect();
    match (&disks[..], &files[..]) {
        ([one], _) | ([], [one]) => Ok(vec![*one]),
        ([], []) => Ok(layers.iter().rev().collect()),
        (several, _) => {
            let several = if several.is_empty() { &files } else { &disks };
            let names: Vec<_> = several
                .iter()
                .filter_map(|layer| layer.title())
                .take(16)
                .collect();
            bail!(
                "It holds several files, and which of them is the disk is not said: {}. Fetch the right one (`oras pull`) \
                 and add it as a file",
                names.join(", ")
            )
        }
    }
}

/// True of a layer whose name or type is a disk's.
fn is_disk(layer: &Descriptor) -> bool {
    let title = layer.title().unwrap_or_default().to_ascii_lowercase();
    let bare = [".gz", ".zst", ".xz"]
        .into_iter()
        .find_map(|end| title.strip_suffix(end));
    let bare = bare.unwrap_or(&title);
    let named = [".qcow2", ".img", ".raw"]
        .into_iter()
        .any(|end| bare.ends_with(end));
    named || layer.media_type.contains("qcow2") || layer.media_type.contains("qemu-disk")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn descriptors(rows: &[Value]) -> Vec<Descriptor> {
        let whole = rows.iter().map(|row| {
            let mut row = row.clone();
            row["digest"] = format!("sha256:{}", "0".repeat(64)).into();
            row["size"] = 1.into();
            serde_json::from_value(row).unwrap()
        });
        whole.collect()
    }

    fn titled(names: &[&str]) -> Vec<Descriptor> {
        let rows: Vec<_> = names
            .iter()
            .map(|name| json!({ "mediaType": name, "annotations": { TITLE: name } }))
            .collect();
        descriptors(&rows)
    }

    #[test]
    fn digests_are_read_and_shown() {
        let text = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        assert!(text.to_uppercase().parse::<Digest>().is_err());
        assert!("sha512:00".parse::<Digest>().is_err());
        assert!(
            format!("sha256:{}é", "0".repeat(62))
                .parse::<Digest>()
                .is_err()
        );
    }

    #[test]
    fn the_platform_is_amd64() {
        let entry = |name: &str| json!({ "platform": { "architecture": name } });
        let both = descriptors(&[entry("arm64"), entry("amd64"), entry("unknown")]);
        assert_eq!(
            for_this_platform(&both).unwrap().architecture(),
            Some("amd64")
        );
        let foreign = descriptors(&[entry("s390x"), entry("arm64"), entry("unknown")]);
        let refused = for_this_platform(&foreign).unwrap_err().to_string();
        assert!(refused.ends_with("only for arm64, s390x"), "{refused}");
        let machines = descriptors(&[
            json!({ "platform": { "architecture": "x86_64" }, "annotations": { DISK_TYPE: "hyperv" } }),
            json!({ "platform": { "architecture": "x86_64" }, "annotations": { DISK_TYPE: "qemu" } }),
        ]);
        let chosen = for_this_platform(&machines).unwrap();
        assert_eq!(chosen.annotation(DISK_TYPE), Some("qemu"));
        assert!(for_this_platform(&descriptors(&[json!({})])).is_ok());
        assert!(for_this_platform(&descriptors(&[json!({}), json!({})])).is_err());
    }

    #[test]
    fn a_disk_is_known_by_its_name_or_is_in_the_last_layers() {
        let titles = |names: &[&str]| {
            let layers = titled(names);
            let found = candidates(&layers).map(|found| found[0].title().unwrap().to_owned());
            found.map_err(|error| error.to_string())
        };
        assert_eq!(
            titles(&["README.md", "disk.qcow2.zst"]).unwrap(),
            "disk.qcow2.zst"
        );
        assert_eq!(titles(&["anything"]).unwrap(), "anything");
        assert!(
            titles(&["a.img", "b.img", "c"])
                .unwrap_err()
                .contains("a.img, b.img")
        );
        assert!(titles(&["a", "b"]).unwrap_err().contains("a, b"));
        let plain = descriptors(&[json!({ "mediaType": "a" }), json!({ "mediaType": "b" })]);
        assert_eq!(candidates(&plain).unwrap()[0].media_type, "b");
    }

    #[test]
    fn documents_are_images_or_indexes() {
        let read = |value: Value| Document::read(value.to_string().as_bytes());
        assert!(matches!(
            read(json!({ "schemaVersion": 2, "layers": [] })),
            Ok(Document::Image(_))
        ));
        assert!(matches!(
            read(json!({ "schemaVersion": 2, "manifests": [] })),
            Ok(Document::Index(_))
        ));
        assert!(read(json!({ "schemaVersion": 1, "layers": [] })).is_err());
        assert!(read(json!({ "schemaVersion": 2 })).is_err());
    }
}
