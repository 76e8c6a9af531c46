//! Finding what an installed Linux boots: kernel, initrd and command line.
//!
//! What always holds: the places are searched in a fixed order, and the first that leads to files which exist is taken;
//! why an earlier one did not is remarked. What it must not know: how the kernel is started.
//!
//! | order | place | module |
//! |---|---|---|
//! | 1 | Boot Loader Specification entries, `loader/entries/*.conf` | `entries` |
//! | 2 | GRUB's generated configuration | `grub` |
//! | 3 | `/vmlinuz`, `/boot/vmlinuz`, the newest `vmlinuz-*` | `links` |

mod command_line;
mod entries;
mod grub;
mod links;
mod version;

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::files::{FileError, Volume};
use crate::limits::{
    INITRD_BYTES_MAX, INITRD_FILES_MAX, KERNEL_BYTES_MAX, REMARKS_MAX, SENTENCE_CHARACTERS_MAX,
};
use crate::shown::{sentence, shown};
use crate::system::System;
pub use command_line::CommandLineError;
pub(crate) use command_line::check as check_command_line;

/// Where it was written what to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// An entry of the Boot Loader Specification.
    LoaderEntry,
    /// `grub.cfg`.
    Grub,
    /// The usual names.
    UsualNames,
}

/// A file in one of the disk's file systems.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Located {
    part: usize,
    path: String,
    bytes: u64,
}

/// What to boot, not yet copied.
#[derive(Clone, Debug)]
pub struct Plan {
    source: Source,
    kernel: Located,
    initrds: Vec<Located>,
    command_line: String,
    remarks: Vec<String>,
}

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Where it was written what to boot.
    pub source: Source,
    /// The kernel's path in its file system.
    pub kernel_path: String,
    /// Size of the kernel in bytes; not 0.
    pub kernel_bytes: u64,
    /// The paths of the files that were joined to one initrd, in order.
    pub initrd_paths: Vec<String>,
    /// Size of the initrd in bytes; 0 when there is none.
    pub initrd_bytes: u64,
    /// The command line, with a console that the serial port shows.
    pub command_line: String,
    /// What a person may want to know: partitions that were not read, entries that lead nowhere.
    pub remarks: Vec<String>,
}

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No kernel was found.
    #[error(
        "No kernel was found in the image{found}. Give it with --kernel, and --initrd and --cmdline if it needs them"
    )]
    Nothing {
        /// What is there instead, as the end of the sentence.
        found: String,
    },
    /// A kernel was found, but not where its root is.
    #[error(
        "A kernel was found, but no root file system that it could be given. Give its command line with --cmdline"
    )]
    NoRoot,
    /// The command line is unusable.
    #[error("The kernel's command line cannot be used")]
    CommandLine(#[from] CommandLineError),
    /// The kernel is an empty file.
    #[error("The kernel {0} is empty")]
    EmptyKernel(String),
    /// A file could not be copied.
    #[error("The image's {what} could not be copied")]
    Copy {
        /// Kernel or initrd.
        what: &'static str,
        /// Why.
        #[source]
        error: FileError,
    },
    /// The copy could not be written.
    #[error("The copy could not be written")]
    Write(#[from] io::Error),
}

/// Looks for what to boot.
pub fn find(system: &System) -> Result<Plan, BootError> {
    let mut search = Search {
        system,
        remarks: system.remarks.clone(),
    };
    let found = entries::find(&mut search)
        .or_else(|| grub::find(&mut search))
        .map_or_else(|| links::find(&mut search), |found| Ok(Some(found)))?;
    let Some(candidate) = found else {
        return Err(BootError::Nothing {
            found: nothing(system, &search.remarks),
        });
    };
    let unread = system.unread();
    if !unread.is_empty() {
        search.remark(format!("Not read: {unread}"));
    }
    Ok(Plan {
        source: candidate.source,
        kernel: candidate.kernel,
        initrds: candidate.initrds,
        command_line: command_line::finish(&candidate.options)?,
        remarks: search.remarks,
    })
}

/// Why nothing was found, as far as is known.
fn nothing(system: &System, remarks: &[String]) -> String {
    let unread = system.unread();
    let mut reasons = Vec::new();
    if !unread.is_empty() {
        reasons.push(format!("{unread}, and only ext4 and FAT are read"));
    }
    reasons.extend(remarks.iter().take(4).cloned());
    match reasons.is_empty() {
        true => String::new(),
        false => format!(" ({})", reasons.join("; ")),
    }
}

/// Something to boot whose files exist.
#[derive(Clone, Debug)]
struct Candidate {
    source: Source,
    kernel: Located,
    initrds: Vec<Located>,
    /// As it was written; not yet checked.
    options: String,
}

/// A search under way.
struct Search<'a> {
    system: &'a System,
    remarks: Vec<String>,
}

