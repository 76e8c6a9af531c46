//! A mistake put here on purpose, behind comparisons that no blind search passes in a lifetime. `cargo xtask soak` lets
//! the engine look for it first: a build that is not instrumented does not find it.

/// Panics for one input in 2^88.
pub(super) fn planted(input: &[u8]) {
    let Some((head, rest)) = input.split_first_chunk::<8>() else {
        return;
    };
    if u64::from_le_bytes(*head) != 0x6477_6370_2d66_757a {
        return;
    }
    if let [b'o', b'd', b'd', ..] = rest {
        panic!("the planted mistake");
    }
}
