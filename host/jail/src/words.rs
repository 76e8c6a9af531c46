//! Last words: the one line a confined process leaves behind, written by the child and believed with care.
//!
//! A line is `kind: text`. The child writes it with a single `write` that the pipe takes whole; the launcher believes
//! at most [`LAST_WORDS_BYTES_MAX`] bytes and of these the last complete line, because a process that is denied a
//! system call while it ends has said something before.

use std::fmt;

use crate::LAST_WORDS_FD;

/// Most bytes of last words that are believed; what follows is ignored. Also what a pipe takes in one piece.
pub const LAST_WORDS_BYTES_MAX: usize = 4096;
/// Longest text of one line, in bytes; longer ones are cut.
pub const LAST_WORDS_TEXT_MAX: usize = 512;

/// Why a process ended, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The guest ended itself: `power-off`, `reset`, `triple-fault`.
    Guest,
    /// The process made a system call that it had given up; the text is the call's name.
    Seccomp,
    /// Something failed; the text is for a person.
    Error,
}

impl Kind {
    /// The word in front of the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Guest => "guest",
            Kind::Seccomp => "seccomp",
            Kind::Error => "error",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Kind::Guest, Kind::Seccomp, Kind::Error]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }
}

/// What a process said, cleaned: no control characters, at most [`LAST_WORDS_TEXT_MAX`] bytes of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpokenWords {
    /// Why it ended.
    pub kind: Kind,
    /// The rest of the line.
    pub text: String,
}

impl fmt::Display for SpokenWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.text)
    }
}

/// The child's end of the pipe, at [`LAST_WORDS_FD`] for as long as the process lives.
///
/// Only [`inherit`](crate::inherit) makes one, so the descriptor is known to be the pipe.
#[derive(Clone, Copy, Debug)]
pub struct LastWords {
    _made_by_inherit: (),
}

impl LastWords {
    pub(crate) fn new() -> Self {
        Self {
            _made_by_inherit: (),
        }
    }

    /// Writes one line. Never blocks and never fails: a process that is ending has nobody to tell.
    ///
    /// Control characters become `?`; text over [`LAST_WORDS_TEXT_MAX`] bytes is cut.
    pub fn say(&self, kind: Kind, text: &str) {
        let line = format!("{}: {}\n", kind.as_str(), clean(text));
        write_raw(line.as_bytes());
    }
}

/// Writes to the pipe; safe inside a signal handler.
pub(crate) fn write_raw(bytes: &[u8]) {
    // SAFETY: the buffer is valid for its length; the descriptor is the pipe, or the call fails harmlessly.
    unsafe { libc::write(LAST_WORDS_FD, bytes.as_ptr().cast(), bytes.len()) };
}

/// Reads what a process left in its pipe: the last complete line, or `None` when there is none.
///
/// A line of a form that no honest process writes is reported as an error with the cleaned line as its text.
pub fn parse_last_words(bytes: &[u8]) -> Option<SpokenWords> {
    let believed = &bytes[..bytes.len().min(LAST_WORDS_BYTES_MAX)];
    let whole = &believed[..believed.iter().rposition(|&byte| byte == b'\n')?];
    let line = whole.rsplit(|&byte| byte == b'\n').next().unwrap_or(whole);
    let line = String::from_utf8_lossy(line);
    let known = line
        .split_once(": ")
        .and_then(|(word, text)| Some((Kind::parse(word)?, text)));
    Some(match known {
        Some((kind, text)) => SpokenWords {
            kind,
            text: clean(text),
        },
        None => SpokenWords {
            kind: Kind::Error,
            text: clean(&format!("the process left unreadable words: {line}")),
        },
    })
}

/// Takes out what would disturb a terminal or a log, and cuts at [`LAST_WORDS_TEXT_MAX`] bytes.
fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len().min(LAST_WORDS_TEXT_MAX));
    for character in text.chars() {
        let character = if character.is_control() || is_format(character) {
            '?'
        } else {
            character
        };
        if cleaned.len() + character.len_utf8() > LAST_WORDS_TEXT_MAX {
            break;
        }
        cleaned.push(character);
    }
    cleaned
}

/// Characters that are invisible or turn the writing direction.
fn is_format(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_whole_line_counts() {
        let words = parse_last_words(b"guest: power-off\nseccomp: openat\nerror: hal");
        assert_eq!(
            words,
            Some(SpokenWords {
                kind: Kind::Seccomp,
                text: "openat".into()
            })
        );
        assert_eq!(parse_last_words(b""), None);
        assert_eq!(parse_last_words(b"guest: power-off"), None);
    }

    #[test]
    fn escape_sequences_do_not_survive() {
        let words = parse_last_words(b"error: \x1b[2J\x07\xff gone\n").map(|words| words.text);
        assert_eq!(words.as_deref(), Some("?[2J?\u{fffd} gone"));
    }

    #[test]
    fn unknown_kinds_are_errors() {
        let words = parse_last_words(b"hello\n");
        assert_eq!(words.map(|words| words.kind), Some(Kind::Error));
    }

    proptest! {
        #[test]
        fn nothing_a_process_writes_is_shown_raw(bytes in proptest::collection::vec(any::<u8>(), 0..6000)) {
            if let Some(words) = parse_last_words(&bytes) {
                prop_assert!(words.text.len() <= LAST_WORDS_TEXT_MAX);
                prop_assert!(!words.text.chars().any(char::is_control));
            }
        }
    }
}
