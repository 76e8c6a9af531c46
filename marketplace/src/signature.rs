//! Signatures as cosign makes them: ECDSA P-256 with SHA-256 over a "simple signing" payload that names the
//! manifest's digest, kept in the same layout under the tag `sha256-HEX.sig`.
//!
//! What always holds: [`Layout::verify`] answers yes only when a trusted key signed a payload that names exactly
//! this artifact's manifest digest. What a layout says about itself is believed for nothing else.
//! What it must not know: who trusts which key, and why.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{DerSignature, VerifyingKey};
use p256::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _};
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::artifact::Artifact;
use crate::layout::{Layout, LayoutError, MAX_MANIFEST_BYTES};
use crate::manifest::{Descriptor, MANIFEST, Manifest};
use crate::publish::json;

const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const PAYLOAD_MEDIA: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const CONFIG_MEDIA: &str = "application/vnd.oci.image.config.v1+json";
const PAYLOAD_TYPE: &str = "cosign container image signature";
/// Most signatures of one artifact that are looked at.
const MAX_SIGNATURES: usize = 64;

/// A key could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a public key.
    #[error(
        "`{0}` is not a public key: give an ECDSA P-256 key in PEM (`BEGIN PUBLIC KEY`), as `cosign.pub` is"
    )]
    NotPublic(String),
    /// Not a private key.
    #[error(
        "This is not a private key: give an ECDSA P-256 key in PKCS#8 PEM (`BEGIN PRIVATE KEY`)"
    )]
    NotPrivate,
    /// No randomness.
    #[error("The system gave no randomness for a key")]
    NoRandomness(#[source] io::Error),
}

/// Why an artifact is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// There is no signature beside it.
    #[error("{0} is not signed; ask its publisher to sign it with cosign")]
    Unsigned(Digest),
    /// There are signatures, none of them good under a trusted key.
    #[error(
        "{digest} carries no good signature of a trusted key ({tried} looked at); add its publisher's key if you trust it"
    )]
    Untrusted {
        /// The artifact's manifest.
        digest: Digest,
        /// How many signatures there are.
        tried: usize,
    },
    /// The layout is damaged.
    #[error("The signatures cannot be read")]
    Layout(#[from] LayoutError),
}

/// A public key that the operator trusts, under the operator's name for it.
#[derive(Debug, Clone)]
pub struct TrustedKey {
    name: String,
    key: VerifyingKey,
    fingerprint: Digest,
}

/// Whose signature was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedBy {
    /// The operator's name for the key.
    pub key_name: String,
    /// SHA-256 of the key in DER (SubjectPublicKeyInfo).
    pub fingerprint: Digest,
}

impl TrustedKey {
    /// Reads a public key in PEM, as `cosign.pub` is.
    ///
    /// # Errors
    /// When it is not an ECDSA P-256 public key.
    pub fn from_pem(name: &str, pem: &str) -> Result<Self, KeyError> {
        let refused = || KeyError::NotPublic(name.chars().take(80).collect());
        let key = VerifyingKey::from_public_key_pem(pem.trim()).map_err(|_| refused())?;
        let der = key.to_public_key_der().map_err(|_| refused())?;
        Ok(Self {
            name: name.to_owned(),
            key,
            fingerprint: Digest::of(der.as_bytes()),
        })
    }

    /// The operator's name for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of the key in DER (SubjectPublicKeyInfo).
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }
}

/// A private key to sign with.
pub struct SigningKey(p256::ecdsa::SigningKey);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        loop {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes)
                .map_err(|error| KeyError::NoRandomness(io::Error::other(error)))?;
            // Zero and numbers beyond the group's order are no keys: once in 2^32, draw again.
            if let Ok(key) = p256::ecdsa::SigningKey::from_slice(&bytes) {
                return Ok(Self(key));
            }
        }
    }

    /// Reads PKCS#8 PEM.
    ///
    /// # Errors
    /// When it is no ECDSA P-256 private key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        p256::ecdsa::SigningKey::from_pkcs8_pem(pem.trim())
            .map(Self)
            .map_err(|_| KeyError::NotPrivate)
    }

    /// PKCS#8 PEM. Keep it from other users.
    ///
    /// # Errors
    /// None that a valid key can cause.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF);
        pem.map(|text| text.to_string())
            .map_err(|_| KeyError::NotPrivate)
    }

    /// Its public key in PEM.
    ///
    /// # Errors
    /// None that a valid key can cause.
    pub fn public_pem(&self) -> Result<String, KeyError> {
        let pem = self.0.verifying_key().to_public_key_pem(LineEnding::LF);
        pem.map_err(|_| KeyError::NotPrivate)
    }
}

