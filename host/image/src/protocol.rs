//! What the program `dwcp-image` is handed, and what it answers.
//!
//! ```text
//!   dwcpd                 dwcp-launch                          dwcp-image
//!     |  Task, descriptors     |                                    |
//!     |----------------------->|  descriptor 4: Task as JSON        |
//!     |                        |  5: answer socket                  |
//!     |                        |  6...: images, the topmost first   |
//!     |                        |  then, for Job::Boot only:         |
//!     |                        |     kernel file, initrd file       |
//!     |                        |----------------------------------->|  gives up its system calls,
//!     |                                                             |  then reads the first byte
//!     |<-------------------------- one Answer ----------------------|
//!     |                                                             |  ends with code 0
//! ```
//!
//! The images are open for reading. Kernel and initrd are empty files (or memfds) open for writing; what is written
//! begins at their first byte. The answer is one message of [`dwcp_channel`], without descriptors.
//!
//! A task that cannot be done is answered with [`Answer::Refused`] and a sentence. No answer at all means that the
//! process failed: it was cut off by its limits (signal `SIGXCPU` after
//! [`CPU_SECONDS_MAX`](crate::limits::CPU_SECONDS_MAX) seconds of processor time), was denied a system call, or broke;
//! its last words say which. The program's own limits bound its work, not the time it waits for a slow disk: whoever
//! waits for an answer waits with a deadline.
//!
//! What always holds: [`receive`] believes nothing. The process read hostile input and may have been taken over, so
//! sizes are compared with the files, and text is checked, before the caller sees an [`Answer`].

use std::fs::File;
use std::io;

use dwcp_channel::{Channel, ChannelError};
use serde::{Deserialize, Serialize};

use crate::boot::{Boot, CommandLineError};
use crate::disk::{Expected, Layer};
use crate::files::FileSystem;
use crate::limits::{
    CHAIN_IMAGES_MAX, INITRD_BYTES_MAX, INITRD_FILES_MAX, KERNEL_BYTES_MAX, PARTITIONS_MAX,
    REMARKS_MAX, SENTENCE_CHARACTERS_MAX, SHOWN_CHARACTERS_MAX, VIRTUAL_BYTES_MAX,
};
use crate::partitions::{Role, TableKind};
use crate::shown::shown;

/// The configuration of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// What to do.
    pub job: Job,
    /// What each image of the chain is, the topmost first; 1 to [`CHAIN_IMAGES_MAX`].
    pub images: Vec<Expected>,
}

/// What to do with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Job {
    /// Say what it is.
    Inspect,
    /// Say what it is, and copy out what it boots.
    Boot,
}

impl Task {
    /// How many descriptors come with the task.
    pub fn descriptors(&self) -> usize {
        let outputs = match self.job {
            Job::Inspect => 0,
            Job::Boot => 2,
        };
        1 + self.images.len() + outputs
    }
}

/// What came of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// For [`Job::Inspect`].
    Inspected(Inspection),
    /// For [`Job::Boot`]; kernel and initrd are in their files.
    Booted(Inspection, Boot),
    /// It cannot be done. A sentence for a person.
    Refused(String),
}

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The images of the chain, the topmost first.
    pub layers: Vec<Layer>,
    /// Size of the disk that a guest sees, in bytes.
    pub virtual_bytes: u64,
    /// What all files of the chain take on the host's disk, in bytes.
    pub allocated_bytes: u64,
    /// Its partition table.
    pub table: TableKind,
    /// Its partitions, or the whole disk as number 0.
    pub partitions: Vec<PartitionInfo>,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// Its number, as Linux counts; 0 for the whole disk.
    pub number: u32,
    /// What its type says.
    pub role: Role,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// What it holds.
    pub file_system: FileSystem,
}

