//! A VMM per test, with our guest in it, and waiting for what it says.
#![allow(clippy::unwrap_used, dead_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dwcp_guest::Tick;
use dwcp_memory::MemorySize;
use dwcp_vmm::config::{Boot, Device, Generation, VmConfig};
use dwcp_vmm::spawn::{GuestFiles, Plan, Spawned, spawn};

/// One generous deadline for everything that must happen at all.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Whether KVM can be used; says so if not.
pub fn has_kvm(test: &str) -> bool {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &opened {
        println!("SKIPPED {test}: /dev/kvm cannot be opened: {error}");
    }
    opened.is_ok()
}

/// A directory, and guests in it.
pub struct Bed {
    pub directory: tempfile::TempDir,
    pub guest: GuestFiles,
    pub vcpus: u8,
    /// The generation of every guest here.
    pub generation: Option<Generation>,
    /// Devices of every guest here.
    pub devices: Vec<Device>,
    /// What they need, in their order.
    pub disks: Vec<File>,
    /// How many guests have run to their end here.
    pub runs: std::cell::Cell<usize>,
    pub program: PathBuf,
}

impl Bed {
    pub fn new(mib: u64) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            guest: GuestFiles::new(MemorySize::mib(mib).unwrap()).unwrap(),
            vcpus: 1,
            generation: None,
            devices: Vec::new(),
            disks: Vec::new(),
            runs: std::cell::Cell::default(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_dwcp-vmm")),
        }
    }

    /// Has every guest's process write no file beyond 2 MiB, as the launcher limits it further up.
    pub fn limit_files(&mut self) {
        let wrapper = self.directory.path().join("limited");
        let script = format!(
            "#!/bin/sh\nulimit -f 4096\nexec '{}' \"$@\"\n",
            self.program.display()
        );
        std::fs::write(&wrapper, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&wrapper, mode).unwrap();
        self.program = wrapper;
    }

    fn config(&self, id: &str, boot: Boot) -> VmConfig {
        VmConfig {
            id: id.to_owned(),
            vcpus: self.vcpus,
            memory_bytes: self.guest.size.bytes(),
            cpu: Default::default(),
            boot,
            generation: self.generation,
            devices: self.devices.clone(),
        }
    }

    fn start(&self, config: &VmConfig, kernel: Option<File>) -> Spawned {
        spawn(Plan {
            program: &self.program,
            directory: self.directory.path(),
            config,
            guest: &self.guest,
            kernel: kernel.map(|kernel| (kernel, None)),
            devices: self
                .disks
                .iter()
                .map(|disk| disk.try_clone().unwrap().into())
                .collect(),
        })
        .unwrap()
    }

    /// Our guest, not running yet.
    pub fn fresh(&self, cmdline: &str) -> Spawned {
        self.fresh_with(dwcp_guest::elf(), cmdline)
    }

    /// Any kernel image, not running yet.
    pub fn fresh_with(&self, image: &[u8], cmdline: &str) -> Spawned {
        let mut kernel = tempfile::tempfile().unwrap();
        kernel.write_all(image).unwrap();
        let cmdline = cmdline.to_owned();
        let config = self.config(
            "fresh",
            Boot::Fresh {
                cmdline,
                initrd: false,
                firmware: false,
            },
        );
        self.start(&config, Some(kernel))
    }

    /// A VMM over the same memory that waits for a device state.
    pub fn incoming(&self, id: &str) -> Spawned {
        self.start(&self.config(id, Boot::Incoming), None)
    }

    /// A VMM with reserved memory that waits for a snapshot or a template.
    pub fn shell(&self, id: &str) -> Spawned {
        self.start(&self.config(id, Boot::Shell), None)
    }

    /// Another bed with a copy of this one's memory, so that a destination is apart from its source.
    pub fn copy(&self) -> Self {
        let copy = Self {
            directory: tempfile::tempdir().unwrap(),
            guest: GuestFiles::new(self.guest.size).unwrap(),
            vcpus: self.vcpus,
            generation: self.generation,
            devices: self.devices.clone(),
            disks: self
                .disks
                .iter()
                .map(|disk| disk.try_clone().unwrap())
                .collect(),
            runs: std::cell::Cell::default(),
            program: self.program.clone(),
        };
        let map = |fd: std::os::fd::BorrowedFd<'_>| {
            dwcp_memory::GuestMemory::map(fd.try_clone_to_owned().unwrap(), self.guest.size)
                .unwrap()
        };
        let (from, to) = (
            map(self.guest.memory.as_fd()),
            map(copy.guest.memory.as_fd()),
        );
        let mut page = vec![0; dwcp_memory::PAGE_BYTES];
        for index in (0..self.guest.size.pages()).map(dwcp_memory::PageIndex) {
            from.read_pages(index, &mut page).unwrap();
            if page.iter().any(|byte| *byte != 0) {
                to.write_pages(index, &page).unwrap();
            }
        }
        copy
    }
}

/// Reads serial logs until they say what is awaited.
pub struct Serial<'a> {
    log: &'a Path,
}

impl<'a> Serial<'a> {
    pub fn of(vmm: &'a Spawned) -> Self {
        Self { log: vmm.log() }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log).unwrap()).into_owned()
    }

    /// All whole ticks so far.
    pub fn ticks(&self) -> Vec<Tick> {
        let text = self.text();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(Tick::parse).collect()
    }

    /// Waits until `found` finds something.
    pub fn wait<T>(&self, what: &str, found: impl Fn(&Self) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            assert!(
                Instant::now() < until,
                "no {what} in time:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_for_text(&self, text: &str) {
        self.wait(text, |serial| serial.text().contains(text).then_some(()));
    }

    /// Waits for a tick after `after`.
    pub fn wait_for_tick(&self, after: u64) -> Tick {
        self.wait("tick", |serial| {
            serial.ticks().into_iter().find(|tick| tick.tick > after)
        })
    }
}