impl<'a> Search<'a> {
    /// What is longer than an answer may say is cut: a disk can have many partitions that are not read.
    fn remark(&mut self, text: String) {
        if self.remarks.len() < REMARKS_MAX {
            self.remarks
                .push(text.chars().take(SENTENCE_CHARACTERS_MAX).collect());
        }
    }

    /// Whether an entry's initrd is of as many files as are taken; it is remarked if not.
    fn takes_initrds(&mut self, entry: &str, count: usize) -> bool {
        let takes = count <= INITRD_FILES_MAX;
        if !takes {
            self.remark(format!(
                "{entry}: its initrd is {count} files; at most {INITRD_FILES_MAX} are taken"
            ));
        }
        takes
    }

    /// A file's text; a failure is remarked and counts as no file.
    fn text(&mut self, volume: &Volume, path: &str) -> Option<String> {
        volume.text(path).unwrap_or_else(|error| {
            self.remark(format!("{}: {}", shown(path), sentence(&error)));
            None
        })
    }

    /// A directory's names; a failure is remarked and counts as no directory.
    fn names(&mut self, volume: &Volume, path: &str) -> Vec<String> {
        volume.names(path).unwrap_or_else(|error| {
            self.remark(format!("{}: {}", shown(path), sentence(&error)));
            Vec::new()
        })
    }

    /// Looks a file up under the first of these paths that exists.
    fn locate(&mut self, part: usize, paths: &[String]) -> Option<Located> {
        let volume = self.system.parts.get(part)?.volume.as_ref()?;
        for path in paths {
            match volume.file_bytes(path) {
                Ok(Some(bytes)) => {
                    return Some(Located {
                        part,
                        path: path.clone(),
                        bytes,
                    });
                }
                Ok(None) => {}
                Err(error) => self.remark(format!("{}: {}", shown(path), sentence(&error))),
            }
        }
        None
    }
}

impl Plan {
    /// Where it was written what to boot.
    pub fn source(&self) -> Source {
        self.source
    }

    /// The command line.
    pub fn command_line(&self) -> &str {
        &self.command_line
    }

    /// Copies kernel and initrd out. The parts of an initrd follow each other, each padded to four bytes, as boot
    /// loaders lay them out in memory.
    pub fn copy(
        self,
        system: &System,
        kernel_out: &mut dyn Write,
        initrd_out: &mut dyn Write,
    ) -> Result<Boot, BootError> {
        let kernel_bytes = copy(system, &self.kernel, "kernel", KERNEL_BYTES_MAX, kernel_out)?;
        if kernel_bytes == 0 {
            return Err(BootError::EmptyKernel(shown(&self.kernel.path)));
        }
        let mut initrd_bytes = 0u64;
        for initrd in &self.initrds {
            let padding = initrd_bytes.next_multiple_of(4) - initrd_bytes;
            initrd_out.write_all(&[0; 4][..padding as usize])?;
            initrd_bytes += padding;
            let left = INITRD_BYTES_MAX.saturating_sub(initrd_bytes);
            initrd_bytes += copy(system, initrd, "initrd", left, initrd_out)?;
        }
        kernel_out.flush()?;
        initrd_out.flush()?;
        Ok(Boot {
            source: self.source,
            kernel_path: shown(&self.kernel.path),
            kernel_bytes,
            initrd_paths: self.initrds.iter().map(|one| shown(&one.path)).collect(),
            initrd_bytes,
            command_line: self.command_line,
            remarks: self.remarks,
        })
    }
}

fn copy(
    system: &System,
    file: &Located,
    what: &'static str,
    bytes_max: u64,
    out: &mut dyn Write,
) -> Result<u64, BootError> {
    let failed = |error| BootError::Copy { what, error };
    let volume = system
        .parts
        .get(file.part)
        .and_then(|part| part.volume.as_ref())
        .ok_or_else(|| failed(FileError::NotFound(shown(&file.path))))?;
    volume.copy(&file.path, bytes_max, out).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::rc::Rc;

    use super::*;
    use crate::disk::{Disk, Expected};
    use crate::partitions::TableKind;

    #[test]
    fn a_remark_is_no_longer_than_an_answer_may_say() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        let system = System {
            disk: Rc::new(Disk::open(vec![(file, Expected::Raw)]).unwrap()),
            table: TableKind::None,
            parts: Vec::new(),
            remarks: Vec::new(),
        };
        let mut search = Search {
            system: &system,
            remarks: Vec::new(),
        };
        for length in [SENTENCE_CHARACTERS_MAX, SENTENCE_CHARACTERS_MAX + 1] {
            search.remark("é".repeat(length));
        }
        let longest = "é".repeat(SENTENCE_CHARACTERS_MAX);
        assert_eq!(search.remarks, [longest.clone(), longest]);
    }
}
