//! Signed notes (C2SP signed-note): text, an empty line, and signature lines of Ed25519 keys with names.
//!
//! Pure, but for making a key. Reading accepts anything within [`NOTE_BYTES_MAX`] and never panics.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::{
    DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding,
};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

/// Longest note, in bytes, that is looked at.
pub const NOTE_BYTES_MAX: usize = 64 << 10;
/// Most signature lines that are looked at.
pub const SIGNATURES_MAX: usize = 100;

/// The signature type of Ed25519 in key ids and encoded keys.
const ED25519: u8 = 1;
/// What begins a signature line: an em dash and a space.
const SIGNATURE_PREFIX: &str = "\u{2014} ";

/// Why a note or key is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It does not have the form of a signed note.
    #[error("This is not a signed note: {0}")]
    Malformed(&'static str),
    /// No signature is by the key that it must be by.
    #[error("The note is not signed by {0}")]
    NotSigned(String),
    /// A signature names the right key but does not fit the text.
    #[error(
        "The signature by {0} does not fit the note: it was changed, or signed with another key of that name"
    )]
    WrongSignature(String),
    /// It does not have the form of a verifier key.
    #[error("A verifier key looks like name+01234567+base64, and this one does not: {0}")]
    MalformedKey(&'static str),
    /// A name that cannot stand in a note.
    #[error("A log's name cannot be empty nor hold spaces or plus signs: {0:?}")]
    BadName(String),
    /// The private key cannot be read or made.
    #[error("The signing key cannot be used: {0}")]
    BadSigningKey(String),
}

/// The public half of a log's key, with its name: what a client trusts. Its text form is C2SP's "verifier key".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    key: VerifyingKey,
    id: [u8; 4],
}

impl VerifierKey {
    fn new(name: &str, key: VerifyingKey) -> Result<Self, NoteError> {
        check_name(name)?;
        let hash = Sha256::new()
            .chain_update(name)
            .chain_update([b'\n', ED25519])
            .chain_update(key.as_bytes())
            .finalize();
        let mut id = [0; 4];
        id.copy_from_slice(&hash[..4]);
        Ok(Self {
            name: name.to_owned(),
            key,
            id,
        })
    }

    /// The name of the key, which is the log's origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks that `note` is signed by this key and gives its text, with the final newline. Signatures by others are
    /// passed over.
    pub fn open<'n>(&self, note: &'n str) -> Result<&'n str, NoteError> {
        let (text, signatures) = split(note)?;
        for line in signatures.lines() {
            let (name, id, signature) = parse_signature(line)?;
            if name != self.name || id != self.id {
                continue;
            }
            let wrong = || NoteError::WrongSignature(self.name.clone());
            let signature = Signature::from_slice(&signature).map_err(|_| wrong())?;
            self.key
                .verify_strict(text.as_bytes(), &signature)
                .map_err(|_| wrong())?;
            return Ok(text);
        }
        Err(NoteError::NotSigned(self.to_string()))
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut encoded = vec![ED25519];
        encoded.extend_from_slice(self.key.as_bytes());
        write!(
            f,
            "{}+{}+{}",
            self.name,
            hex::encode(self.id),
            STANDARD.encode(encoded)
        )
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(encoded)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(NoteError::MalformedKey("it has no three parts"));
        };
        let encoded = STANDARD
            .decode(encoded)
            .map_err(|_| NoteError::MalformedKey("the last part is no base64"))?;
        let Some((&ED25519, key)) = encoded.split_first() else {
            return Err(NoteError::MalformedKey(
                "it is of another kind than Ed25519",
            ));
        };
        let key = key
            .try_into()
            .map_err(|_| NoteError::MalformedKey("the key is not 32 bytes long"))?;
        let key = VerifyingKey::from_bytes(&key)
            .map_err(|_| NoteError::MalformedKey("the key is no Ed25519 key"))?;
        let key = Self::new(name, key)?;
        if hex::encode(key.id) == id {
            Ok(key)
        } else {
            Err(NoteError::MalformedKey("its id does not fit the rest"))
        }
    }
}

