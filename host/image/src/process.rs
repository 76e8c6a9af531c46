//! The program: from inherited descriptors to one answer.
//!
//! What always holds: the first byte of an image is read after the system calls were given up; the answer is sent once;
//! the process ends with code 0 exactly when it answered.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use dwcp_channel::{Channel, ChannelError};
use dwcp_jail::{ConfineError, Inheritance, Kind, inherit};
use nix::errno::Errno;

use crate::filters;
use crate::protocol::{Job, Task};
use crate::shown::sentence;
use crate::task;

/// Exit code of a process that could not answer.
const FAILED: u8 = 1;

/// Why the process could not answer.
#[derive(Debug, thiserror::Error)]
enum ProcessError {
    #[error("The task cannot be understood")]
    Task(#[from] serde_json::Error),
    #[error("The task comes with {expected} descriptors, not {given}")]
    Descriptors { expected: usize, given: usize },
    #[error("The limits of the process could not be set")]
    Limits(#[source] Errno),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error("The answer could not be sent")]
    Answer(#[from] ChannelError),
}

/// Does the task that the launcher handed over.
pub fn run() -> ExitCode {
    let inheritance = match inherit() {
        Ok(inheritance) => inheritance,
        Err(error) => {
            eprintln!("{}", sentence(&error));
            return ExitCode::from(FAILED);
        }
    };
    let last_words = inheritance.last_words;
    match answer(inheritance) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            last_words.say(Kind::Error, &sentence(&error));
            ExitCode::from(FAILED)
        }
    }
}

fn answer(inheritance: Inheritance) -> Result<(), ProcessError> {
    let task: Task = serde_json::from_slice(&inheritance.configuration)?;
    let given = inheritance.descriptors.len();
    let wrong = ProcessError::Descriptors {
        expected: task.descriptors(),
        given,
    };
    if given != task.descriptors() {
        return Err(wrong);
    }
    let mut descriptors = inheritance.descriptors.into_iter();
    let Some(socket) = descriptors.next() else {
        return Err(wrong);
    };
    filters::limit().map_err(ProcessError::Limits)?;
    filters::give_up(inheritance.last_words)?;
    // From here on what is read was made by somebody else.
    let mut file = || descriptors.next().map(|fd: OwnedFd| File::from(fd));
    let mut chain = Vec::with_capacity(task.images.len());
    for expected in task.images {
        match file() {
            Some(image) => chain.push((image, expected)),
            None => return Err(wrong),
        }
    }
    let answer = match task.job {
        Job::Inspect => task::inspect(chain),
        Job::Boot => match (file(), file()) {
            (Some(kernel), Some(initrd)) => task::boot(chain, kernel, initrd),
            _ => return Err(wrong),
        },
    };
    Channel::new(UnixStream::from(socket)).send(&answer, &[])?;
    Ok(())
}
