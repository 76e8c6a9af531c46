//! What a client does with a log that it does not trust: check signatures, growth, membership, and every byte.
//!
//! Pure. Everything given to it may be hostile.

use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::entry::StoredEntry;
use crate::note::{NoteError, VerifierKey};
use crate::tree::{self, Frontier, Hash};

/// What does not hold about a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The checkpoint is not one by the trusted key.
    #[error("The checkpoint cannot be trusted")]
    Checkpoint(#[from] NoteError),
    /// The log is shorter than it was.
    #[error("The log was cut: it had {kept} entries and shows only {shown} now")]
    Cut {
        /// Entries of the checkpoint that was kept.
        kept: u64,
        /// Entries of the one shown now.
        shown: u64,
    },
    /// The log does not begin with what it was.
    #[error(
        "The log was rewritten: its first {kept} entries are no longer those of the checkpoint that was kept"
    )]
    Rewritten {
        /// Entries of the checkpoint that was kept.
        kept: u64,
    },
    /// An entry is not where the log says, or is not as it was.
    #[error(
        "Entry {index} is not in the log of {size} entries as shown: it was changed, moved or removed"
    )]
    NotIncluded {
        /// The entry.
        index: u64,
        /// Entries of the checkpoint.
        size: u64,
    },
    /// The entries from some place on do not lead to the checkpoint.
    #[error(
        "The entries {from}..{to} are not those that the checkpoint was made of: at least one was changed"
    )]
    Changed {
        /// First of the entries that were looked at.
        from: u64,
        /// One past the last.
        to: u64,
    },
    /// An entry is missing or out of order.
    #[error("Entry {expected} is missing: entry {shown} was shown in its place")]
    Missing {
        /// What should have come.
        expected: u64,
        /// What came.
        shown: u64,
    },
    /// There are fewer entries, or more, than the checkpoint says.
    #[error("The checkpoint says {size} entries and {shown} were shown")]
    WrongCount {
        /// Entries of the checkpoint.
        size: u64,
        /// Entries shown.
        shown: u64,
    },
    /// What was kept from earlier does not fit together.
    #[error(
        "The checkpoint kept on this machine was damaged: restore it, or verify from the first entry"
    )]
    KeptDamaged,
}

/// Checks one log's claims against its public key.
#[derive(Debug, Clone)]
pub struct Verifier {
    key: VerifierKey,
}

impl Verifier {
    /// Trusts `key` and nothing else.
    pub fn new(key: VerifierKey) -> Self {
        Self { key }
    }

    /// The key that is trusted.
    pub fn key(&self) -> &VerifierKey {
        &self.key
    }

    /// Reads a checkpoint; refuses it unless the trusted key signed it for this log.
    pub fn checkpoint(&self, note: &str) -> Result<Checkpoint, VerifyError> {
        Ok(Checkpoint::open(note, &self.key)?)
    }

    /// Checks that the log of `new` begins with the log of `old`, without seeing its entries.
    pub fn growth(
        &self,
        old: &Checkpoint,
        new: &Checkpoint,
        proof: &[Hash],
    ) -> Result<(), VerifyError> {
        if new.size < old.size {
            return Err(VerifyError::Cut {
                kept: old.size,
                shown: new.size,
            });
        }
        if !tree::consistency_holds(old.size, &old.root, new.size, &new.root, proof) {
            return Err(VerifyError::Rewritten { kept: old.size });
        }
        Ok(())
    }

    /// Checks that `entry` is in the log of `checkpoint`, at its index, byte for byte.
    pub fn inclusion(
        &self,
        checkpoint: &Checkpoint,
        entry: &StoredEntry,
        proof: &[Hash],
    ) -> Result<(), VerifyError> {
        let (index, size) = (entry.index, checkpoint.size);
        if tree::inclusion_holds(&entry.leaf(), index, size, proof, &checkpoint.root) {
            Ok(())
        } else {
            Err(VerifyError::NotIncluded { index, size })
        }
    }
}

/// What a client keeps between two visits: the last checkpoint it verified, and the tree so far (a few hashes), so that
/// the next visit reads only what is new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The signed checkpoint.
    pub note: String,
    /// The tree of its entries.
    pub tree: Frontier,
}

/// Goes through a log's entries and rebuilds its tree: finds every changed byte and every missing entry.
#[derive(Debug, Clone)]
pub struct Replay {
    tree: Frontier,
    from: u64,
    /// What the tree must be when it has that many entries.
    kept: Option<Checkpoint>,
}

impl Replay {
    /// From the first entry; when a checkpoint was kept, its root is checked on the way.
    pub fn from_start(kept: Option<Checkpoint>) -> Self {
        Self {
            tree: Frontier::new(),
            from: 0,
            kept,
        }
    }

    /// From where the last visit ended.
    pub fn resume(verifier: &Verifier, kept: &Kept) -> Result<Self, VerifyError> {
        let checkpoint = verifier.checkpoint(&kept.note)?;
        let tree = kept.tree.clone();
        if !tree.is_well_formed()
            || tree.size() != checkpoint.size
            || tree.root() != checkpoint.root
        {
            return Err(VerifyError::KeptDamaged);
        }
        Ok(Self {
            from: tree.size(),
            tree,
            kept: Some(checkpoint),
        })
    }

    /// The index of the entry that must come next.
    pub fn next_index(&self) -> u64 {
        self.tree.size()
    }

    /// Takes the next entry.
    pub fn push(&mut self, entry: &StoredEntry) -> Result<(), VerifyError> {
        let expected = self.next_index();
        if entry.index != expected {
            return Err(VerifyError::Missing {
                expected,
                shown: entry.index,
            });
        }
        self.tree.push(entry.leaf(), |_, _, _| {});
        self.check_kept()
    }

    /// After the last entry: checks that they are exactly those of the checkpoint in `note`, which must be signed by
    /// the verifier's key and not be older than the one kept. Gives what to keep for the next visit.
    pub fn finish(self, verifier: &Verifier, note: &str) -> Result<Kept, VerifyError> {
        let checkpoint = verifier.checkpoint(note)?;
        if let Some(kept) = self
            .kept
            .as_ref()
            .filter(|kept| checkpoint.size < kept.size)
        {
            return Err(VerifyError::Cut {
                kept: kept.size,
                shown: checkpoint.size,
            });
        }
        let shown = self.tree.size();
        if shown != checkpoint.size {
            return Err(VerifyError::WrongCount {
                size: checkpoint.size,
                shown,
            });
        }
        self.check_kept()?;
        if self.tree.root() != checkpoint.root {
            return Err(match &self.kept {
                Some(kept) if kept.size == shown => VerifyError::Rewritten { kept: kept.size },
                _ => VerifyError::Changed {
                    from: self.from,
                    to: shown,
                },
            });
        }
        Ok(Kept {
            note: note.to_owned(),
            tree: self.tree,
        })
    }

    fn check_kept(&self) -> Result<(), VerifyError> {
        match &self.kept {
            Some(kept) if kept.size == self.tree.size() && kept.root != self.tree.root() => {
                Err(VerifyError::Rewritten { kept: kept.size })
            }
            _ => Ok(()),
        }
    }
}
