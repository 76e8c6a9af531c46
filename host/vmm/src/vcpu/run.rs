//! What a vCPU's thread does: obey, and run the guest until it is kicked or the guest ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_cpuid_entry2};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{Answer, Command, Shared, kick};
use crate::boot::{self, Entry};
use crate::end::GuestEnd;
use crate::filters;
use crate::kvm::{self, KvmError, VcpuState};

/// The vCPU and what it reaches.
pub struct Runner {
    fd: VcpuFd,
    cpuid: Vec<kvm_cpuid_entry2>,
    shared: Shared,
    exits: Arc<AtomicU64>,
}

impl Runner {
    pub fn new(fd: VcpuFd, shared: Shared, exits: Arc<AtomicU64>) -> Self {
        Self {
            fd,
            cpuid: Vec::new(),
            shared,
            exits,
        }
    }

    /// The life of the thread: it ends when the event loop does.
    pub fn obey(mut self, orders: &Receiver<Command>, answers: &SyncSender<Answer>) {
        kick::bind(&mut self.fd);
        let shared = &self.shared;
        let confined = filters::confine_vcpu(shared.last_words, &shared.devices, &shared.end);
        let is_confined = confined.is_ok();
        let mut told = answers.send(Answer::Confined(confined)).is_ok() && is_confined;
        while told {
            let Ok(command) = orders.recv() else { break };
            let answer = match command {
                Command::Prepare(cpuid, entry) => Answer::Did(self.prepare(cpuid, entry)),
                Command::Load(state, passed_ns) => Answer::Did(self.load(&state, passed_ns)),
                Command::Save => Answer::Saved(
                    VcpuState::save(&self.fd, &self.shared.vm, &self.cpuid).map(Box::new),
                ),
                Command::Run => {
                    self.run();
                    Answer::Stands
                }
            };
            told = answers.send(answer).is_ok();
        }
        kick::release();
    }

    fn prepare(
        &mut self,
        cpuid: Vec<kvm_cpuid_entry2>,
        entry: Option<Entry>,
    ) -> Result<(), KvmError> {
        kvm::set_cpuid(&self.fd, &cpuid)?;
        self.cpuid = cpuid;
        boot::prepare_vcpu(&self.fd, entry)
    }

    fn load(&mut self, state: &VcpuState, passed_ns: u64) -> Result<(), KvmError> {
        state.load(&self.fd, &self.shared.vm, passed_ns)?;
        self.cpuid = state.cpuid().to_vec();
        Ok(())
    }

    /// Runs the guest until the pause flag is set or the guest ends; then no exit is half done.
    fn run(&mut self) {
        // Tells a Linux guest that it stood still, so that its watchdog does not bark; others have no such clock.
        let _ = self.fd.kvmclock_ctrl();
        while !self.shared.pause.load(Ordering::SeqCst) {
            if let Some(end) = self.enter() {
                self.shared.end.tell(end);
                break;
            }
        }
        self.finish_exit();
    }

    /// One stay in the guest.
    fn enter(&mut self) -> Option<GuestEnd> {
        let devices = &self.shared.devices;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.fd.set_kvm_immediate_exit(0);
                return None;
            }
            Err(error) => {
                return Some(GuestEnd::Failed(format!(
                    "KVM cannot run the guest: {error}"
                )));
            }
        };
        self.exits.fetch_add(1, Ordering::Relaxed);
        match exit {
            VcpuExit::IoOut(port, data) => devices.write(port, data),
            VcpuExit::IoIn(port, data) => {
                devices.read(port, data);
                None
            }
            VcpuExit::MmioWrite(address, data) => devices.write_memory(address, data),
            VcpuExit::MmioRead(address, data) => {
                devices.read_memory(address, data);
                None
            }
            VcpuExit::IoapicEoi(vector) => {
                devices.ioapic.end_of_interrupt(vector);
                None
            }
            VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => None,
            VcpuExit::Shutdown => Some(GuestEnd::TripleFault),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Some(GuestEnd::PowerOff),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Some(GuestEnd::Reset),
            VcpuExit::InternalError => Some(GuestEnd::Failed(
                "KVM cannot emulate what the guest does".to_owned(),
            )),
            other => Some(GuestEnd::Failed(format!(
                "KVM left the guest for a reason that nobody handles: {other:?}"
            ))),
        }
    }

    /// Lets KVM complete the port or memory access of the last exit, without entering the guest: what is saved
    /// afterwards is the state between two instructions.
    fn finish_exit(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }
}
