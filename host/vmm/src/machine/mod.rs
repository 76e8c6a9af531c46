//! The machine: its parts put together, and the life that the protocol describes.
//!
//! A request that the phase does not allow is refused and changes nothing. No vCPU runs but in phase `Running`.

mod changes;
mod filling;
mod snapshot;
mod transfer;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dwcp_jail::LastWords;
use dwcp_memory::{DirtyBitmap, GuestMemory, open_page_map};
use dwcp_snapshot::Cpu;

use crate::boot::{self, BootError, Entry, Fresh};
use crate::config::{Boot, Generation, VmConfig};
use crate::devices::{
    ANSWER_TIMEOUT, Backend, ConsoleBuffer, DeviceError, Devices, Function, Kind as DeviceKind,
    Order, PciBus, SYNC_TIMEOUT, Terminal, window_of,
};
use crate::end::{EndNotice, GuestEnd};
use crate::kvm::{KvmError, Vm, needed};
use crate::protocol::{Phase, Status};
use crate::state::StateError;
use crate::vcpu::{self, Shared, Vcpu, VcpuError};

use changes::Changes;
use filling::{Filling, FillingError};
use snapshot::Origin;

/// One virtual machine.
#[derive(Debug)]
pub struct Machine {
    config: VmConfig,
    vm: Arc<Vm>,
    devices: Arc<Devices>,
    vcpus: Vec<Vcpu>,
    terminal: Terminal,
    end: Arc<EndNotice>,
    pause: Arc<AtomicBool>,
    phase: Phase,
    epoch: u64,
    tsc_khz: u32,
    /// The CPU that the guest was told of, once it was.
    told: Option<Cpu>,
    changes: Changes,
    /// What was laid over a shell's memory.
    origin: Option<Origin>,
    /// What brings a shell's memory, until it is known that it need not.
    filling: Option<Filling>,
    /// A template's memory, which a shell may be laid over with.
    template: Option<OwnedFd>,
}

