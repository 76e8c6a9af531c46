//! Showing text that an image contains, and errors with their causes.
//!
//! What always holds: what is shown has no control character and no invisible one, and is of bounded length.

use std::error::Error;

use crate::limits::SHOWN_CHARACTERS_MAX;

/// Text of an image as it may appear in a message.
pub(crate) fn shown(text: &str) -> String {
    let mut clean: String = text
        .chars()
        .take(SHOWN_CHARACTERS_MAX)
        .map(|character| if is_quiet(character) { '?' } else { character })
        .collect();
    if text.chars().nth(SHOWN_CHARACTERS_MAX).is_some() {
        clean.push('…');
    }
    clean
}

/// As [`shown`], for bytes that should be text.
pub(crate) fn shown_bytes(bytes: &[u8]) -> String {
    shown(&String::from_utf8_lossy(bytes))
}

/// Characters that a terminal acts on, or that nobody sees.
fn is_quiet(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// An error and its causes in one line.
pub(crate) fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown_that_a_terminal_acts_on() {
        assert_eq!(shown("a\x1b[2Jb\u{202e}c"), "a?[2Jb?c");
        assert_eq!(shown_bytes(b"\xff\x00"), "\u{fffd}?");
    }

    #[test]
    fn long_text_is_cut() {
        let long = "x".repeat(SHOWN_CHARACTERS_MAX + 1);
        let cut = shown(&long);
        assert_eq!(cut.chars().count(), SHOWN_CHARACTERS_MAX + 1);
        assert!(cut.ends_with('…'));
        assert_eq!(shown(&long[1..]), long[1..]);
    }
}
