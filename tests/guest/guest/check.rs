//! A sum per page that can follow a single changed word, and finds any other change.
//!
//! Each word is mixed with its place and added; zero adds nothing, so the sum of an untouched page is zero. A word
//! that changed behind our back stays wrong in the sum even after we overwrite it: what is taken out again is what was
//! read, not what should have been there.

use crate::fill::Page;

/// What a word at a place in its page adds to the sum.
pub fn mix(place: usize, word: u64) -> u64 {
    let odd = (place as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(0xd1b5_4a32_d192_ed03)
        | 1;
    let mixed = word.wrapping_mul(odd);
    (mixed ^ mixed >> 32).wrapping_mul(0xff51_afd7_ed55_8ccd)
}

/// The sum of a whole page.
pub fn sum(page: &Page) -> u64 {
    page.iter()
        .enumerate()
        .fold(0, |sum, (place, word)| sum.wrapping_add(mix(place, *word)))
}

/// The sum after one word was replaced.
pub fn replace(sum: u64, place: usize, old: u64, new: u64) -> u64 {
    sum.wrapping_sub(mix(place, old))
        .wrapping_add(mix(place, new))
}
