//! An OCI layout from a registry or a mirror: index, manifests, configurations, signatures.
//!
//! An input is the files' texts, with a byte that no text has between them. The first is the index, the others are blobs,
//! each named by its digest; so that a search can change one, `%D3` and `%S3` stand for the digest and the size of blob 3
//! in any text before it.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use dwcp_marketplace::{Artifact, Digest, Layout, Reference, SigningKey, TrustedKey};

const BETWEEN: u8 = 0xff;
const BLOBS_MAX: usize = 10;

/// Everything that a host does with a layout before it runs something of it.
pub(super) fn layout(input: &[u8]) {
    let folder = super::folder();
    if let Err(error) = write(input, folder.path()) {
        panic!("{error}");
    }
    let layout = match Layout::open(folder.path()) {
        Ok(layout) => layout,
        Err(error) => panic!("{error}"),
    };
    let references = layout.list().unwrap_or_default();
    for reference in references.iter().take(4) {
        if let Ok(artifact) = layout.resolve(reference) {
            assert_eq!(artifact.reference, *reference);
            check(&layout, &artifact);
        }
        let newest: Result<Reference, _> = reference.repository().parse();
        match newest.map(|newest| layout.resolve(&newest)) {
            Ok(Ok(artifact)) => assert_eq!(artifact.reference.name(), reference.name()),
            Ok(Err(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn check(layout: &Layout, artifact: &Artifact) {
    assert!(artifact.principal_layer().is_some());
    for layer in &artifact.layers {
        if let Ok(content) = layout.read(layer) {
            assert_eq!(Digest::of(&content), layer.digest);
            assert_eq!(content.len() as u64, layer.size_bytes);
        }
    }
    let (key, trusted) = keys();
    assert!(
        layout.verify(artifact, trusted).is_err(),
        "nobody signed it"
    );
    // Either may be refused: the signatures that are there may be damaged, or too many.
    if layout.sign(artifact, key).is_ok()
        && let Ok(by) = layout.verify(artifact, trusted)
    {
        assert_eq!(by.key_name, "us");
    }
}

fn keys() -> &'static (SigningKey, [TrustedKey; 1]) {
    static KEYS: OnceLock<(SigningKey, [TrustedKey; 1])> = OnceLock::new();
    KEYS.get_or_init(|| {
        let made = SigningKey::generate().and_then(|key| {
            let trusted = TrustedKey::from_pem("us", &key.public_pem()?)?;
            Ok((key, [trusted]))
        });
        match made {
            Ok(keys) => keys,
            Err(error) => panic!("{error}"),
        }
    })
}

fn write(input: &[u8], root: &Path) -> std::io::Result<()> {
    let blobs = root.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let texts: Vec<&[u8]> = input.splitn(BLOBS_MAX, |byte| *byte == BETWEEN).collect();
    let mut named = vec![(String::new(), 0); texts.len()];
    // From the last to the first, for each may name those after it.
    for (number, text) in texts.iter().enumerate().rev() {
        let content = fill(text, &named);
        let digest = Digest::of(&content);
        if number == 0 {
            fs::write(root.join("index.json"), &content)?;
        } else {
            fs::write(blobs.join(digest.to_hex()), &content)?;
        }
        named[number] = (digest.to_string(), content.len());
    }
    Ok(())
}

/// A text with the names of other texts in it.
fn fill(text: &[u8], named: &[(String, usize)]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let blob = match rest {
            [b'%', b'D' | b'S', digit @ b'0'..=b'9', ..] => named.get(usize::from(digit - b'0')),
            _ => None,
        };
        if let Some((digest, bytes)) = blob {
            match rest[1] {
                b'D' => filled.extend(digest.bytes()),
                _ => filled.extend(bytes.to_string().bytes()),
            }
            rest = &rest[3..];
        } else {
            filled.push(*byte);
            rest = after;
        }
    }
    filled
}
