//! The Merkle tree of RFC 9162 section 2.1: hashes, roots, proofs and their checking.
//!
//! Pure. Checking accepts anything and never panics; making proofs asks [`Nodes`] for the hashes of full subtrees.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

/// Most hashes in a proof: two for each level of a tree of 2^64 leaves are never needed.
pub const PROOF_HASHES_MAX: usize = 128;

/// A SHA-256 hash of a leaf, a node or a whole tree. JSON and text show it in base64, as checkpoints do.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The root of the tree without leaves.
    pub fn of_empty_tree() -> Self {
        Self(Sha256::digest(b"").into())
    }

    /// The hash of a leaf: SHA-256(0x00 ‖ data).
    pub fn of_leaf(data: &[u8]) -> Self {
        Self(
            Sha256::new()
                .chain_update([0])
                .chain_update(data)
                .finalize()
                .into(),
        )
    }

    /// The hash of a node: SHA-256(0x01 ‖ left ‖ right).
    pub fn of_node(left: &Self, right: &Self) -> Self {
        Self(
            Sha256::new()
                .chain_update([1])
                .chain_update(left.0)
                .chain_update(right.0)
                .finalize()
                .into(),
        )
    }

    /// Reads the base64 form.
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_base64(&text).ok_or_else(|| D::Error::custom("a hash is 32 bytes in base64"))
    }
}

/// A growing tree reduced to the roots of its full subtrees: at most 64 hashes, whatever its size.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Frontier {
    size: u64,
    /// Roots of the full subtrees, largest (leftmost) first: one for each bit that is set in `size`.
    roots: Vec<Hash>,
}

impl Frontier {
    /// The empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it has as many hashes as a tree of its size must have; one that was read from a file may not.
    pub fn is_well_formed(&self) -> bool {
        self.roots.len() == self.size.count_ones() as usize
    }

    /// Adds a leaf. `completed` gets every subtree that it completes, lowest first: level (0 is the leaf), its index
    /// within the level, hash.
    pub fn push(&mut self, leaf: Hash, mut completed: impl FnMut(u32, u64, Hash)) {
        let mut hash = leaf;
        let mut level = 0;
        completed(0, self.size, hash);
        while self.size >> level & 1 == 1 {
            // A frontier that is not well formed cannot have come from `new` and `push`; it grows wrong, not unsafe.
            let Some(left) = self.roots.pop() else { break };
            hash = Hash::of_node(&left, &hash);
            level += 1;
            completed(level, self.size >> level, hash);
        }
        self.roots.push(hash);
        self.size += 1;
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev();
        let Some(last) = roots.next() else {
            return Hash::of_empty_tree();
        };
        roots.fold(*last, |right, left| Hash::of_node(left, &right))
    }
}

/// Where the hashes of full subtrees come from.
pub trait Nodes {
    /// Why one cannot be had.
    type Error;

    /// The hash of the full subtree of `2^level` leaves that begins at leaf `index << level`.
    fn node(&self, level: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// The proof that leaf `index` is in the tree of `size` leaves (RFC 9162 section 2.1.3.1); needs `index < size`.
pub fn inclusion_proof<N: Nodes>(nodes: &N, index: u64, size: u64) -> Result<Vec<Hash>, N::Error> {
    let (mut low, mut high) = (0, size);
    let mut proof = Vec::new();
    while high - low > 1 {
        let middle = low + split(high - low);
        if index < middle {
            proof.push(subtree(nodes, middle, high)?);
            high = middle;
        } else {
            proof.push(subtree(nodes, low, middle)?);
            low = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// The proof that the tree of `new` leaves begins with that of `old` leaves (RFC 9162 section 2.1.4.1); needs
/// `old <= new`. Empty when `old` is 0 or `new`.
pub fn consistency_proof<N: Nodes>(nodes: &N, old: u64, new: u64) -> Result<Vec<Hash>, N::Error> {
    let (mut low, mut high) = (0, new);
    let mut proof = Vec::new();
    if old == 0 || old == new {
        return Ok(proof);
    }
    // Down to the subtree that ends where the old tree ends; the old tree's own root is known to whoever asks.
    while high != old {
        let middle = low + split(high - low);
        if old <= middle {
            proof.push(subtree(nodes, middle, high)?);
            high = middle;
        } else {
            proof.push(subtree(nodes, low, middle)?);
            low = middle;
        }
    }
    if low != 0 {
        proof.push(subtree(nodes, low, high)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Whether `proof` leads from `leaf` at `index` to `root` of the tree of `size` leaves (RFC 9162 section 2.1.3.2).
pub fn inclusion_holds(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = Hash::of_node(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = Hash::of_node(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// Whether `proof` shows that the tree of `new` leaves with `new_root` begins with that of `old` leaves with `old_root`
/// (RFC 9162 section 2.1.4.2). Every tree begins with the empty one.
pub fn consistency_holds(
    old: u64,
    old_root: &Hash,
    new: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> bool {
    if old > new {
        return false;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == Hash::of_empty_tree();
    }
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    let (mut node, mut last) = (old - 1, new - 1);
    let skipped = node.trailing_ones();
    node >>= skipped;
    last >>= skipped;
    let mut hashes = proof.iter();
    // An old tree that is one full subtree is its own starting point.
    let start = if old.is_power_of_two() {
        Some(old_root)
    } else {
        hashes.next()
    };
    let Some(start) = start else { return false };
    let (mut from_old, mut from_new) = (*start, *start);
    for sibling in hashes {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            from_old = Hash::of_node(sibling, &from_old);
            from_new = Hash::of_node(sibling, &from_new);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            from_new = Hash::of_node(&from_new, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    last == 0 && from_old == *old_root && from_new == *new_root
}

/// The largest power of two below `count`, which is at least 2.
fn split(count: u64) -> u64 {
    1 << (u64::BITS - 1 - (count - 1).leading_zeros())
}

/// The hash over the leaves `low..high`, where `low` is where a subtree of that many leaves may begin.
fn subtree<N: Nodes>(nodes: &N, low: u64, high: u64) -> Result<Hash, N::Error> {
    let count = high - low;
    if count.is_power_of_two() {
        let level = count.trailing_zeros();
        return nodes.node(level, low >> level);
    }
    let middle = low + split(count);
    Ok(Hash::of_node(
        &subtree(nodes, low, middle)?,
        &subtree(nodes, middle, high)?,
    ))
}
