//! The kernel's command line: from what an image says to what a VM is started with.
//!
//! What always holds: one line of printable ASCII characters, short enough to be passed whole, with a console on the serial port.

use crate::limits::COMMAND_LINE_BYTES_MAX;

/// What shows the boot on the serial port, and makes systemd start a login there.
const CONSOLE: &str = "console=ttyS0";

/// Why a command line is refused.
#[derive(Debug, thiserror::Error)]
pub enum CommandLineError {
    /// Too long.
    #[error("It has {0} bytes; a VM is started with at most {COMMAND_LINE_BYTES_MAX}")]
    TooLong(usize),
    /// Something in it that a VM is not started with.
    #[error("It contains {0:?}; a VM is started with printable ASCII characters only")]
    Character(char),
}

/// Checks a command line, makes one space of every run of them, and adds the console if it is not there.
pub(super) fn finish(options: &str) -> Result<String, CommandLineError> {
    let mut words: Vec<&str> = options.split_ascii_whitespace().collect();
    if !words.iter().any(|word| is_serial(word)) {
        words.push(CONSOLE);
    }
    let line = words.join(" ");
    check(&line)?;
    Ok(line)
}

/// Whether a line is one that a VM is started with.
pub(crate) fn check(line: &str) -> Result<(), CommandLineError> {
    if line.len() > COMMAND_LINE_BYTES_MAX {
        return Err(CommandLineError::TooLong(line.len()));
    }
    match line
        .chars()
        .find(|character| !(' '..='~').contains(character))
    {
        Some(character) => Err(CommandLineError::Character(character)),
        None => Ok(()),
    }
}

/// Whether a word puts a console on the first serial port.
fn is_serial(word: &str) -> bool {
    word == CONSOLE
        || word
            .strip_prefix(CONSOLE)
            .is_some_and(|rest| rest.starts_with(','))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_console_is_added_once() {
        assert_eq!(
            finish("root=LABEL=x  ro\tquiet").unwrap(),
            "root=LABEL=x ro quiet console=ttyS0"
        );
        for line in [
            "root=x console=ttyS0",
            "console=ttyS0,115200n8 console=tty0",
        ] {
            assert_eq!(finish(line).unwrap(), line);
        }
        assert_eq!(
            finish("console=ttyS01").unwrap(),
            "console=ttyS01 console=ttyS0"
        );
    }

    #[test]
    fn what_would_be_cut_or_misread_is_refused() {
        assert!(finish(&"x".repeat(COMMAND_LINE_BYTES_MAX)).is_err());
        for bad in ["a\u{7}b", "a\u{7f}", "root=LABEL=é", "a\u{a0}b"] {
            let said = finish(bad).unwrap_err().to_string();
            assert!(said.contains("printable ASCII"), "{bad:?}: {said}");
        }
        assert!(finish("root=LABEL='a ~ b'").is_ok());
    }
}