/// Why there is no answer to believe.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The process ended without one, or did not speak in time.
    #[error("The image's reader did not answer")]
    Channel(#[from] ChannelError),
    /// It is not an answer to this task.
    #[error("The image's reader answered something else than it was asked")]
    Mismatch,
    /// Something in it is out of bounds.
    #[error("The image's reader answered with a bad {0}")]
    Bounds(&'static str),
    /// The command line is not one.
    #[error("The image's reader answered with a bad command line")]
    CommandLine(#[from] CommandLineError),
    /// A file does not have the size that was answered.
    #[error("The {name} has {actual} bytes, not {said} as the image's reader answered")]
    Size {
        /// Kernel or initrd.
        name: &'static str,
        /// What was answered.
        said: u64,
        /// What is there.
        actual: u64,
    },
    /// A file could not be looked at.
    #[error("The copied files could not be looked at")]
    Io(#[from] io::Error),
}

/// Waits for the answer to a task and checks it. `outputs` are the kernel's and the initrd's file of a
/// [`Job::Boot`]. How long it waits is the socket's read timeout.
pub fn receive(
    channel: &mut Channel,
    task: &Task,
    outputs: Option<(&File, &File)>,
) -> Result<Answer, AnswerError> {
    let (answer, _) = channel.receive::<Answer>()?;
    match (answer, task.job, outputs) {
        (Answer::Refused(reason), _, _) => Ok(Answer::Refused(sentence_of(&reason))),
        (Answer::Inspected(inspection), Job::Inspect, _) => {
            check_inspection(&inspection, task)?;
            Ok(Answer::Inspected(inspection))
        }
        (Answer::Booted(inspection, boot), Job::Boot, Some((kernel, initrd))) => {
            check_inspection(&inspection, task)?;
            check_boot(&boot)?;
            check_size("kernel", boot.kernel_bytes, kernel)?;
            check_size("initrd", boot.initrd_bytes, initrd)?;
            Ok(Answer::Booted(inspection, boot))
        }
        _ => Err(AnswerError::Mismatch),
    }
}

/// A reason as it may be shown: the text of an image may be in it, but is cut and cleaned only there, so it is cleaned
/// once more.
fn sentence_of(reason: &str) -> String {
    const PARTS_MAX: usize = SENTENCE_CHARACTERS_MAX / SHOWN_CHARACTERS_MAX;
    let mut text = String::new();
    let mut rest = reason;
    for _ in 0..PARTS_MAX {
        let end = rest
            .char_indices()
            .nth(SHOWN_CHARACTERS_MAX)
            .map_or(rest.len(), |(end, _)| end);
        let (part, after) = rest.split_at(end);
        text.push_str(&shown(part));
        rest = after;
    }
    text
}

fn check_inspection(inspection: &Inspection, task: &Task) -> Result<(), AnswerError> {
    if inspection.layers.len() != task.images.len() || inspection.layers.len() > CHAIN_IMAGES_MAX {
        return Err(AnswerError::Bounds("number of images"));
    }
    if inspection.virtual_bytes > VIRTUAL_BYTES_MAX {
        return Err(AnswerError::Bounds("size of the disk"));
    }
    if inspection.partitions.len() > PARTITIONS_MAX {
        return Err(AnswerError::Bounds("number of partitions"));
    }
    Ok(())
}

fn check_boot(boot: &Boot) -> Result<(), AnswerError> {
    if !(1..=KERNEL_BYTES_MAX).contains(&boot.kernel_bytes) {
        return Err(AnswerError::Bounds("size of the kernel"));
    }
    if boot.initrd_bytes > INITRD_BYTES_MAX {
        return Err(AnswerError::Bounds("size of the initrd"));
    }
    crate::boot::check_command_line(&boot.command_line)?;
    if boot.initrd_paths.len() > INITRD_FILES_MAX || boot.remarks.len() > REMARKS_MAX {
        return Err(AnswerError::Bounds("number of remarks"));
    }
    let is_clean = |text: &String| *text == sentence_of(text);
    if !boot.initrd_paths.iter().chain(&boot.remarks).all(is_clean) || !is_clean(&boot.kernel_path)
    {
        return Err(AnswerError::Bounds("text"));
    }
    Ok(())
}

fn check_size(name: &'static str, said: u64, file: &File) -> Result<(), AnswerError> {
    let actual = file.metadata()?.len();
    match actual == said {
        true => Ok(()),
        false => Err(AnswerError::Size { name, said, actual }),
    }
}
