//! Doing what the protocol asks, on open files.
//!
//! What always holds: a task that fails is an answer with a sentence; kernel and initrd are written from the beginning
//! of their files. Nothing here needs the process around it, so tests call it directly.

use std::fs::File;
use std::io::BufWriter;

use crate::boot::{self, BootError};
use crate::disk::{Disk, Expected};
use crate::protocol::{Answer, Inspection, PartitionInfo};
use crate::shown::sentence;
use crate::system::{System, SystemError};

/// Why a task could not be done.
#[derive(Debug, thiserror::Error)]
enum TaskError {
    #[error(transparent)]
    System(#[from] SystemError),
    #[error(transparent)]
    Boot(#[from] BootError),
}

/// Says what an image is.
pub fn inspect(chain: Vec<(File, Expected)>) -> Answer {
    answer(open(chain).map(|system| Answer::Inspected(inspection(&system))))
}

/// Says what an image is and copies out what it boots.
pub fn boot(chain: Vec<(File, Expected)>, kernel: File, initrd: File) -> Answer {
    answer(copy(chain, kernel, initrd))
}

fn open(chain: Vec<(File, Expected)>) -> Result<System, TaskError> {
    let disk = Disk::open(chain).map_err(SystemError::from)?;
    Ok(System::open(disk)?)
}

fn copy(chain: Vec<(File, Expected)>, kernel: File, initrd: File) -> Result<Answer, TaskError> {
    let system = open(chain)?;
    let plan = boot::find(&system)?;
    let boot = plan.copy(
        &system,
        &mut BufWriter::new(kernel),
        &mut BufWriter::new(initrd),
    )?;
    Ok(Answer::Booted(inspection(&system), boot))
}

fn inspection(system: &System) -> Inspection {
    let layers = system.disk.layers().to_vec();
    Inspection {
        virtual_bytes: system.disk.bytes(),
        allocated_bytes: layers.iter().map(|layer| layer.allocated_bytes).sum(),
        layers,
        table: system.table,
        partitions: system
            .parts
            .iter()
            .map(|part| PartitionInfo {
                number: part.partition.number,
                role: part.partition.role,
                start: part.partition.start,
                bytes: part.partition.bytes,
                file_system: part.file_system,
            })
            .collect(),
    }
}

fn answer(result: Result<Answer, TaskError>) -> Answer {
    result.unwrap_or_else(|error| Answer::Refused(sentence(&error)))
}
