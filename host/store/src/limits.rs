//! What every store accepts, whichever keeps the data: etcd's defaults, so that nothing accepted today is refused when
//! a region moves into etcd.

use crate::error::InvalidRequest;
use crate::records::{Op, Txn};

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest request, in bytes, with all keys, values and an allowance for their framing: etcd's `--max-request-bytes`.
pub const REQUEST_BYTES_MAX: usize = 1_572_864;
/// Largest value, in bytes: what fits into a request beside its key and framing.
pub const VALUE_BYTES_MAX: usize = REQUEST_BYTES_MAX - 4096;
/// Most comparisons, and most operations in either list, of one transaction: etcd's `--max-txn-ops`.
pub const OPERATIONS_MAX: usize = 128;
/// Most entries of one page.
pub const PAGE_ENTRIES_MAX: usize = 1000;
/// A page that has reached this many bytes of keys and values ends early.
pub const PAGE_BYTES_MAX: usize = 4 << 20;

/// What one comparison or operation may cost in framing, in bytes.
const FRAMING_BYTES: usize = 64;

/// Refuses a key that no store accepts.
pub fn check_key(key: &str) -> Result<(), InvalidRequest> {
    match key.len() {
        0 => Err(InvalidRequest::EmptyKey),
        n if n > KEY_BYTES_MAX => Err(InvalidRequest::KeyTooLong(n)),
        _ => Ok(()),
    }
}

/// Refuses the arguments of a range that no store accepts.
pub fn check_range(
    prefix: &str,
    start_after: Option<&str>,
    limit: usize,
) -> Result<(), InvalidRequest> {
    for key in [Some(prefix), start_after].into_iter().flatten() {
        if key.len() > KEY_BYTES_MAX {
            return Err(InvalidRequest::KeyTooLong(key.len()));
        }
    }
    if !(1..=PAGE_ENTRIES_MAX).contains(&limit) {
        return Err(InvalidRequest::Limit(limit));
    }
    Ok(())
}

/// Refuses a transaction that no store accepts: over a limit, or changing one key twice.
pub fn check_txn(txn: &Txn) -> Result<(), InvalidRequest> {
    for n in [txn.compares.len(), txn.then.len(), txn.otherwise.len()] {
        if n > OPERATIONS_MAX {
            return Err(InvalidRequest::TooManyOperations(n));
        }
    }
    let mut bytes = 0;
    for compare in &txn.compares {
        check_key(&compare.key)?;
        bytes += FRAMING_BYTES + compare.key.len() + compare.test.value_bytes();
    }
    for ops in [&txn.then, &txn.otherwise] {
        let mut changed = std::collections::HashSet::new();
        for op in ops {
            check_key(op.key())?;
            if let Op::Put { value, .. } = op {
                if value.len() > VALUE_BYTES_MAX {
                    return Err(InvalidRequest::ValueTooLong(value.len()));
                }
                bytes += value.len();
            }
            bytes += FRAMING_BYTES + op.key().len();
            if !matches!(op, Op::Get { .. }) && !changed.insert(op.key()) {
                return Err(InvalidRequest::ChangedTwice(op.key().to_owned()));
            }
        }
    }
    if bytes > REQUEST_BYTES_MAX {
        return Err(InvalidRequest::RequestTooLong(bytes));
    }
    Ok(())
}
