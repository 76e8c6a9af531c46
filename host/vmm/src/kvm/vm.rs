//! One KVM machine: memory slots, local APICs, messages to them, the clock, the dirty log.
//!
//! Slots are the regions of the guest's layout, in order. Everything a `Vm` points KVM at is owned by it.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dwcp_memory::{DirtyBitmap, GuestMemory, MappedRegion};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MEM_LOG_DIRTY_PAGES, KvmIrqRouting,
    kvm_clock_data, kvm_enable_cap, kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::{CpuFeatures, KvmError, msrs};
use crate::baseline::Baseline;

/// Pins of the I/O APIC, whose interrupts KVM leaves to us.
pub const PINS: usize = 24;

const API_VERSION: i32 = 12;
/// Three pages that some CPUs need below 4 GiB, where there is no RAM.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A machine without its vCPUs' threads.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    memory: Arc<GuestMemory>,
    features: CpuFeatures,
    registers: Vec<u32>,
    can_scale_tsc: bool,
}

/// A message-signalled interrupt: a write of `data` to `address`, which is below 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Names the CPUs.
    pub address: u32,
    /// Names the vector, and how it is delivered.
    pub data: u32,
}

/// What KVM has to remember of the machine as a whole.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    clock: kvm_clock_data,
    /// Wall clock when this was taken, nanoseconds since 1970.
    taken_at_ns: u64,
}

