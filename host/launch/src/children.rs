//! The children: started, watched, ended, remembered until they are forgotten; and the guest memory they share.
//!
//! Bounded by [`CHILDREN_MAX`], running and exited together. A request that cannot be carried out changes nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use dwcp_jail::{Handover, HandoverError, LastWordsPipe};
use dwcp_launch::protocol::{
    CHILDREN_MAX, Child, ChildId, ChildKind, ChildState, Needs, NicSpec, Side,
};
use dwcp_memory::{
    DirtyBitmap, MemoryError, MemorySize, create_huge_memory, create_memory, is_template,
    reopen_read_only, seal_template,
};
use nix::sys::wait::WaitStatus;

use crate::cgroup::{Group, Groups, Limits};
use crate::network::{NetworkError, Networks};
use crate::sandbox::{Order, Process, Sandbox, SpawnError};

/// Why a request about a child was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The id is taken.
    #[error("{0} is running already")]
    Running(ChildId),
    /// There is no such child.
    #[error("There is no {0} here")]
    Unknown(ChildId),
    /// The id names a child of the other kind, or a VM that runs elsewhere.
    #[error("There is no VM {0} here whose memory could be moved")]
    NoSuchVm(ChildId),
    /// The memory is not that of a template.
    #[error("The memory of {0} is not sealed, or of another size: no fork can be made of it")]
    NoTemplate(ChildId),
    /// The limit is reached.
    #[error("There are {CHILDREN_MAX} children already: forget those that have ended")]
    TooMany,
    /// The machine lacks a device.
    #[error("{device} cannot be opened: VMs cannot run on this machine")]
    Device {
        /// Its path.
        device: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Guest memory could not be made.
    #[error("The guest's memory could not be made")]
    Memory(#[from] MemoryError),
    /// Memory of a process could not be opened.
    #[error(
        "The memory of the VM's process cannot be read on this machine (it needs CAP_SYS_PTRACE, and a kernel that lets \
         a process read another's memory)"
    )]
    ProcessMemory(#[source] std::io::Error),
    /// The configuration or the descriptors do not fit.
    #[error("What the child would be given does not fit")]
    Handover(#[from] HandoverError),
    /// The control group could not be made.
    #[error("The child's control group could not be made")]
    Group(#[source] std::io::Error),
    /// A descriptor could not be copied.
    #[error("A descriptor could not be copied")]
    Copy(#[source] std::io::Error),
    /// A limit could not be raised.
    #[error(
        "The VMM may not write files that long, and the launcher may not let it (it needs CAP_SYS_RESOURCE): stop the VM \
         first"
    )]
    Limit(#[source] std::io::Error),
    /// The process could not be started.
    #[error("The child could not be started")]
    Spawn(#[from] SpawnError),
    /// A network could not be used, made or removed.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// The programs that children run.
#[derive(Debug)]
pub struct Programs {
    /// Runs a VM.
    pub vmm: OwnedFd,
    /// Moves a VM's memory.
    pub mover: OwnedFd,
    /// Reads an image.
    pub reader: OwnedFd,
}

/// What a child may use.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    /// Memory that is its guest's, or its own.
    memory: MemorySize,
    /// Whether that memory is of huge pages.
    huge_pages: bool,
    /// As much processor time as so many processors have; all there is if none.
    processors: Option<u32>,
    /// Longest file that it may write.
    file_bytes: u64,
}

/// Processors of a VMM beside those of its guest: for the threads of its devices, and its own.
const DEVICE_PROCESSORS: u32 = 1;
/// Memory of a reader of images: as much as it maps at most.
const READER_MEMORY_BYTES: u64 = 2 << 30;
/// Longest file that a reader writes: the largest initial RAM disk.
const READER_FILE_BYTES: u64 = 1 << 30;
/// Longest file that others write: a log, a device state. Mapped memory does not count.
const FILE_BYTES: u64 = 64 << 20;

/// Everything that is known about children.
#[derive(Debug)]
pub struct Children {
    records: BTreeMap<ChildId, Record>,
    sandbox: Sandbox,
    programs: Programs,
    groups: Groups,
    networks: Networks,
    uid_base: u32,
    next_slot: u32,
}

#[derive(Debug)]
struct Record {
    kind: ChildKind,
    vm: ChildId,
    pid: u32,
    life: Life,
    /// A VMM's; kept until it is forgotten.
    memory: Option<VmMemory>,
}

#[derive(Debug)]
enum Life {
    Running(Box<Running>),
    Ended(ChildState),
}

#[derive(Debug)]
struct Running {
    process: Process,
    last_words: LastWordsPipe,
    slot: u32,
    /// Removed with this, after the process is gone.
    _group: Group,
}

#[derive(Debug)]
struct VmMemory {
    size: MemorySize,
    memory: OwnedFd,
    bitmap: OwnedFd,
    /// Whether it is a template's, which this VM was only laid over with.
    is_anothers: bool,
}

impl VmMemory {
    /// Refuses what is for a VM's own memory.
    fn own(&self, id: &ChildId) -> Result<&OwnedFd, Refusal> {
        match self.is_anothers {
            true => Err(Refusal::NoSuchVm(id.clone())),
            false => Ok(&self.memory),
        }
    }
}

impl Children {
    /// No child yet. Their users are numbered from `uid_base` on.
    pub fn new(
        sandbox: Sandbox,
        programs: Programs,
        groups: Groups,
        networks: Networks,
        uid_base: u32,
    ) -> Self {
        Self {
            records: BTreeMap::new(),
            sandbox,
            programs,
            groups,
            networks,
            uid_base,
            next_slot: 0,
        }
    }

    /// The networks that VMs are on.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The networks that VMs are on, to be changed.
    pub fn networks_mut(&mut self) -> &mut Networks {
        &mut self.networks
    }

    /// Makes memory for a VM, or takes a template's, puts it on its networks and starts its VMM.
    pub fn spawn_vmm(
        &mut self,
        id: ChildId,
        needs: Needs,
        template: Option<&ChildId>,
        config: &serde_json::Value,
        descriptors: Vec<OwnedFd>,
        nics: &[NicSpec],
    ) -> Result<u32, Refusal> {
        self.check_free(&id)?;
        let size = MemorySize::new(needs.memory_bytes)?;
        let vm_memory = VmMemory {
            size,
            memory: match template {
                Some(template) => self.template(template, size)?,
                None if needs.huge_pages => create_huge_memory(size)?,
                None => create_memory(size)?,
            },
            bitmap: DirtyBitmap::create(size)?,
            is_anothers: template.is_some(),
        };
        let mut given = vec![
            open_device(KVM)?,
            open_device(USERFAULTFD).or_else(|_| open_device("/dev/null"))?,
            copy(&vm_memory.memory)?,
            copy(&vm_memory.bitmap)?,
        ];
        given.extend(descriptors);
        let slot = self.free_slot().ok_or(Refusal::TooMany)?;
        given.extend(self.networks.attach(slot, &id, nics)?);
        let allowance = Allowance {
            memory: size,
            huge_pages: needs.huge_pages,
            processors: match needs.vcpus {
                0 => None,
                vcpus => Some(vcpus.saturating_add(DEVICE_PROCESSORS)),
            },
            file_bytes: needs.file_bytes.max(FILE_BYTES),
        };
        let started = self.start(&id, ChildKind::Vmm, slot, allowance, config, given);
        if started.is_err() {
            self.networks.detach(slot);
        }
        let running = started?;
        Ok(self.remember(id.clone(), ChildKind::Vmm, id, running, Some(vm_memory)))
    }

    /// Seals the memory of a VM whose VMM has ended.
    pub fn seal(&mut self, id: &ChildId) -> Result<(), Refusal> {
        let memory = self.memory_of(id)?.own(id)?;
        if matches!(self.records[id].life, Life::Running(_)) {
            return Err(Refusal::Running(id.clone()));
        }
        if !is_template(memory)? {
            seal_template(memory)?;
        }
        Ok(())
    }

    /// The sealed memory of a VM.
    fn template(&self, id: &ChildId, size: MemorySize) -> Result<OwnedFd, Refusal> {
        let held = self.memory_of(id)?;
        if held.size != size || !is_template(&held.memory)? {
            return Err(Refusal::NoTemplate(id.clone()));
        }
        Ok(reopen_read_only(&held.memory)?)
    }

    fn memory_of(&self, id: &ChildId) -> Result<&VmMemory, Refusal> {
        let record = self.records.get(id);
        let held = record.and_then(|record| record.memory.as_ref());
        held.ok_or_else(|| Refusal::NoSuchVm(id.clone()))
    }

    /// Starts a mover on the memory of a VM.
    pub fn spawn_mover(
        &mut self,
        id: ChildId,
        vm: ChildId,
        side: Side,
        config: &serde_json::Value,
        descriptors: Vec<OwnedFd>,
    ) -> Result<u32, Refusal> {
        self.check_free(&id)?;
        // A mover that took its own VM's name would make the memory it works on forgotten.
        if id == vm {
            return Err(Refusal::NoSuchVm(vm));
        }
        let vm_memory = self.memory_of(&vm)?;
        let memory = match side {
            Side::Source => reopen_read_only(vm_memory.own(&vm)?)?,
            Side::PrivateSource => self.process_memory(&vm)?,
            Side::Destination => copy(vm_memory.own(&vm)?)?,
        };
        let size = vm_memory.size;
        let mut given = vec![memory, copy(&vm_memory.bitmap)?];
        given.extend(descriptors);
        let slot = self.free_slot().ok_or(Refusal::TooMany)?;
        let allowance = Allowance {
            memory: size,
            huge_pages: false,
            processors: None,
            file_bytes: FILE_BYTES,
        };
        let running = self.start(&id, ChildKind::Mover, slot, allowance, config, given)?;
        Ok(self.remember(id, ChildKind::Mover, vm, running, None))
    }

    /// What a running VMM has in its memory, for reading. It ends with the process, whoever holds it.
    fn process_memory(&self, vm: &ChildId) -> Result<OwnedFd, Refusal> {
        let Some(Life::Running(running)) = self.records.get(vm).map(|record| &record.life) else {
            return Err(Refusal::NoSuchVm(vm.clone()));
        };
        // Not reaped before its end is recorded, so no other process has its number.
        File::open(format!("/proc/{}/mem", running.process.pid))
            .map(OwnedFd::from)
            .map_err(Refusal::ProcessMemory)
    }

    /// Starts a reader of images.
    pub fn spawn_reader(
        &mut self,
        id: ChildId,
        config: &serde_json::Value,
        descriptors: Vec<OwnedFd>,
    ) -> Result<u32, Refusal> {
        self.check_free(&id)?;
        let slot = self.free_slot().ok_or(Refusal::TooMany)?;
        let allowance = Allowance {
            memory: MemorySize::new(READER_MEMORY_BYTES)?,
            huge_pages: false,
            processors: None,
            file_bytes: READER_FILE_BYTES,
        };
        let running = self.start(&id, ChildKind::Reader, slot, allowance, config, descriptors)?;
        Ok(self.remember(id.clone(), ChildKind::Reader, id, running, None))
    }

    /// Lets a VMM write longer files.
    pub fn lengthen(&self, id: &ChildId, file_bytes: u64) -> Result<(), Refusal> {
        let record = self.records.get(id);
        let record = record.filter(|record| record.kind == ChildKind::Vmm);
        let Some(Life::Running(running)) = record.map(|record| &record.life) else {
            return Err(Refusal::Unknown(id.clone()));
        };
        running
            .process
            .lengthen(file_bytes)
            .map_err(|errno| Refusal::Limit(errno.into()))
    }

    /// Every child that is not forgotten.
    pub fn list(&self) -> Vec<Child> {
        self.records
            .iter()
            .map(|(id, record)| record.show(id))
            .collect()
    }

    /// Kills a child; harmless when it has ended.
    pub fn kill(&self, id: &ChildId) -> Result<(), Refusal> {
        let record = self
            .records
            .get(id)
            .ok_or_else(|| Refusal::Unknown(id.clone()))?;
        if let Life::Running(running) = &record.life {
            running.process.kill();
        }
        Ok(())
    }

    /// Forgets a child that has ended, and its memory.
    pub fn forget(&mut self, id: &ChildId) -> Result<(), Refusal> {
        match self.records.get(id) {
            None => Err(Refusal::Unknown(id.clone())),
            Some(record) if matches!(record.life, Life::Running(_)) => {
                Err(Refusal::Running(id.clone()))
            }
            Some(_) => {
                self.records.remove(id);
                Ok(())
            }
        }
    }

    /// What becomes readable when a child has ended.
    pub fn ends(&self) -> impl Iterator<Item = (&ChildId, BorrowedFd<'_>)> {
        self.records
            .iter()
            .filter_map(|(id, record)| match &record.life {
                Life::Running(running) => Some((id, running.process.pidfd.as_fd())),
                Life::Ended(_) => None,
            })
    }

    /// Records the end of a child whose descriptor among [`Children::ends`] is readable.
    pub fn record_end(&mut self, id: &ChildId) -> Option<Child> {
        let record = self.records.get_mut(id)?;
        let Life::Running(running) = &mut record.life else {
            return None;
        };
        let (code, signal) = match running.process.reap() {
            Ok(WaitStatus::Exited(_, code)) => (Some(code), None),
            Ok(WaitStatus::Signaled(_, signal, _)) => (None, Some(signal as i32)),
            _ => (None, None),
        };
        self.networks.detach(running.slot);
        running.last_words.drain();
        record.life = Life::Ended(ChildState::Exited {
            code,
            signal,
            last_words: running.last_words.spoken().map(|words| words.to_string()),
        });
        Some(record.show(id))
    }

    /// Kills every child and waits for its end.
    pub fn end_all(&mut self) {
        let running: Vec<ChildId> = self.ends().map(|(id, _)| id.clone()).collect();
        for id in &running {
            let _ = self.kill(id);
        }
        for id in &running {
            self.record_end(id);
        }
    }

    fn check_free(&self, id: &ChildId) -> Result<(), Refusal> {
        match self.records.get(id) {
            Some(record) if matches!(record.life, Life::Running(_)) => {
                Err(Refusal::Running(id.clone()))
            }
            None if self.records.len() >= CHILDREN_MAX => Err(Refusal::TooMany),
            _ => Ok(()),
        }
    }

    fn start(
        &self,
        id: &ChildId,
        kind: ChildKind,
        slot: u32,
        allowance: Allowance,
        config: &serde_json::Value,
        given: Vec<OwnedFd>,
    ) -> Result<Running, Refusal> {
        let (program, name) = match kind {
            ChildKind::Vmm => (&self.programs.vmm, c"dwcp-vmm"),
            ChildKind::Mover => (&self.programs.mover, c"dwcp-mover"),
            ChildKind::Reader => (&self.programs.reader, c"dwcp-image"),
        };
        let (handover, last_words) = Handover::new(config.to_string().as_bytes(), given)?;
        let group = self
            .groups
            .make(
                id.as_str(),
                &Limits {
                    memory_bytes: allowance.memory.bytes(),
                    huge_pages: allowance.huge_pages,
                    processors: allowance.processors,
                },
            )
            .map_err(Refusal::Group)?;
        let process = self.sandbox.spawn(&Order {
            program: program.as_fd(),
            name,
            handover: &handover,
            uid: self.uid_base + slot,
            group: group.unified(),
            old_groups: group.old(),
            file_bytes: allowance.file_bytes,
        })?;
        Ok(Running {
            process,
            last_words,
            slot,
            _group: group,
        })
    }

    /// The next number, in turns, that no running child has: two that run never share a user, and what is still being
    /// removed of one that has ended is not in the way of the next.
    fn free_slot(&mut self) -> Option<u32> {
        let is_taken = |slot: &u32| {
            self.records.values().any(
                |record| matches!(&record.life, Life::Running(running) if running.slot == *slot),
            )
        };
        let all = CHILDREN_MAX as u32;
        let mut from_next = (self.next_slot..all).chain(0..self.next_slot);
        let slot = from_next.find(|slot| !is_taken(slot))?;
        self.next_slot = (slot + 1) % all;
        Some(slot)
    }

    fn remember(
        &mut self,
        id: ChildId,
        kind: ChildKind,
        vm: ChildId,
        running: Running,
        memory: Option<VmMemory>,
    ) -> u32 {
        let pid = running.process.pid;
        let record = Record {
            kind,
            vm,
            pid,
            life: Life::Running(Box::new(running)),
            memory,
        };
        self.records.insert(id, record);
        pid
    }
}

impl Record {
    fn show(&self, id: &ChildId) -> Child {
        Child {
            id: id.clone(),
            kind: self.kind,
            vm: self.vm.clone(),
            pid: self.pid,
            state: match &self.life {
                Life::Running(_) => ChildState::Running,
                Life::Ended(state) => state.clone(),
            },
        }
    }
}

/// What VMs run on.
pub const KVM: &str = "/dev/kvm";
/// What post-copy needs.
pub const USERFAULTFD: &str = "/dev/userfaultfd";

/// Opens a device for reading and writing.
pub fn open_device(device: &'static str) -> Result<OwnedFd, Refusal> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(Path::new(device));
    file.map(OwnedFd::from)
        .map_err(|source| Refusal::Device { device, source })
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, Refusal> {
    fd.try_clone().map_err(Refusal::Copy)
}
