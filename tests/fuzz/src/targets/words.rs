//! Last words: what a process that may be the attacker's leaves in its pipe, shown to a person.

use dwcp_jail::{LAST_WORDS_TEXT_MAX, parse_last_words};

/// All that was in the pipe.
pub(super) fn last_words(input: &[u8]) {
    let Some(words) = parse_last_words(input) else {
        return;
    };
    assert!(words.text.len() <= LAST_WORDS_TEXT_MAX);
    assert!(!words.text.chars().any(char::is_control));
    // What the launcher passes on is read as it was meant.
    let again = parse_last_words(format!("{words}\n").as_bytes());
    assert_eq!(again, Some(words));
}
