//! Seeds of snapshots, written by the code that writes them.

use std::io::{Read, Seek};
use std::ops::ControlFlow;

use dwcp_memory::{MemorySize, PAGE_BYTES, PageIndex};
use dwcp_snapshot::{
    AllPages, Content, Cpu, Disk, Encoding, Manifest, PageSource, SourceError, write,
};

use crate::{Made, Seed};

/// Memory with few pages that are not zeros.
struct Memory;

const PAGES: u64 = 600;

impl PageSource for Memory {
    fn size(&self) -> MemorySize {
        MemorySize::new(PAGES * PAGE_BYTES as u64).unwrap_or_else(|error| panic!("{error}"))
    }

    fn read_pages(&self, first: PageIndex, buffer: &mut [u8]) -> Result<(), SourceError> {
        for (page, content) in (first.0..).zip(buffer.chunks_mut(PAGE_BYTES)) {
            let is_filled = matches!(page, 3 | 4 | 590);
            content.fill(if is_filled { page as u8 } else { 0 });
        }
        Ok(())
    }
}

/// All of them.
pub fn seeds() -> Made<Vec<Seed>> {
    let manifest = Manifest {
        vm: "vm-1".into(),
        vmm_version: "0.1.0".into(),
        state_format: 1,
        taken_at_ms: 1_800_000_000_000,
        vcpus: 2,
        memory_bytes: PAGES * PAGE_BYTES as u64,
        cpu: Cpu {
            vendor: "GenuineIntel".into(),
            features: ["avx2".to_owned()].into(),
        },
        disks: vec![Disk {
            device: "disk-0".into(),
            volume: "web-root".into(),
            generation: 7,
            digest: None,
        }],
        base: None,
    };
    let mut file = tempfile::tempfile()?;
    let content = Content {
        manifest: &manifest,
        state: b"what the devices remember",
        memory: &Memory,
        pages: &AllPages,
        encoding: Encoding::Zstd,
    };
    write(&file, &content, &mut |_| ControlFlow::Continue(()))?;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(vec![("snapshot", "compressed", bytes)])
}
