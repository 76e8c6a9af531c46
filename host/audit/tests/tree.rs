//! The tree against RFC 9162's definitions, known vectors, and every proof of all trees up to a few hundred leaves.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::convert::Infallible;

use dwcp_audit::Hash;
use dwcp_audit::tree::{self, Frontier, Nodes};
use proptest::prelude::*;

/// The definition, word for word (RFC 9162 section 2.1.1).
fn mth(leaves: &[Vec<u8>]) -> Hash {
    match leaves {
        [] => Hash::of_empty_tree(),
        [leaf] => Hash::of_leaf(leaf),
        _ => {
            let k = leaves.len().next_power_of_two() / 2;
            Hash::of_node(&mth(&leaves[..k]), &mth(&leaves[k..]))
        }
    }
}

/// PATH(m, D_n) of section 2.1.3.1.
fn path(m: usize, leaves: &[Vec<u8>]) -> Vec<Hash> {
    if leaves.len() <= 1 {
        return Vec::new();
    }
    let k = leaves.len().next_power_of_two() / 2;
    let (mut proof, rest) = if m < k {
        (path(m, &leaves[..k]), mth(&leaves[k..]))
    } else {
        (path(m - k, &leaves[k..]), mth(&leaves[..k]))
    };
    proof.push(rest);
    proof
}

/// SUBPROOF(m, D_n, b) of section 2.1.4.1.
fn subproof(m: usize, leaves: &[Vec<u8>], known: bool) -> Vec<Hash> {
    if m == leaves.len() {
        return if known { Vec::new() } else { vec![mth(leaves)] };
    }
    let k = leaves.len().next_power_of_two() / 2;
    let (mut proof, rest) = if m <= k {
        (subproof(m, &leaves[..k], known), mth(&leaves[k..]))
    } else {
        (subproof(m - k, &leaves[k..], false), mth(&leaves[..k]))
    };
    proof.push(rest);
    proof
}

struct Stored(HashMap<(u32, u64), Hash>);

impl Nodes for Stored {
    type Error = Infallible;

    fn node(&self, level: u32, index: u64) -> Result<Hash, Infallible> {
        Ok(self.0[&(level, index)])
    }
}

/// Leaves, the stored nodes, and the root at every size.
fn grow(count: usize) -> (Vec<Vec<u8>>, Stored, Vec<Hash>) {
    let leaves: Vec<Vec<u8>> = (0..count)
        .map(|n| format!("entry {n}").into_bytes())
        .collect();
    let (mut nodes, mut frontier) = (HashMap::new(), Frontier::new());
    let mut roots = vec![frontier.root()];
    for leaf in &leaves {
        frontier.push(Hash::of_leaf(leaf), |level, index, hash| {
            assert_eq!(
                nodes.insert((level, index), hash),
                None,
                "each subtree is completed once"
            );
        });
        roots.push(frontier.root());
        assert!(frontier.is_well_formed());
    }
    (leaves, Stored(nodes), roots)
}

fn hash(text: &str) -> Hash {
    Hash(hex::decode(text).unwrap().try_into().unwrap())
}

