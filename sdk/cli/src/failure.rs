//! What a person is told when something went wrong: one sentence, its reasons, its causes.

use std::io::IsTerminal;
use std::process::ExitCode;

use crate::colour;
use crate::table::plain;

/// Says what went wrong on standard error, and gives the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    // Whoever closed our output has seen enough.
    let broken_pipe = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe);
    if broken_pipe {
        return ExitCode::SUCCESS;
    }
    let style = colour::Style::on(std::io::stderr().is_terminal());
    // Parts of it may be a stranger's.
    eprintln!("{} {}", style.bad("error:"), plain(&error.to_string()));
    for cause in error.chain().skip(1) {
        eprintln!("  because: {}", plain(&cause.to_string()));
    }
    if let Some(error) = error.downcast_ref::<dwcp_sdk::Error>() {
        for reason in error.reasons() {
            eprintln!("  • {}", plain(reason));
        }
    }
    ExitCode::from(1)
}
