//! Runs one test program: its output captured, shown as it comes or only if it fails, its time limited.
//!
//! What always holds: a program that hangs is killed at its deadline and counts as failed; what it printed until
//! then is shown; a descendant that keeps the output open does not hold us up.
//!
//! What it must not know: tiers, and what the tests test.

use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::summary::Outcome;

/// How often a running program is looked at, and how long output may still come after it ended.
const LOOK: Duration = Duration::from_millis(100);
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// The longest output that is kept of one program; what comes after it is shown but not counted.
const OUTPUT_LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// How a program's output is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Line by line as it comes.
    AsItComes,
    /// Whole, and only if the program failed.
    OnFailure,
}

/// Runs `command` and reads what it says of its tests.
pub fn run(name: &str, mut command: Command, show: Show, deadline: Duration) -> Result<Outcome> {
    let start = Instant::now();
    let (reader, writer) = std::io::pipe().context("Cannot make a pipe.")?;
    let errors = writer.try_clone().context("Cannot copy a pipe.")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("Cannot start {name}."))?;
    drop(command); // our copies of the pipe's write end
    let lines = read_lines(reader);

    let mut output = String::new();
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let mut hung = false;
    loop {
        match lines.recv_timeout(LOOK) {
            Ok(line) => {
                if show == Show::AsItComes {
                    println!("{line}");
                }
                if output.len() < OUTPUT_LIMIT_BYTES {
                    output.push_str(&line);
                    output.push('\n');
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) if ended.is_some() => break,
            Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
            Err(RecvTimeoutError::Timeout) => {}
        }
        match ended {
            Some((_, at)) if at.elapsed() > LAST_OUTPUT => break,
            Some(_) => {}
            None => {
                if start.elapsed() > deadline && !hung {
                    hung = true;
                    child.kill().context("Cannot kill a hung program.")?;
                }
                let status = child.try_wait().context("Cannot wait for a program.")?;
                ended = status.map(|status| (status, Instant::now()));
            }
        }
    }
    let ended_well = !hung && ended.is_some_and(|(status, _)| status.success());
    if !ended_well && show == Show::OnFailure {
        print!("{output}");
    }
    if hung {
        println!(
            "{name} was killed at its deadline of {} s.",
            deadline.as_secs()
        );
    } else if let Some((status, _)) = ended.filter(|_| !ended_well) {
        println!("{name} ended with {status}.");
    }
    Ok(Outcome::read(name, &output, ended_well, start.elapsed()))
}

/// Reads lines in a thread of its own until every copy of the write end is closed.
fn read_lines(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver): (SyncSender<String>, _) = sync_channel(1024);
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line);
            if sender.send(text.trim_end_matches('\n').to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_result_line_is_counted() {
        let script = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured'";
        let outcome = run("x", shell(script), Show::OnFailure, Duration::from_secs(60)).unwrap();
        assert_eq!((outcome.passed, outcome.failed), (3, 0));
    }

    #[test]
    fn a_hung_program_fails_at_its_deadline() {
        let outcome = run(
            "x",
            shell("exec sleep 600"),
            Show::OnFailure,
            Duration::from_millis(200),
        )
        .unwrap();
        assert_eq!(outcome.failed, 1);
    }

    #[test]
    fn a_descendant_that_keeps_the_output_open_does_not_hold_us_up() {
        let file = std::env::temp_dir().join(format!("dwcp-xtask-runner-{}", std::process::id()));
        let script = format!("sleep 600 & echo $! > {}", file.display());
        let outcome = run(
            "x",
            shell(&script),
            Show::OnFailure,
            Duration::from_secs(500),
        )
        .unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let descendant = nix::unistd::Pid::from_raw(text.trim().parse().unwrap());
        // It still lives, so nobody waited for it.
        nix::sys::signal::kill(descendant, nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_eq!(outcome.failed, 0);
    }
}