/// The descriptors that a machine is made of.
#[derive(Debug)]
pub struct Parts {
    /// /dev/kvm.
    pub kvm: OwnedFd,
    /// `/dev/userfaultfd`, or another device where there is none.
    pub userfaultfd: OwnedFd,
    /// Guest RAM. A shell has its own, and may be given a template's here.
    pub memory: OwnedFd,
    /// The shared dirty bitmap.
    pub bitmap: OwnedFd,
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// What fills a shell's memory.
    #[error(transparent)]
    Filling(#[from] FillingError),
    /// Memory or bitmap.
    #[error(transparent)]
    Memory(#[from] dwcp_memory::MemoryError),
    /// The memory's size.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// An event descriptor.
    #[error("The process could not make an event, or got no random number")]
    Event(#[from] std::io::Error),
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not in this phase.
    #[error("A VM that is {phase:?} cannot {action}")]
    Phase {
        /// The phase it is in.
        phase: Phase,
        /// What was asked.
        action: &'static str,
    },
    /// An owner from the past.
    #[error("Epoch {asked} is over: this VM has seen epoch {seen}")]
    OldEpoch {
        /// The epoch in the request.
        asked: u64,
        /// The highest seen.
        seen: u64,
    },
    /// The guest ended while the request was being carried out.
    #[error("The guest has ended")]
    Ended,
    /// No log is being kept.
    #[error("Dirty pages are not being logged: ask to start it first")]
    NotTracking,
    /// A state that does not fit.
    #[error(transparent)]
    State(#[from] StateError),
    /// A state of another machine.
    #[error("The device state is of a VM with {0}")]
    OtherMachine(String),
    /// Memory that no other process can be laid over with.
    #[error(
        "The memory of a restored or forked VM is private to its process, so no forks can be made of it: take a \
         snapshot, and make VMs from that"
    )]
    NotShared,
    /// A request came without its file.
    #[error("The request came without the file that belongs to it")]
    NoFile,
    /// A change of something else than what changes are known of.
    #[error("What changed in this VM since snapshot {0} is not known: write a full one")]
    OtherBase(dwcp_snapshot::SnapshotDigest),
    /// A snapshot could not be written.
    #[error(transparent)]
    WriteSnapshot(#[from] dwcp_snapshot::WriteError),
    /// A snapshot could not be read.
    #[error(transparent)]
    ReadSnapshot(#[from] dwcp_snapshot::ReadError),
    /// Snapshots that do not belong together.
    #[error(transparent)]
    Chain(#[from] dwcp_snapshot::ChainError),
    /// A snapshot that this host cannot restore.
    #[error(transparent)]
    Unfit(#[from] dwcp_snapshot::Unfit),
    /// A snapshot could not be mapped.
    #[error(transparent)]
    MapSnapshot(#[from] dwcp_snapshot::MapError),
    /// Memory that has not all come.
    #[error(
        "{0} MiB of this VM's memory are still to come from its snapshot: try again when all is there"
    )]
    StillComing(u64),
    /// Memory that could not be filled.
    #[error(transparent)]
    Filling(#[from] FillingError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] dwcp_memory::MemoryError),
    /// A place in guest memory that every guest has.
    #[error("The guest's memory could not be written")]
    Write(#[from] dwcp_memory::vm_memory::GuestMemoryError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No such device.
    #[error("This VM has no device {0}")]
    NoDevice(String),
    /// A device that gives up no memory.
    #[error("Device {0} is no balloon")]
    NoBalloon(String),
    /// More than the guest has.
    #[error("This guest has {0} pages of memory: ask for fewer")]
    TooManyPages(u64),
    /// A number that nobody else has could not be had.
    #[error("The process got no random number")]
    Random(#[source] std::io::Error),
    /// The device state could not be handed over.
    #[error("The device state could not be handed over")]
    HandOver(#[from] std::io::Error),
}

impl Machine {
    /// Builds the machine and starts the threads of its devices and vCPUs; each gives up its system calls before this returns.
    pub fn build(
        config: VmConfig,
        parts: Parts,
        terminal: Terminal,
        backends: Vec<Box<dyn Backend>>,
        last_words: LastWords,
    ) -> Result<Self, BuildError> {
        let size = config.memory_size()?;
        let (memory, template) = match config.boot {
            Boot::Shell => {
                let memory = GuestMemory::reserve(size, open_page_map())?;
                (memory, Some(parts.memory))
            }
            Boot::Fresh { .. } | Boot::Incoming => (GuestMemory::map(parts.memory, size)?, None),
        };
        let memory = Arc::new(memory);
        let filling = match config.boot {
            Boot::Shell => Some(Filling::prepare(parts.userfaultfd, &memory, last_words)?),
            Boot::Fresh { .. } | Boot::Incoming => None,
        };
        let bitmap = DirtyBitmap::map(parts.bitmap, size)?;
        let kept = DirtyBitmap::map(DirtyBitmap::create(size)?, size)?;
        let mut vm = Vm::new(parts.kvm, memory)?;
        let fds = (0..config.vcpus)
            .map(|index| vm.create_vcpu(index))
            .collect::<Result<Vec<_>, _>>()?;
        let mut tsc_khz = 0;
        if let Some(first) = fds.first() {
            vm.settle_features(first, config.cpu)?;
            tsc_khz = first.get_tsc_khz().unwrap_or(0);
        }
        let vm = Arc::new(vm);
        let end = Arc::new(EndNotice::new()?);
        let pause = Arc::new(AtomicBool::new(true));
        let functions = functions(backends, &vm, last_words)?;
        let pci = PciBus::new(functions);
        let devices = Devices::new(Arc::clone(&vm), Arc::clone(&terminal.output), pci);
        vcpu::install_handler()?;
        let shared = Shared {
            vm: Arc::clone(&vm),
            devices: Arc::clone(&devices),
            end: Arc::clone(&end),
            last_words,
            pause: Arc::clone(&pause),
        };
        let vcpus = (0..)
            .zip(fds)
            .map(|(index, fd)| Vcpu::start(index, fd, shared.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        for function in devices.pci.functions() {
            let confined = function.worker().wait_confined();
            confined.map_err(DeviceError::from)?;
        }
        for vcpu in &vcpus {
            vcpu.wait_confined()?;
        }
        Ok(Self {
            config,
            vm,
            devices,
            vcpus,
            terminal,
            end,
            pause,
            phase: Phase::Idle,
            epoch: 0,
            tsc_khz,
            told: None,
            changes: Changes::new(bitmap, kept),
            origin: None,
            filling,
            template,
        })
    }

    /// Puts a kernel in place and readies the vCPUs to start it.
    pub fn load_kernel(&mut self, kernel: File, initrd: Option<File>) -> Result<(), BuildError> {
        let Boot::Fresh {
            cmdline, firmware, ..
        } = &self.config.boot
        else {
            return Ok(());
        };
        let fresh = Fresh {
            kernel,
            initrd,
            cmdline,
            is_firmware: *firmware,
            vcpus: self.config.vcpus,
            tsc_khz: self.tsc_khz,
        };
        let entry: Entry = boot::load(fresh, self.vm.memory())?;
        let generation = match self.config.generation {
            Some(generation) => generation,
            None => random()?,
        };
        let begun = self.devices.generation.begin(generation);
        begun.map_err(BootError::from)?;
        let mut entry = Some(entry);
        for (index, vcpu) in (0..).zip(&self.vcpus) {
            let cpuid = self.vm.features().for_vcpu(index, self.config.vcpus);
            self.told = Some(cpu(needed(&cpuid)));
            vcpu.prepare(cpuid, entry.take())?;
        }
        vcpu::finish_all(&self.vcpus)?;
        Ok(())
    }

    /// What the guest says, and the event that tells of it.
    pub fn console(&self) -> &Arc<ConsoleBuffer> {
        &self.terminal.output
    }

    /// How many bytes of input the guest would take now.
    pub fn input_room(&self) -> usize {
        let virtio = self.terminal.typed.room();
        virtio.unwrap_or_else(|| self.devices.serial.room())
    }

    /// Gives the guest input: by its virtio console if that takes any, or else by the serial port.
    pub fn input(&self, bytes: &[u8]) {
        match self.terminal.typed.room() {
            Some(_) => self.terminal.typed.add(bytes),
            None => {
                self.devices.serial.input(bytes);
            }
        }
    }

    /// Where the end of the guest is told.
    pub fn end(&self) -> &Arc<EndNotice> {
        &self.end
    }

    /// How it is.
    pub fn status(&self) -> Status {
        let functions = self.devices.pci.functions().iter();
        Status {
            phase: self.phase,
            epoch: self.epoch,
            vcpus: self.config.vcpus,
            memory_bytes: self.config.memory_bytes,
            exits: self.vcpus.iter().map(Vcpu::exits).collect(),
            cpu_ns: self.vcpus.iter().map(Vcpu::cpu_ns).collect(),
            serial_bytes: self.terminal.output.written(),
            changes_since: self.changes_since(),
            private_at: self.private_at(),
            missing_chunks: self.missing_chunks(),
            devices: functions.map(Function::status).collect(),
        }
    }

    fn private_at(&self) -> Vec<u64> {
        let memory = self.vm.memory();
        match memory.host_map() {
            Ok(hosts) if memory.is_private() => hosts.hosts(),
            _ => Vec::new(),
        }
    }

    /// What the guest was told of its CPU (before that, what it could be told), and all that a guest could be told here.
    pub fn cpu(&self) -> (Cpu, Cpu) {
        let offered = cpu(self.vm.features().described());
        (
            self.told.clone().unwrap_or_else(|| offered.clone()),
            offered,
        )
    }

    /// Lets the vCPUs run for the first time.
    pub fn run(&mut self, epoch: u64) -> Result<(), RequestError> {
        let may_run = match self.config.boot {
            Boot::Fresh { .. } => self.phase == Phase::Idle,
            Boot::Incoming | Boot::Shell => self.phase == Phase::Loaded,
        };
        if !may_run {
            return Err(self.refuse("be run"));
        }
        self.start(epoch)
    }

    /// Lets paused vCPUs go on.
    pub fn resume(&mut self, epoch: u64) -> Result<(), RequestError> {
        if self.phase != Phase::Paused {
            return Err(self.refuse("be resumed"));
        }
        self.start(epoch)
    }

    /// Stops all vCPUs, then all devices; none runs when this returns, and what was written to disks is durable. If it
    /// cannot be done the guest goes on.
    pub fn pause(&mut self) -> Result<(), RequestError> {
        if self.phase != Phase::Running {
            return Err(self.refuse("be paused"));
        }
        // While the guest still runs: what is left to do when it stands is little.
        // One after another, so that no other device is kept from its driver.
        let until = Instant::now() + SYNC_TIMEOUT;
        for function in self.devices.pci.functions() {
            let synced = function.worker().order_until(Order::Sync, until);
            synced.map_err(DeviceError::from)?;
        }
        if let Err(error) = self.stop() {
            self.go_on();
            return Err(error);
        }
        self.phase = Phase::Paused;
        match self.end.get() {
            Some(_) => Err(RequestError::Ended),
            None => Ok(()),
        }
    }

    fn stop(&self) -> Result<(), RequestError> {
        self.pause.store(true, Ordering::SeqCst);
        self.vcpus.iter().for_each(Vcpu::kick);
        let until = Instant::now() + vcpu::STAND_TIMEOUT;
        for vcpu in &self.vcpus {
            vcpu.wait_standing(until)?;
        }
        Ok(self.order_devices(|| Order::Pause, ANSWER_TIMEOUT)?)
    }

    /// As if it had not been stopped. Nobody is waited for, for somebody does not answer.
    fn go_on(&self) {
        for function in self.devices.pci.functions() {
            function.worker().go_on();
        }
        self.pause.store(false, Ordering::SeqCst);
        if let Err(error) = self.vcpus.iter().try_for_each(Vcpu::run) {
            // Neither running nor paused: nobody could say any more what it is.
            self.end
                .tell(GuestEnd::Failed(crate::process::sentence(&error)));
        }
    }

    /// Makes a disk so long, and tells the guest.
    pub fn resize(&self, device: &str, bytes: u64) -> Result<(), RequestError> {
        let resized = self.function(device)?.worker().order(Order::Resize(bytes));
        resized.map_err(DeviceError::from)?;
        Ok(())
    }

    /// Has the guest's connections to the host asked for over this socket from now on.
    pub fn hear(&self, host: OwnedFd) -> Result<(), RequestError> {
        let mut functions = self.devices.pci.functions().iter();
        let vsock = functions.find(|function| function.kind() == DeviceKind::Vsock);
        let vsock = vsock.ok_or_else(|| RequestError::NoDevice("vsock".into()))?;
        let heard = vsock.worker().order(Order::Host(host));
        heard.map_err(DeviceError::from)?;
        Ok(())
    }

    /// Has the guest give up so many pages by a balloon.
    pub fn aim(&self, device: &str, pages: u32) -> Result<(), RequestError> {
        let function = self.function(device)?;
        if function.kind() != DeviceKind::Balloon {
            return Err(RequestError::NoBalloon(device.to_owned()));
        }
        let all = self.vm.memory().size().pages();
        if u64::from(pages) >= all {
            return Err(RequestError::TooManyPages(all));
        }
        let aimed = function.worker().order(Order::Aim(pages));
        aimed.map_err(DeviceError::from)?;
        Ok(())
    }

    fn function(&self, name: &str) -> Result<&Function, RequestError> {
        let mut functions = self.devices.pci.functions().iter();
        functions
            .find(|function| function.name() == name)
            .ok_or_else(|| RequestError::NoDevice(name.to_owned()))
    }

    /// Presses the power button.
    pub fn press_power_button(&mut self) -> Result<(), RequestError> {
        match self.phase {
            Phase::Running | Phase::Paused => {
                self.devices.power.press_button();
                Ok(())
            }
            Phase::Idle | Phase::Loaded => Err(self.refuse("see its power button pressed")),
        }
    }

    fn start(&mut self, epoch: u64) -> Result<(), RequestError> {
        if epoch < self.epoch {
            return Err(RequestError::OldEpoch {
                asked: epoch,
                seen: self.epoch,
            });
        }
        self.epoch = epoch;
        // Not waited for: what the guest asks of one before it is at work, it finds then.
        for function in self.devices.pci.functions() {
            function.worker().go_on();
        }
        self.pause.store(false, Ordering::SeqCst);
        for vcpu in &self.vcpus {
            vcpu.run()?;
        }
        self.phase = Phase::Running;
        Ok(())
    }

    /// The same order to all devices, which have so long for it together. No vCPU runs meanwhile, for it could not reach any
    /// of them.
    fn order_devices(
        &self,
        order: impl Fn() -> Order,
        timeout: Duration,
    ) -> Result<(), DeviceError> {
        let until = Instant::now() + timeout;
        let functions = self.devices.pci.functions().iter();
        let given: Result<Vec<_>, _> = functions
            .map(|function| function.worker().begin(order(), until))
            .collect();
        for given in given? {
            given.finish(until)?;
        }
        Ok(())
    }

    fn refuse(&self, action: &'static str) -> RequestError {
        RequestError::Phase {
            phase: self.phase,
            action,
        }
    }
}

fn cpu((vendor, features): (String, BTreeSet<String>)) -> Cpu {
    Cpu { vendor, features }
}

/// The number of a life that was never lived.
fn random() -> std::io::Result<Generation> {
    let mut bytes = [0; 16];
    // SAFETY: the buffer is ours, and as long as is said.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(got) != Ok(bytes.len()) {
        return Err(std::io::Error::last_os_error());
    }
    Ok(Generation(bytes))
}

/// The PCI functions in the order of their slots; slot 0 is the bridge's.
fn functions(
    backends: Vec<Box<dyn Backend>>,
    vm: &Arc<Vm>,
    last_words: LastWords,
) -> Result<Vec<Function>, DeviceError> {
    let make = |(slot, backend): (usize, Box<dyn Backend>)| {
        let name = format!("{}-{slot}", backend.kind().name());
        Function::new(name, window_of(slot), backend, Arc::clone(vm), last_words)
    };
    (1..).zip(backends).map(make).collect()
}
