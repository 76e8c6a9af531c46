//! A mistake put here on purpose, behind comparisons that no blind search passes in a lifetime. `cargo xtask soak` lets
//! the engine look for it first: a build that is not instrumented does not find it.

use crate::input::Input;

const FIRST: u64 = 0x6477_6370_2d66_757a;
const SECOND: u32 = 0x7a65_2121;

/// Panics for one input in 2^96. The steps are of eight and four bytes: shorter operands libFuzzer does not learn.
pub(super) fn planted(input: &[u8]) {
    let mut input = Input(input);
    if input.u64() != FIRST {
        return;
    }
    if input.u32() == SECOND {
        panic!("the planted mistake");
    }
}