#[derive(Serialize, Deserialize)]
struct Payload {
    critical: Critical,
    optional: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Serialize, Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Serialize, Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    docker_reference: String,
}

#[derive(Serialize, Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

/// The name under which an index keeps the signatures of an artifact.
pub(crate) fn tag(artifact: &Artifact) -> String {
    let repository = artifact.reference.repository();
    format!("{repository}:sha256-{}.sig", artifact.digest.to_hex())
}

impl Layout {
    /// Signs an artifact, beside the signatures that it has.
    ///
    /// # Errors
    /// When the layout cannot be read or written.
    pub fn sign(&self, artifact: &Artifact, key: &SigningKey) -> Result<(), LayoutError> {
        let payload = json(&Payload {
            critical: Critical {
                identity: Identity {
                    docker_reference: artifact.reference.repository(),
                },
                image: Image {
                    digest: artifact.digest,
                },
                kind: PAYLOAD_TYPE.to_owned(),
            },
            optional: None,
        })?;
        let signature: DerSignature = key.0.sign(&payload);
        let layer = self
            .put_blob(PAYLOAD_MEDIA, &payload)?
            .annotated(SIGNATURE, &STANDARD.encode(signature.as_bytes()));
        let mut layers = self.signatures(artifact)?;
        if layers.contains(&layer) {
            return Ok(());
        }
        layers.push(layer);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            artifact_type: None,
            config: self.put_blob(CONFIG_MEDIA, b"{}")?,
            layers,
            annotations: Default::default(),
        };
        let descriptor = self.put_blob(MANIFEST, &json(&manifest)?)?;
        self.name(descriptor, &tag(artifact))
    }

    /// Says whose trusted key signed this artifact.
    ///
    /// # Errors
    /// When it is not signed, no signature is good under a trusted key, or the layout is damaged.
    pub fn verify(
        &self,
        artifact: &Artifact,
        trusted: &[TrustedKey],
    ) -> Result<SignedBy, SignatureError> {
        let signatures = self.signatures(artifact)?;
        if signatures.is_empty() {
            return Err(SignatureError::Unsigned(artifact.digest));
        }
        for signature in signatures.iter().take(MAX_SIGNATURES) {
            let payload = self.blob(signature, MAX_MANIFEST_BYTES)?;
            let good = trusted
                .iter()
                .find(|key| is_good(&key.key, signature, &payload, artifact.digest));
            if let Some(key) = good {
                return Ok(SignedBy {
                    key_name: key.name.clone(),
                    fingerprint: key.fingerprint,
                });
            }
        }
        Err(SignatureError::Untrusted {
            digest: artifact.digest,
            tried: signatures.len().min(MAX_SIGNATURES),
        })
    }

    fn signatures(&self, artifact: &Artifact) -> Result<Vec<Descriptor>, LayoutError> {
        let index = self.index()?;
        let tag = tag(artifact);
        let mut entries = index.manifests.iter();
        match entries.find(|entry| entry.ref_name() == Some(&tag)) {
            Some(entry) => Ok(self.manifest(entry)?.layers),
            None => Ok(Vec::new()),
        }
    }
}

fn is_good(key: &VerifyingKey, signature: &Descriptor, payload: &[u8], digest: Digest) -> bool {
    let text = signature.annotations.get(SIGNATURE);
    let Some(der) = text.and_then(|text| STANDARD.decode(text).ok()) else {
        return false;
    };
    let Ok(der) = DerSignature::try_from(der.as_slice()) else {
        return false;
    };
    if key.verify(payload, &der).is_err() {
        return false;
    }
    // Only now is the payload worth reading.
    serde_json::from_slice::<Payload>(payload).is_ok_and(|payload| {
        payload.critical.kind == PAYLOAD_TYPE && payload.critical.image.digest == digest
    })
}
