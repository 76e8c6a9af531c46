//! The whole state of one vCPU, read from KVM and put back.
//!
//! The order of putting back matters: CPUID decides which registers exist, the APIC's base comes with the special
//! registers, the deadline timer needs the APIC, and pending events come last.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{KvmError, Vm, cpuid, msrs};

/// Time stamp counters may differ by this many parts in a million and still count as equally fast.
const TSC_TOLERANCE_PPM: u64 = 1000;

/// Everything that a vCPU has to remember.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    /// None on a CPU without them.
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads the state. The vCPU must not be in the middle of an exit. `cpuid` is what it was told when it was made:
    /// what KVM answers later holds the guest's own settings too, and on some KVMs the bare CPU's.
    pub fn save(vcpu: &VcpuFd, vm: &Vm, cpuid: &[kvm_cpuid_entry2]) -> Result<Self, KvmError> {
        Ok(Self {
            cpuid: cpuid.to_vec(),
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            mp_state: vcpu
                .get_mp_state()
                .map_err(KvmError::refused("read a vCPU's run state"))?,
            regs: vcpu
                .get_regs()
                .map_err(KvmError::refused("read general registers"))?,
            sregs: vcpu
                .get_sregs()
                .map_err(KvmError::refused("read special registers"))?,
            xsave: Box::new(
                vcpu.get_xsave()
                    .map_err(KvmError::refused("read extended registers"))?,
            ),
            xcrs: cpuid::has_xsave(cpuid)
                .then(|| vcpu.get_xcrs())
                .transpose()
                .map_err(KvmError::refused("read extended control registers"))?,
            debug: vcpu
                .get_debug_regs()
                .map_err(KvmError::refused("read debug registers"))?,
            lapic: Box::new(
                vcpu.get_lapic()
                    .map_err(KvmError::refused("read the local APIC"))?,
            ),
            msrs: msrs::read(vcpu, vm.registers())?,
            events: vcpu
                .get_vcpu_events()
                .map_err(KvmError::refused("read pending events"))?,
        })
    }

    /// What the vCPU was told of its CPU.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Puts the state in place, its time stamp counter advanced by `passed_ns`.
    pub fn load(&self, vcpu: &VcpuFd, vm: &Vm, passed_ns: u64) -> Result<(), KvmError> {
        vm.features().cover(&self.cpuid)?;
        vcpu.set_cpuid2(&cpuid::to_kvm(&self.cpuid)?)
            .map_err(KvmError::refused("set CPUID"))?;
        self.match_tsc_speed(vcpu, vm)?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(KvmError::refused("set a vCPU's run state"))?;
        vcpu.set_regs(&self.regs)
            .map_err(KvmError::refused("set general registers"))?;
        vcpu.set_sregs(&self.sregs)
            .map_err(KvmError::refused("set special registers"))?;
        // SAFETY: this process asked for no dynamically enabled feature, so KVM reads just these 4096 bytes.
        unsafe { vcpu.set_xsave(&self.xsave) }
            .map_err(KvmError::refused("set extended registers"))?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs)
                .map_err(KvmError::refused("set extended control registers"))?;
        }
        vcpu.set_debug_regs(&self.debug)
            .map_err(KvmError::refused("set debug registers"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(KvmError::refused("set the local APIC"))?;
        msrs::write(vcpu, &self.advanced_msrs(passed_ns))?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(KvmError::refused("set pending events"))
    }

    fn match_tsc_speed(&self, vcpu: &VcpuFd, vm: &Vm) -> Result<(), KvmError> {
        let here = vcpu.get_tsc_khz().unwrap_or(0);
        let saved = self.tsc_khz;
        let apart = u64::from(saved.abs_diff(here)) * 1_000_000;
        if saved == 0 || here == 0 || apart <= u64::from(here) * TSC_TOLERANCE_PPM {
            return Ok(());
        }
        if !vm.can_scale_tsc() {
            return Err(KvmError::TscSpeed { saved, here });
        }
        vcpu.set_tsc_khz(saved)
            .map_err(KvmError::refused("set the speed of time"))
    }

    fn advanced_msrs(&self, passed_ns: u64) -> Vec<kvm_msr_entry> {
        let passed = u128::from(passed_ns) * u128::from(self.tsc_khz) / 1_000_000;
        let mut entries = self.msrs.clone();
        for entry in &mut entries {
            if entry.index == msrs::TSC {
                entry.data = entry.data.wrapping_add(passed as u64);
            }
        }
        entries
    }
}
