//! A guest's memory as plain bytes, and snapshots of it.
#![allow(clippy::unwrap_used, dead_code)]

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use dwcp_memory::{MemorySize, PAGE_BYTES, PageIndex};
use dwcp_snapshot::{
    AllPages, ChunkContent, ChunkIndex, Content, Cpu, Disk, Encoding, Manifest, PageChoice,
    PageMask, PageSource, Progress, Snapshot, SnapshotDigest, SourceError, write,
};

/// A file in memory where there is such a place: many small syncs are what a disk is slowest at.
pub fn fresh_file() -> File {
    tempfile::tempfile_in("/dev/shm")
        .or_else(|_| tempfile::tempfile())
        .unwrap()
}

pub fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Memory that no guest has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainMemory(pub Vec<u8>);

impl PlainMemory {
    pub fn zeros(pages: u64) -> Self {
        Self(vec![0; pages as usize * PAGE_BYTES])
    }

    pub fn pages(&self) -> u64 {
        (self.0.len() / PAGE_BYTES) as u64
    }

    /// Fills a page: 0 with zeros, odd numbers with noise, even ones with the same byte all over.
    pub fn fill(&mut self, page: u64, seed: u8) {
        let start = page as usize * PAGE_BYTES;
        let bytes = &mut self.0[start..start + PAGE_BYTES];
        if seed.is_multiple_of(2) {
            bytes.fill(seed);
            return;
        }
        let mut state = u64::from(seed) << 32 | page | 1;
        for word in bytes.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
    }

    /// Noise, one byte all over, and zeros in turn.
    pub fn mixed(pages: u64, seed: u8) -> Self {
        let mut memory = Self::zeros(pages);
        for page in 0..pages {
            match page % 5 {
                0 | 1 => memory.fill(page, seed | 1),
                2 => memory.fill(page, 6),
                _ => {}
            }
        }
        memory
    }
}

impl PageSource for PlainMemory {
    fn size(&self) -> MemorySize {
        MemorySize::new(self.0.len() as u64).unwrap()
    }

    fn read_pages(&self, first: PageIndex, buffer: &mut [u8]) -> Result<(), SourceError> {
        let start = first.0 as usize * PAGE_BYTES;
        let bytes = self.0.get(start..start + buffer.len());
        buffer.copy_from_slice(bytes.ok_or("outside memory")?);
        Ok(())
    }
}

/// The pages that differ.
pub struct Changed<'a>(pub &'a PlainMemory, pub &'a PlainMemory);

impl PageChoice for Changed<'_> {
    fn mask(&self, chunk: ChunkIndex) -> PageMask {
        let mut mask = PageMask::EMPTY;
        let pages = |memory: &PlainMemory, page: u64| {
            let start = (chunk.first_page().0 + page) as usize * PAGE_BYTES;
            memory.0[start..start + PAGE_BYTES].to_vec()
        };
        for page in chunk.pages(self.0.size()).pages() {
            if pages(self.0, page) != pages(self.1, page) {
                mask.set(page);
            }
        }
        mask
    }
}

pub fn manifest(memory: &PlainMemory, base: Option<SnapshotDigest>) -> Manifest {
    Manifest {
        vm: "vm-1".to_owned(),
        vmm_version: "0.1.0".to_owned(),
        state_format: 1,
        taken_at_ms: 1_800_000_000_000,
        vcpus: 2,
        memory_bytes: memory.0.len() as u64,
        cpu: Cpu {
            vendor: "GenuineIntel".to_owned(),
            features: ["avx2", "sse4_2"].map(str::to_owned).into(),
        },
        disks: vec![Disk {
            device: "disk-0".to_owned(),
            volume: "web-root".to_owned(),
            generation: 7,
            digest: None,
        }],
        base,
    }
}

pub const STATE: &[u8] = b"DWCPDEV\0 what the devices remember";

pub fn write_full(memory: &PlainMemory, encoding: Encoding) -> (File, SnapshotDigest) {
    let file = fresh_file();
    let content = Content {
        manifest: &manifest(memory, None),
        state: STATE,
        memory,
        pages: &AllPages,
        encoding,
    };
    let digest = write(&file, &content, &mut go_on).unwrap();
    (file, digest)
}

pub fn write_change(
    old: &PlainMemory,
    new: &PlainMemory,
    base: SnapshotDigest,
    encoding: Encoding,
) -> (File, SnapshotDigest) {
    let file = fresh_file();
    let content = Content {
        manifest: &manifest(new, Some(base)),
        state: STATE,
        memory: new,
        pages: &Changed(old, new),
        encoding,
    };
    let digest = write(&file, &content, &mut go_on).unwrap();
    (file, digest)
}

pub fn full(memory: &PlainMemory, encoding: Encoding) -> Snapshot {
    Snapshot::open(write_full(memory, encoding).0).unwrap()
}

/// All memory of a chain, read chunk by chunk.
pub fn restored(chain: &dwcp_snapshot::Chain) -> PlainMemory {
    let size = chain.size();
    let mut memory = PlainMemory::zeros(size.pages());
    let mut content = ChunkContent::new().unwrap();
    for chunk in ChunkIndex::all(size) {
        chain.load(chunk, &mut content).unwrap();
        assert_eq!(content.filled(), chain.filled(chunk));
        for (first, count) in content.filled().runs() {
            let start = (chunk.first_page().0 + first) as usize * PAGE_BYTES;
            let run = content.run(first, count);
            memory.0[start..start + run.len()].copy_from_slice(run);
        }
    }
    memory
}

pub fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub fn file_of(bytes: &[u8]) -> File {
    let file = fresh_file();
    file.write_all_at(bytes, 0).unwrap();
    file
}
