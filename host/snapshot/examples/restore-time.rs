//! How long it takes until a guest can run from a snapshot of 1 GiB: `restore-time [DIRECTORY] [MIB]`.
//!
//! Half of the memory is filled, a quarter of it with noise. Prints one line a figure, milliseconds with two decimals.
//! The page cache is warm: what the disk needs on top is not measured here.
#![allow(clippy::unwrap_used)]

use std::error::Error;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::time::Instant;

use dwcp_memory::vm_memory::Bytes;
use dwcp_memory::{
    DirtyBitmap, FaultChannel, GuestMemory, MemorySize, PAGE_BYTES, PageIndex, create_memory,
    open_page_map,
};
use dwcp_snapshot::fill::{Filler, watch};
use dwcp_snapshot::{
    Chain, Content, Cpu, Draft, Encoding, Manifest, Progress, Snapshot, SnapshotName, recode, seal,
    write,
};

type Failure = Box<dyn Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    let temporary = tempfile::tempdir()?;
    let directory = arguments.next();
    let directory = File::open(directory.as_deref().unwrap_or(temporary.path().as_os_str()))?;
    let mib = arguments.next().and_then(|mib| mib.into_string().ok());
    let size = MemorySize::mib(mib.map_or(Ok(1024), |mib| mib.parse())?)?;
    println!("memory {} MiB, half of it filled", size.bytes() >> 20);

    let name: SnapshotName = format!("restore-time-{}", std::process::id()).parse()?;
    let saved = timed("write raw, synced", || save(&directory, &name, size))?;
    let trust = || seal::ensure(directory.as_fd(), &name, &saved, &mut go_on);
    timed("check all memory once", trust)?;
    let opened = timed("open", || dwcp_snapshot::open(directory.as_fd(), &name))?;
    timed("check the seal", || -> Outcome<()> {
        assert!(seal::is_sealed(directory.as_fd(), &name, &opened));
        Ok(())
    })?;
    let chain = Chain::new(vec![opened])?;
    let memory = timed("reserve", || GuestMemory::reserve(size, open_page_map()))?;
    timed("map", || chain.map_into(&memory))?;
    timed("first touch of a page", || touch(&memory, 0))?;
    timed("write to a page", || {
        memory.write_pages(PageIndex(2), &[1; PAGE_BYTES])
    })?;
    timed("touch every page", || -> Outcome<()> {
        (0..size.pages()).try_for_each(|page| touch(&memory, page))
    })?;

    let packed = tempfile::tempfile()?;
    timed("compress", || {
        recode(&saved, Encoding::Zstd, &packed, &mut go_on)
    })?;
    println!("compressed to {} MiB", packed.metadata()?.len() >> 20);
    fill(&Chain::new(vec![Snapshot::open(packed)?])?)?;
    for end in ["snapshot", "seal"] {
        let file = format!("{name}.{end}");
        nix::unistd::unlinkat(
            &directory,
            file.as_str(),
            nix::unistd::UnlinkatFlags::NoRemoveDir,
        )?;
    }
    Ok(())
}

/// Makes a guest's memory, and a snapshot of it.
fn save(directory: &File, name: &SnapshotName, size: MemorySize) -> Outcome<Snapshot> {
    let memory = GuestMemory::map(create_memory(size)?, size)?;
    let mut page = [0; PAGE_BYTES];
    let mut state = 1u64;
    for index in (0..size.pages()).filter(|index| index / 512 % 2 == 0) {
        for word in page.chunks_exact_mut(8) {
            if index % 4 == 0 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
            }
            word.copy_from_slice(&(state ^ index).to_le_bytes());
        }
        memory.write_pages(PageIndex(index), &page)?;
    }
    let present = DirtyBitmap::map(DirtyBitmap::create(size)?, size)?;
    memory.mark_present(&present)?;
    let manifest = Manifest {
        vm: "restore-time".to_owned(),
        vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
        state_format: 1,
        taken_at_ms: 0,
        vcpus: 1,
        memory_bytes: size.bytes(),
        cpu: Cpu {
            vendor: "none".to_owned(),
            features: Default::default(),
        },
        disks: Vec::new(),
        base: None,
    };
    let content = Content {
        manifest: &manifest,
        state: &[],
        memory: &memory,
        pages: &present,
        encoding: Encoding::Raw,
    };
    let draft = Draft::create(directory.as_fd(), name)?;
    write(draft.file(), &content, &mut go_on)?;
    Ok(draft.publish()?)
}

/// Fills memory from a compressed snapshot while another thread waits for its last page.
fn fill(chain: &Chain) -> Outcome<()> {
    let size = chain.size();
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    let faults = FaultChannel::create(device.as_ref().ok().map(|device| device.as_fd()))?;
    let memory = GuestMemory::map(create_memory(size)?, size)?;
    let hosts = memory.host_map()?;
    let arrived = DirtyBitmap::map(DirtyBitmap::create(size)?, size)?;
    timed("watch", || watch(chain, &faults, &hosts))?;
    std::thread::scope(|scope| -> Outcome<()> {
        // In the last chunk that is filled.
        let last = size.pages() / 1024 * 1024 - 1000;
        let memory = &memory;
        scope.spawn(move || timed("a page that is missing", || touch(memory, last)));
        let mut filler = Filler::new(chain, &faults, &hosts, &arrived)?;
        timed("fill all from compressed", || filler.run(&mut go_on))?;
        Ok(())
    })
}

fn touch(memory: &GuestMemory, page: u64) -> Outcome<()> {
    let address = memory.layout().address_of(PageIndex(page));
    memory.ram().read_obj::<u8>(address.unwrap())?;
    Ok(())
}

fn timed<T, E: Into<Failure>>(what: &str, work: impl FnOnce() -> Result<T, E>) -> Outcome<T> {
    let start = Instant::now();
    let done = work().map_err(Into::into)?;
    let took_ms = start.elapsed().as_secs_f64() * 1000.0;
    println!("{what:28} {took_ms:10.2} ms");
    Ok(done)
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
