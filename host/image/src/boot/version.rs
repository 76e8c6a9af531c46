//! Comparing versions as the UAPI Group's Version Format Specification says, for file names and `version` fields.
//!
//! What always holds: it is a total order up to characters that mean nothing, and takes time in proportion to the
//! lengths.

use std::cmp::Ordering;

/// Which version is newer.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        left = meaningful(left);
        right = meaningful(right);
        // A tilde makes older, even than the end.
        match mark(&mut left, &mut right, b'~') {
            Ordering::Equal => {}
            unequal => return unequal,
        }
        if left.is_empty() || right.is_empty() {
            return left.len().min(1).cmp(&right.len().min(1));
        }
        for separator in [b'-', b'^', b'.'] {
            match mark(&mut left, &mut right, separator) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
        let is_number =
            starts_with(left, u8::is_ascii_digit) || starts_with(right, u8::is_ascii_digit);
        let unequal = if is_number {
            numbers(&mut left, &mut right)
        } else {
            letters(&mut left, &mut right)
        };
        if unequal != Ordering::Equal {
            return unequal;
        }
    }
}

/// Leaves out what is neither letter, digit nor one of the four marks.
fn meaningful(text: &[u8]) -> &[u8] {
    let start = text
        .iter()
        .position(|byte| byte.is_ascii_alphanumeric() || b"-.~^".contains(byte))
        .unwrap_or(text.len());
    &text[start..]
}

fn starts_with(text: &[u8], is: impl Fn(&u8) -> bool) -> bool {
    text.first().is_some_and(is)
}

/// The side that begins with the mark is older; a mark on both sides is passed over.
fn mark(left: &mut &[u8], right: &mut &[u8], mark: u8) -> Ordering {
    let (here, there) = (
        starts_with(left, |byte| *byte == mark),
        starts_with(right, |byte| *byte == mark),
    );
    if here && there {
        *left = &left[1..];
        *right = &right[1..];
    }
    there.cmp(&here)
}

/// Compares the numbers at the beginning; none at all is less than any.
fn numbers(left: &mut &[u8], right: &mut &[u8]) -> Ordering {
    let (a, b) = (
        take(left, u8::is_ascii_digit),
        take(right, u8::is_ascii_digit),
    );
    let (trimmed_a, trimmed_b) = (without_zeros(a), without_zeros(b));
    a.is_empty()
        .cmp(&b.is_empty())
        .reverse()
        .then(trimmed_a.len().cmp(&trimmed_b.len()))
        .then(trimmed_a.cmp(trimmed_b))
}

/// Compares the letters at the beginning; upper case comes before lower case, and the shorter word before the longer.
fn letters(left: &mut &[u8], right: &mut &[u8]) -> Ordering {
    let (a, b) = (
        take(left, u8::is_ascii_alphabetic),
        take(right, u8::is_ascii_alphabetic),
    );
    a.cmp(b)
}

fn take<'a>(text: &mut &'a [u8], is: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|byte| !is(byte)).unwrap_or(text.len());
    let (taken, rest) = text.split_at(end);
    *text = rest;
    taken
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    let start = digits
        .iter()
        .position(|digit| *digit != b'0')
        .unwrap_or(digits.len());
    &digits[start..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The examples of the specification, and kernels as distributions name them.
    #[test]
    fn the_examples_of_the_specification_hold() {
        for (older, newer) in [
            ("11", "11α2"),
            ("122.1", "123~rc1-1"),
            ("123~rc1-1", "123"),
            ("123", "123-a"),
            ("123-a", "123-a.1"),
            ("123-a.1", "123-1"),
            ("123-1", "123-1.1"),
            ("123-1.1", "123^post1"),
            ("123^post1", "123.a-1"),
            ("123.a-1", "123.1-1"),
            ("123.1-1", "123a-1"),
            ("123a-1", "124-1"),
            ("6.1.0-9-amd64", "6.1.0-18-amd64"),
            ("5.10.0-28-cloud-amd64", "6.1.0-1-cloud-amd64"),
            ("6.8.0-31-generic", "6.8.0-101-generic"),
            ("0-rescue-1234", "6.5.6-300.fc39.x86_64"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} < {newer}");
            assert_eq!(
                compare(newer, older),
                Ordering::Greater,
                "{newer} > {older}"
            );
        }
        assert_eq!(compare("123_aa2-67.89", "123aa+2-67.89"), Ordering::Equal);
        assert_eq!(compare("007", "7"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn it_is_an_order(a in "[0-9a-cA-C.~^_-]{0,10}", b in "[0-9a-cA-C.~^_-]{0,10}", c in "[0-9a-cA-C.~^_-]{0,10}") {
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            if compare(&a, &b) != Ordering::Greater && compare(&b, &c) != Ordering::Greater {
                prop_assert_ne!(compare(&a, &c), Ordering::Greater);
            }
        }

        #[test]
        fn any_text_is_compared(a in ".{0,40}", b in ".{0,40}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
        }
    }
}