impl Vm {
    /// Makes a machine on `kvm` whose RAM is `memory`, without a vCPU.
    pub fn new(kvm: OwnedFd, memory: Arc<GuestMemory>) -> Result<Self, KvmError> {
        // SAFETY: we own the descriptor; if it is not KVM, every ioctl on it fails.
        let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(kvm.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::Version(version));
        }
        for (capability, name) in [
            (Cap::SplitIrqchip, "local APICs without the rest"),
            (Cap::SignalMsi, "messages to local APICs"),
            (Cap::ImmediateExit, "immediate exits"),
            (Cap::UserMemory, "memory slots"),
            (Cap::Ioeventfd, "events for registers"),
            (Cap::TscDeadlineTimer, "timers in local APICs"),
        ] {
            if !kvm.check_extension(capability) {
                return Err(KvmError::Missing(name));
            }
        }
        let fd = kvm
            .create_vm()
            .map_err(KvmError::refused("create a machine"))?;
        let features = CpuFeatures::of_host(&kvm)?;
        let vm = Self {
            fd,
            memory,
            features,
            registers: msrs::to_save(&kvm)?,
            can_scale_tsc: kvm.check_extension(Cap::TscControl),
        };
        // Before the first vCPU: local APICs in KVM, the I/O APIC here.
        let split = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [PINS as u64, 0, 0, 0],
            ..Default::default()
        };
        vm.fd
            .enable_cap(&split)
            .map_err(KvmError::refused("create local APICs"))?;
        vm.set_slots(0)?;
        vm.fd
            .set_tss_address(TSS_ADDRESS)
            .map_err(KvmError::refused("reserve its pages"))?;
        Ok(vm)
    }

    /// The guest's RAM.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// What guests can be told of their CPU here.
    pub fn features(&self) -> &CpuFeatures {
        &self.features
    }

    /// The model-specific registers that make up a vCPU's state, in the order in which they are put back.
    pub fn registers(&self) -> &[u32] {
        &self.registers
    }

    /// Settles what guests are told of their CPU: without the register of hardware bugs if KVM offers it but lets nobody
    /// set it, and nothing beyond `baseline`. `vcpu` is any one.
    pub fn settle_features(&mut self, vcpu: &VcpuFd, baseline: Baseline) -> Result<(), KvmError> {
        if self.features.offers_arch_capabilities() {
            let offered = msrs::read(vcpu, &[msrs::ARCH_CAPABILITIES])?;
            let value = offered.first().map_or(0, |msr| msr.data);
            if !msrs::try_write(vcpu, msrs::ARCH_CAPABILITIES, value)? {
                self.features.hide_arch_capabilities();
            }
        }
        Ok(self.features.limit(baseline)?)
    }

    /// Whether a guest's time stamp counter can run at another speed than the host's.
    pub fn can_scale_tsc(&self) -> bool {
        self.can_scale_tsc
    }

    /// Adds vCPU `index`.
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        self.fd
            .create_vcpu(index.into())
            .map_err(KvmError::refused("create a vCPU"))
    }

    /// Sends a message-signalled interrupt.
    pub fn send_message(&self, message: Message) -> Result<(), KvmError> {
        let message = kvm_msi {
            address_lo: message.address,
            data: message.data,
            ..Default::default()
        };
        self.fd
            .signal_msi(message)
            .map(drop)
            .map_err(KvmError::refused("send an interrupt"))
    }

    /// Says which I/O APIC pins are level-triggered and what they send; KVM reports the guest's ends of these
    /// interrupts. Replaces what was said before.
    pub fn route(&self, pins: &[(u32, Message)]) -> Result<(), KvmError> {
        let mut entries = vec![kvm_irq_routing_entry::default(); pins.len()];
        for (entry, (pin, message)) in entries.iter_mut().zip(pins) {
            entry.gsi = *pin;
            entry.type_ = KVM_IRQ_ROUTING_MSI;
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: message.address,
                data: message.data,
                ..Default::default()
            };
        }
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| KvmError::Missing("room for so many interrupt routes"))?;
        self.fd
            .set_gsi_routing(&routing)
            .map_err(KvmError::refused("route interrupts"))
    }

    /// Has every write of the guest to an address make an event, without leaving the guest for it.
    pub fn hear_write(&self, event: &EventFd, address: u64) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(KvmError::refused("hear a device's register"))
    }

    /// Ends what [`Self::hear_write`] began.
    pub fn forget_write(&self, event: &EventFd, address: u64) -> Result<(), KvmError> {
        self.fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(KvmError::refused("forget a device's register"))
    }

    /// Begins to log which pages vCPUs write.
    pub fn start_log(&self) -> Result<(), KvmError> {
        self.set_slots(KVM_MEM_LOG_DIRTY_PAGES)
    }

    /// Ends the log.
    pub fn stop_log(&self) -> Result<(), KvmError> {
        self.set_slots(0)
    }

    /// Moves the log into each of `bitmaps`: who is not among them never learns of it.
    pub fn harvest_log(&self, bitmaps: &[&DirtyBitmap]) -> Result<(), KvmError> {
        for (slot, MappedRegion { region, .. }) in (0u32..).zip(self.memory.mapped_regions()) {
            let log = self
                .fd
                .get_dirty_log(slot, region.bytes as usize)
                .map_err(KvmError::refused("read its dirty log"))?;
            for bitmap in bitmaps {
                bitmap
                    .or_from_log(region.offset.page(), &log)
                    .map_err(|_| KvmError::Missing("a dirty log of the right length"))?;
            }
        }
        Ok(())
    }

    /// Takes the state of the parts that are not a vCPU. No vCPU may run meanwhile.
    pub fn save(&self) -> Result<MachineState, KvmError> {
        let mut clock = self
            .fd
            .get_clock()
            .map_err(KvmError::refused("read the clock"))?;
        // We advance it ourselves; the flags that were read would be refused when it is set.
        clock.flags = 0;
        Ok(MachineState {
            clock,
            taken_at_ns: wall_clock_ns(),
        })
    }

    /// Puts a saved state in place, the clock advanced by the wall time since. Answers that time in nanoseconds.
    pub fn load(&self, state: &MachineState) -> Result<u64, KvmError> {
        let passed_ns = wall_clock_ns().saturating_sub(state.taken_at_ns);
        let clock = kvm_clock_data {
            clock: state.clock.clock.saturating_add(passed_ns),
            ..Default::default()
        };
        self.fd
            .set_clock(&clock)
            .map_err(KvmError::refused("set the clock"))?;
        Ok(passed_ns)
    }

    fn set_slots(&self, flags: u32) -> Result<(), KvmError> {
        for (slot, MappedRegion { region, host }) in (0u32..).zip(self.memory.mapped_regions()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start.0,
                memory_size: region.bytes,
                userspace_addr: host as u64,
            };
            // SAFETY: the range is a mapping that `self.memory` owns; fields drop in order, so it outlives the machine.
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(KvmError::refused("map guest memory"))?;
        }
        Ok(())
    }
}

fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}