/// Inputs and roots of the Certificate Transparency reference implementation's tests.
#[test]
fn known_roots() {
    let inputs = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let leaves: Vec<Vec<u8>> = inputs
        .iter()
        .map(|input| hex::decode(input).unwrap())
        .collect();
    let mut frontier = Frontier::new();
    for (size, root) in roots.iter().enumerate() {
        assert_eq!(frontier.root(), hash(root), "size {size}");
        assert_eq!(mth(&leaves[..size]), hash(root));
        if let Some(leaf) = leaves.get(size) {
            frontier.push(Hash::of_leaf(leaf), |_, _, _| {});
        }
    }
    // Its inclusion path of leaf 0 in 8 and consistency proof from 6 to 8.
    let path: Vec<Hash> = [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    .map(hash)
    .to_vec();
    assert!(tree::inclusion_holds(
        &Hash::of_leaf(b""),
        0,
        8,
        &path,
        &hash(roots[8])
    ));
    let consistency: Vec<Hash> = [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    .map(hash)
    .to_vec();
    assert!(tree::consistency_holds(
        6,
        &hash(roots[6]),
        8,
        &hash(roots[8]),
        &consistency
    ));
}

#[test]
fn roots_and_proofs_are_the_definitions() {
    let (leaves, nodes, roots) = grow(70);
    for size in 0..=leaves.len() {
        assert_eq!(roots[size], mth(&leaves[..size]));
        for index in 0..size {
            let proof = tree::inclusion_proof(&nodes, index as u64, size as u64).unwrap();
            assert_eq!(proof, path(index, &leaves[..size]), "{index} in {size}");
        }
        for old in 1..=size {
            let proof = tree::consistency_proof(&nodes, old as u64, size as u64).unwrap();
            assert_eq!(
                proof,
                subproof(old, &leaves[..size], true),
                "{old} to {size}"
            );
        }
    }
}

#[test]
fn every_proof_holds_up_to_some_hundreds() {
    let (leaves, nodes, roots) = grow(300);
    for size in 1..=leaves.len() as u64 {
        let root = &roots[size as usize];
        for index in 0..size {
            let proof = tree::inclusion_proof(&nodes, index, size).unwrap();
            let leaf = Hash::of_leaf(&leaves[index as usize]);
            assert!(
                tree::inclusion_holds(&leaf, index, size, &proof, root),
                "{index} in {size}"
            );
        }
        for old in 0..=size {
            let proof = tree::consistency_proof(&nodes, old, size).unwrap();
            assert!(proof.len() <= tree::PROOF_HASHES_MAX);
            assert!(
                tree::consistency_holds(old, &roots[old as usize], size, root, &proof),
                "{old} to {size}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A proof holds for one claim only: any other leaf, place, size, root, or proof is refused.
    #[test]
    fn nothing_else_is_included(size in 1_u64..300, at in any::<prop::sample::Index>(), other in any::<u64>(), bit in 0_usize..256) {
        let (leaves, nodes, roots) = grow(size as usize);
        let index = at.index(size as usize) as u64;
        let leaf = Hash::of_leaf(&leaves[index as usize]);
        let root = &roots[size as usize];
        let proof = tree::inclusion_proof(&nodes, index, size).unwrap();
        let flip = |hash: &Hash| { let mut hash = *hash; hash.0[bit / 8] ^= 1 << (bit % 8); hash };

        prop_assert!(!tree::inclusion_holds(&flip(&leaf), index, size, &proof, root));
        prop_assert!(!tree::inclusion_holds(&leaf, index, size, &proof, &flip(root)));
        let elsewhere = other % (size + 3);
        if elsewhere != index {
            prop_assert!(!tree::inclusion_holds(&leaf, elsewhere, size, &proof, root));
        }
        for place in 0..proof.len() {
            let mut bad = proof.clone();
            bad[place] = flip(&bad[place]);
            prop_assert!(!tree::inclusion_holds(&leaf, index, size, &bad, root));
            bad.remove(place);
            prop_assert!(!tree::inclusion_holds(&leaf, index, size, &bad, root));
        }
        let longer = [proof, vec![leaf]].concat();
        prop_assert!(!tree::inclusion_holds(&leaf, index, size, &longer, root));
    }

    #[test]
    fn nothing_else_is_consistent(new in 2_u64..300, at in any::<prop::sample::Index>(), bit in 0_usize..256) {
        let (_, nodes, roots) = grow(new as usize);
        let old = 1 + at.index(new as usize - 1) as u64;
        let proof = tree::consistency_proof(&nodes, old, new).unwrap();
        let (old_root, new_root) = (&roots[old as usize], &roots[new as usize]);
        let flip = |hash: &Hash| { let mut hash = *hash; hash.0[bit / 8] ^= 1 << (bit % 8); hash };

        prop_assert!(!tree::consistency_holds(old, &flip(old_root), new, new_root, &proof));
        prop_assert!(!tree::consistency_holds(old, old_root, new, &flip(new_root), &proof));
        prop_assert!(!tree::consistency_holds(new, new_root, old, old_root, &proof));
        for place in 0..proof.len() {
            let mut bad = proof.clone();
            bad[place] = flip(&bad[place]);
            prop_assert!(!tree::consistency_holds(old, old_root, new, new_root, &bad));
            bad.remove(place);
            prop_assert!(!tree::consistency_holds(old, old_root, new, new_root, &bad));
        }
    }

    /// Whatever a hostile log sends, checking ends.
    #[test]
    fn checking_never_panics(a in any::<u64>(), b in any::<u64>(), proof in prop::collection::vec(any::<[u8; 32]>(), 0..130)) {
        let proof: Vec<Hash> = proof.into_iter().map(Hash).collect();
        let hash = Hash::of_empty_tree();
        prop_assert!(!tree::inclusion_holds(&hash, a, b, &proof, &hash));
        tree::consistency_holds(a, &hash, b, &hash, &proof);
    }
}
