//! What one entry says, and its canonical bytes: the bytes that are hashed, kept and handed out.
//!
//! Pure. An entry travels as its canonical text ([`StoredEntry`]) and is never written anew on the way, so its hash
//! does not hang on any program's way of writing JSON.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tree::Hash;

/// Longest canonical text of an entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = 64 << 10;
/// Deepest nesting of an entry's detail.
const DEPTH_MAX: usize = 32;

/// How what was asked for ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was begun and goes on; another entry tells its end.
    Accepted,
    /// It was not allowed.
    Denied,
    /// It was allowed and did not succeed.
    Failed,
}

/// Who did what to what, when, and how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in milliseconds since 1970-01-01 UTC, by the host's clock.
    pub time_ms: u64,
    /// Who: a user, key, host or plugin.
    pub principal: String,
    /// What was asked for, such as `vm.create`.
    pub action: String,
    /// What it was about, such as `projects/default/vms/web-1`.
    pub object: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Whatever else is worth keeping; never a secret.
    #[serde(default)]
    pub detail: Value,
}

/// Why an entry has no canonical form.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The text would be longer than [`ENTRY_BYTES_MAX`].
    #[error(
        "An audit entry of {0} bytes is over the limit of {ENTRY_BYTES_MAX}: put less into its detail"
    )]
    TooLong(usize),
    /// The detail is nested too deep.
    #[error("The detail of an audit entry is nested deeper than {DEPTH_MAX} levels: flatten it")]
    TooDeep,
    /// The entry cannot be written as JSON.
    #[error("The audit entry cannot be written as JSON")]
    Unwritable(#[source] serde_json::Error),
}

impl Entry {
    /// The canonical text: JSON without spaces, keys of every object in the order of their bytes.
    pub fn canonical(&self) -> Result<String, EntryError> {
        let value = serde_json::to_value(self).map_err(EntryError::Unwritable)?;
        let mut text = String::with_capacity(256);
        write(&value, DEPTH_MAX + 1, &mut text)?;
        if text.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::TooLong(text.len()));
        }
        Ok(text)
    }
}

/// An entry as the log keeps it and hands it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEntry {
    /// Its place in the log, from 0.
    pub index: u64,
    /// Its canonical text, exactly as it is hashed.
    pub text: String,
}

impl StoredEntry {
    /// What it says.
    pub fn entry(&self) -> Result<Entry, serde_json::Error> {
        serde_json::from_str(&self.text)
    }

    /// Its hash as a leaf of the tree.
    pub fn leaf(&self) -> Hash {
        Hash::of_leaf(self.text.as_bytes())
    }
}

fn write(value: &Value, depth: usize, text: &mut String) -> Result<(), EntryError> {
    let depth = depth.checked_sub(1).ok_or(EntryError::TooDeep)?;
    match value {
        Value::Object(object) => {
            // Sorted here: the order of a map depends on how serde_json was built.
            let mut members: Vec<_> = object.iter().collect();
            members.sort_by_key(|(key, _)| key.as_str());
            text.push('{');
            for (n, (key, value)) in members.into_iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                write_plain(key, text)?;
                text.push(':');
                write(value, depth, text)?;
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (n, value) in items.iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                write(value, depth, text)?;
            }
            text.push(']');
        }
        plain => write_plain(plain, text)?,
    }
    Ok(())
}

fn write_plain(value: &(impl Serialize + ?Sized), text: &mut String) -> Result<(), EntryError> {
    text.push_str(&serde_json::to_string(value).map_err(EntryError::Unwritable)?);
    Ok(())
}
