//! A virtio device as a PCI function (virtio 1.3, 4.1): its configuration space, and one window of registers.
//!
//! ```text
//! window  0x0000  common registers     0x3000  notify: 4 bytes per queue
//!         0x1000  interrupt status     0x4000  MSI-X table
//!         0x2000  the device's own     0x5000  MSI-X pending bits
//! ```
//!
//! Called by vCPU threads for the guest's accesses, and by the event loop while all vCPUs stand still.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dwcp_jail::LastWords;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::interrupts::Interrupts;
use super::registers::{Beside, DRIVER_OK, Effect, Offer, Registers};
use super::{
    Answer, Backend, Broken, Counters, Given, Kind, Order, OwnRegisters, Running, Worker,
    WorkerError, balloon,
};
use crate::devices::pci::{
    BAR0, COMMAND, ConfigSpace, ConfigState, Identity, Msix, MsixState, WINDOW_BYTES, in_window,
};
use crate::kvm::{KvmError, Vm};
use crate::protocol::{BalloonStatus, DeviceStatus};

const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;

const COMMON: usize = 0x0000;
const STATUS: usize = 0x1000;
const OWN: usize = 0x2000;
const NOTIFY: usize = 0x3000;
const TABLE: usize = 0x4000;
const PENDING: usize = 0x5000;
const PART_BYTES: usize = 0x1000;
const NOTIFY_BYTES: usize = 4;

/// A device, as the guest finds it.
#[derive(Debug)]
pub struct Function {
    name: String,
    kind: Kind,
    offer: Offer,
    config: Mutex<ConfigSpace>,
    /// Where the capabilities are whose registers do something.
    msix_control: usize,
    access: usize,
    msix: Arc<Msix>,
    interrupts: Arc<Interrupts>,
    registers: Mutex<Registers>,
    own: Arc<OwnRegisters>,
    kicks: Arc<[EventFd]>,
    counters: Arc<Counters>,
    worker: Worker,
    vm: Arc<Vm>,
    /// Where the window answers; 0 if nowhere.
    window: AtomicU32,
}

/// A device in the state of a VM.
#[derive(Debug, Serialize, Deserialize)]
pub struct FunctionState {
    kind: u16,
    config: ConfigState,
    msix: MsixState,
    vectors: Vec<u16>,
    configuration_vector: u16,
    interrupt_status: u8,
    needs_reset: bool,
    registers: Registers,
    own: Vec<u8>,
    backend: Vec<u8>,
}

/// Why a device cannot be made, used or restored.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Its thread.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// An event descriptor.
    #[error("The process could not make an event")]
    Event(#[source] std::io::Error),
    /// The state is of another device, or of one with other features.
    #[error("The state of device {name} is of another one: {why}")]
    Other {
        /// Which device.
        name: String,
        /// In what it differs.
        why: &'static str,
    },
}

impl Function {
    /// Makes the device in a slot, its window at `address`, and starts its thread.
    pub fn new(
        name: String,
        address: u32,
        backend: Box<dyn Backend>,
        vm: Arc<Vm>,
        last_words: LastWords,
    ) -> Result<Self, DeviceError> {
        let kind = backend.kind();
        let offer = Offer::of(backend.as_ref());
        let own = backend.registers();
        let queues = offer.queues.len();
        let event = || EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        let kicks: Arc<[EventFd]> = (0..queues)
            .map(|_| event())
            .collect::<Result<_, _>>()
            .map_err(DeviceError::Event)?;
        let msix = Arc::new(Msix::new(Arc::clone(&vm) as _, queues as u16 + 1));
        let interrupts = Arc::new(Interrupts::new(Arc::clone(&msix), queues));
        let counters = backend.counters();
        let mut rules = backend.rules();
        rules.extend(backend.memory_rules(vm.memory()));
        let worker = Worker::start(
            &name,
            backend,
            rules,
            Arc::clone(&kicks),
            Arc::clone(&interrupts),
            Arc::clone(&counters),
            last_words,
        )?;
        let (config, msix_control, access) = config_space(kind, address, queues);
        Ok(Self {
            registers: Mutex::new(Registers::new(&offer)),
            name,
            kind,
            offer,
            config: Mutex::new(config),
            msix_control,
            access,
            msix,
            interrupts,
            own,
            kicks,
            counters,
            worker,
            vm,
            window: AtomicU32::new(0),
        })
    }

    /// Its name: what it is, and its number.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its thread.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// How it is.
    pub fn status(&self) -> DeviceStatus {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeviceStatus {
            name: self.name.clone(),
            operations: load(&self.counters.operations),
            read_bytes: load(&self.counters.read_bytes),
            written_bytes: load(&self.counters.written_bytes),
            errors: load(&self.counters.errors),
            needs_reset: self.interrupts.needs_reset(),
            balloon: (self.kind == Kind::Balloon).then(|| {
                let (target_pages, actual_pages) = balloon::pages(&self.own);
                BalloonStatus {
                    target_pages,
                    actual_pages,
                }
            }),
        }
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The descriptors that code on a vCPU's thread writes to.
    pub fn events(&self) -> impl Iterator<Item = std::os::fd::BorrowedFd<'_>> {
        let kicks = self.kicks.iter().map(super::worker::borrow);
        kicks.chain([self.worker.bell()])
    }

