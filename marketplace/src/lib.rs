//! The marketplace: plugins and templates as signed artifacts in an OCI image layout directory.
//!
//! The problem it solves: a build, a mirror or a registry hands over files; a host must know that what it
//! installs is exactly what a trusted publisher signed, under the name it was asked for.
//!
//! What always holds:
//! - Bytes are handed out only with their size and SHA-256 checked against a descriptor (a copy of a large layer
//!   is checked as it goes, and says at its end whether it was good). Nothing is read beyond the size that the
//!   descriptor names, nor beyond the bound for its kind.
//! - No name from a layout becomes a path; only the 64 hexadecimal digits of a checked digest do.
//! - The name, publisher and version of an [`Artifact`] come from its own manifest, which the signature covers;
//!   the index, which nothing signs, only finds it.
//! - A write is whole or absent after a crash.
//!
//! What it must not know: what a plugin decides, how it is run, who may install it.
//!
//! Formats: OCI image layout and manifest 1.1; CNCF Wasm OCI artifact layout (configuration
//! `application/vnd.wasm.config.v0+json`, layer `application/wasm`); cosign's signature specification
//! (tag `sha256-HEX.sig`, simple signing payload, ECDSA P-256 with SHA-256).
//!
//! An index names an artifact `publisher/name:version`, so that `skopeo copy oci:DIR:publisher/name:version …`
//! carries it to any registry and back.

mod artifact;
mod digest;
mod layout;
mod manifest;
mod publish;
mod reference;
mod signature;

pub use artifact::{Artifact, Kind, Layer, media};
pub use digest::{Digest, DigestError};
pub use layout::{Layout, LayoutError};
pub use publish::{Draft, DraftKind, DraftLayer};
pub use reference::{Reference, ReferenceError};
pub use signature::{KeyError, SignatureError, SignedBy, SigningKey, TrustedKey};
