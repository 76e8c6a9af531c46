//! Checkpoints (C2SP tlog-checkpoint): which log, how many entries, which root; signed as a note.
//!
//! Pure.

use std::fmt;

use crate::note::{NoteError, Signer, VerifierKey};
use crate::tree::Hash;

/// What a log commits to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// Number of entries.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash,
}

impl Checkpoint {
    /// Signs the checkpoint into a note.
    pub fn sign(&self, signer: &Signer) -> String {
        signer.sign(&self.to_string())
    }

    /// Reads a checkpoint that is signed by `key` and is of the log of the same name.
    pub fn open(note: &str, key: &VerifierKey) -> Result<Self, NoteError> {
        let checkpoint = Self::parse(key.open(note)?)?;
        if checkpoint.origin != key.name() {
            return Err(NoteError::Malformed("it is the checkpoint of another log"));
        }
        Ok(checkpoint)
    }

    /// Reads the text of a checkpoint. Says nothing of who signed it.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(NoteError::Malformed(
                "a checkpoint has three lines: origin, size, root",
            ));
        };
        if origin.is_empty() {
            return Err(NoteError::Malformed("its origin is empty"));
        }
        if lines.any(str::is_empty) {
            return Err(NoteError::Malformed("an extension line is empty"));
        }
        let number = size.parse().ok().filter(|n: &u64| n.to_string() == size);
        let size = number.ok_or(NoteError::Malformed(
            "its size is not a plain decimal number",
        ))?;
        let root = Hash::from_base64(root)
            .ok_or(NoteError::Malformed("its root is not 32 bytes in base64"))?;
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
        })
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}\n", self.origin, self.size, self.root)
    }
}