    /// The guest reads its configuration space.
    pub fn read_config(&self, offset: usize, data: &mut [u8]) {
        if let Some((at, bytes)) = self.accessed(offset, data.len()) {
            data.fill(0);
            self.read(at, &mut data[..bytes]);
            return;
        }
        self.config().read(offset, data);
    }

    /// The guest writes its configuration space.
    pub fn write_config(&self, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        if let Some((at, bytes)) = self.accessed(offset, data.len()) {
            return self.write(at, &data[..bytes]);
        }
        let mut config = self.config();
        config.write(offset, data);
        let touches = |at: usize, bytes: usize| offset < at + bytes && at < offset + data.len();
        if touches(self.msix_control, 2) {
            self.msix.set_control(config.word(self.msix_control));
        }
        if touches(COMMAND, 2) || touches(BAR0, 4) {
            self.move_window(&config);
        }
        Ok(())
    }

    /// Where in its window an address is.
    pub fn offset_of(&self, address: u64) -> Option<usize> {
        let window = self.window.load(Ordering::SeqCst);
        let inside = address.checked_sub(window.into())?;
        (window != 0 && inside < WINDOW_BYTES.into()).then_some(inside as usize)
    }

    /// The guest reads a register of the window.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        match offset / PART_BYTES * PART_BYTES {
            COMMON => {
                let registers = self.registers();
                let beside = Beside {
                    configuration_vector: self.interrupts.vector(None),
                    queue_vector: registers
                        .selected()
                        .map_or(super::interrupts::NO_VECTOR, |queue| {
                            self.interrupts.vector(Some(queue))
                        }),
                    generation: self.own.generation(),
                    needs_reset: self.interrupts.needs_reset(),
                };
                registers.read(offset - COMMON, data, &self.offer, beside);
            }
            STATUS => {
                data.fill(0);
                if let (STATUS, Some(first)) = (offset, data.first_mut()) {
                    *first = self.interrupts.take_status();
                }
            }
            OWN => self.own.read(offset - OWN, data),
            TABLE => self.msix.read_table(offset - TABLE, data),
            PENDING => self.msix.read_pending(offset - PENDING, data),
            _ => data.fill(0),
        }
    }

    /// The guest writes a register of the window.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        match offset / PART_BYTES * PART_BYTES {
            COMMON => self.write_common(offset - COMMON, data)?,
            OWN => {
                self.own.write(offset - OWN, data);
            }
            // Only where KVM does not hear it itself.
            NOTIFY => {
                if let Some(kick) = self.kicks.get((offset - NOTIFY) / NOTIFY_BYTES) {
                    let _ = kick.write(1);
                }
            }
            TABLE => self.msix.write_table(offset - TABLE, data),
            _ => {}
        }
        Ok(())
    }

    /// Its state; its thread is paused.
    pub fn save(&self) -> Result<FunctionState, DeviceError> {
        let mut registers = self.registers().clone();
        let Answer::Saved(queues, backend) = self.worker.order(Order::Save)? else {
            return Err(WorkerError::Silent(self.name.clone()).into());
        };
        for (register, used) in registers.queues.iter_mut().zip(queues) {
            *register = used.unwrap_or(*register);
        }
        let vectors = 0..self.kicks.len();
        Ok(FunctionState {
            kind: self.kind as u16,
            config: self.config().save(),
            msix: self.msix.save(),
            vectors: vectors
                .map(|queue| self.interrupts.vector(Some(queue)))
                .collect(),
            configuration_vector: self.interrupts.vector(None),
            interrupt_status: self.interrupts.peek_status(),
            needs_reset: self.interrupts.needs_reset(),
            registers,
            own: self.own.all(),
            backend,
        })
    }

    /// Puts a saved state in place; its thread is paused, and goes on from there when it is resumed. Loaded when what is
    /// answered is finished.
    pub fn load(&self, state: FunctionState, until: Instant) -> Result<Given<'_>, DeviceError> {
        let other = |why| DeviceError::Other {
            name: self.name.clone(),
            why,
        };
        if state.kind != self.kind as u16 {
            return Err(other("it is of another kind"));
        }
        if state.registers.queues.len() != self.offer.queues.len() {
            return Err(other("it has more or fewer queues"));
        }
        if state.registers.driver_features & !self.offer.features != 0 {
            return Err(other("its driver uses features that are not offered here"));
        }
        if !self.msix.load(state.msix) {
            return Err(other("it has more or fewer interrupts"));
        }
        let mut config = self.config();
        config.load(&state.config);
        self.move_window(&config);
        drop(config);
        for (queue, vector) in state.vectors.into_iter().enumerate() {
            self.interrupts.set_vector(Some(queue), vector);
        }
        self.interrupts.set_vector(None, state.configuration_vector);
        self.interrupts
            .set_status(state.interrupt_status, state.needs_reset);
        let differs = self.own.load(&state.own);
        let is_active = state.registers.status & DRIVER_OK != 0 && !state.needs_reset;
        *self.registers() = state.registers;
        let mut running = None;
        if is_active {
            let queues = self.running(&self.registers());
            let queues = queues.map_err(|_| other("its queues are not in memory"))?;
            running = Some(Box::new(queues));
            if differs {
                self.interrupts.configuration();
            }
        }
        Ok(self
            .worker
            .begin(Order::Load(state.backend, running), until)?)
    }

    fn write_common(&self, offset: usize, data: &[u8]) -> Result<(), DeviceError> {
        let mut registers = self.registers();
        match registers.write(offset, data, &self.offer) {
            Effect::None => {}
            Effect::Vector(queue, vector) => self.interrupts.set_vector(queue, vector),
            Effect::Reset => {
                self.worker.order(Order::Reset)?;
                self.interrupts.reset();
            }
            Effect::Activate => match self.running(&registers) {
                Ok(running) => {
                    self.worker.order(Order::Activate(Box::new(running)))?;
                }
                Err(_) => {
                    self.counters.errors.fetch_add(1, Ordering::Relaxed);
                    self.interrupts.need_reset();
                }
            },
        }
        Ok(())
    }

    /// The queues that the driver enabled, checked.
    fn running(&self, registers: &Registers) -> Result<Running, Broken> {
        let memory = Arc::clone(self.vm.memory());
        let interrupts = Arc::clone(&self.interrupts);
        Running::open(registers, &self.offer, memory, interrupts)
    }

    /// Has the window answer where the configuration space says, if that is where windows may be.
    fn move_window(&self, config: &ConfigSpace) {
        let wanted = config.window().filter(|at| in_window(*at)).unwrap_or(0);
        let old = self.window.swap(wanted, Ordering::SeqCst);
        if wanted == old {
            return;
        }
        for (queue, kick) in self.kicks.iter().enumerate() {
            let place = |window: u32| u64::from(window) + (NOTIFY + NOTIFY_BYTES * queue) as u64;
            if old != 0 {
                let _ = self.vm.forget_write(kick, place(old));
            }
            if wanted != 0 {
                // Refused where another window lies already: then the guest's write is heard as any other.
                let _ = self.vm.hear_write(kick, place(wanted));
            }
        }
    }

    /// Which register of the window an access to the configuration space means (virtio 1.3, 4.1.4.9).
    fn accessed(&self, offset: usize, bytes: usize) -> Option<(usize, usize)> {
        let data = self.access + 16;
        if offset != data || !matches!(bytes, 1 | 2 | 4) {
            return None;
        }
        let config = self.config();
        let (bar, at) = (
            config.word(self.access + 4) & 0xff,
            config.double_word(self.access + 8),
        );
        let length = config.double_word(self.access + 12) as usize;
        let is_inside = bar == 0 && at < WINDOW_BYTES && matches!(length, 1 | 2 | 4);
        is_inside.then_some((at as usize, length.min(bytes)))
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The configuration space; where its MSI-X control register is, and where its access capability begins.
fn config_space(kind: Kind, address: u32, queues: usize) -> (ConfigSpace, usize, usize) {
    let mut config = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device: FIRST_DEVICE + kind as u16,
        revision: 1,
        class: kind.class(),
        subsystem: (VENDOR, FIRST_DEVICE + kind as u16),
    });
    config.set_bar0(address, WINDOW_BYTES);
    let mut add = |number: u8, at: usize, bytes: usize, more: &[u8]| {
        let mut body = vec![(16 + more.len()) as u8, number, 0, 0, 0, 0];
        body.extend((at as u32).to_le_bytes());
        body.extend((bytes as u32).to_le_bytes());
        body.extend(more);
        config.add_capability(CAPABILITY_VENDOR, &body)
    };
    add(1, COMMON, 0x40, &[]);
    add(
        2,
        NOTIFY,
        NOTIFY_BYTES * queues,
        &(NOTIFY_BYTES as u32).to_le_bytes(),
    );
    add(3, STATUS, 1, &[]);
    add(4, OWN, PART_BYTES, &[]);
    let access = add(5, 0, 0, &[0; 4]);
    config.allow(access + 4, &[0xff]);
    config.allow(access + 8, &[0xff; 8]);
    let mut msix = (queues as u16).to_le_bytes().to_vec(); // one vector more than queues, less one
    msix.extend((TABLE as u32).to_le_bytes());
    msix.extend((PENDING as u32).to_le_bytes());
    let msix = config.add_capability(CAPABILITY_MSIX, &msix) + 2;
    config.allow(msix, &[0, 0xc0]);
    (config, msix, access)
}
