//! Records of one type under one prefix, kept as JSON: what most users of a store want.
//!
//! Every change that depends on what was read names the revision it was read at, so that two writers never overwrite
//! each other unseen.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

use crate::error::StoreError;
use crate::records::{Compare, Entry, Op, OpResult, Revision, Txn};
use crate::{Store, Watch};

/// How often [`Typed::modify`] starts again when others change the record meanwhile.
const MODIFY_ATTEMPTS_MAX: usize = 64;

/// Why a typed record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TypedError {
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record is not what the caller took it to be: it changed, is there already, or is gone.
    #[error("The record {0} is not as it was when it was read: read it again")]
    Conflict(String),
    /// There is no such record.
    #[error("There is no record {0}")]
    Absent(String),
    /// The stored JSON does not fit the type.
    #[error(
        "The record {key} does not fit this version of the program: upgrade, or restore it from a backup"
    )]
    Unreadable {
        /// The full key.
        key: String,
        /// Where the JSON differs.
        source: serde_json::Error,
    },
    /// The value cannot be written as JSON.
    #[error("The record {key} cannot be written as JSON")]
    Unwritable {
        /// The full key.
        key: String,
        /// What JSON does not allow.
        source: serde_json::Error,
    },
}

/// A record with its place in history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The key without the prefix.
    pub id: String,
    /// The record.
    pub value: T,
    /// When it was last written; pass it to [`Typed::update`].
    pub revision: Revision,
    /// When it came into being.
    pub create_revision: Revision,
    /// How often it was written since; 1 for a new one.
    pub version: u64,
}

/// Part of a listing of records.
#[derive(Debug, Clone)]
pub struct TypedPage<T> {
    /// In order of their ids.
    pub records: Vec<Versioned<T>>,
    /// The moment the page shows.
    pub revision: Revision,
    /// Whether there are more records, after the last of these.
    pub more: bool,
}

/// The records of type `T` whose keys are `prefix` and an id. Cheap to clone.
pub struct Typed<T> {
    store: Arc<dyn Store>,
    prefix: String,
    record: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Typed<T> {
    /// The records of `store` under `prefix`, which by custom ends in `/`.
    pub fn new(store: Arc<dyn Store>, prefix: impl Into<String>) -> Self {
        Self {
            store,
            prefix: prefix.into(),
            record: PhantomData,
        }
    }

    /// The full key of a record, for transactions over several.
    pub fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    /// The operation that writes a record, for transactions over several.
    pub fn put_op(&self, id: &str, value: &T) -> Result<Op, TypedError> {
        let key = self.key(id);
        match serde_json::to_vec(value) {
            Ok(json) => Ok(Op::put(key, json)),
            Err(source) => Err(TypedError::Unwritable { key, source }),
        }
    }

    /// Reads an entry, from a watch or a transaction, as a record.
    pub fn decode(&self, entry: &Entry) -> Result<Versioned<T>, TypedError> {
        let id = entry
            .key
            .strip_prefix(&self.prefix)
            .unwrap_or(&entry.key)
            .to_owned();
        let value =
            serde_json::from_slice(&entry.value).map_err(|source| TypedError::Unreadable {
                key: entry.key.clone(),
                source,
            })?;
        Ok(Versioned {
            id,
            value,
            revision: entry.mod_revision,
            create_revision: entry.create_revision,
            version: entry.version,
        })
    }

    /// The record `id`, if there is one.
    pub async fn get(&self, id: &str) -> Result<Option<Versioned<T>>, TypedError> {
        self.store
            .get(&self.key(id))
            .await?
            .map(|entry| self.decode(&entry))
            .transpose()
    }

    /// The records after `start_after`, at most `limit`; see [`Store::range`].
    pub async fn list(
        &self,
        start_after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<TypedPage<T>, TypedError> {
        let start_after = start_after.map(|id| self.key(id));
        let page = self
            .store
            .range(&self.prefix, start_after.as_deref(), limit, at)
            .await?;
        let records = page
            .entries
            .iter()
            .map(|entry| self.decode(entry))
            .collect::<Result<_, _>>()?;
        Ok(TypedPage {
            records,
            revision: page.revision,
            more: page.more,
        })
    }

    /// Writes the record whatever was there.
    pub async fn put(&self, id: &str, value: &T) -> Result<Revision, TypedError> {
        Ok(self
            .store
            .transact(Txn::new().then(self.put_op(id, value)?))
            .await?
            .revision)
    }

    /// Writes a record that is not there yet; [`TypedError::Conflict`] when it is.
    pub async fn create(&self, id: &str, value: &T) -> Result<Revision, TypedError> {
        self.guarded(id, Compare::absent(self.key(id)), self.put_op(id, value)?)
            .await
    }

    /// Writes a record that was read at `expected`; [`TypedError::Conflict`] when it has changed since.
    pub async fn update(
        &self,
        id: &str,
        value: &T,
        expected: Revision,
    ) -> Result<Revision, TypedError> {
        self.guarded(
            id,
            Compare::unchanged(self.key(id), expected),
            self.put_op(id, value)?,
        )
        .await
    }

    /// Removes the record whatever it was; answers whether there was one.
    pub async fn delete(&self, id: &str) -> Result<bool, TypedError> {
        Ok(self.store.delete(&self.key(id)).await?)
    }

    /// Removes a record that was read at `expected`; [`TypedError::Conflict`] when it has changed since.
    pub async fn delete_at(&self, id: &str, expected: Revision) -> Result<Revision, TypedError> {
        let key = self.key(id);
        self.guarded(
            id,
            Compare::unchanged(key.as_str(), expected),
            Op::delete(key),
        )
        .await
    }

    /// Reads, changes and writes a record, again from the start when others changed it meanwhile. `change` may refuse.
    ///
    /// # Errors
    /// [`TypedError::Absent`] without such a record; [`TypedError::Conflict`] after 64 attempts.
    pub async fn modify<E: From<TypedError>>(
        &self,
        id: &str,
        mut change: impl FnMut(&mut T) -> Result<(), E>,
    ) -> Result<Versioned<T>, E> {
        for _ in 0..MODIFY_ATTEMPTS_MAX {
            let mut record = self
                .get(id)
                .await?
                .ok_or_else(|| TypedError::Absent(self.key(id)))?;
            change(&mut record.value)?;
            match self.update(id, &record.value, record.revision).await {
                Ok(revision) => {
                    record.revision = revision;
                    record.version += 1;
                    return Ok(record);
                }
                Err(TypedError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(TypedError::Conflict(self.key(id)).into())
    }

    /// Follows the records' changes; see [`Store::watch`] and [`Typed::decode`].
    pub async fn watch(&self, from: Revision) -> Result<Watch, TypedError> {
        Ok(self.store.watch(&self.prefix, from).await?)
    }

    async fn guarded(&self, id: &str, compare: Compare, op: Op) -> Result<Revision, TypedError> {
        let outcome = self
            .store
            .transact(Txn::new().when(compare).then(op))
            .await?;
        match outcome.results.first() {
            Some(OpResult::Put | OpResult::Delete { existed: true }) if outcome.succeeded => {
                Ok(outcome.revision)
            }
            _ => Err(TypedError::Conflict(self.key(id))),
        }
    }
}

impl<T> Clone for Typed<T> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            prefix: self.prefix.clone(),
            record: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Typed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Typed")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
