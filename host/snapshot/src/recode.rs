//! A snapshot written once more: in the other encoding, or a chain as one full snapshot.
//!
//! Every page that is read is checked, so a damaged snapshot is not passed on as a good one.

use std::fs::File;
use std::ops::ControlFlow;

use crate::chain::LayerSource;
use crate::manifest::Manifest;
use crate::mask::{ChunkIndex, PageChoice, PageMask};
use crate::write::{Content, Progress, WriteError, write};
use crate::{Chain, Encoding, ReadError, Snapshot, SnapshotDigest};

/// Writes the same snapshot in another encoding: its digest stays what it is. Its base is not needed.
pub fn recode(
    snapshot: &Snapshot,
    encoding: Encoding,
    file: &File,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<SnapshotDigest, WriteError> {
    let content = Content {
        manifest: snapshot.manifest(),
        state: &snapshot.state().map_err(source)?,
        memory: &LayerSource::new(std::slice::from_ref(snapshot), snapshot.size())?,
        pages: snapshot,
        encoding,
    };
    write(file, &content, progress)
}

/// Writes a chain as one full snapshot, with a digest of its own.
pub fn flatten(
    chain: &Chain,
    encoding: Encoding,
    file: &File,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<SnapshotDigest, WriteError> {
    let content = Content {
        manifest: &Manifest {
            base: None,
            ..chain.newest().manifest().clone()
        },
        state: &chain.newest().state().map_err(source)?,
        memory: &LayerSource::new(chain.layers(), chain.size())?,
        pages: &FilledPages(chain),
        encoding,
    };
    write(file, &content, progress)
}

struct FilledPages<'a>(&'a Chain);

impl PageChoice for FilledPages<'_> {
    fn mask(&self, chunk: ChunkIndex) -> PageMask {
        self.0.filled(chunk)
    }
}

fn source(error: ReadError) -> WriteError {
    WriteError::Source(error.into())
}