impl Serialize for VerifierKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VerifierKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// A log's private key, with its name.
pub struct Signer {
    key: SigningKey,
    verifier: VerifierKey,
}

impl Signer {
    /// Makes a new key for the log `name`, which is its origin: a URL without scheme by custom, such as
    /// `left.example/dwcp/audit`.
    pub fn generate(name: &str) -> Result<Self, NoteError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| NoteError::BadSigningKey(error.to_string()))?;
        Self::from_seed(name, &seed)
    }

    /// The key that an Ed25519 seed (RFC 8032) stands for.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        Self::from_key(name, SigningKey::from_bytes(seed))
    }

    /// Reads a PKCS #8 PEM, as [`Signer::to_pem`] writes it.
    pub fn from_pem(name: &str, pem: &str) -> Result<Self, NoteError> {
        let key = SigningKey::from_pkcs8_pem(pem)
            .map_err(|error| NoteError::BadSigningKey(error.to_string()))?;
        Self::from_key(name, key)
    }

    /// The private key as PKCS #8 PEM, for a file that only its owner reads. The name is not in it.
    pub fn to_pem(&self) -> Result<String, NoteError> {
        match self.key.to_pkcs8_pem(LineEnding::LF) {
            Ok(pem) => Ok(pem.to_string()),
            Err(error) => Err(NoteError::BadSigningKey(error.to_string())),
        }
    }

    fn from_key(name: &str, key: SigningKey) -> Result<Self, NoteError> {
        let verifier = VerifierKey::new(name, key.verifying_key())?;
        Ok(Self { key, verifier })
    }

    /// The public half, to be given to clients.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Signs `text`, which must end in a newline, into a note.
    pub fn sign(&self, text: &str) -> String {
        let mut signature = self.verifier.id.to_vec();
        signature.extend_from_slice(&self.key.sign(text.as_bytes()).to_bytes());
        format!(
            "{text}\n{SIGNATURE_PREFIX}{} {}\n",
            self.verifier.name,
            STANDARD.encode(signature)
        )
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("verifier", &self.verifier)
            .finish_non_exhaustive()
    }
}

fn check_name(name: &str) -> Result<(), NoteError> {
    if name.is_empty()
        || name.contains('+')
        || name.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(NoteError::BadName(name.to_owned()));
    }
    Ok(())
}

/// Splits a note at its last empty line.
fn split(note: &str) -> Result<(&str, &str), NoteError> {
    if note.len() > NOTE_BYTES_MAX {
        return Err(NoteError::Malformed("it is too long"));
    }
    if note.chars().any(|c| c.is_ascii_control() && c != '\n') {
        return Err(NoteError::Malformed("it holds control characters"));
    }
    let at = note.rfind("\n\n").ok_or(NoteError::Malformed(
        "it has no empty line before signatures",
    ))?;
    let (text, signatures) = (&note[..=at], &note[at + 2..]);
    if signatures.is_empty() || !signatures.ends_with('\n') {
        return Err(NoteError::Malformed("it does not end in a signature line"));
    }
    if signatures.lines().count() > SIGNATURES_MAX {
        return Err(NoteError::Malformed("it has too many signatures"));
    }
    Ok((text, signatures))
}

/// The name, key id and signature of one line.
fn parse_signature(line: &str) -> Result<(&str, [u8; 4], Vec<u8>), NoteError> {
    const MALFORMED: NoteError =
        NoteError::Malformed("a signature line is not a dash, a name and base64");
    let (name, encoded) = line
        .strip_prefix(SIGNATURE_PREFIX)
        .and_then(|l| l.split_once(' '))
        .ok_or(MALFORMED)?;
    check_name(name).map_err(|_| MALFORMED)?;
    let bytes = STANDARD.decode(encoded).map_err(|_| MALFORMED)?;
    let (id, signature) = bytes.split_first_chunk().ok_or(MALFORMED)?;
    if signature.is_empty() {
        return Err(MALFORMED);
    }
    Ok((name, *id, signature.to_vec()))
}
