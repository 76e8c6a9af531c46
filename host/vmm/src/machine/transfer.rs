//! Saving the machine, and loading what another one saved.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Boot, Machine, Phase, RequestError};
use crate::config::Generation;
use crate::devices::{
    ANSWER_TIMEOUT, DeviceError, FunctionState, IoApicState, PowerState, SerialRegisters,
};
use crate::kvm::{MachineState, VcpuState, needed};
use crate::state::{StateReader, StateWriter};
use crate::vcpu;

const MACHINE_VERSION: u32 = 1;
const KVM_VERSION: u32 = 1;
const VCPU_VERSION: u32 = 1;
const IO_APIC_VERSION: u32 = 1;
const SERIAL_VERSION: u32 = 1;
const POWER_VERSION: u32 = 1;
const GENERATION_VERSION: u32 = 1;
const PCI_VERSION: u32 = 1;
const DEVICE_VERSION: u32 = 1;

/// What must be the same on both sides.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shape {
    vcpus: u8,
    memory_bytes: u64,
}

impl Machine {
    /// The device state of the paused machine.
    pub fn save(&mut self) -> Result<Vec<u8>, RequestError> {
        if self.phase != Phase::Paused {
            return Err(self.refuse("be saved"));
        }
        let mut state = StateWriter::new();
        state.put("machine", MACHINE_VERSION, &self.shape())?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            state.put(&format!("vcpu.{index}"), VCPU_VERSION, &vcpu.save()?)?;
        }
        state.put("kvm", KVM_VERSION, &self.vm.save()?)?;
        state.put("ioapic", IO_APIC_VERSION, &self.devices.ioapic.save())?;
        state.put("serial", SERIAL_VERSION, &self.devices.serial.save())?;
        state.put("power", POWER_VERSION, &self.devices.power.save())?;
        let generation = self.devices.generation.save();
        state.put("generation", GENERATION_VERSION, &generation)?;
        let pci = &self.devices.pci;
        state.put("pci", PCI_VERSION, &pci.address())?;
        for function in pci.functions() {
            state.put(function.name(), DEVICE_VERSION, &function.save()?)?;
        }
        Ok(state.finish())
    }

    /// Takes a device state into a machine that was started as incoming. What was loaded in part when this fails
    /// is never run.
    pub fn load(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        if self.config.boot != Boot::Incoming || self.phase != Phase::Idle {
            return Err(self.refuse("take a device state"));
        }
        // The same machine goes on, so the guest keeps its generation if no other one is wanted.
        self.take_state(bytes, self.config.generation)
    }

    /// Puts a device state in place; the guest has the generation `wanted` from then on, if any is.
    pub(super) fn take_state(
        &mut self,
        bytes: &[u8],
        wanted: Option<Generation>,
    ) -> Result<(), RequestError> {
        let mut state = StateReader::new(bytes)?;
        let shape: Shape = state.take("machine", MACHINE_VERSION)?;
        if shape != self.shape() {
            return Err(RequestError::OtherMachine(format!(
                "{} vCPUs and {} bytes of memory",
                shape.vcpus, shape.memory_bytes
            )));
        }
        let vcpus = (0..self.vcpus.len())
            .map(|index| state.take(&format!("vcpu.{index}"), VCPU_VERSION))
            .collect::<Result<Vec<Box<VcpuState>>, _>>()?;
        let kvm: MachineState = state.take("kvm", KVM_VERSION)?;
        let ioapic: IoApicState = state.take("ioapic", IO_APIC_VERSION)?;
        let serial: SerialRegisters = state.take("serial", SERIAL_VERSION)?;
        let power: PowerState = state.take("power", POWER_VERSION)?;
        let generation: Generation = state.take("generation", GENERATION_VERSION)?;
        let address: u32 = state.take("pci", PCI_VERSION)?;
        let functions = self.devices.pci.functions();
        let devices = functions
            .iter()
            .map(|function| state.take(function.name(), DEVICE_VERSION))
            .collect::<Result<Vec<FunctionState>, _>>()?;
        state.finish()?;

        // All were told the same features.
        let first = vcpus.first().map_or(&[][..], |vcpu| vcpu.cpuid());
        let told = super::cpu(needed(first));
        let passed_ns = self.vm.load(&kvm)?;
        // All threads work at the same time: each is told first, then waited for.
        for (vcpu, state) in self.vcpus.iter().zip(vcpus) {
            vcpu.load(state, passed_ns)?;
        }
        vcpu::finish_all(&self.vcpus)?;
        self.devices.ioapic.load(ioapic)?;
        if !self.devices.serial.load(serial) {
            return Err(crate::state::StateError::Damaged.into());
        }
        self.devices.power.load(power);
        self.devices.pci.set_address(address);
        let until = Instant::now() + ANSWER_TIMEOUT;
        let loads = functions.iter().zip(devices);
        let loads: Result<Vec<_>, _> = loads
            .map(|(function, state)| function.load(state, until))
            .collect();
        for load in loads? {
            load.finish(until).map_err(DeviceError::from)?;
        }
        // After vCPUs and lines: it may interrupt.
        self.devices.generation.load(generation, wanted)?;
        self.told = Some(told);
        self.phase = Phase::Loaded;
        Ok(())
    }

    fn shape(&self) -> Shape {
        Shape {
            vcpus: self.config.vcpus,
            memory_bytes: self.config.memory_bytes,
        }
    }
}
