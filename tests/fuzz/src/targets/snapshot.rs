//! Snapshots from an archive that nobody vouches for: compressed ones, for a raw one is too long for a search.
//!
//! Digests are no secret, so they are made right, as a hostile author would; only that of memory is left as it is, for
//! it is checked last.

use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;

use dwcp_snapshot::{CHUNK_PAGES, Chain, ChunkContent, ChunkIndex, Snapshot};

/// Most chunks that are loaded: a snapshot may say that it has millions, all of them zeros.
const CHUNKS_MAX: u64 = 16;
const RECORD_BYTES: u64 = 184;
const HEADER_BYTES: usize = 4096;

/// A whole file.
pub(super) fn snapshot(input: &[u8]) {
    read(input);
    read(&with_digests(input));
}

fn read(bytes: &[u8]) {
    let file = tempfile::tempfile_in(super::scratch());
    let file = match file.and_then(|file| file.write_all_at(bytes, 0).map(|()| file)) {
        Ok(file) => file,
        Err(error) => panic!("{error}"),
    };
    let Ok(snapshot) = Snapshot::open(file) else {
        return;
    };
    let chunks = snapshot.size().pages().div_ceil(CHUNK_PAGES);
    let is_true =
        chunks <= CHUNKS_MAX && snapshot.verify(&mut |_| ControlFlow::Continue(())).is_ok();
    let _ = snapshot.state();
    let Ok(chain) = Chain::new(vec![snapshot]) else {
        return;
    };
    let Ok(mut content) = ChunkContent::new() else {
        panic!("there is memory for a decompressor");
    };
    for chunk in (0..chunks.min(CHUNKS_MAX)).map(ChunkIndex) {
        let loaded = chain.load(chunk, &mut content);
        assert!(
            loaded.is_ok() || !is_true,
            "memory was found true and cannot be loaded"
        );
    }
}

/// The same bytes with the digests of table, manifest, device state and header as they should be.
fn with_digests(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if bytes.len() < HEADER_BYTES {
        return bytes;
    }
    let number = |bytes: &[u8], at: usize| {
        let word = bytes[at..].first_chunk().copied();
        word.map_or(0, u64::from_le_bytes)
    };
    let lengths = [
        number(&bytes, 40).saturating_mul(RECORD_BYTES),
        number(&bytes, 48),
        number(&bytes, 56),
    ];
    let parts = [
        ("DWCP snapshot 1 chunk table", 136),
        ("DWCP snapshot 1 manifest", 72),
        ("DWCP snapshot 1 device state", 104),
    ];
    let mut start = number(&bytes, 32).saturating_add(HEADER_BYTES as u64);
    for (length, (context, digest_at)) in lengths.into_iter().zip(parts) {
        let end = start.saturating_add(length);
        if let Some(part) = range(start, end).and_then(|range| bytes.get(range)) {
            let digest = blake3::derive_key(context, part);
            bytes[digest_at..digest_at + 32].copy_from_slice(&digest);
        }
        start = end;
    }
    let digest = blake3::derive_key("DWCP snapshot 1 header", &bytes[..4064]);
    bytes[4064..4096].copy_from_slice(&digest);
    bytes
}

fn range(start: u64, end: u64) -> Option<Range<usize>> {
    Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}
